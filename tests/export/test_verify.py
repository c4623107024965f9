import re

import pytest
import torch
from export_networks import mixed, zoo
from safetensors.torch import load_file
from torch import nn

from bsconv_nas.errors import ExportError
from bsconv_nas.export.source import write_source
from bsconv_nas.export.verify import save_state, verify


def exported(network, folder):
    folder.mkdir()
    (folder / "model.py").write_text(write_source(network))
    save_state(network.state_dict(), folder / "weights.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path):
    return exported(network(), tmp_path / "out")


def network():
    torch.manual_seed(0)
    return zoo()


def tamper(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_an_export_answers_like_its_network(folder):
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert verify(folder, model, (3, 8, 8)) <= 1e-5
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert sorted(path.name for path in folder.iterdir()) == ["model.py", "weights.safetensors"]


def test_an_untrained_network_is_verified_too(tmp_path):
    model = mixed(20, 3)
    assert verify(exported(model, tmp_path / "out"), model, (3, 32, 32)) <= 1e-5


def test_other_arithmetic_in_the_source_is_found(folder):
    tamper(folder / "model.py", "out + x", "out + 1.001 * x")
    with pytest.raises(
        ExportError, match=r"within 1e-05, but differs by [0-9.e-]+ of the largest output: export again"
    ):
        verify(folder, network(), (3, 8, 8))


def test_what_fresh_statistics_hide_is_found(folder):
    """A fresh normalisation changes nothing, so that its place would not matter."""
    right = "out = self.norm(x)\n        out = F.relu(out)\n"
    tamper(folder / "model.py", right, "out = F.relu(x)\n        out = self.norm(out)\n")
    with pytest.raises(ExportError, match="differs by"):
        verify(folder, network(), (3, 8, 8))


def test_a_source_that_needs_this_package_is_refused(folder):
    tamper(folder / "model.py", "import torch\n", "import torch\nimport bsconv_nas.errors\n")
    with pytest.raises(ExportError, match=r"must run where only torch is, but: ModuleNotFoundError: .*bsconv_nas"):
        verify(folder, network(), (3, 8, 8))


def test_other_shapes_in_the_source_are_refused(folder):
    tamper(folder / "model.py", "nn.Linear(32, 5)", "nn.Linear(32, 6)")
    with pytest.raises(ExportError, match="size mismatch"):
        verify(folder, network(), (3, 8, 8))


def test_a_changed_weight_is_found(folder):
    path = folder / "weights.safetensors"
    weights = load_file(path)
    weights["16.bias"][0] += 1e-6
    save_state(weights, path)
    with pytest.raises(ExportError, match=re.escape("must hold the network's state, but differs in '16.bias'")):
        verify(folder, network(), (3, 8, 8))


def test_a_missing_weight_is_found(folder):
    path = folder / "weights.safetensors"
    weights = load_file(path)
    del weights["16.bias"]
    save_state(weights, path)
    with pytest.raises(ExportError, match=re.escape("only one of them has '16.bias'")):
        verify(folder, network(), (3, 8, 8))


def test_broken_weights_are_refused(folder):
    (folder / "weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(ExportError, match=r"must hold readable weights, but .*; export again"):
        verify(folder, network(), (3, 8, 8))


def test_a_folder_without_a_source_is_refused(folder):
    (folder / "model.py").unlink()
    with pytest.raises(ExportError, match=r"must hold model.py, but .*out does not"):
        verify(folder, network(), (3, 8, 8))


def test_a_network_that_ignores_its_input_cannot_be_verified(tmp_path):
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, x):
            return self.fc(0 * x.mean(dim=(2, 3)))

    model = Blind()
    with pytest.raises(ExportError, match=r"must differ between images by more than 0.1 of their size"):
        verify(exported(model, tmp_path / "out"), model, (3, 8, 8))


def test_a_network_with_two_outputs_is_refused(tmp_path):
    class Twice(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(ExportError, match="must return one tensor, but Twice returned tuple"):
        verify(exported(Twice(), tmp_path / "out"), Twice(), (3, 8, 8))
