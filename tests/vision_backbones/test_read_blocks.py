"""`NAME@last` and `NAME@second-to-last`: features of a block, against timm's own."""

import pytest
import torch

from vision_backbones import BackboneSpec, check_spec, create_backbone, get_spec
from vision_backbones.spec import FEATURES
from vision_backbones.vit import load_vit


@pytest.mark.parametrize("name", ["miniature", "miniature-aligned", "timm:vit_tiny_patch16_224"])
def test_features_of_another_block(name):
    vit = load_vit(check_spec(name), pretrained=False).eval()
    read = {which: create_backbone(f"{name}@{which}", pretrained=False).eval() for which in FEATURES}
    for backbone in read.values():
        backbone.vit.load_state_dict(vit.state_dict(), strict=False)
    pixels = torch.randn(2, 3, vit.patch_embed.img_size[0], vit.patch_embed.img_size[0])
    with torch.no_grad():
        last, before = (vit.forward_intermediates(pixels, indices=[i], output_fmt="NLC")[1][0] for i in (-1, -2))
        whole = vit.forward_features(pixels)
        torch.testing.assert_close(read["last"](pixels), whole)
        torch.testing.assert_close(read["second-to-last"](pixels), before)
    assert not torch.allclose(last, before)
    assert BackboneSpec.from_dict(read["last"].spec.to_dict()) == read["last"].spec


def test_features_of_another_block_in_pairs_and_what_has_none():
    spec = get_spec("miniature@last+miniature-aligned")
    assert [part.reads_last for part in spec.parts] == [True, True]
    with pytest.raises(ValueError, match="unknown features 'lats': did you mean last"):
        get_spec("miniature@lats")
    with pytest.raises(ValueError, match="unknown vision backbone 'miniatur'"):
        get_spec("miniatur@last")
    with pytest.raises(ValueError, match="not a plain ViT"):
        check_spec("timm:resnet18@last")
