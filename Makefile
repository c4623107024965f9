# make demo: install, search the digits, report and export.   make test: install, lint, types, the fast tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Test files that run side by side, each on one thread.
JOBS   ?= 2
# What tests leave in the system's temporary folder goes when they end.
PYTEST = scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && TMPDIR=$$scratch OMP_NUM_THREADS=1 \
         $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --durations 25

.PHONY: install demo check test test-all clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 12), "Python 3.11 or 3.12 is needed: make PYTHON=..."'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[export,images,timm,dev]'
	touch $(STAMP)

demo: install
	rm -rf runs/demo
	$(BIN)/bsconv-nas search experiments/quickstart.toml --run runs/demo
	$(BIN)/bsconv-nas report runs/demo
	$(BIN)/bsconv-nas export runs/demo --out runs/demo/export

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(PYTEST) $(STRICT) -m 'not slow and not browser'

# Everything, make test included; --strict-tools fails what would skip for want of a tool.
test-all: STRICT := --strict-tools
test-all: test
	$(PYTEST) $(STRICT) -m 'slow or browser'

clean:
	rm -rf $(VENV) runs/demo build .mypy_cache .pytest_cache .ruff_cache .hypothesis
