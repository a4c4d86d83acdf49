"""What training images go through besides crops and flips."""

import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from prismatic.data.image_batches import read_images
from prismatic.data.images import training_transform
from recipes.config.images import parse_align
from vision_backbones import BackboneSpec

HALF = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
SPEC = BackboneSpec("s", "vit_tiny_patch16_224", 48, interpolation="bicubic", crop_pct=1.0, **HALF)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 120, 3), dtype=np.uint8))
POLICY = "rand-m9-mstd0.5-inc1"


def pixels(image):
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - 0.5) / 0.25


def drawn(image, count=1, **settings):
    """Transformed images from the same random states whatever the settings."""
    transform = training_transform(SPEC, **{"hflip": 0.0} | settings)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    return [transform(image) for _ in range(count)]


def share(outputs, expected):
    return np.mean([torch.allclose(output, expected, atol=1e-6) for output in outputs])


def test_scale_is_the_area_that_half_of_the_crops_keep():
    """A quarter of the area is half of the edge: of a shorter edge of 96 pixels, those 48 in the middle as they are."""
    still = {"ratio": (1.0, 1.0), "crop_mode": "rkrc"}
    zoomed = pixels(NOISE.crop((36, 24, 84, 72)))
    whole = pixels(NOISE.resize((60, 48), Image.Resampling.BICUBIC).crop((6, 0, 54, 48)))
    outputs = drawn(NOISE, 64, scale=(0.25, 0.25), **still)
    assert 0.3 < share(outputs, zoomed) < 0.7 and share(outputs, zoomed) + share(outputs, whole) == 1
    assert share(drawn(NOISE, 8, scale=(1.0, 1.0), **still), whole) == 1


def test_ratio_is_how_much_the_aspect_changes():
    """By four in half of the crops: the width is doubled, the height halved, and what then lacks is mirrored."""
    slope = Image.fromarray(np.repeat(np.arange(96, dtype=np.uint8)[None, :, None] * 2, 96, 0).repeat(3, 2))
    outputs = drawn(slope, 16, ratio=(4.0, 4.0), scale=(1.0, 1.0))
    steps = [output[0, 24].diff().abs().mean().item() * 0.25 * 255 for output in outputs]
    plain, wide = (sum(step == pytest.approx(expected, rel=0.1) for step in steps) for expected in (4, 2))
    assert plain > 2 and wide > 2 and plain + wide == 16


def test_random_interpolation_is_one_of_the_two():
    still = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    cubic, linear = (
        pixels(NOISE.resize((60, 48), mode).crop((6, 0, 54, 48)))
        for mode in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)
    )
    assert share(drawn(NOISE, 4, **still), cubic) == 1, "the backbone's"
    assert share(drawn(NOISE, 4, interpolation="bilinear", **still), linear) == 1
    outputs = drawn(NOISE, 40, interpolation="random", **still)
    assert 0.2 < share(outputs, cubic) < 0.8 and share(outputs, cubic) + share(outputs, linear) == 1


def test_colour_jitter_of_grey_is_its_brightness():
    """Contrast and saturation leave a uniform grey as it is."""
    grey = Image.new("RGB", (48, 48), (100, 100, 100))
    shades = torch.stack([output[:, 0, 0] for output in drawn(grey, 64, color_jitter=0.3)]) * 0.25 + 0.5
    factors = shades[:, 0] * 255 / 100
    assert 0.69 < factors.min() < 0.8 and 1.2 < factors.max() < 1.31
    assert torch.equal(drawn(grey)[0], pixels(grey))


def test_a_policy_replaces_colour_jitter():
    plain, both = (drawn(NOISE, 8, auto_augment=POLICY, color_jitter=jitter) for jitter in (None, 0.3))
    assert all(torch.equal(one, other) for one, other in zip(plain, both, strict=True))


def test_erased_rectangles_are_normal_noise():
    areas, noise = [], []
    for seed in range(60):
        kept, erased = [], []
        for random_erasing, into in ((0.0, kept), (1.0, erased)):
            transform = training_transform(SPEC, random_erasing=random_erasing)
            random.seed(seed), torch.manual_seed(seed)
            into.append(transform(NOISE))
        changed = (kept[0] != erased[0]).all(0)
        rows, columns = changed.any(1), changed.any(0)
        assert changed.sum() == rows.sum() * columns.sum(), "a rectangle"
        areas.append(changed.float().mean().item())
        noise.append(erased[0][:, changed].flatten())
    assert 0.015 < min(areas) < 0.06 and 0.25 < max(areas) < 0.35
    noise = torch.cat(noise)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    probable = drawn(Image.new("RGB", (48, 48)), 200, random_erasing=0.25)
    assert 0.15 < np.mean([bool((output != -2).any()) for output in probable]) < 0.35


@pytest.mark.parametrize("settings", [{"color_jitter": 0.4}, {"random_erasing": 0.1}, {"auto_augment": POLICY}])
def test_images_that_are_left_as_they_are(settings):
    with pytest.raises(ValueError, match=f"leaves images as they are; {next(iter(settings))} is .*: drop one"):
        training_transform(SPEC, crop_mode="none", **settings)


def test_settings_reach_the_images():
    """Those of a command line give the same pixels as the transform that is asked for them."""
    data = "--data.train miniature:4 --data.validation miniature:4:4 --data.workers 0 --global_batch_size 4".split()
    given = (
        "--data.crop_mode rrc --data.crop_scale 0.2,0.3 --data.crop_ratio 2,2 --data.interpolation bilinear "
        "--data.horizontal_flip 1 --data.color_jitter 0.4 --data.random_erasing 1 --data.validation_crop 0.5"
    ).split()
    images = read_images(parse_align([*data, *given]), Accelerator(cpu=True), SPEC)
    wanted = training_transform(
        SPEC, crop_mode="rrc", scale=[0.2, 0.3], ratio=[2.0, 2.0], interpolation="bilinear", hflip=1.0,
        color_jitter=0.4, random_erasing=1.0,
    )  # fmt: skip
    outputs = []
    for transform in (images.augmentation, wanted):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        outputs.append(transform(NOISE))
    assert torch.equal(*outputs)
    (batch,) = images.validation_batches()
    scene = images.validation[0][0]
    expected = pixels(scene.resize((96, 96), Image.Resampling.BICUBIC).crop((24, 24, 72, 72)))
    torch.testing.assert_close(batch["pixel_values"][0].cpu(), expected, atol=1e-6, rtol=0)
