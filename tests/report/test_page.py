import html
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from bsconv_nas.cost.budget import Budget
from bsconv_nas.errors import RecordError
from bsconv_nas.report import page
from bsconv_nas.search.record import Objective

CHROMIUM = ("/usr/bin/chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr")
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
FIGURES = ("front", "operators", "importance", "progress", "curves")


def without_library(text: str) -> str:
    """The page without plotly.js, which holds many strings of its own."""
    return text.replace(page.get_plotlyjs(), "")


class Elements(HTMLParser):
    """Collects the elements with their attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.found and self.found[-1][0] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def text(view) -> str:
    return without_library(page.render(view))


def test_the_page_has_every_figure_and_table(text):
    elements = Elements(text)
    ids = [attributes.get("id") for _, attributes in elements.found]
    assert {f"figure-{name}" for name in FIGURES} <= set(ids)
    assert sum(tag == "table" for tag, _ in elements.found) == 3


def test_the_page_asks_for_nothing_from_outside(text):
    for tag, attributes in Elements(text).found:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"url\(|@import", text)
    policy = next(a["content"] for t, a in Elements(text).found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")


def test_the_library_is_embedded_once(view):
    assert page.render(view).count(page.get_plotlyjs()) == 1


def test_the_tables_show_what_the_record_holds(view, text):
    words = Elements(text).text
    for row in view.front.to_dict("records"):
        assert row["key"][:8] in words
        assert f"{100 * row['val_accuracy']:.2f} %" in words
    assert "fvcore" in words
    assert "multiply-adds of convolutions and linear layers" in words
    assert "on the selection part of the validation images, 5,000 of them" in words


def test_hostile_text_stays_text(writer, network):
    writer.trial("search", network("bsconv_u"), 0.8)
    writer.trial("search", network("dsc"), 0.1, state="failed", cause=HOSTILE)
    plain = page.render(writer.view())
    settings = {"data": {"name": HOSTILE, HOSTILE: [HOSTILE]}, "recipe": HOSTILE}
    view = replace(
        writer.view(experiment=settings, environment={HOSTILE: HOSTILE}, verdict=(HOSTILE,)),
        name=HOSTILE,
        objectives=(Objective("val_accuracy", "max"), Objective(HOSTILE, "max")),
    )
    hostile = page.render(view)
    elements = Elements(without_library(hostile))
    assert [tag for tag, _ in elements.found].count("script") == without_library(plain).count("<script") - 1
    assert not any(tag == "img" or "onerror" in attributes for tag, attributes in elements.found)
    assert html.escape(HOSTILE) in hostile
    assert HOSTILE not in hostile


def test_writing_is_whole_or_not_at_all(writer, tmp_path):
    path = tmp_path / "deep" / "report.html"
    with pytest.raises(RecordError, match=r"into an existing folder, but there is no '.*deep': make it"):
        page.write(writer.view(), path)
    path.parent.mkdir()
    assert page.write(writer.view(), path) == path
    first = path.read_text()
    assert first.endswith("</html>")
    with pytest.raises(TypeError):
        page.write(replace(writer.view(), verdict=None, objectives=None), path)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert path.read_text() == first


def test_who_reads_the_old_page_reads_it_to_its_end(writer, network, tmp_path):
    path = page.write(writer.view(), tmp_path / "report.html")
    with path.open() as old:
        first = old.read(1000)
        writer.trial("search", network("dsc"), 0.5)
        page.write(writer.view(), path)
        assert (first + old.read()).endswith("</html>")
    assert path.read_text() != first


def test_a_run_without_trials_says_so(writer):
    words = Elements(without_library(page.render(writer.view()))).text
    for sentence in (
        "No trial has started yet.",
        "The front is empty: no trial is complete yet.",
        "The hypervolume needs a complete trial.",
        "No trial has finished an epoch yet.",
        "This run has no baselines, so it cannot say whether mixing decompositions helps.",
        "No trial is complete yet, so there is nothing to compare.",
    ):
        assert sentence in words


@pytest.mark.parametrize("state", ["complete", "stopped", "failed", "running"])
def test_a_single_trial_of_any_state_is_a_page(writer, network, state):
    if state == "running":
        writer.started("search", network("dsc"))
    else:
        writer.trial("search", network("dsc"), 0.5, state=state, epochs=1)
    assert 'id="figure-front"' in page.render(writer.view())


@pytest.mark.parametrize("names", [("val_accuracy",), ("val_accuracy", "params"), ("val_accuracy", "macs", "memory")])
def test_any_objectives_make_a_page(writer, feasible, names):
    objectives = tuple(Objective(name, "max" if name == "val_accuracy" else "min") for name in names)
    for i, architecture in enumerate(feasible.sample(3, np.random.default_rng(0))):
        writer.trial("search" if i else "baseline", architecture, 0.5 + i / 10)
    assert "minimise" in page.render(writer.view(objectives=objectives)) or len(names) == 1


def test_accuracies_that_are_not_numbers_make_a_page(writer, network):
    writer.trial("search", network("dsc"), float("nan"), epochs=0)
    writer.trial("baseline", network("bsconv_u"), float("nan"), epochs=0, state="failed", val_accuracy=float("nan"))
    text = page.render(writer.view(budget=Budget()))
    assert "1 complete trial without a finite accuracy" in text


def test_the_report_imports_neither_torch_nor_ray():
    code = "import sys, bsconv_nas.report.page; print(sorted({'torch', 'ray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Switches every drop-down and button as a click would, and leaves a mark with what went wrong.
DRIVER = """
<script>
window.addEventListener("load", async () => {
  const failed = [];
  for (const plot of document.querySelectorAll(".js-plotly-plot")) {
    for (const menu of plot.layout.updatemenus || []) {
      for (const button of menu.buttons) {
        try { await Plotly.update(plot, ...button.args); } catch (error) { failed.push(plot.id + ": " + error); }
      }
    }
  }
  document.body.dataset.switched = failed.length ? failed.join() : "well";
});
</script>
"""


def chromium(path, *options) -> tuple[str, list[str]]:
    """Return the page as Chromium built it, and what it said on its console."""
    command = [*CHROMIUM, f"--user-data-dir={path.parent}/profile", "--virtual-time-budget=8000", *options]
    env = {**os.environ, "HOME": str(path.parent)}
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120, env=env, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.browser
def test_a_browser_draws_every_figure_without_a_complaint(view, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page.render(view).replace("</body>", DRIVER + "</body>"))
    dom, console = chromium(path, "--dump-dom", "--window-size=1200,900")
    assert console == []
    assert 'data-switched="well"' in dom
    for name in FIGURES:
        drawn = dom[dom.index(f'id="figure-{name}"') :]
        assert 'class="main-svg"' in drawn[:2000]
    assert len(re.findall('class="point[ "]', dom)) > len(view.candidates)


@pytest.mark.browser
def test_a_browser_runs_no_hostile_text(writer, network, tmp_path):
    writer.trial("search", network("bsconv_u"), 0.8)
    writer.trial("search", network("dsc"), 0.1, state="failed", cause=HOSTILE.replace("alert(1)", "document.title='x'"))
    path = page.write(replace(writer.view(), name=HOSTILE), tmp_path / "report.html")
    dom, console = chromium(path, "--dump-dom")
    assert console == []
    assert f"<title>{html.escape(HOSTILE, quote=False)} · bsconv_nas</title>" in dom


PROBE = """
<script>
window.addEventListener("load", () => {
  document.body.dataset.over = Math.max(0, document.documentElement.scrollWidth - window.innerWidth);
});
</script>
"""


@pytest.mark.browser
def test_the_page_fits_a_phone(view, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page.render(view).replace("</body>", PROBE + "</body>"))
    dom, _ = chromium(path, "--dump-dom", "--window-size=500,900")
    assert 'data-over="0"' in dom
