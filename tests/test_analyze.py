"""`bsconv-nas analyze`: every kind of network by name, with its weights, into a page and a table."""

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import bsconv_nas as nas
from bsconv_nas import cli
from bsconv_nas.analyze import OPTIONS, analyze, find
from bsconv_nas.network.analysis import analyze_kernels
from bsconv_nas.network.models import cifar_resnet

SPACE = """
[base]
factory = "bsconv_nas.network.models:cifar_resnet"
arguments = { depth = 8, width = 8 }

[choices]
operators = ["regular", "bsconv_u", "bsconv_u:inner=bn", "bsconv_s:p=1/8,ortho=0"]

[[choices.overrides]]
pattern = "layer3*"
operators = ["dsc:inner=none", "bsconv_u:r=2"]
"""
FACTORY = "bsconv_nas.network.models:cifar_resnet"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working directory with a space file."""
    (tmp_path / "space.toml").write_text(SPACE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(depth: int = 8, **arguments: int) -> torch.nn.Module:
    """A network whose kernels are not those of a fresh one: one blueprint everywhere in `layer2.0.conv2`."""
    torch.manual_seed(3)
    network = cifar_resnet(depth, **arguments)
    weight = network.layer2[0].conv2.weight.data
    weight.copy_(weight[:, :, :1, :1] * torch.randn(len(weight), 1, 3, 3))
    return network


def numbers(network: torch.nn.Module) -> str:
    """All that the analysis finds, as text: some scores are NaN."""
    return str(analyze_kernels(network, ["dsc"]))


def command(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bsconv-nas", "analyze", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0


def test_a_space_file_is_judged_by_its_own_options(place, monkeypatch, capsys):
    save_file(trained(width=8).state_dict(), "w.safetensors")
    assert command(monkeypatch, "space.toml", "--weights", "w.safetensors") == 0
    page, table, omission = capsys.readouterr().out.splitlines()
    assert (page, table) == ("kernels.html", "kernels.csv")
    assert omission == "Left out: 2 1x1 convolutions, as a 1x1 kernel has no shape that another could share."
    rows = pd.read_csv("kernels.csv").set_index("layer")
    assert rows.index[rows["left_out"] == "1x1"].tolist() == ["layer2.0.downsample.0", "layer3.0.downsample.0"]
    options = ("regular", "bsconv_u", "bsconv_s:p=1/8", "dsc", "bsconv_u:r=2")  # inner and ortho change no projection
    assert tuple(column[7:-1] for column in rows if column.startswith("energy[")) == options
    layer = rows.loc["layer2.0.conv2"]
    assert (layer["c_in"], layer["c_out"], layer["kernel"], layer["stride"]) == (16, 16, "3x3", "1x1")
    assert layer["intra_mean"] == pytest.approx(1)
    assert layer["energy[bsconv_u]"] == pytest.approx(1)
    assert layer["cross_mean"] < 0.7
    assert rows.loc["layer1.0.conv1", "intra_mean"] == pytest.approx(rows.loc["layer1.0.conv1", "intra_null"], rel=0.15)
    assert "with the weights of w.safetensors" in Path("kernels.html").read_text()


def test_a_factory_takes_classes_and_channels_from_its_weights(place):
    network = trained(20, in_channels=1, num_classes=7)
    torch.save(network.state_dict(), "w.pth")
    found = find(FACTORY, "w.pth")
    assert (found.network.fc.out_features, found.network.conv1.in_channels) == (7, 1)
    assert found.options == OPTIONS
    assert numbers(found.network) == numbers(network)


class HeadFirst(torch.nn.Module):
    """Its classifier is declared before its convolutions, of which the first is depthwise."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(16, num_classes)
        self.a = torch.nn.Conv2d(in_channels, in_channels, 3, groups=in_channels)
        self.b = torch.nn.Conv2d(in_channels, 16, 3)


@pytest.mark.parametrize(("classes", "channels"), [(10, 3), (7, 3), (10, 1), (7, 1)])
def test_layers_may_be_declared_in_any_order(classes, channels, place):
    network = HeadFirst(classes, channels)
    torch.save(network.state_dict(), "w.pth")
    found = find(f"{__name__}:HeadFirst", "w.pth").network
    assert torch.equal(found.b.weight, network.b.weight)


def test_a_factory_alone_is_analysed_as_it_is_made(place):
    state = torch.get_rng_state()
    written = analyze(FACTORY, out="here.csv")
    table = written.table
    assert (written.page, table) == (Path("here.html"), Path("here.csv"))
    assert "No weights were given" in written.page.read_text()
    assert torch.equal(torch.get_rng_state(), state)
    first = table.read_text()
    torch.manual_seed(5)
    analyze(FACTORY, out="here.html")
    assert table.read_text() == first  # the fresh network is drawn by one seed


class Dense(torch.nn.Sequential):
    def __init__(self) -> None:
        super().__init__(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3))


def test_a_network_of_dense_kernels_alone_leaves_nothing_out(place, monkeypatch, capsys):
    assert command(monkeypatch, f"{__name__}:Dense") == 0
    assert capsys.readouterr().out.split() == ["kernels.html", "kernels.csv"]


def test_a_run_and_an_export_have_their_weights(project, place):
    run = nas.load_run(project / "runs/tiny")
    best = run.model()
    found = find(str(project / "runs/tiny"))
    assert found.name.startswith("tiny: ")
    assert set(found.options) == {"regular", "dsc", "bsconv_u", "bsconv_s"}
    assert numbers(found.network) == numbers(best)
    exported = find(str(run.export(place / "out")))
    assert exported.weights == "out/weights.safetensors"
    assert numbers(exported.network) == numbers(best)


REFUSALS = {
    "nowhere": "MODEL must be a search-space file, package.module:factory, a run folder or an exported folder, but got "
    "'nowhere': check the path.",
    "none.toml": "No file 'none.toml': check the path",
    "bsconv_nas.network.models:resnet21": "'bsconv_nas.network.models' has no 'resnet21'",
    "torch.nn:ReLU": "A network must have an ungrouped convolution larger than 1x1",
    "space.toml --weights none.pt": "No file 'none.pt': check the path of the weights.",
    "space.toml --weights other.safetensors": "Weights in 'other.safetensors' must be those of this 'CifarResNet', but "
    "'conv1.weight' has shape (16, 3, 3, 3) there and (8, 3, 3, 3) here: name the network they were trained in.",
    "space.toml --out deep": "--out must be an existing folder or end in .html or .csv, but got 'deep': make the",
    "space.toml --out deep/a.html": "A report is written into an existing folder, but there is no 'deep': make it.",
    ". --weights other.safetensors": "A run or an exported folder has its own weights, but --weights",
    "torch.nn:ReLU --weights other.safetensors": "Weights in 'other.safetensors' must be those of this 'ReLU', but",
    "torch.nn:LazyBatchNorm2d": "The weights of a base must have shapes, but 'weight' of 'LazyBatchNorm2d' is lazy",
    "broken": "'broken/model.py' must make its network by model(), but: module 'exported_model' has no attribute ",
    ".": "A run folder must hold 'experiment.json', but '.' does not",
}


@pytest.mark.parametrize("line", REFUSALS)
def test_what_cannot_be_analysed_is_one_sentence_and_no_file(line, place, monkeypatch, capsys):
    save_file(cifar_resnet(8, width=16).state_dict(), "other.safetensors")
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    Path("broken").mkdir()
    Path("broken/card.json").write_text("{}")
    Path("broken/model.py").write_text("def modle(): ...\n")
    before = sorted(place.rglob("*"))
    assert command(monkeypatch, *line.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert REFUSALS[line] in printed.err
    assert sorted(place.rglob("*")) == before
