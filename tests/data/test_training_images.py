"""What training gets of images: transforms, masks, and what cannot be read."""

import pickle
import random

import numpy as np
import pytest
import torch
from picture_files import grey, picture, write, write_tar
from PIL import Image
from torch.utils.data import DataLoader

from prismatic.data.conversation_dataset import BadImageError
from prismatic.data.images import (
    CROP_MODES,
    TrainingImages,
    collate_images,
    evaluation_transform,
    open_images,
    training_transform,
)
from vision_backbones import BackboneSpec

SPEC = BackboneSpec(
    "small", "vit_tiny_patch16_224", 32, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear", crop_pct=0.9
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def noisy(image):
    """Draws from every global generator."""
    draws = [random.random(), np.random.rand(), torch.rand(()).item()]
    return torch.tensor(draws)[:, None, None] + torch.zeros(3, 2, 2) + grey(image)


def draw_masks(rng):
    return torch.from_numpy(rng.random((3, 4)) < 0.5)


def global_draws():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_examples_depend_on_seed_epoch_and_row_alone():
    source = open_images("miniature:12")

    def at(epoch):
        return TrainingImages(source, noisy, seed=5, epoch=epoch, masks=draw_masks)

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = global_draws()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    keys = [(epoch, row) for epoch in range(2) for row in range(12)]
    whole = [at(epoch)[row] for epoch, row in keys]
    assert global_draws() == expected

    for example, (_, row) in zip(whole, keys, strict=True):
        assert example["label"] == source[row][1] and example["masks"].shape == (3, 4)
    assert len({tuple(example["pixel_values"][:, 0, 0].frac().tolist()) for example in whole}) == len(keys)
    assert len({example["masks"].numpy().tobytes() for example in whole}) > len(keys) // 2
    plain = TrainingImages(source, noisy, seed=5, epoch=1)[3]
    assert torch.equal(plain["pixel_values"], whole[15]["pixel_values"]) and "masks" not in plain
    other = TrainingImages(source, noisy, seed=6, masks=draw_masks)[0]
    assert not torch.equal(other["pixel_values"], whole[0]["pixel_values"])

    batches = [range(8, 10), range(5), range(10, 12)]  # as after a resumption, on other processes
    for workers in (0, 2):
        loader = DataLoader(at(1), batch_sampler=batches, collate_fn=collate_images, num_workers=workers)
        for batch, rows in zip(loader, batches, strict=True):
            expected = collate_images([whole[12 + row] for row in rows])
            assert all(torch.equal(batch[key], expected[key]) for key in ("pixel_values", "labels", "masks"))
            assert batch["masks"].shape == (3 * len(rows), 4)


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_unreadable_images(tmp_path, kind):
    good = picture(50, format="JPEG")
    members = [("0.jpg", good), ("1.jpg", good[: len(good) // 2]), ("2.jpg", b"")]
    if kind == "folder":
        for name, data in members:
            write(tmp_path / "folder" / name, data)
        place = tmp_path / "folder"
    else:
        place = write_tar(tmp_path / "x.tar", members)
    source = open_images(str(place))
    transform = evaluation_transform(SPEC)
    strict = TrainingImages(source, transform, seed=0, masks=draw_masks)
    for row in (1, 2):
        with pytest.raises(BadImageError, match=rf"{row}\.jpg: unreadable \(.*\); replace .* skip bad images"):
            strict[row]

    lenient = TrainingImages(source, transform, seed=0, masks=draw_masks, on_bad_image="skip")
    batch = collate_images([lenient[row] for row in range(3)])
    assert batch["pixel_values"].shape == (1, 3, 32, 32) and batch["pixel_values"].dtype == torch.float32
    assert batch["masks"].shape == (3, 4) and batch["skipped"] == 2
    nothing = collate_images([lenient[row] for row in (1, 2)])
    assert nothing["pixel_values"].shape == (0, 3, 0, 0) and nothing["labels"].shape == (0,)
    assert nothing["labels"].dtype == torch.int64 and nothing["masks"].shape == (0, 0) and nothing["skipped"] == 2
    with pytest.raises(ValueError, match="'skip'"):
        TrainingImages(source, transform, seed=0, on_bad_image="ignore")


def test_an_unreadable_image_in_a_worker(tmp_path):
    write(tmp_path / "flat" / "1.jpg", b"")
    examples = TrainingImages(open_images(str(tmp_path / "flat")), noisy, seed=0)
    with pytest.raises(BadImageError, match=r"1\.jpg: unreadable"):
        list(DataLoader(examples, batch_sampler=[[0]], collate_fn=collate_images, num_workers=1))


def test_a_bug_in_the_transform_is_no_bad_image():
    def broken(image):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        TrainingImages(open_images("miniature:1"), broken, seed=0, on_bad_image="skip")[0]


def test_images_are_not_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "flat" / "1.jpg", exif=exif)
    assert open_images(str(tmp_path / "flat"))[0][0].size == (30, 20)


def test_evaluation_transform_resizes_and_crops():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    shorter = int(32 / 0.9)  # 35
    resized = image.resize((shorter * 90 // 60, shorter), Image.Resampling.BILINEAR)
    left, top = round((resized.width - 32) / 2), round((resized.height - 32) / 2)
    pixels = torch.from_numpy(np.array(resized.crop((left, top, left + 32, top + 32)))).permute(2, 0, 1) / 255
    expected = (pixels - 0.5) / 0.25
    assert torch.allclose(evaluation_transform(SPEC)(image), expected, atol=1e-6)
    assert torch.equal(training_transform(SPEC, crop_mode="none")(image), evaluation_transform(SPEC)(image))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_rkrc_is_a_resize_and_a_centre_crop(mode):
    """Without chance in scale and aspect, "rkrc" resizes the shorter edge to the crop with the spec's interpolation."""
    spec = BackboneSpec("s", "vit_tiny_patch16_224", 48, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation=mode)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (72, 96, 3), dtype=np.uint8))
    resized = image.resize((64, 48), getattr(Image.Resampling, mode.upper())).crop((8, 0, 56, 48))
    expected = (torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255 - 0.5) / 0.25
    transform = training_transform(spec, hflip=0.0)
    random.seed(0)
    outputs = [transform(image) for _ in range(32)]
    assert 2 <= sum(torch.allclose(pixels, expected, atol=1e-6) for pixels in outputs) <= 20  # 1 in 4 expected
    flipped = training_transform(spec, hflip=1.0)
    random.seed(0)
    assert all(torch.equal(flipped(image).flip(2), pixels) for pixels in outputs)


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("backbone", ["miniature", SPEC])
def test_every_crop_mode_gives_the_size_of_the_spec(crop_mode, backbone):
    side = 48 if backbone == "miniature" else 32
    transform = training_transform(backbone, crop_mode=crop_mode)
    settings = {"transform": pickle.loads(pickle.dumps(transform)), "seed": 0}
    first, second = (TrainingImages(open_images("miniature:4"), epoch=epoch, **settings) for epoch in range(2))
    for row in range(4):
        pixels = first[row]["pixel_values"]
        assert pixels.shape == (3, side, side) and pixels.dtype == torch.float32
        assert torch.equal(pixels, second[row]["pixel_values"]) == (crop_mode == "none")


def test_policies_and_wrong_transforms():
    examples = TrainingImages(
        open_images("miniature:2"), training_transform(SPEC, auto_augment="rand-m9-mstd0.5-inc1"), seed=0
    )
    assert torch.equal(examples[1]["pixel_values"], examples[1]["pixel_values"])
    for settings, message in (
        ({"crop_mode": "rkr"}, "unknown crop mode 'rkr': did you mean rkrr"),
        ({"crop_mode": "none", "auto_augment": "rand-m9"}, "drop one"),
        ({"auto_augment": "magic"}, "policy auto_augment='magic'"),
        ({"auto_augment": "rand-z9"}, "policy auto_augment='rand-z9'"),
    ):
        with pytest.raises(ValueError, match=message):
            training_transform(SPEC, **settings)
    for transform in (training_transform, evaluation_transform):
        with pytest.raises(ValueError, match="is fused: train a single ViT"):
            transform("dinoclip-vit-l-336px")
