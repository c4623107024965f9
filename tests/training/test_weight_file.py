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
    "both.pt": {f"module._orig_mod.{name}": tensor for name, tensor in STATE.items()},
    "half.pt": {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in STATE.items()},
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
    assert torch.equal(model[0].weight, FORMS[name].get("0.weight", STATE["0.weight"]).float())
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
    torch.save({i: tensor for i, tensor in enumerate(STATE.values())}, tmp_path / "integers.pt")
    torch.save({**STATE, "_extra_state": {"version": 1}}, tmp_path / "extra.pt")
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


KINDS = {
    "on the meta device": lambda tensor: tensor.to("meta"),
    "sparse": lambda tensor: tensor.to_sparse(),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    "torch.int32 there and torch.float32 here": lambda tensor: (10 * tensor).int(),
    "torch.bool there and torch.float32 here": lambda tensor: tensor.bool(),
    "torch.complex64 there and torch.float32 here": lambda tensor: tensor.to(torch.complex64),
}


@pytest.mark.filterwarnings("ignore:.*quantize.*")
@pytest.mark.parametrize("words", KINDS)
def test_weights_of_another_kind_are_refused_and_never_cast(words):
    model = network()
    tensors = {name: KINDS[words](tensor) if tensor.dim() > 1 else tensor for name, tensor in STATE.items()}
    with pytest.raises(RecordError, match=rf"^Weights in 'x\.pt' must be .*'0\.weight' is {words}: \w.*\.$"):
        load_weights(model, tensors, "x.pt")


class Versioned(nn.Linear):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


def test_a_network_with_more_than_tensors_to_save_is_refused():
    with pytest.raises(RecordError, match=r"'Versioned' saves must be tensors alone, but '_extra_state' is dict: take"):
        load_weights(Versioned(2, 2), nn.Linear(2, 2).state_dict(), "x.pt")


def test_weights_for_another_number_of_classes_are_told():
    tensors = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 100)).state_dict()
    with pytest.raises(RecordError, match=r"are for 100 classes and the network has 10: set its classes to 100, or"):
        load_weights(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 10)), tensors, "x.pt")
