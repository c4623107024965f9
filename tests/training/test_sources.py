import re
import sys

import numpy as np
import pytest

from bsconv_nas.errors import DataError
from bsconv_nas.training.sources import ranks, read, shape
from bsconv_nas.training.spec import DataSpec


def test_digits_are_scikit_learns_and_their_test_split_is_balanced():
    train, test = (read(DataSpec(), test=test) for test in (False, True))
    assert len(train.labels) + len(test.labels) == 1797
    assert train.images.shape[1:] == (1, 8, 8)
    assert train.images.max() == 255
    shares = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
    assert shares == pytest.approx(0.2, abs=0.005)
    both = np.concatenate((train.images, test.images)).astype(int).sum()
    from sklearn.datasets import load_digits

    assert both == np.rint(load_digits().images * (255 / 16)).sum()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_from_its_python_batches(name, generated):
    generated.cifar(name.upper())
    spec = DataSpec(name)
    train, test = (read(spec, test=test) for test in (False, True))
    classes = shape(spec)[1]
    assert np.array_equal(train.images, generated.images(10 * classes, 3072, seed=10 * classes).reshape(-1, 3, 32, 32))
    assert np.array_equal(test.images, generated.images(2 * classes, 3072, seed=2 * classes).reshape(-1, 3, 32, 32))
    assert train.labels.tolist() == [i % classes for i in range(10 * classes)]
    assert (train.class_names[3], len(train.class_names)) == ("class3", classes)


def test_fashion_mnist_is_read_from_its_idx_files(generated):
    generated.fashion_mnist()
    train, test = (read(DataSpec("fashion_mnist"), test=test) for test in (False, True))
    assert np.array_equal(train.images[:, 0], generated.images(100, 28, 28, seed=100))
    assert np.array_equal(test.images[:, 0], generated.images(20, 28, 28, seed=20))
    assert test.labels.tolist() == [i % 10 for i in range(20)]
    assert train.class_names[0] == "T-shirt/top"


def test_flowers102_trains_on_train_and_val(generated):
    generated.flowers102()
    train, test = (read(DataSpec("flowers102"), test=test) for test in (False, True))
    assert np.bincount(train.labels).tolist() == [4] * 102
    assert np.bincount(test.labels).tolist() == [1] * 102
    assert not set(train.images) & set(test.images)
    assert train.size == (3, 224, 224)
    assert train.class_names[0] == "pink primrose"


@pytest.mark.parametrize(("size", "side"), [((16, 16), 16), ((64, 64), 64), ((16, 12), 224), ((80, 80), 224)])
def test_a_folder_keeps_small_square_images_as_they_are(generated, size, side):
    generated.folder(size)
    spec = DataSpec("folder")
    assert shape(spec) == ((3, side, side), 2)
    assert shape(DataSpec("folder", resolution=8, channels=1)) == ((1, 8, 8), 2)
    assert read(spec, test=False).class_names == ("dark", "light")


@pytest.mark.parametrize("part", ["test", "val"])
def test_a_folder_has_its_test_images_in_test_or_val(generated, part):
    generated.folder((8, 8), ("train", part))
    labelled = read(DataSpec("folder"), test=True)
    assert labelled.labels.tolist() == [0] * 10 + [1] * 10
    assert all(f"/{part}/" in path for path in labelled.images)


def test_a_folder_that_cannot_serve_is_refused(generated, tmp_path):
    spec = DataSpec("folder")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train must hold one folder of readable images a class, but does not: "):
        read(spec, test=False)
    (tmp_path / "train" / "dark").mkdir()
    (tmp_path / "train" / "dark" / "a.png").write_bytes(b"no picture")
    with pytest.raises(
        DataError, match="train must hold one folder of readable images a class, but does not: cannot id"
    ):
        read(spec, test=False)
    with pytest.raises(DataError, match=r"The test images must lie in .*test or .*val, but neither folder exists."):
        read(spec, test=True)


def test_a_folder_with_other_test_classes_is_refused(generated, tmp_path):
    generated.folder((8, 8))
    (tmp_path / "test" / "light").rename(tmp_path / "test" / "bright")
    with pytest.raises(DataError, match=r"must have the class folders of .*train, but they differ in bright, light."):
        read(DataSpec("folder"), test=True)


def test_a_damaged_set_is_refused(generated, tmp_path):
    generated.cifar("CIFAR10")
    generated.fashion_mnist()
    for file in ("cifar-10-batches-py/data_batch_3", "FashionMNIST/raw/train-images-idx3-ubyte"):
        (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-100])
    for name, folder in (("cifar10", "cifar-10-batches-py"), ("fashion_mnist", "FashionMNIST/raw")):
        sentence = f"The data set {name!r} must lie complete in {tmp_path}/{folder}, but cannot be read ("
        with pytest.raises(DataError, match=re.escape(sentence)):
            read(DataSpec(name), test=False)


def test_ranks_number_the_images_of_each_class():
    labels = np.array([0, 1, 0, 0, 1, 2])
    places = ranks(labels, seed=3)
    for label in range(3):
        assert sorted(places[labels == label]) == list(range((labels == label).sum()))
    many = np.zeros(50, np.int64)
    assert not np.array_equal(ranks(many, 0), ranks(many, 1))


IMAGES = np.random.default_rng(0).integers(0, 256, (30, 2, 6, 5), dtype=np.uint8)


@pytest.fixture
def user(tmp_path, monkeypatch):
    """Return a function that writes a user's module and gives the spec that names it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(returned: str) -> DataSpec:
        sys.modules.pop("my_data", None)
        (tmp_path / "my_data.py").write_text(
            "import numpy, torch\n"
            "def make(spec):\n"
            "    images = numpy.random.default_rng(0).integers(0, 256, (30, 2, 6, 5), dtype=numpy.uint8)\n"
            "    labels = numpy.arange(30) % 3\n"
            f"    return {returned}\n"
        )
        return DataSpec("my_data:make")

    yield write
    sys.modules.pop("my_data", None)


def test_a_users_function_gives_the_images(user):
    spec = user("{'train': (images, labels), 'test': (torch.tensor(images[:5]), torch.tensor(labels[:5]))}")
    train, test = (read(spec, test=test) for test in (False, True))
    assert np.array_equal(train.images, IMAGES)
    assert test.labels.tolist() == [0, 1, 2, 0, 1]
    assert train.class_names == test.class_names == ("0", "1", "2")
    assert shape(spec) == ((2, 6, 5), 3)


def test_a_users_function_may_name_the_classes(user):
    spec = user("{'train': (images, labels), 'class_names': ['a', 'b', 'c', 'd']}")
    assert read(spec, test=False).class_names == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (
            "images",
            "my_data:make must return {'train': (images, labels), 'test': ...} with 'train', but gave a ndarray.",
        ),
        ("{'training': 1}", "with 'train', but gave the keys ['training']."),
        ("{'train': images}", "my_data:make['train'] must be a pair (images, labels), but is a ndarray."),
        (
            "{'train': ([[1], [1, 2]], labels)}",
            "my_data:make['train'] must be two arrays, but NumPy cannot read them: ",
        ),
        (
            "{'train': (images / 255, labels)}",
            "The images of my_data:make['train'] must be uint8 of shape (N, C, H, W), but are float64 of (30, 2, 6",
        ),
        ("{'train': (images[:, 0], labels)}", "uint8 of shape (N, C, H, W), but are uint8 of (30, 6, 5)."),
        (
            "{'train': (images, labels[:7])}",
            "The labels of my_data:make['train'] must be 30 whole numbers from 0, but are int64 of shape (7,) from 0.",
        ),
        ("{'train': (images, labels - 1)}", "must be 30 whole numbers from 0, but are int64 of shape (30,) from -1."),
        ("{'train': (images, labels * 0.5)}", "must be 30 whole numbers from 0, but are float64 of shape (30,)"),
    ],
)
def test_a_user_function_that_returns_something_else_is_refused(user, returned, sentence):
    with pytest.raises(DataError, match=re.escape(sentence)):
        read(user(returned), test=False)


def test_a_user_function_without_test_images_is_refused(user):
    with pytest.raises(DataError, match=r"with 'test', but gave the keys \['train'\]."):
        read(user("{'train': (images, labels)}"), test=True)


def test_a_user_function_that_cannot_be_imported_is_refused(user):
    user("{}")
    with pytest.raises(
        DataError, match=r"data.name 'my_datum:make' must name an importable module, but No module named"
    ):
        read(DataSpec("my_datum:make"), test=False)
    with pytest.raises(DataError, match=re.escape("no function 'maker': valid are 'make'; did you mean 'make'")):
        read(DataSpec("my_data:maker"), test=False)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("images.reshape(7)", "but raised ValueError: cannot reshape array of size 1800 into shape (7,): mend it."),
        ("spec.no_such", "but raised AttributeError: 'DataSpec' object has no attribute 'no_such': mend it."),
        ("1 / 0", "but raised ZeroDivisionError: "),
        ("next(iter(()))", "but raised StopIteration: mend it."),
    ],
)
def test_a_user_function_that_raises_is_one_sentence(user, returned, said):
    with pytest.raises(DataError, match=re.escape(f"my_data:make must return images and labels, {said}")) as caught:
        read(user(returned), test=False)
    assert type(caught.value.__cause__).__name__ in said


@pytest.mark.parametrize(
    ("returned", "said"),
    [("{", "SyntaxError: "), ("1\n\nimages[0]", "NameError: name 'images' is not defined: mend it.")],
)
def test_a_module_that_breaks_when_imported_is_one_sentence(user, returned, said):
    sentence = f"data.name 'my_data:make' must name an importable module, but {said}"
    with pytest.raises(DataError, match=re.escape(sentence)) as caught:
        read(user(returned), test=False)
    assert "\n" not in str(caught.value)


def test_a_missing_download_is_one_sentence(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    def unreachable(self):
        raise OSError("no route to host")

    monkeypatch.setattr(CIFAR100, "download", unreachable)
    with pytest.raises(
        DataError, match=r"but could not be downloaded \(no route to host\): put the files of cifar-100"
    ):
        read(DataSpec("cifar100", root=str(tmp_path), download=True), test=False)


def test_nothing_heavy_is_imported_to_refuse(tmp_path):
    import subprocess

    code = (
        "import sys\nfrom bsconv_nas.training.spec import DataSpec\nfrom bsconv_nas.training.recipe import Recipe\n"
        "from bsconv_nas.training.sources import shape\nprint(shape(DataSpec('cifar10')))\n"
        "assert not {'torch', 'torchvision', 'sklearn', 'PIL'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "((3, 32, 32), 10)"
