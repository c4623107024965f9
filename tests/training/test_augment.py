import pytest
import torch

from bsconv_nas.training.augment import Augment, crop, cutout, flip

FILL = torch.tensor([7, 8, 9], dtype=torch.uint8)


@pytest.fixture
def images():
    return torch.randint(0, 256, (40, 3, 9, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def draw(high, *shape):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(1))


def test_crop_equals_a_loop_over_samples(images):
    offsets = draw(7, 40, 2)
    out = crop(images, offsets, 3)
    for image, (top, left), got in zip(images, offsets.tolist(), out, strict=True):
        expected = torch.zeros_like(image)
        for row in range(9):
            for column in range(12):
                y, x = row + top - 3, column + left - 3
                if 0 <= y < 9 and 0 <= x < 12:
                    expected[:, row, column] = image[:, y, x]
        assert torch.equal(got, expected)


def test_crop_in_the_middle_changes_nothing(images):
    assert torch.equal(crop(images, torch.full((40, 2), 4), 4), images)


def test_flip_mirrors_the_chosen_samples_only(images):
    chosen = draw(2, 40).bool()
    out = flip(images, chosen)
    for image, mirrored, got in zip(images, chosen.tolist(), out, strict=True):
        expected = torch.stack([image[..., 11 - i] for i in range(12)], -1) if mirrored else image
        assert torch.equal(got, expected)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_cutout_equals_a_loop_over_samples(images, size):
    centres = torch.stack((draw(9, 40), draw(12, 40)), 1)
    out = cutout(images, centres, size, FILL)
    for image, (row, column), got in zip(images, centres.tolist(), out, strict=True):
        expected = image.clone()
        top, left = row - size // 2, column - size // 2
        expected[:, max(top, 0) : top + size, max(left, 0) : left + size] = FILL[:, None, None]
        assert torch.equal(got, expected)


def test_a_policy_is_decided_by_the_generator_and_leaves_its_input_alone(images):
    before = images.clone()
    policy = Augment(flip=True, crop=2, cutout=3)
    first, second, other = (policy(images, torch.Generator().manual_seed(s), FILL) for s in (5, 5, 6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    assert first.dtype == torch.uint8
    assert first.shape == images.shape


def test_every_offset_side_and_centre_occurs():
    picture = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5).expand(4000, 1, 5, 5)
    black = torch.zeros(1, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    for policy, outcomes in ((Augment(crop=1), 9), (Augment(flip=True), 2), (Augment(cutout=1), 25)):
        seen, counts = torch.unique(policy(picture, generator, black).flatten(1), dim=0, return_counts=True)
        assert len(seen) == outcomes
        assert counts.min() > 0.6 * 4000 / outcomes


def test_the_empty_policy_changes_nothing(images):
    assert Augment()(images, torch.Generator(), FILL) is images
