"""What is counted, built, trained and exported is one thing, or the space is refused before anything is trained."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from brought_networks import BROKEN, CLASSES, KEPT, SIZE, Brought, InClosure, OnlyInList, Plain, Unpacking
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from unbatched_networks import UNBATCHED, Pairs

import bsconv_nas as nas
from bsconv_nas import check as module
from bsconv_nas.errors import ExportError, SpaceError
from bsconv_nas.space.graph import Node

CHOICES: dict[str, Any] = {
    "input_size": SIZE,
    "num_classes": CLASSES,
    "operators": ["regular", "dsc", "bsconv_u", "bsconv_s"],
    "widths": [0.5, 1.0],
    "divisor": 2,
}
SCRIPT = Path(sys.executable).with_name("bsconv-nas")


def space_of(brought: Brought) -> nas.SearchSpace:
    return nas.SearchSpace.from_module(brought.factory, leaves=brought.leaves, **CHOICES)


def multiply_adds(model: nn.Module) -> float:
    """Torch's own count for an image, of convolutions and matrix products of two axes."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval().requires_grad_(False).to("meta")(torch.empty(1, *SIZE, device="meta"))
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operation, count in counts.items() if operation != torch.ops.aten.bmm) / 2


@pytest.mark.parametrize("name", KEPT | UNBATCHED)
def test_what_is_brought_becomes_a_space_that_keeps_its_word(name: str) -> None:
    brought = (KEPT | UNBATCHED)[name]
    space = space_of(brought)
    fixed = [f"{entry.name}: {entry.reason}" for entry in space.table.graph.fixed]
    for beginning in brought.fixed:
        assert any(entry.startswith(beginning) for entry in fixed), fixed
    found = space.check()
    assert len(found.unchecked) == len(brought.unchecked)
    assert all(words in said for words, said in zip(brought.unchecked, found.unchecked, strict=True))
    for architecture in space.sample(6, seed=1):
        model, costs = space.build(architecture, seed=0), space.cost(architecture)
        assert costs.params == sum(p.numel() for p in model.parameters())
        for _ in range(40):  # what one pass leaves out at random, another has
            F.cross_entropy(model(torch.randn(4, *SIZE)), torch.arange(4)).backward()
            if all(p.grad is not None for p in model.parameters()):
                break
        assert all(p.grad is not None for p in model.parameters())
        assert costs.macs == multiply_adds(model)


def test_a_list_that_leaves_nothing_to_choose_is_named() -> None:
    with pytest.raises(
        SpaceError, match=r"conv0 \(it is also held in walk, .*: let walk be a torch.nn.ModuleList or Mod"
    ):
        space_of(Brought(OnlyInList))


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_keep_its_word_is_refused_with_its_place(name: str) -> None:
    space = space_of(BROKEN[name])
    with pytest.raises(SpaceError, match=BROKEN[name].refused) as refused:
        space.check()
    assert not re.search(r"[.!?] [A-Z]|\n", str(refused.value))


def miscounted(factory: Callable[[], nn.Module], path: str, change: Callable[[Node], Node]) -> nas.SearchSpace:
    """A space whose table says something else of one convolution."""
    space = nas.SearchSpace.from_module(factory, **CHOICES)
    graph = space.table.graph
    nodes = tuple(change(node) if node.path == path else node for node in graph.nodes)
    return dataclasses.replace(
        space, table=dataclasses.replace(space.table, graph=dataclasses.replace(graph, nodes=nodes))
    )


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv(x))


class Nested(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.c = Inner()  # type: ignore[assignment]


@pytest.mark.parametrize("column", ["macs", "params"])
@pytest.mark.parametrize(
    ("factory", "path", "forward", "leaf"), [(Plain, "b.0", Plain.forward, ""), (Nested, "c.conv", Inner.forward, "c")]
)
def test_a_count_that_is_off_is_seen_with_its_layer_and_the_line_that_calls_it(
    column: str, factory: type[nn.Module], path: str, forward: Any, leaf: str
) -> None:
    space = miscounted(factory, path, lambda node: dataclasses.replace(node, **{column: 1}))
    noun = {"macs": "multiply-adds", "params": "parameters"}[column]
    line = re.escape(f"{forward.__code__.co_filename}:{forward.__code__.co_firstlineno}")
    leaves = rf", or .* = \['{leaf}'\]\." if leaf else r"\."
    way_out = rf": let {line} call its layers whatever type and attributes values have{leaves}"
    law = rf"the [\d,]+ {noun}.* that the table counts, .* \({path!r} has [\d,]+ instead of [\d,]+\){way_out}$"
    with pytest.raises(SpaceError, match=law):
        space.check()


def test_work_that_grows_faster_than_the_images_is_seen() -> None:
    with pytest.raises(
        SpaceError, match=r"an image that the table counts, but does .* \('pair' has 720 instead of 144"
    ):
        space_of(Brought(Pairs)).check()


def test_an_export_that_answers_otherwise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def edited(model: nn.Module, title: str, size: tuple[int, int, int]) -> str:
        return module_source(model, title, size).replace("nn.ReLU()", "nn.Tanh()")

    module_source = module.write_source
    monkeypatch.setattr(module, "write_source", edited)
    space = nas.SearchSpace.from_module(Plain, **CHOICES)
    with pytest.raises(SpaceError, match="must answer as its exported source does within 1e-05, but differs by"):
        space.check()


def test_a_network_without_source_is_named_and_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise ExportError("A layer must be plain, but 'a' is not.")

    monkeypatch.setattr(module, "write_source", refuse)
    found = nas.SearchSpace.from_module(Plain, **CHOICES).check()
    assert found.unchecked == ("the exported source (A layer must be plain, but 'a' is not)",)
    assert found.sentence.endswith("; not compared: the exported source (A layer must be plain, but 'a' is not).")


def test_costly_networks_are_checked_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.REAL, "params", 0)
    found = nas.SearchSpace.from_module(Plain, **CHOICES).check()
    assert found.unchecked == (f"the exported source of {module.LARGE}",)
    with pytest.raises(SpaceError, match="gets no gradient"):
        space_of(BROKEN["a gradient cut off"]).check()


def test_large_networks_whose_training_needs_values_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.REAL, "params", 0)
    found = space_of(KEPT["norms without a momentum"]).check()
    assert f"the training of {module.LARGE}, which needs values" in found.unchecked


def test_a_forward_that_keeps_a_size_and_unpacks_it_is_refused_by_its_line() -> None:
    with pytest.raises(SpaceError, match=r"its line `_, \*_ = self.seen` \(.*brought_networks.py:\d+\) loops over"):
        space_of(Brought(Unpacking))


def test_a_layer_in_a_closure_is_named_whoever_makes_the_network() -> None:
    for base in (InClosure, InClosure()):
        with pytest.raises(SpaceError, match=r"networks.py:\d+\) reads a module or weight that no att") as refused:
            nas.SearchSpace.from_module(base, **CHOICES)
        assert "must accept a batch" not in str(refused.value)


def test_a_local_class_need_not_take_the_number_of_classes() -> None:
    class Local(Plain):
        pass

    assert nas.SearchSpace.from_module(Local, **CHOICES).num_classes == CLASSES


def test_the_networks_differ_from_the_base_in_every_dimension() -> None:
    space = nas.SearchSpace.load("search_spaces/cifar_resnet.toml")
    networks = module._networks(space, np.random.default_rng(0))
    assert networks[0] == space.table.base
    tried = zip(space.table.dimensions, zip(*(a.indices for a in networks), strict=True), strict=True)
    assert not [d.name for d, indices in tried if len(d.options) > 1 and len(set(indices)) == 1]
    macs = [space.cost(a).macs for a in networks]
    assert (min(macs), max(macs)) == tuple(
        int(space.model.costs(rows)["macs"][0]) for rows in module.extremes(space.model)
    )


def test_the_check_leaves_nothing_changed() -> None:
    space = nas.SearchSpace.from_module(Plain(), **CHOICES)
    state = {name: tensor.clone() for name, tensor in space.base.state_dict().items()}  # type: ignore[union-attr]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, second = space.check(), space.check()
    assert first.networks == second.networks
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(tensor, state[name]) for name, tensor in space.base.state_dict().items())  # type: ignore[union-attr]


FILE = """
[base]
factory = "brought_networks:{factory}"
input_size = [3, 16, 16]
num_classes = 4

[choices]
operators = ["regular", "dsc"]
"""


def space_show(tmp_path: Path, factory: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "space.toml").write_text(FILE.format(factory=factory))
    return run(tmp_path, "space", "show", "space.toml", "--check")


def run(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    return subprocess.run(
        [SCRIPT, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )


def test_the_command_line_says_what_was_checked(tmp_path: Path) -> None:
    done = space_show(tmp_path, "Plain")
    assert done.returncode == 0
    assert re.fullmatch(r"Checked \d networks in \d+\.\d s: what is counted, .* agrees\.", done.stdout.splitlines()[-1])


def test_the_command_line_refuses_in_one_sentence(tmp_path: Path) -> None:
    done = space_show(tmp_path, "InObject")
    assert done.returncode == 2
    assert re.fullmatch(r"error: Network [0-9a-f]{16} of this space must be trained whole, but .*\n", done.stderr)


EXPERIMENT = """
space = "space.toml"
data = { name = "brought_networks:pictures" }
recipe = { epochs = 1 }
search = { trials = 1, baselines = 0, sampler = "random" }
resources = { workers = 1 }
"""


def test_a_search_of_a_space_that_breaks_its_word_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text(FILE.format(factory="InObject"))
    (tmp_path / "net.toml").write_text(EXPERIMENT)
    done = run(tmp_path, "search", "net.toml", "--run", "run")
    assert done.returncode == 2
    assert re.fullmatch(r"error: Network [0-9a-f]{16} of this space must be trained whole, but .*\n", done.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.toml", "space.toml"]
