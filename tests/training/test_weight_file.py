"""Weights from files: every form that they come in, and what is no file of this network's weights."""

import pickle
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bsconv_nas.errors import RecordError
from bsconv_nas.training.weight_file import load_weights, matching, read_weights


def network(width: int = 4) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))


def saved(path, held):
    if path.suffix == ".safetensors":
        save_file(held, path)
    else:
        torch.save(held, path)
    return path


STATE = network().state_dict()
DECAYED = {name: tensor * 0 for name, tensor in STATE.items()}
FORMS = {
    "bare.safetensors": STATE,
    "bare.pt": STATE,
    "bare.pth": STATE,
    "nested.pt": {"state_dict": STATE, "epoch": 3},
    "parallel.pt": {f"module.{name}": tensor for name, tensor in STATE.items()},
    "compiled.pt": {f"_orig_mod.{name}": tensor for name, tensor in STATE.items()},
    "ours.safetensors": {f"model.{n}": t for n, t in STATE.items()} | {"momentum_buffer.0": torch.zeros(3)},
    "averaged.safetensors": {f"model.{n}": t for n, t in DECAYED.items()}
    | {f"ema.module.{n}": t for n, t in STATE.items()},
    "old.pt": {name: tensor for name, tensor in STATE.items() if "num_batches" not in name},
}


@pytest.mark.parametrize("name", FORMS)
def test_weights_are_found_in_every_form(name, tmp_path):
    model = network()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    load_weights(model, matching(read_weights(saved(tmp_path / name, FORMS[name])), model.state_dict().keys()), name)
    assert torch.equal(model[0].weight, STATE["0.weight"])
    assert torch.equal(model[1].weight, STATE["1.weight"])


WRONG = [
    ({n: t for n, t in STATE.items() if n != "1.weight"}, "'1.weight' is missing there"),
    ({**STATE, "2.weight": torch.zeros(2)}, "'2.weight' is unexpected there"),
    (network(5).state_dict(), "'0.weight' has shape (5, 3, 3, 3) there and (4, 3, 3, 3) here"),
]


@pytest.mark.parametrize(("tensors", "words"), WRONG)
def test_weights_of_another_network_are_refused(tensors, words):
    model = network()
    before = model[0].weight.clone()
    sentence = f"Weights in 'x.pt' must be those of this 'Sequential', but {words}: name the network"
    with pytest.raises(RecordError, match=f"^{re.escape(sentence)}"):
        load_weights(model, tensors, "x.pt")
    assert torch.equal(model[0].weight, before)


class Trap:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit",)


def test_what_is_no_state_dict_is_refused(tmp_path):
    (tmp_path / "trap.pt").write_bytes(pickle.dumps(Trap(), protocol=2))
    torch.save({"model": Trap()}, tmp_path / "inner.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "empty.pth").write_text("")
    (tmp_path / "text.safetensors").write_text("no weights")
    whole = saved(tmp_path / "whole.pt", STATE).read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    for path in sorted({*tmp_path.iterdir()} - {tmp_path / "whole.pt"}):
        with pytest.raises(RecordError, match=r"must hold a state dict and nothing but tensors"):
            read_weights(path)


def test_a_path_without_weights_is_refused(tmp_path):
    with pytest.raises(RecordError, match=r"No file '.*none\.pt': check the path"):
        read_weights(tmp_path / "none.pt")
    with pytest.raises(RecordError, match=r"in a \.safetensors, \.pt, \.pth file, but got 'weights\.bin'"):
        read_weights("weights.bin")


def test_weights_that_are_no_numbers_are_refused():
    broken = {**STATE, "1.bias": STATE["1.bias"] * float("nan")}
    with pytest.raises(RecordError, match=r"Weights in 'x\.pt' must be finite, but '1\.bias' is not"):
        load_weights(network(), broken, "x.pt")
