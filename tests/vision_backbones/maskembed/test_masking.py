import numpy as np
import pytest
import timm
import torch

from vision_backbones import BackboneSpec
from vision_backbones.maskembed import masked_forward as masking
from vision_backbones.maskembed.loss import LOSSES, check_loss, reconstruction_loss
from vision_backbones.maskembed.mask_samplers import sample_masks
from vision_backbones.maskembed.pairing import check_pair
from vision_backbones.maskembed.student import MaskEmbedStudent, with_head
from vision_backbones.maskembed.teacher import Teacher, merge_moments, moments, unit_scale
from vision_backbones.vit import build_vit

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def vit(arch="vit_tiny_patch16_224", image_size=48, **kwargs) -> torch.nn.Module:
    torch.manual_seed(0)
    spec = BackboneSpec("tiny", arch=arch, image_size=image_size, arch_kwargs={**SMALL, **kwargs})
    return build_vit(spec).eval()


def direct(model, pixels, masks):
    """What the reference does: masks are enlarged to pixels, images repeated."""
    patch = model.patch_embed.patch_size
    grid = model.patch_embed.grid_size
    large = torch.nn.functional.interpolate(masks.view(-1, 1, *grid).float(), scale_factor=patch, mode="nearest")
    height, width = pixels.shape[-2:]
    large = torch.nn.functional.pad(large, (0, width - large.shape[-1], 0, height - large.shape[-2]))
    return model.forward_features(pixels.repeat_interleave(3, 0) * large)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: vit(patch_size=8), id="class token"),
        pytest.param(lambda: vit(patch_size=8, reg_tokens=2, no_embed_class=True), id="registers"),
        pytest.param(lambda: vit("vit_base_patch16_clip_quickgelu_224", patch_size=8), id="clip, no bias"),
        pytest.param(lambda: vit("vit_base_patch16_siglip_224", patch_size=8), id="siglip"),
        pytest.param(lambda: vit("vit_so400m_patch14_siglip_384", image_size=384), id="27 x 14 = 378 of 384 pixels"),
        pytest.param(lambda: vit(patch_size=8, image_size=53), id="5 pixels of border"),
        pytest.param(lambda: vit(patch_size=8, dynamic_img_size=True), id="dynamic size"),
        pytest.param(
            lambda: timm.create_model("beit_base_patch16_224", img_size=48, num_classes=0, **SMALL).eval(), id="beit"
        ),
        pytest.param(
            lambda: timm.create_model("eva02_tiny_patch14_224", img_size=42, num_classes=0, depth=2).eval(), id="eva02"
        ),
    ],
)
def test_masking_embeddings_equals_masking_pixels(model):
    model = model()
    assert masking.has_separate_patches(model)
    size = 384 if model.patch_embed.num_patches == 27 * 27 else model.patch_embed.img_size[0]
    pixels = torch.randn(2, 3, size, size)
    masks = sample_masks(np.random.default_rng(0), 2, model.patch_embed.num_patches)
    with torch.no_grad():
        if hasattr(model.patch_embed.proj, "bias") and model.patch_embed.proj.bias is not None:
            model.patch_embed.proj.bias.normal_()
        expected, got = direct(model, pixels, masks), masking.masked_features(model, pixels, masks)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)
    assert (expected[0] - expected[2]).abs().max() > 1e-3, "the masks make a difference"


def test_gradients_of_masked_embeddings_equal_those_of_masked_pixels():
    model, pixels = vit(patch_size=8), torch.randn(2, 3, 48, 48)
    masks = sample_masks(np.random.default_rng(1), 2, 36)
    gradients = []
    for features in (direct, masking.masked_features):
        model.zero_grad()
        features(model, pixels, masks).square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5 * gradient.abs().max().item() + 1e-9, rtol=0)


def test_overlapping_patches_are_masked_in_pixels():
    model = vit(patch_size=8)
    model.patch_embed.proj = torch.nn.Conv2d(3, 32, 12, stride=8, padding=2)
    assert not masking.has_separate_patches(model)
    pixels, masks = torch.randn(2, 3, 48, 48), sample_masks(np.random.default_rng(0), 2, 36)
    with torch.no_grad():
        torch.testing.assert_close(masking.masked_features(model, pixels, masks), direct(model, pixels, masks))


def test_nothing_stays_on_the_model():
    model, pixels = vit(patch_size=8), torch.randn(1, 3, 48, 48)
    before = model.forward_features(pixels)
    with pytest.raises(RuntimeError):
        masking.masked_features(model, pixels, torch.ones(2, 7, dtype=torch.bool))
    assert torch.equal(model.forward_features(pixels), before)


def test_the_scale_of_targets_in_one_pass_over_uneven_parts():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 5, generator=generator) * n + 100 * n for n in (1, 7, 2, 30)]
    everything = torch.cat([p.flatten() for p in parts]).double()
    halves = [merge_moments(map(moments, parts[:2])), merge_moments(map(moments, parts[2:]))]  # two processes
    for merged in (merge_moments(map(moments, parts)), merge_moments(halves)):
        assert merged[0] == len(everything)
        assert merged[1].item() == pytest.approx(everything.mean().item(), rel=1e-6)
        assert merged[2].item() == pytest.approx(everything.var(correction=0).item(), rel=1e-5)
    assert (everything * unit_scale(merged[2].item())).var(correction=0).item() == pytest.approx(1, rel=1e-5)
    with pytest.raises(ValueError, match="variance 0.0"):
        unit_scale(0.0)


def test_losses_by_their_formulas():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 5, 3, generator=generator), torch.randn(4, 5, 3, generator=generator)  # one prefix token
    masks = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1]]).bool()
    errors, hidden = (a - b) ** 2, ~masks
    assert reconstruction_loss(a, b, masks, "masked_mse").item() == pytest.approx(
        (errors[:, 1:] * hidden[..., None]).sum().item() / 60, rel=1e-5
    )
    both = sum(reconstruction_loss(a, b, masks, kind) for kind in ("masked_mse", "unmasked_mse"))
    assert both.item() == pytest.approx(errors.mean().item(), rel=1e-5), "hidden and visible make up everything"
    prefix = reconstruction_loss(a, b, masks, "masked_mse", masked_prefix=True)
    assert prefix.item() == pytest.approx(
        ((errors[:, 1:] * hidden[..., None]).sum() + errors[:, 0].sum()).item() / 60, rel=1e-5
    )
    # Prefix tokens alone: row by row by default, all pairs as the reference.
    one, other = a[:, :1], b[:, :1]
    assert reconstruction_loss(one, other, masks).item() == pytest.approx(((one - other) ** 2).mean().item())
    pairs = torch.stack([((one[i, 0] - other[j, 0]) ** 2).mean() for i in range(4) for j in range(4)]).mean()
    assert reconstruction_loss(one, other, masks, pair_all=True).item() == pytest.approx(pairs.item(), rel=1e-5)


def test_the_student_starts_from_zero_and_keeps_the_vits_norm():
    model = vit(patch_size=8)
    torch.nn.init.normal_(model.norm.weight)
    norm = model.norm.weight.clone()
    student = MaskEmbedStudent(model, 24, decoder_blocks=0, decoder_width=16)
    pixels, masks = torch.randn(2, 3, 48, 48), sample_masks(np.random.default_rng(0), 2, 36)
    assert not student.encode(pixels).any() and student.encode(pixels).shape == (2, 37, 16)
    assert student(pixels, masks).shape == (6, 37, 24)
    assert torch.equal(student.encoder.norm.weight, norm) and student.encoder.norm.eps == 1e-6
    with pytest.raises(ValueError, match="did you mean linear"):
        with_head(vit(patch_size=8), 24, "liner", as_reference=False)


def test_tokens_of_a_vit_that_normalises_after_pooling_have_no_final_norm():
    model = vit(patch_size=8, global_pool="avg")
    pixels = torch.randn(1, 3, 48, 48)
    plain = model.blocks(model.norm_pre(model._pos_embed(model.patch_embed(pixels))))
    encoder = with_head(model, 24, "linear", as_reference=True)
    assert torch.equal(encoder.forward_features(pixels), plain)


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="14 x 14 patches of a 224 px image.*16 x 16 patches"):
        check_pair("clip-vit-b", "clip-vit-l", 30.0)
    with pytest.raises(ValueError, match="normalised"):
        check_pair("clip-vit-b", "siglip-vit-b", 30.0)
    with pytest.raises(ValueError, match="is fused"):
        check_pair("dinoclip-vit-l-336px", None, 30.0)
    with pytest.raises(ValueError, match="clip-vit-b"):
        check_pair("clip-vit-bb", None, 30.0)
    teacher, student = check_pair("clip-vit-b", None, 30.0)
    assert (teacher.soft_cap, student.soft_cap, student.aligned, student.id) == (None, 30.0, True, "clip-vit-b-aligned")
    with pytest.raises(ValueError, match="is 2: expected 0 to 1$"):
        Teacher(vit(patch_size=8), skip_blocks=2)
    with pytest.raises(ValueError, match="prefix tokens"):
        Teacher(vit("vit_base_patch16_siglip_224", patch_size=8), prefix_only=True)
    with pytest.raises(ValueError, match="did you mean masked_mse"):
        check_loss("masked-mse", prefix_only=False)
    with pytest.raises(ValueError, match="prefix_only leaves none"):
        check_loss("unmasked_mse", prefix_only=True)
    for loss in ("mse", "cosine", "l1"):
        check_loss(loss, prefix_only=True)
    for loss in LOSSES:
        check_loss(loss, prefix_only=False)
