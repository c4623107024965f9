# make demo: install, search the digits, report and export.   make test: install, lint, types, the fast tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
RUN    ?= runs/demo
THREADS := OMP_NUM_THREADS=1

.PHONY: install demo check test test-all clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 12), "Python 3.11 or 3.12 is needed: make PYTHON=..."'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[export,images,timm,dev]'
	touch $(STAMP)

demo: install
	rm -rf $(RUN)
	$(BIN)/bsconv-nas search experiments/quickstart.toml --run $(RUN)
	$(BIN)/bsconv-nas report $(RUN)
	$(BIN)/bsconv-nas export $(RUN) --out $(RUN)/export

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest -m 'not slow and not browser'

# Everything; --strict-tools fails where a test would skip for want of a tool.
test-all: test
	$(BIN)/python -m pytest --strict-tools -m 'slow or browser'

clean:
	rm -rf $(VENV) runs build .mypy_cache .pytest_cache .ruff_cache .hypothesis
