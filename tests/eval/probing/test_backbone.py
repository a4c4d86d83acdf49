"""Every backbone of the catalog under every head, on the meta device; BEiT, EVA02 and aligned ones with numbers."""

import pytest
import timm
import torch
from catalogue import each_backbone, shallow

from eval.probing.backbone import KEEP, ProbedBackbone
from eval.probing.data import COCO_STUFF
from eval.probing.heads import HEADS, check_head, make_head, tokens_for
from eval.probing.labels import LABELS
from vision_backbones import BackboneSpec, check_spec
from vision_backbones.soft_cap import SoftCapAttention
from vision_backbones.vit import is_vit

CLASSES = len(COCO_STUFF)
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
ODD = {
    "beit": BackboneSpec("beit", arch="beit_base_patch16_224", image_size=32, arch_kwargs=SMALL),
    "beitv2": BackboneSpec("beitv2", arch="beitv2_base_patch16_224", image_size=32, arch_kwargs=SMALL),
    "eva02": BackboneSpec("eva02", arch="eva02_base_patch16_clip_224", image_size=32, arch_kwargs=SMALL),
    "dinov2": BackboneSpec("dinov2", arch="vit_base_patch14_reg4_dinov2", image_size=32, arch_kwargs=SMALL),
    "siglip": BackboneSpec("siglip", arch="vit_base_patch16_siglip_224", image_size=32, arch_kwargs=SMALL),
    "aligned": BackboneSpec(
        "aligned", arch="vit_base_patch16_224", image_size=32, arch_kwargs=SMALL, soft_cap=30.0, aligned=True
    ),
}


@pytest.mark.parametrize("id", each_backbone())
def test_every_backbone_of_the_catalog(id):
    spec = check_spec(id)
    with torch.device("meta"):
        skipped = int(all(is_vit(part) for part in spec.parts or (spec,)))
        backbone = ProbedBackbone(spec, "all", skip_blocks=skipped, pretrained=False)
        pixels = torch.empty(2, 3 * len(backbone.vits), spec.image_size, spec.image_size)
        patches = (spec.image_size // backbone.patch) ** 2
        vits = [vit for vit in backbone.vits if hasattr(vit, "blocks")]
        for head, labels, answers in (("transformer", "union", patches), ("linear", "global-union", 1)):
            backbone.keep = tokens_for(head, labels)
            with shallow(vits):
                tokens = backbone(pixels)
            assert tokens.shape == (2, backbone.num_tokens, backbone.embed_dim)
            assert make_head(head, labels, backbone, CLASSES)(tokens).shape == (2, answers, CLASSES)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("head", HEADS)
def test_every_head(name, head, labels):
    if head in ("transformer-cls", "transformer-separate") and labels == "global-union":
        return  # refused, see below
    backbone = ProbedBackbone(ODD[name], tokens_for(head, labels), pretrained=False)
    made = make_head(head, labels, backbone, CLASSES)
    logits = made(backbone(torch.randn(2, 3, 32, 32)))
    assert logits.shape == (2, 1 if labels == "global-union" else 16, CLASSES)
    logits.sum().backward()
    unused = [n for n, p in made.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not unused


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("skip", [0, 1])
def test_tokens_are_timms(name, skip):
    """Without the blocks that are skipped, and after the final norm, as timm itself computes them."""
    torch.manual_seed(0)
    backbones = {keep: ProbedBackbone(ODD[name], keep, skip_blocks=skip, pretrained=False).eval() for keep in KEEP}
    for backbone in backbones.values():
        backbone.load_state_dict(backbones["all"].state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    (vit,) = backbones["all"].vits
    kwargs = {"attn_layer": SoftCapAttention} if ODD[name].soft_cap else {}
    plain = timm.create_model(ODD[name].arch, num_classes=0, **(SMALL | {"depth": 3 - skip}), **kwargs).eval()
    plain.load_state_dict({key: value for key, value in vit.state_dict().items() if key in plain.state_dict()}, False)
    plain.norm = vit.norm
    tokens = plain.forward_features(pixels)
    prefix = plain.num_prefix_tokens
    expected = {"all": tokens, "suffix": tokens[:, prefix:], "mean": tokens.mean(1, keepdim=True)}
    expected["prefix"] = tokens[:, :prefix].mean(1, keepdim=True) if prefix else expected["mean"]
    for keep, backbone in backbones.items():
        assert backbone.num_tokens == expected[keep].shape[1]
        torch.testing.assert_close(backbone(pixels), expected[keep])


def test_each_head_sees_what_it_should():
    """A head on patches alone answers for each by itself; cls never sees a patch; separate sees them unordered."""
    torch.manual_seed(0)
    spec = ODD["dinov2"]
    made = {}
    for head in HEADS:
        backbone = ProbedBackbone(spec, tokens_for(head, "union"), pretrained=False)
        made[head] = make_head(head, "union", backbone, 5), torch.randn(1, backbone.num_tokens, 32)
    for name in ("linear", "mlp"):
        head, tokens = made[name]
        assert tokens.shape[1] == 16, "patches alone"
        torch.testing.assert_close(head(tokens.flip(1)).flip(1), head(tokens))
    head, tokens = made["transformer"]
    assert not torch.allclose(head(tokens.flip(1)).flip(1), head(tokens), atol=1e-4), "it knows where a patch is"
    head, tokens = made["transformer-cls"]
    assert tokens.shape[1] == 1
    head, tokens = made["transformer-separate"]
    torch.testing.assert_close(head(tokens[:, torch.randperm(21)]), head(tokens), atol=1e-5, rtol=1e-5)


def test_what_cannot_be_built():
    with pytest.raises(ValueError, match="did you mean transformer"):
        check_head("transfomer", "union")
    with pytest.raises(ValueError, match="answers for every patch"):
        check_head("transformer-cls", "global-union")
    with pytest.raises(ValueError, match="choose all, prefix"):
        ProbedBackbone(ODD["beit"], "some", pretrained=False)
    with pytest.raises(ValueError, match="expected 0 to 2 for beit"):
        ProbedBackbone(ODD["beit"], "all", skip_blocks=3, pretrained=False)
    backbone = ProbedBackbone(ODD["beit"], "all", pretrained=False)
    with pytest.raises(ValueError, match=r"expected \[B, 3, 32, 32\]"):
        backbone(torch.randn(1, 3, 40, 40))
    odd = BackboneSpec("odd", arch="vit_base_patch16_224", image_size=36, arch_kwargs=SMALL | {"img_size": 36})
    with pytest.raises(ValueError, match="not a multiple of its patch size 8; use 32 or 40"):
        check_spec(odd)
