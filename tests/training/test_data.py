import importlib
import pickle
import re
import sys

import numpy as np
import pytest

from bsconv_nas.errors import DataError
from bsconv_nas.training.data import DataSpec, load, load_test, shape, split
from bsconv_nas.training.images import Arrays, Files
from bsconv_nas.training.sources import Labelled, read


@pytest.fixture(scope="module")
def digits():
    return load(DataSpec())


def images_of(part):
    return {image.tobytes() for image in part.images}


def test_splits_are_disjoint_complete_and_apart_from_the_test_split(digits):
    whole, test = read(DataSpec(), test=False), load_test(DataSpec())
    parts = [images_of(part) for part in digits.parts.values()]
    assert list(digits.parts) == ["train", "selection", "report"]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(images_of(whole))
    assert list(test.parts) == ["test"]
    assert not images_of(test.parts["test"]) & images_of(whole)
    assert digits.counts == {"train": 1154, "selection": 143, "report": 145}
    assert test.counts == {"test": 355}


def test_splits_are_balanced_over_the_classes(digits):
    totals = np.bincount(read(DataSpec(), test=False).labels)
    for name, share in (("train", 0.8), ("selection", 0.1), ("report", 0.1)):
        counts = np.bincount(digits.parts[name].labels)
        assert np.abs(counts - share * totals).max() <= 1


def test_the_split_seed_decides_the_split():
    spec = DataSpec(selection=0.2, report=0.3)
    first, again, other = (load(DataSpec(selection=0.2, report=0.3, split_seed=s)) for s in (0, 0, 1))
    assert images_of(first.parts["report"]) == images_of(again.parts["report"])
    assert images_of(first.parts["report"]) != images_of(other.parts["report"])
    assert first.fingerprint == again.fingerprint == other.fingerprint == load(spec).fingerprint
    assert first.counts["report"] == pytest.approx(0.3 * 1442, abs=5)


def test_a_limit_takes_a_balanced_subset():
    dataset = load(DataSpec(limit=203))
    assert sum(dataset.counts.values()) == 203
    counts = sum(np.bincount(part.labels, minlength=10) for part in dataset.parts.values())
    assert set(counts) == {20, 21}
    assert dataset.fingerprint != load(DataSpec()).fingerprint
    assert sum(load(DataSpec(limit=10**6)).counts.values()) == 1442


def test_a_class_that_a_part_would_miss_is_refused():
    with pytest.raises(
        DataError,
        match=re.escape(
            "Every class must have an image in the selection part, but class '0' of 'digits' has 4 training images in "
            "all: raise data.selection and data.report, or data.limit."
        ),
    ):
        load(DataSpec(limit=40))
    absent = Labelled(np.zeros((20, 1, 2, 2), np.uint8), np.zeros(20, np.int64), ("a", "b"), (1, 2, 2))
    with pytest.raises(DataError, match="class 'b' of 'digits' has 0 training images in all"):
        split(absent, DataSpec())


def test_statistics_are_those_of_the_train_part(digits):
    images = digits.parts["train"].images / 255
    assert digits.statistics.mean == pytest.approx([images.mean()])
    assert digits.statistics.std == pytest.approx([images.std()])
    batch, _ = next(digits.loader("train").batches(10**6))
    assert float(batch.mean()) == pytest.approx(0, abs=1e-5)
    assert float(batch.std()) == pytest.approx(1, abs=1e-3)
    assert load_test(DataSpec()).statistics == digits.statistics


def test_a_constant_channel_is_not_divided_by_zero(user_set):
    user_set("numpy.full((60, 1, 4, 4), 51, numpy.uint8)")
    dataset = load(DataSpec("my_set:make"))
    assert (dataset.statistics.mean, dataset.statistics.std) == (pytest.approx((0.2,)), (1.0,))


def test_a_fingerprint_changes_with_one_pixel_and_with_one_label(user_set):
    prints = set()
    for change in ("", "images[7, 0, 1, 1] ^= 1", "labels[7] = 0", "images = images.reshape(60, 1, 2, 8)"):
        user_set("numpy.arange(960, dtype=numpy.uint8).reshape(60, 1, 4, 4)", change)
        prints.add(load(DataSpec("my_set:make")).fingerprint)
    assert len(prints) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", fingerprint) for fingerprint in prints)


def test_a_data_set_travels_without_a_copy(digits):
    buffers = []
    shell = pickle.dumps(digits, protocol=5, buffer_callback=buffers.append)
    assert len(shell) < 3000
    shared = [
        pickle.PickleBuffer(bytes(buffer.raw())) for buffer in buffers
    ]  # read-only, as an object store gives them
    there = pickle.loads(shell, buffers=shared)
    assert not there.parts["train"].images.flags.writeable
    assert np.array_equal(there.parts["train"].images, digits.parts["train"].images)
    batch, _ = next(there.loader("train").batches(4))
    assert batch.shape == (4, 1, 8, 8)


def test_grey_becomes_colour_and_colour_grey(generated):
    generated.cifar("CIFAR10")
    colour = load(DataSpec(channels=3))
    assert colour.input_size == (3, 8, 8)
    images = colour.parts["train"].images
    assert np.array_equal(images[:, 0], images[:, 1])
    assert np.array_equal(images[:, 0], images[:, 2])
    grey, rgb = (load(DataSpec("cifar10", channels=c)).parts["train"].images for c in (1, None))
    weighted = rgb[:, 0] * 0.2989 + rgb[:, 1] * 0.587 + rgb[:, 2] * 0.114
    assert np.abs(grey[:, 0] - weighted).max() <= 1


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "digits"},
        {"name": "digits", "resolution": 12, "channels": 3},
        {"name": "cifar10", "resolution": 16},
        {"name": "cifar100"},
        {"name": "fashion_mnist", "resolution": 16, "channels": 3},
        {"name": "flowers102", "selection": 0.25, "report": 0.25, "resolution": 16},
        {"name": "flowers102", "selection": 0.25, "report": 0.25, "resolution": 65, "workers": 1},
        {"name": "folder"},
        {"name": "folder", "resolution": 100},
    ],
    ids=lambda fields: " ".join(map(str, fields.values())),
)
def test_every_set_loads_with_the_shape_that_was_announced(generated, fields):
    writer = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}
    if fields["name"] in writer:
        generated.cifar(writer[fields["name"]])
    elif fields["name"] == "folder":
        generated.folder((24, 24))
    elif fields["name"] != "digits":
        getattr(generated, fields["name"])()
    spec = DataSpec(**fields)
    dataset, test = load(spec), load_test(spec)
    assert (dataset.input_size, dataset.num_classes) == shape(spec)
    large = max(dataset.input_size) > 64
    for data, part in ((dataset, "train"), (dataset, "selection"), (dataset, "report"), (test, "test")):
        assert isinstance(data.parts[part], Files if large else Arrays)
        images, labels = next(data.loader(part).batches(2))
        assert images.shape == (2, *dataset.input_size)
        assert labels.max() < dataset.num_classes


def test_a_part_that_is_not_there_is_refused(digits):
    sentence = "The data set 'digits' has no part 'test' here: valid are 'report', 'selection', 'train'"
    with pytest.raises(DataError, match=re.escape(sentence)):
        digits.loader("test")


@pytest.fixture
def user_set(tmp_path, monkeypatch):
    """Return a writer of the module `my_set`, whose test images can differ from its training images."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(images, change="", test="images[:10], labels[:10]"):
        sys.modules.pop("my_set", None)
        (tmp_path / "my_set.py").write_text(
            f"import numpy\ndef make(spec):\n    images = {images}\n    labels = numpy.arange(60) % 3\n    {change}\n"
            f"    return {{'train': (images, labels), 'test': ({test})}}\n"
        )
        importlib.invalidate_caches()

    return write


def test_test_images_unlike_the_training_images_are_refused(user_set):
    zeros = "numpy.zeros((60, 1, 4, 4), numpy.uint8)"
    user_set(zeros, test="numpy.zeros((9, 1, 5, 4), numpy.uint8), labels[:9]")
    sentence = (
        "The test images of 'my_set:make' must be like its training images, (1, 4, 4) in 3 classes, "
        "but are (1, 5, 4) in 3."
    )
    with pytest.raises(DataError, match=re.escape(sentence)):
        load_test(DataSpec("my_set:make"))
    user_set(zeros, test="images[:5], labels[:5] + 2")
    with pytest.raises(DataError, match=r"The labels of 'my_set:make' must be below its 3 classes, but one is 4."):
        load_test(DataSpec("my_set:make"))


def test_channels_that_cannot_be_had_are_refused(user_set):
    user_set("numpy.zeros((60, 4, 4, 4), numpy.uint8)")
    assert load(DataSpec("my_set:make")).input_size == (4, 4, 4)
    sentence = (
        "data.channels = 3 needs images of 1 or 3 channels, but those of 'my_set:make' have 4: leave data.channels"
    )
    with pytest.raises(DataError, match=re.escape(sentence)):
        load(DataSpec("my_set:make", channels=3))
