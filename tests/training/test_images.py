from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bsconv_nas.errors import DataError
from bsconv_nas.training.augment import Augment
from bsconv_nas.training.images import Arrays, Files, Statistics, resized

CPU = torch.device("cpu")
PLAIN = Statistics((0.0,) * 3, (1 / 255,) * 3)  # normalised values are the bytes themselves


def files_of(generated, size, workers=0, side=8):
    generated.folder(size, ("train",))
    paths = sorted((generated.root / "train").rglob("*.png"))
    labels = np.array([path.parent.name == "light" for path in paths], np.int64)
    return Files(tuple(map(str, paths)), labels, (3, side, side), workers)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def all_of(loader, *arguments):
    images, labels = zip(*loader.batches(*arguments), strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.fixture
def arrays(generated):
    return Arrays(generated.images(23, 3, 6, 5), np.arange(23))


def test_batches_are_normalised_and_in_order_without_a_generator(arrays):
    statistics = Statistics((0.1, 0.5, 0.9), (0.2, 0.3, 0.4))
    images, labels = all_of(arrays.loader(statistics, CPU), 10)
    expected = (arrays.images / 255 - np.array(statistics.mean)[:, None, None]) / np.array(statistics.std)[
        :, None, None
    ]
    assert images.dtype == torch.float32
    assert images.numpy() == pytest.approx(expected, abs=1e-5)
    assert labels.tolist() == list(range(23))


def test_a_generator_shuffles_into_batches_of_nearly_equal_size(arrays):
    loader = arrays.loader(PLAIN, CPU)
    batches = list(loader.batches(10, generator()))
    assert [len(labels) for _, labels in batches] == [8, 8, 7]
    images, labels = all_of(loader, 10, generator())
    assert sorted(labels.tolist()) == list(range(23))
    assert labels.tolist() != list(range(23))
    assert torch.equal(images, torch.tensor(arrays.images[labels.numpy()]).float())
    assert not torch.equal(labels, all_of(loader, 10, generator(1))[1])


def test_cutout_is_the_mean_after_normalisation(arrays):
    statistics = Statistics((100 / 255,) * 3, (0.3,) * 3)
    images, _ = all_of(arrays.loader(statistics, CPU), 23, generator(), Augment(cutout=99))
    assert images.abs().max() == pytest.approx(0, abs=1e-6)


def test_read_only_shared_memory_serves_and_stays_as_it_is(arrays):
    before = arrays.images.copy()
    arrays.images.flags.writeable = arrays.labels.flags.writeable = False
    loader = arrays.loader(PLAIN, CPU)
    all_of(loader, 10, generator(), Augment(True, 2, 3))
    assert np.array_equal(arrays.images, before)
    assert loader._images.data_ptr() == arrays.images.ctypes.data


def test_files_are_resized_by_the_short_side_and_cropped_in_the_middle(generated):
    files = files_of(generated, (32, 16))
    images, labels = all_of(files.loader(PLAIN, CPU), 6)
    assert images.shape == (20, 3, 8, 8)
    assert labels.tolist() == [0] * 10 + [1] * 10
    with Image.open(files.paths[0]) as image:
        small = image.resize((16, 8), Image.Resampling.BILINEAR).crop((4, 0, 12, 8))
    # The middle 8 columns of the 16; PIL rounds between its two passes.
    assert (images[0].permute(1, 2, 0).numpy() - np.asarray(small)) == pytest.approx(0, abs=1.01)
    assert np.array_equal(files.decoded().images, images.byte().numpy())


def test_random_crops_depend_on_the_generator_and_not_on_the_workers(generated):
    alone = files_of(generated, (32, 24))
    helped = Files(alone.paths, alone.labels, alone.size, workers=2)
    crop = Augment(crop=1, flip=True)
    first, again, other = (all_of(alone.loader(PLAIN, CPU), 6, generator(s), crop)[0] for s in (0, 0, 1))
    by_workers, _ = all_of(helped.loader(PLAIN, CPU), 6, generator(0), crop)
    assert torch.equal(first, again)
    assert torch.equal(first, by_workers)
    assert not torch.equal(first, other)
    plain, _ = all_of(alone.loader(PLAIN, CPU), 6, generator(0))
    assert not torch.equal(first, plain)


def test_every_image_is_cropped_in_its_own_way_and_anew_each_time(generated):
    files = files_of(generated, (32, 24))
    same = Files(files.paths[:1] * 6, files.labels[:6], files.size)
    first, second = (all_of(same.loader(PLAIN, CPU), 6, generator(s), Augment(crop=1))[0] for s in (0, 1))
    assert len(torch.unique(torch.cat((first, second)).flatten(1), dim=0)) == 12


def test_grey_files_have_one_channel(generated):
    files = files_of(generated, (8, 8))
    grey = Files(files.paths, files.labels, (1, 8, 8)).decoded().images
    with Image.open(files.paths[3]) as image:
        assert np.array_equal(grey[3, 0], np.asarray(image.convert("L")))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_file_is_named_in_one_sentence(generated, workers):
    files = files_of(generated, (32, 24), workers)
    damaged = Path(files.paths[7])
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(DataError, match=rf"^Every image must be readable, but {damaged} is not: .*\.$"):
        all_of(files.loader(PLAIN, CPU), 6)


def test_halving_is_smooth_and_the_right_size_is_untouched():
    image = torch.tensor([[0, 0, 200, 200], [0, 0, 200, 200], [100] * 4, [100] * 4], dtype=torch.uint8)[None]
    assert resized(image, 4) is image
    half = resized(image, 2)[0].int()
    assert half.shape == (2, 2)
    assert half[0, 0] < half[1, 0] < half[0, 1]
    assert half.float().mean() == pytest.approx(100, abs=1)
