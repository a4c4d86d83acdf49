import pickle
import re
import resource

import numpy as np
import pytest
import torch
from golden_cases import case_names, golden_dir, load_json, load_tensors, requires_golden
from PIL import Image

from vision_backbones import get_spec
from vision_backbones.transforms import STRATEGIES, Bounded, Letterbox, image_transform, to_rgb

B6 = "B_prismatic/B6_transforms"
TABLE, SMALL = f"{B6}/full_size_transform_table.json", f"{B6}/cases.json"


def golden_images() -> dict[str, Image.Image]:
    return {path.stem: Image.open(path) for path in sorted((golden_dir() / B6).glob("*.png"))}


def picture(width=37, height=20, mode="RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@requires_golden
def test_small_outputs_match_the_reference():
    images, cases = golden_images(), load_json(SMALL)
    outputs = load_tensors(f"{B6}/outputs.safetensors")
    assert outputs
    for key, expected in outputs.items():
        name, image = key.rsplit("/", 1)
        id, strategy = name.split("/")
        transform = image_transform(get_spec(id), strategy, cases[name]["default_image_size"])
        torch.testing.assert_close(transform(images[image]), expected, atol=1e-5, rtol=0)


@requires_golden
def test_full_size_outputs_match_the_reference():
    images = golden_images()
    outputs = load_tensors(f"{B6}/outputs_fullsize_stride16.safetensors")
    assert outputs
    for key, expected in outputs.items():
        id, strategy, image, _ = key.split("/")
        pixels = image_transform(get_spec(id), strategy)(images[image])
        torch.testing.assert_close(pixels[:, ::16, ::16], expected, atol=1e-5, rtol=0)


@requires_golden
@pytest.mark.parametrize(("index", "name"), [(i, n) for i in (TABLE, SMALL) for n in case_names(i)])
def test_steps_match_the_reference(index, name):
    case, (id, strategy) = load_json(index)[name], name.split("/")
    expected = " ".join(case["transforms"])
    transform = image_transform(get_spec(id), strategy, case.get("default_image_size"))
    steps = {type(step).__name__: step for step in transform.transforms}
    size = re.search(r"Resize\(size=(\d+|\(\d+, \d+\))", expected).group(1)
    assert str(steps["Resize"].size) == size
    assert steps["Resize"].interpolation.value == re.search(r"interpolation=(\w+)", expected).group(1)
    if strategy != "resize-naive":  # there the crop changes nothing and is left out
        assert f"CenterCrop(size={tuple(steps['CenterCrop'].size)})" in expected
    for field in ("mean", "std"):
        stated = [float(x) for x in re.search(rf"{field}=tensor\(\[([^]]+)", expected).group(1).split(",")]
        assert getattr(steps["Normalize"], field) == pytest.approx(stated, abs=5e-5)
    assert ("Letterbox" in steps) == ("LetterboxPad" in expected)
    if "Letterbox" in steps:
        assert f"padding_fill_value={steps['Letterbox'].fill}" in expected


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_gives_the_square_of_the_spec(strategy):
    spec = get_spec("miniature")
    for size in ((37, 20), (20, 37), (48, 48), (3, 1), (101, 100)):
        assert image_transform(spec, strategy)(picture(*size)).shape == (3, 48, 48)
        assert image_transform(spec, strategy, image_size=24)(picture(*size)).shape == (3, 24, 24)


def test_fused_transform_stacks_those_of_the_parts():
    fused = get_spec("dinosiglip-vit-so-384px")
    pixels = image_transform(fused, "letterbox")(picture())
    parts = [image_transform(get_spec(part.id), "letterbox", 384)(picture()) for part in fused.parts]
    assert pixels.shape == (6, 384, 384)
    assert torch.equal(pixels, torch.cat(parts))
    assert not torch.equal(parts[0], parts[1])  # the parts normalise differently


def test_letterbox_keeps_the_whole_picture_and_pads_with_the_mean():
    padded = np.asarray(Letterbox((0.25, 0.5, 0.75))(picture(30, 20)))
    assert padded.shape == (30, 30, 3)
    assert np.array_equal(padded[5:25], np.asarray(picture(30, 20)))
    assert (padded[:5] == (63, 127, 191)).all() and (padded[25:] == (63, 127, 191)).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_other_modes_are_read_as_pillow_reads_them(mode):
    image = picture(48, 48, mode)
    pixels = image_transform(get_spec("miniature"))(image)
    expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(pixels, expected)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bit_grey_is_scaled_not_clipped(mode):
    values = np.array([[0, 255, 256, 32768, 65535]])
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    image = Image.frombytes(mode, (5, 1), values.astype(dtype).tobytes())
    assert np.asarray(to_rgb(image))[0].tolist() == [[v] * 3 for v in (0, 0, 1, 128, 255)]


def test_palette_with_transparency_raises_no_warning(recwarn):
    image = picture(8, 8, "P")
    image.info["transparency"] = bytes(range(256))
    assert to_rgb(image).mode == "RGB"
    assert not recwarn.list


@pytest.mark.parametrize("id", ["clip-vit-b", "dinoclip-vit-l-336px"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_transforms_can_be_sent_to_workers(id, strategy):
    transform = image_transform(get_spec(id), strategy)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(picture()), transform(picture()))


def test_unknown_strategy_lists_the_closest():
    with pytest.raises(ValueError, match="unknown image resize strategy 'resize-naiv': did you mean resize-naive"):
        image_transform(get_spec("miniature"), "resize-naiv")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("size", [(12_000, 1), (1, 12_000), (4_000, 3), (89_000_000, 1)])
def test_a_thin_image_takes_little_memory(strategy, size):
    """Of a ramp along its length, the crop is the middle and the letterbox a line between the mean colour."""
    spec = get_spec("clip-vit-l-336px")
    ramp = np.linspace(0, 255, max(size)).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp[None] if size[0] > 1 else ramp[:, None], size[::-1]).copy())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = image_transform(spec, strategy)(image)
    assert pixels.shape == (3, 336, 336)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 800_000, "kilobytes"
    values = pixels[0] * spec.std[0] + spec.mean[0]
    if strategy == "resize-crop":
        assert values.mean() == pytest.approx(0.5, abs=0.02)
    if strategy == "letterbox":
        assert values[5, 5] == pytest.approx(spec.mean[0], abs=0.01)


def test_what_makes_thin_images_small_leaves_others_alone():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 900, 3), dtype=np.uint8))
    middle = Bounded(336, 336)(Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9000, 3), dtype=np.uint8)))
    assert middle.size == (18, 9), "9 pixels and 8 beside them, less what is uneven"
    assert np.array_equal(Bounded(336, 336)(image), image)


@pytest.mark.parametrize(
    ("values", "mode", "expected"),
    [
        ([[0.0, 0.5, 1.0]], "F", [0, 127, 255]),
        ([[0.0, 100.0, 255.0]], "F", [0, 100, 255]),
        ([[0.0, 25_600.0, 65_535.0]], "F", [0, 100, 255]),
        ([[0, 25_600, 65_535]], "I", [0, 100, 255]),
        ([[0, 100, 255]], "I", [0, 100, 255]),
    ],
)
def test_pixels_of_32_bits_are_scaled_by_their_range(tmp_path, values, mode, expected):
    Image.fromarray(np.array(values, dtype=np.float32 if mode == "F" else np.int32)).save(tmp_path / "a.tiff")
    with Image.open(tmp_path / "a.tiff") as image:
        assert image.mode == mode and np.asarray(to_rgb(image))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("value", [-1.0, 70_000.0, float("nan"), float("inf")])
def test_pixels_of_no_known_range_are_refused(value):
    with pytest.raises(ValueError, match="expected 0 to 1, 255 or 65535: convert it to 8 bits"):
        to_rgb(Image.fromarray(np.array([[0.5, value]], dtype=np.float32)))
