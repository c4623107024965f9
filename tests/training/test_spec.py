import re

import pytest

from bsconv_nas.errors import DataError, ExperimentError
from bsconv_nas.training.sources import READERS
from bsconv_nas.training.spec import ROOT_VARIABLE, SETS, DataSpec, locate


@pytest.fixture(autouse=True)
def no_root(monkeypatch):
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"name": "cifar"}, "Unknown data.name 'cifar': valid are 'cifar10', 'cifar100', "),
        ({"name": "cifar"}, "did you mean 'cifar10'"),
        ({"name": 10}, "data.name must be the name of a data set, but got 10."),
        ({"root": 3}, "data.root must be a folder, or left out, but got 3."),
        ({"resolution": 0}, "data.resolution must be a whole number of at least 1, or left out, but got 0."),
        ({"channels": 2}, "data.channels must be 1 or 3, or left out, but got 2."),
        ({"split_seed": -1}, "data.split_seed must be a whole number of at least 0, but got -1."),
        ({"selection": 0}, "data.selection must be a fraction in (0, 0.5], but got 0."),
        ({"report": 5000}, "data.report must be a fraction in (0, 0.5], but got 5000."),
        (
            {"selection": 0.5, "report": 0.5},
            "data.selection + data.report must leave training images, but got 0.5 + 0.5",
        ),
        ({"limit": "all"}, "data.limit must be a whole number of at least 1, or left out, but got 'all'."),
        ({"workers": -1}, "data.workers must be a whole number of at least 0, but got -1."),
        ({"download": 1}, "data.download must be true or false, but got 1."),
    ],
)
def test_a_value_outside_its_law_is_refused_in_one_sentence(fields, sentence):
    with pytest.raises(ExperimentError, match=re.escape(sentence)):
        DataSpec(**fields)


def test_every_set_has_a_reader():
    assert READERS.keys() == SETS.keys()


def test_a_missing_root_says_how_to_name_it():
    sentence = (
        "The data set 'cifar10' needs a folder that holds cifar-10-batches-py/ (the files of cifar-10-python.tar.gz "
        "from https://www.cs.toronto.edu/~kriz/cifar.html): name it by `--set data.root=FOLDER`, data.root or "
        "$BSCONV_NAS_DATA."
    )
    with pytest.raises(DataError, match=f"^{re.escape(sentence)}$"):
        locate(DataSpec("cifar10"))


def test_a_root_without_the_files_says_where_to_put_them(tmp_path):
    sentence = (
        f"The data set 'fashion_mnist' must lie in {tmp_path}/FashionMNIST/raw (the four idx files of "
        "https://github.com/zalandoresearch/fashion-mnist, unpacked), but there is no such folder: put it there or "
        "name the folder that holds FashionMNIST/raw/ by `--set data.root=FOLDER`, data.root or $BSCONV_NAS_DATA, or "
        "set data.download = true."
    )
    with pytest.raises(DataError, match=f"^{re.escape(sentence)}$"):
        locate(DataSpec("fashion_mnist", root=str(tmp_path)))


def test_a_folder_is_never_downloaded(tmp_path):
    with pytest.raises(DataError, match=r"train/ by `--set data.root=FOLDER`, data.root or \$BSCONV_NAS_DATA\.$"):
        locate(DataSpec("folder", root=str(tmp_path), download=True))


def test_the_environment_names_the_root_and_the_spec_wins_over_it(tmp_path, monkeypatch):
    (tmp_path / "a" / "train").mkdir(parents=True)
    (tmp_path / "b" / "train").mkdir(parents=True)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "a"))
    assert locate(DataSpec("folder")) == tmp_path / "a" / "train"
    assert locate(DataSpec("folder", root=str(tmp_path / "b"))) == tmp_path / "b" / "train"


def test_a_set_to_be_downloaded_may_be_absent(tmp_path):
    spec = DataSpec("cifar100", root=str(tmp_path), download=True)
    assert locate(spec) == tmp_path / "cifar-100-python"
    assert locate(DataSpec("digits")) is None
