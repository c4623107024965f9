import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from export_networks import disturbed
from torch import fx, nn

from bsconv_nas.errors import ExportError
from bsconv_nas.export import bundle
from bsconv_nas.network.models.cifar_resnet import cifar_resnet

CARD = {"title": "A small network", "key": "0123456789abcdef", "macs": 1234, "val_accuracy": 0.91}
SIZE = (1, 8, 8)


def network():
    return disturbed(cifar_resnet(8, in_channels=1), SIZE)


def earlier_export(out):
    """A folder that counts as an earlier export."""
    out.mkdir()
    (out / "model.py").write_text("earlier")
    (out / "card.json").write_text(json.dumps({"format": bundle.FORMAT, "files": {"model.py": "0"}}))
    (out / "__pycache__").mkdir()
    return everything(out)


def everything(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_is_used_where_the_project_is_not(tmp_path):
    model, out = network(), tmp_path / "out"
    earlier_export(out)
    assert bundle.write(model, out, CARD, SIZE) == out
    assert sorted(path.name for path in out.iterdir()) == ["card.json", "model.py", "weights.safetensors"]
    assert list(tmp_path.iterdir()) == [out]
    code = """
import sys
sys.modules["bsconv_nas"] = None
sys.path.insert(0, ".")
import safetensors.torch, torch
from model import model
network = model()
network.load_state_dict(safetensors.torch.load_file("weights.safetensors"))
network.eval()
torch.manual_seed(0)
print(network(torch.randn(2, 1, 8, 8)).flatten().tolist())
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=out, capture_output=True, text=True, check=True)
    torch.manual_seed(0)
    expected = model(torch.randn(2, *SIZE)).flatten()
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), expected, rtol=1e-5, atol=1e-5)

    card = json.loads((out / "card.json").read_text())
    assert {key: card[key] for key in CARD} == CARD
    assert card["input_size"] == list(SIZE)
    assert card["torch"] == torch.__version__
    assert card["verified"]["largest_relative_difference"] <= 1e-5
    for name, digest in card["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert list(card) == sorted(card)


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match=r"replace an earlier export, but .*out holds 'thesis.tex': choose another"):
        bundle.write(network(), out, CARD, SIZE)
    assert everything(tmp_path) == {"out/thesis.tex": b"years of work"}


def test_something_added_to_an_earlier_export_is_left_alone(tmp_path):
    out = tmp_path / "out"
    earlier_export(out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"holds 'notes.txt'"):
        bundle.write(network(), out, CARD, SIZE)


def test_a_model_of_somebody_else_is_left_alone(tmp_path):
    out = tmp_path / "out"
    earlier_export(out)
    (out / "card.json").write_text("{}")
    with pytest.raises(ExportError, match=r"holds 'card.json'"):
        bundle.write(network(), out, CARD, SIZE)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ExportError, match=r"must go into a folder, but .*out is a file"):
        bundle.write(network(), tmp_path / "out", CARD, SIZE)


class Interrupted(nn.Module):
    """Becomes source without trouble; the first real image interrupts it, as a user would."""

    def forward(self, x):
        if not isinstance(x, fx.Proxy):
            raise KeyboardInterrupt
        return x


@pytest.mark.parametrize("earlier", [False, True])
def test_an_interrupt_leaves_what_was_there(tmp_path, earlier):
    before = earlier_export(tmp_path / "out") if earlier else {}
    with pytest.raises(KeyboardInterrupt):
        bundle.write(Interrupted(), tmp_path / "out", CARD, SIZE)
    assert everything(tmp_path) == {f"out/{name}": text for name, text in before.items()}
    assert len(list(tmp_path.iterdir())) == earlier


def test_a_base_with_leaves_is_refused_by_their_name(tmp_path):
    card = {**CARD, "base": {"leaves": ["layer3.0.attention"]}}
    with pytest.raises(ExportError, match=r"base\.leaves keeps 'layer3\.0\.attention' whole"):
        bundle.write(network(), tmp_path / "out", card, SIZE)
    assert not (tmp_path / "out").exists()


def test_an_interrupt_between_the_renames_brings_the_earlier_export_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    before = earlier_export(out)
    rename = Path.rename

    def interrupted(self, target):
        if self.name.endswith("-new"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bundle.write(network(), out, CARD, SIZE)
    assert everything(out) == before
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("card", "sentence"),
    [
        ({"files": 1}, r"A card's 'files' is written by the export, but was given as 1: rename it"),
        ({"macs": object()}, r"must hold what JSON can.* but: Object of type object is not JSON serializable"),
        ({"val_accuracy": float("nan")}, r"must hold what JSON can.* but: Out of range float"),
    ],
)
def test_a_card_that_cannot_be_written_is_refused(tmp_path, card, sentence):
    with pytest.raises(ExportError, match=sentence):
        bundle.write(network(), tmp_path / "out", card, SIZE)
    assert list(tmp_path.iterdir()) == []
