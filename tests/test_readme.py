"""The README is short, its links lead somewhere, its commands exist, its Python runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import bsconv_nas as nas
from bsconv_nas.cli import app

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    assert len(TEXT.splitlines()) <= 200
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_command_is_described_and_exists() -> None:
    named = set(re.findall(r"bsconv-nas ([a-z]+)", TEXT))
    known = {info.name or info.callback.__name__ for info in app.registered_commands}
    known |= {group.name for group in app.registered_groups}
    assert named == known


def test_the_map_names_what_is_there() -> None:
    rooms = re.search(r"```\nbsconv_nas/\n(.*?)```", TEXT, re.DOTALL)
    assert rooms is not None
    there = {path.name for path in (ROOT / "bsconv_nas").iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert {name.rstrip("/") for name in re.findall(r"^  (\w+/)", rooms[1], re.MULTILINE)} == there
    files = {path.name for path in (ROOT / "bsconv_nas").glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"\b\w+\.py\b", rooms[1])) == files


def test_its_space_is_one(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert blocks
    for block in blocks:
        file = tmp_path / "space.toml"
        file.write_text(block, encoding="utf-8")
        space = nas.SearchSpace.load(file)
        assert {name.partition(".")[0] for name in space.table.names} >= {"block", "kernel", "expand", "width", "depth"}
        assert len(space.sample(2)) == 2


@pytest.mark.slow
def test_its_python_runs(tmp_path: Path) -> None:
    for folder in ("search_spaces", "experiments"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 2
    script = tmp_path / "readme.py"
    script.write_text("if __name__ == '__main__':\n" + re.sub(r"(?m)^", "    ", "\n".join(blocks)), encoding="utf-8")
    done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "dimensions" in done.stdout
    assert {"report.html", "out"} <= {path.name for path in tmp_path.iterdir()}
