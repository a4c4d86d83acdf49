"""What is shown of patch features, against numpy and the backbones themselves."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from prismatic.miniature.scenes import scene
from prismatic.models.viewed import view
from vision_backbones import BackboneSpec, create_backbone, register
from vision_backbones.patch_views import ViewedBackbone, colours, seen_picture, similarity, view_backbone

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3), np.uint8))


def test_similarity_is_the_cosine_and_zero_has_none():
    features = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    features[2], features[5] = 0, -3 * features[1]
    found = similarity(torch.from_numpy(features).half(), 1)
    assert found.dtype == torch.float32
    for row in range(7):
        a, b = (features[i].astype(np.float16).astype(float) for i in (1, row))
        cosine = 0 if row == 2 else a @ b / np.sqrt((a @ a) * (b @ b))
        assert found[row].item() == pytest.approx(cosine, abs=1e-6)
    assert found[1] == pytest.approx(1, abs=1e-6) and found[5] == pytest.approx(-1, abs=1e-3)
    assert not similarity(torch.from_numpy(features), 2).any(), "a patch without features is like none, not even itself"
    with pytest.raises(ValueError, match="patch 7 is not one of the 7 patches: give 0 to 6"):
        similarity(torch.from_numpy(features), 7)
    with pytest.raises(ValueError, match=r"shape \[1, 7, 5\], expected \[N, D\]"):
        similarity(torch.from_numpy(features)[None], 0)


def test_colours_are_the_principal_components():
    """By the covariance's eigenvectors, whose sign means nothing."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 20, 6)) @ np.diag([9, 5, 3, 1, 1, 0.1]) + 4
    found = colours([torch.from_numpy(part) for part in features])
    assert found.dtype == torch.uint8 and found.shape == (3, 20, 3)
    flat = features.reshape(60, 6)
    _, vectors = np.linalg.eigh(np.cov(flat.T))
    for channel in range(3):
        values = (flat - flat.mean(0)) @ vectors[:, -1 - channel]
        low, high = np.quantile(values, (0.02, 0.98))
        share = ((values - low) / (high - low)).clip(0, 1)
        given = found[..., channel].flatten().numpy() / 255
        assert min(np.abs(given - share).max(), np.abs(given - (1 - share)).max()) < 1.01 / 255


def test_colours_of_few_or_equal_patches():
    assert not colours(torch.ones(2, 5, 4)).any()
    two = colours(torch.tensor([[[1.0, 0], [0, 1]]]))
    assert two.shape == (1, 2, 3) and (two[0, 0, 0] != two[0, 1, 0]) and not two[..., 2].any()


@pytest.mark.parametrize("name", ["miniature", "miniature-aligned"])
def test_a_view_has_the_patches_features_and_their_pixels(name):
    """Class tokens are left out; a scene has the backbone's own size, and is seen as it is."""
    drawn, viewed = Image.fromarray(scene(3, 0).image), view_backbone(name)
    features, picture = viewed(drawn)
    backbone = create_backbone(name).eval()
    with torch.no_grad():
        tokens = backbone(backbone.transform(drawn)[None])[0]
    assert len(tokens) == 36 + (name == "miniature-aligned")
    assert torch.equal(features, tokens[-36:]) and viewed.grid == (6, 6) and viewed.patch == 8
    assert np.array_equal(np.asarray(picture), np.asarray(drawn))


def test_what_a_backbone_sees_is_resized_and_cropped_as_it_does_it():
    cropped = dataclasses.replace(create_backbone("miniature").spec, weights=None)
    pixels = create_backbone(cropped, pretrained=False, image_resize_strategy="resize-crop").transform(NOISE)
    expected = np.asarray(NOISE.resize((48, 72), Image.Resampling.BICUBIC).crop((0, 12, 48, 60))).astype(int)
    assert np.abs(np.asarray(seen_picture(pixels, cropped)).astype(int) - expected).max() <= 1


def test_a_border_that_no_patch_covers_is_left_out():
    arch = {"img_size": 53, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    spec = BackboneSpec("bordered", "vit_tiny_patch16_224", image_size=53, arch_kwargs=arch, allow_border=True)
    viewed = ViewedBackbone(create_backbone(spec, pretrained=False), "bordered")
    image = NOISE.resize((53, 53))
    features, picture = viewed(image)
    assert viewed.grid == (6, 6) and features.shape == (36, 32) and picture.size == (48, 48)
    assert np.array_equal(np.asarray(picture), np.asarray(image)[:48, :48])


def test_fused_backbones_show_their_first_parts_pixels():
    first = create_backbone("miniature", pretrained=False).spec
    other = dataclasses.replace(first, id="other", mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1))
    name = register(BackboneSpec("two-views", image_size=48, parts=(other, first))).id
    viewed = ViewedBackbone(create_backbone(name, pretrained=False), name)
    image = NOISE.resize((48, 48))
    features, picture = viewed(image)
    assert features.shape == (36, 192) and np.array_equal(np.asarray(picture), np.asarray(image))


def test_the_backbone_of_a_vlm_is_shown_by_its_folder(tmp_path):
    import prismatic

    model, processor = prismatic.build("miniature", "miniature", "linear", image_resize_strategy="letterbox")
    with torch.no_grad():  # as finetuning would have left it
        model.vision_backbone.vit.blocks[0].mlp.fc1.bias.add_(0.5)
    model.save_pretrained(tmp_path / "vlm"), processor.save_pretrained(tmp_path / "vlm")
    features, picture = view(str(tmp_path / "vlm"))(NOISE)
    with torch.no_grad():
        backbone = model.vision_backbone.bfloat16().float().eval()
        expected = backbone(backbone.transform(NOISE)[None])[0]
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(features, view("miniature")(NOISE).features, atol=0.1), "its own weights"
    assert np.asarray(picture)[:, :4].std() < 3, "it pads, and does not squash"


def test_what_is_no_backbone_is_said(tmp_path):
    with pytest.raises(ValueError, match="did you mean miniature"):
        view("miniatur")
    with pytest.raises(ValueError, match="neither a backbone .*holds no vision backbone.* nor a VLM .*neither config"):
        view(str(tmp_path))
