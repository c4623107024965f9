import json
import platform
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from bsconv_nas.search.environment import _commit, _processor, environment


def test_versions_device_and_commit_are_recorded_without_host_or_path():
    found = environment()
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["torch"] == version("torch")
    assert found["versions"]["bsconv_nas"] == version("bsconv_nas")
    assert found["device"]
    assert found["cpus"] >= 1
    text = json.dumps(found)
    assert "/" not in text.replace(found["device"], "")
    assert socket.gethostname() not in text


def test_it_is_quick_where_torch_is_not_loaded():
    code = "import sys; from bsconv_nas.search.environment import environment; environment();"
    code += "print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_processor_is_named_by_its_model(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Fast CPU @ 3 GHz\nmodel name\t: Fast CPU @ 3 GHz\n")
    assert _processor(tmp_path / "cpuinfo") == "Fast CPU @ 3 GHz"
    assert _processor(tmp_path / "none")


def git(root: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    found = subprocess.run(["git", "-C", str(root), *identity, *words], check=True, capture_output=True, text=True)
    return found.stdout.strip()


def test_the_commit_tells_a_changed_checkout(tmp_path):
    assert _commit(tmp_path) is None
    git(tmp_path, "init")
    assert _commit(tmp_path) is None
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "first")
    git(tmp_path, "tag", "-a", "v1", "-m", "v1")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert _commit(tmp_path) == commit
    (tmp_path / "a").write_text("2")
    assert _commit(tmp_path) == f"{commit}-dirty"
