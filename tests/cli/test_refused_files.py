"""What the command line refuses of itself, and of experiments, spaces, budgets and data: a row each."""

from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import (
    FILE,
    SEARCH,
    SPACE_FILE,
    Done,
    Row,
    base,
    check_refused,
    choose,
    edit,
    nothing,
    real_command,
    write,
)

SET_DATA = "`--set data.root=FOLDER`, data.root or $BSCONV_NAS_DATA"
TABLE = [
    # the command line itself
    Row("serch x.toml", nothing, "No such command 'serch': did you mean 'search'; see bsconv-nas --help.", True),
    Row("front", nothing, "Missing argument 'RUN'; see bsconv-nas front --help."),
    Row(f"{SEARCH} --seed 1", nothing, "No such option: --seed...; see bsconv-nas search --help."),
    Row(
        f"{SEARCH} --trials -1",
        nothing,
        "Invalid value for '--trials': Input should be greater than or equal to 0; see bsconv-nas search --help.",
    ),
    Row(
        "front runs/tiny --csv --json",
        nothing,
        "A front is printed in one format, but --csv and --json were both given: keep one of them.",
    ),
    # experiment files and overrides
    Row("search none.toml", nothing, "No file 'none.toml': check the path, relative to ..."),
    Row(
        SEARCH,
        write(FILE, "search = {trials = "),
        f"'{FILE}' must be valid TOML, but: Invalid value (at end of document).",
        True,
    ),
    Row(
        SEARCH,
        edit(FILE, "trials = 4", "trails = 4"),
        f"Unknown key 'search.trails' in '{FILE}': valid are 'baselines', 'objectives', 'sampler', 'scheduler', "
        "'seed', 'trial', 'trials'; did you mean 'trials'.",
    ),
    Row(
        SEARCH,
        edit(FILE, "trials = 4", "trials = -4"),
        f"Key 'search.trials' in '{FILE}': it must be at least 0, but got -4.",
    ),
    Row(
        SEARCH,
        edit(FILE, "epochs = 2", "epochs = 2.5"),
        f"In [recipe] of '{FILE}': recipe.epochs must be a whole number of at least 1, but got 2.5.",
    ),
    Row(
        f"{SEARCH} --set search.seed",
        nothing,
        "An override must read key=value, such as search.seed=1, but got 'search.seed'.",
    ),
    Row(
        f"{SEARCH} --set serch.seed=1",
        nothing,
        f"Unknown key 'serch' in '{FILE} --set serch.seed=1': valid are ...; did you mean 'search'.",
    ),
    Row(
        f"{SEARCH} --set search.seed=1 --set recipe.epochs=0 --set search.trials=5",
        nothing,
        f"In [recipe] of '{FILE} --set recipe.epochs=0': recipe.epochs must be a whole number of at least 1, but got "
        "0.",
    ),
    Row(
        f"{SEARCH} --set search.sampler={{name='tpe',prior_weight=0.5}}",
        nothing,
        "The parameters {'prior_weight': 0.5} of search.sampler 'tpe' do not hold: `prior_weight` has been deprecated "
        "in v4.9.0.",
        True,
    ),
    Row(
        f"{SEARCH} --address 127.0.0.1:1 --set space=none.toml",
        nothing,
        "A Ray cluster must answer at --address '127.0.0.1:1', but: Connection refused; check host and port.",
        True,
    ),
    Row(
        "resume runs/tiny --trials 9 --address head",
        nothing,
        "--address must be 'auto' or HOST:PORT, such as 10.0.0.1:6379, but got 'head'.",
    ),
    Row(
        "retrain runs/tiny --address head",
        nothing,
        "--address must be 'auto' or HOST:PORT, such as 10.0.0.1:6379, but got 'head'.",
    ),
    Row(
        f"{SEARCH} --set search.sampler=tpa",
        nothing,
        "Unknown search.sampler 'tpa': valid are 'additive', 'evolution', 'gp', 'nsga2', 'nsga3', 'random', "
        "'stratified', 'tpe'; did you mean 'tpe'; or your own as 'package.module:Class'.",
    ),
    Row(
        f'{SEARCH} --set search.sampler={{name="tpe",n_startup_trials="a"}}',
        nothing,
        "The parameters {'n_startup_trials': 'a'} of search.sampler 'tpe' do not hold: ....",
    ),
    Row(
        f"{SEARCH} --set search.scheduler=asha --set recipe.epochs=1",
        nothing,
        "search.scheduler 'asha' needs min_epochs below recipe.epochs, else it stops nobody, but got min_epochs = 1 "
        'and recipe.epochs = 1: move one of them or set search.scheduler = "none".',
    ),
    Row(
        f"{SEARCH} --set search.scheduler=ahsa",
        nothing,
        "Unknown search.scheduler 'ahsa': valid are 'asha', 'hyperband', 'median', 'none', 'pareto_asha'; did you mean "
        "'asha'.",
    ),
    Row(
        f"{SEARCH} --set resources.gpus_per_trial=64",
        nothing,
        "A trial needs 64 GPU (resources.gpus_per_trial), but this machine has ...: ask for less or name a cluster by "
        "--address.",
    ),
    # search spaces
    Row(
        f"{SEARCH} --set space=none.toml",
        nothing,
        "No file '.../none.toml': check the path, relative to ...",
    ),
    Row(
        "space show spaces/resnet8.toml",
        choose('opertors = ["dsc"]'),
        f"Unknown key 'choices.opertors' in '{SPACE_FILE}': valid are ...; did you mean 'operators'.",
    ),
    Row(
        "space show spaces/resnet8.toml",
        choose('operators = ["regular", "bsconv"]'),
        f"...'{SPACE_FILE}'... decomposition 'bsconv'...: valid are 'bsconv_s', 'bsconv_u', 'dsc', 'regular'; did you "
        "mean 'bsconv_u'...",
    ),
    Row(
        SEARCH,
        choose('exempt = ["layr1*"]'),
        "Pattern 'layr1*' must match ..., but matches none: valid are ...",
    ),
    Row(
        SEARCH,
        base("bsconv_nas.network.models:cifar_resnt"),
        "'bsconv_nas.network.models' has no 'cifar_resnt' (base.factory 'bsconv_nas.network.models:cifar_resnt'): "
        "valid are ...; did you mean 'cifar_resnet'.",
    ),
    Row(
        SEARCH,
        base("nowhere.models:resnet"),
        "Module 'nowhere.models' of base.factory 'nowhere.models:resnet' must be importable, but: No module named "
        "'nowhere'; install it or set PYTHONPATH.",
    ),
    Row(SEARCH, base("mine:number"), "Factory 'mine:number' must return a torch.nn.Module, but returned 'int'."),
    Row(
        "space show spaces/resnet8.toml",
        base("mine:keyless"),
        "Factory 'mine:keyless' must accept (num_classes=10), but: KeyError 'weights'; see base.arguments.",
    ),
    Row(
        "space show spaces/resnet8.toml",
        base("mine:Typo"),
        "The forward of 'Typo' must accept a batch of shape (1, 3, 32, 32), but: 'Typo' object has no attribute "
        "'convolution' (.../mine.py:...); mend the forward.",
    ),
    Row(
        "space show spaces/resnet8.toml",
        base("broken:network"),
        "Module 'broken' of base.factory 'broken:network' must be importable, but: invalid syntax (broken.py, line 1); "
        "...",
    ),
    Row(
        "analyze spaces/resnet8.toml --weights junk.pt",
        write("junk.pt", "junk"),
        "'junk.pt' must hold a state dict and nothing but tensors, but holds something else or is damaged: ...",
    ),
    Row(
        SEARCH,
        base("mine:five_classes"),
        "The base must end in 10 classes, but 'mine:five_classes' ends in 5: let the factory take num_classes, or set "
        "it in base.arguments.",
    ),
    Row(
        SEARCH,
        base("mine:Branching"),
        "The forward of 'Branching' must be traceable by torch.fx, but its line `...` (...) branches on "
        "a tensor's size or value: take out what depends on the values of tensors.",
    ),
    Row(
        SEARCH,
        base("torchvision.models:resnet18"),
        "The forward of 'ResNet' must accept a batch of shape (1, 1, 8, 8), but: ...",
    ),
    Row(
        SEARCH,
        base("mine:flattening"),
        "The forward of 'Sequential' must accept a batch of shape (1, 1, 8, 8), but: ...",
    ),
    Row(
        "space show spaces/resnet8.toml",
        choose('blocks = ["mbconvs"]'),
        f"Key 'choices.blocks' in '{SPACE_FILE}': unknown form of an inverted residual 'mbconvs': valid are 'fused', "
        "'mbconv', 'mbconv:ortho=1'; did you mean 'mbconv'.",
    ),
    Row(
        "space show spaces/resnet8.toml",
        choose("kernels = [3, 4]"),
        f"Key 'choices.kernels' in '{SPACE_FILE}': kernel sizes must be odd and lie in 1 to 31, but got ...",
    ),
    Row(
        "space show spaces/resnet8.toml",
        write(SPACE_FILE, '[base]\nfactory = "mine:five_classes"\ninput_size = [true, 16, 16]\n'),
        f"In '{SPACE_FILE}': base.input_size must be (channels, height, width), each from 1 to 65536, but got [True, "
        "16, 16].",
    ),
    Row(
        "space show spaces/resnet8.toml",
        choose("divisor = true"),
        f"Key 'choices.divisor' in '{SPACE_FILE}': it must be a whole number, but got True.",
    ),
    Row(
        "space show spaces/resnet8.toml",
        choose("widths = [0.5, 0.0]"),
        f"Key 'choices.widths' in '{SPACE_FILE}': multipliers must lie in (0, 16], but got ...",
    ),
    Row(
        "space show spaces/resnet8.toml",
        choose('[[choices.overrides]]\npattern = "layer1*"\nexpansions = [2]'),
        "Pattern 'layer1*' must match a path of the base whose expansions can vary, but matches none: there is none.",
    ),
    Row(
        f'{SEARCH} --set train.init="inherit"',
        nothing,
        "Key 'train' in ...: init = \"inherit\" and a checkpoint go together: give both or none, but got ...",
    ),
    Row(
        f'{SEARCH} --set train={{init="inherit",checkpoint="none.safetensors"}}',
        nothing,
        "No file '...none.safetensors': check the path of the weights.",
    ),
    Row(
        "analyze spaces/resnet8.toml --weights none.safetensors",
        nothing,
        "No file 'none.safetensors': check the path of the weights.",
    ),
    Row(
        "analyze mine:number",
        nothing,
        "Factory 'mine:number' must return a torch.nn.Module, but returned 'int'.",
    ),
    # budgets
    Row(
        f"{SEARCH} --set budget.macs=1K",
        nothing,
        "The upper bound on macs must be reachable, but is 1,000 (1 K) and the smallest network of this space has "
        "22,400 (22.4 K), most of it in conv1 (4.61 K), layer2.0.conv2 (4.35 K), layer2.0.conv1 (3.2 K): move the "
        "bound or give the space other widths, depths or operators.",
        True,
    ),
    Row(
        f'{SEARCH} --set budget.memory=["1GiB","2GiB"]',
        nothing,
        "The lower bound on memory must be reachable, but is 1,073,741,824 (1 GiB) and the largest network of this "
        "space has ..., most of it in ...: move the bound or give the space other widths, depths or operators.",
    ),
    Row(
        f"{SEARCH} --set budget.macs=10MiB",
        nothing,
        f"In [budget] of '{FILE} --set budget.macs=10MiB': Budget 'macs' must be a number of at least 0 with a unit of "
        "K, M, G, but got '10MiB'.",
    ),
    Row(
        f"{SEARCH} --set budget.macs=1e40",
        nothing,
        f"In [budget] of '{FILE} --set budget.macs=1e40': Budget 'macs' must be at most 1e+30, but got 1e+40.",
    ),
    Row(
        f"{SEARCH} --set budget.mac=10M",
        nothing,
        f"In [budget] of '{FILE} --set budget.mac=10M': Unknown budget 'mac': valid are 'flops', 'latency_ms', "
        "'macs', 'memory', 'params'; did you mean 'macs'.",
    ),
    # data
    Row(
        f"{SEARCH} --set data.name=cifar10 --set data.root=somewhere",
        nothing,
        "The data set 'cifar10' must lie in .../somewhere/cifar-10-batches-py (the files of cifar-10-python.tar.gz "
        "from https://www.cs.toronto.edu/~kriz/cifar.html), but there is no such folder: put it there or name the "
        f"folder that holds cifar-10-batches-py/ by {SET_DATA}, or set data.download = true.",
        True,
    ),
    Row(
        f"{SEARCH} --set data.name=digit",
        nothing,
        f"In [data] of '{FILE} --set data.name=digit': Unknown data.name 'digit': valid are 'cifar10', 'cifar100', "
        "'digits', 'fashion_mnist', 'flowers102', 'folder', 'package.module:function'; did you mean 'digits'.",
    ),
    Row(
        f"{SEARCH} --set data.limit=20",
        nothing,
        "Every class must have an image in the selection part, but class '0' of 'digits' has 2 training images in all: "
        "raise data.selection and data.report, or data.limit.",
    ),
    Row(
        f"{SEARCH} --set data.name=mine:flat_images",
        nothing,
        "The images of mine:flat_images['train'] must be uint8 of shape (N, C, H, W), but are uint8 of (20, 8, 8).",
    ),
    Row(
        f"{SEARCH} --set data.name=mine:few_labels",
        nothing,
        "The labels of mine:few_labels['train'] must be 20 whole numbers from 0, but are int64 of shape (19,) from 0.",
    ),
    Row(
        f"{SEARCH} --set data.name=mine:boom",
        nothing,
        "mine:boom must return images and labels, but raised RuntimeError: no images today: mend it.",
    ),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
def test_bad_input_is_refused(row: Row, place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    check_refused(row, place, bsconv_nas)


@pytest.mark.parametrize("row", [row for row in TABLE if row.process], ids=lambda row: row.command.split()[0])
def test_bad_input_is_refused_by_the_real_command(row: Row, place: Path) -> None:
    check_refused(row, place, real_command)
