import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from bsconv_nas.errors import RecordError
from bsconv_nas.search.checkpoint import has_checkpoint, load_checkpoint, prune_checkpoints, save_checkpoint

META = {"epoch": 3, "generator": "00ff", "nested": {"a": [1, 2.5, None]}}


def test_tensors_and_meta_come_back_as_they_were(tmp_path):
    weight = torch.randn(4, 3, 2, 2)
    tensors = {
        "model.weight": weight.to(memory_format=torch.channels_last),
        "model.tied": weight,
        "ema.weight": weight,
        "model.half": torch.randn(3).to(torch.bfloat16),
        "model.count": torch.tensor(7),
        "momentum": torch.randn(2, requires_grad=True),
    }
    save_checkpoint(tmp_path / "7", tensors, META)
    loaded, meta = load_checkpoint(tmp_path / "7")
    assert meta == META
    assert loaded.keys() == tensors.keys()
    for key, value in tensors.items():
        assert loaded[key].dtype == value.dtype
        assert torch.equal(loaded[key], value)


def test_a_new_checkpoint_replaces_the_old_one_and_leaves_no_file_behind(tmp_path):
    for epoch in (1, 2, 2):
        save_checkpoint(str(tmp_path), {"a": torch.full((2,), epoch)}, {"epoch": epoch})
    loaded, meta = load_checkpoint(str(tmp_path))
    assert (meta, loaded["a"].tolist()) == ({"epoch": 2}, [2, 2])
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_a_uri_names_a_storage(tmp_path):
    uri = f"file://{tmp_path}/run/checkpoints/1"
    save_checkpoint(uri, {"a": torch.ones(1)}, {})
    assert has_checkpoint(uri)
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "1")[0]["a"].item() == 1


def test_only_those_to_keep_survive_pruning(tmp_path):
    prune_checkpoints(tmp_path / "none", {"1"})
    for number in range(4):
        save_checkpoint(tmp_path / str(number), {"a": torch.ones(1)}, {})
    prune_checkpoints(tmp_path, {"1", "3", "9"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]
    assert [has_checkpoint(tmp_path / str(number)) for number in range(4)] == [False, True, False, True]


def damage(folder, piece):
    weights = next(folder.glob("*.safetensors"))
    index = folder / "checkpoint.json"
    if piece == "index":
        index.unlink()
    elif piece == "weights":
        weights.unlink()
    elif piece == "bit":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    else:
        index.write_text(piece)


@pytest.mark.parametrize(
    ("piece", "sentence"),
    [
        ("index", "A checkpoint must lie in '{folder}', but 'checkpoint.json' is missing there."),
        ("weights", "A checkpoint must lie in '{folder}', but '{weights}' is missing there."),
        ("bit", "'{weights}' in '{folder}' must have the digest of its index: it is damaged."),
        ("{", "'checkpoint.json' in '{folder}' must be what this version writes, but: Expecting property name"),
        ("{}", "'checkpoint.json' in '{folder}' must be what this version writes, but: 'weights'."),
        ("[]", "'checkpoint.json' in '{folder}' must be what this version writes, but: list indices must be integers"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path, piece, sentence):
    save_checkpoint(tmp_path, {"a": torch.ones(1)}, {})
    weights = next(tmp_path.glob("*.safetensors")).name
    damage(tmp_path, piece)
    with pytest.raises(RecordError) as caught:
        load_checkpoint(tmp_path)
    assert str(caught.value).startswith(sentence.format(folder=tmp_path, weights=weights))


WRITER = """
import itertools, sys, torch
from bsconv_nas.search.checkpoint import save_checkpoint
for n in itertools.count():
    save_checkpoint(sys.argv[1], {"a": torch.full((200_000,), n)}, {"n": n})
    print(n, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    time.sleep(0.237)
    process.send_signal(signal.SIGKILL)
    said = process.stdout.read().split()
    process.wait()
    process.stdout.close()
    loaded, meta = load_checkpoint(tmp_path)
    assert meta["n"] >= int(said[-1])
    assert loaded["a"].unique().tolist() == [meta["n"]]
    assert json.loads((tmp_path / "checkpoint.json").read_text())["meta"] == meta
