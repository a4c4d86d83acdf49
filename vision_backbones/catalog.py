"""Every backbone shipped, one line or two each.

Normalisation and crop are written out, so that features do not change with timm's defaults.
"""

from typing import Any

from vision_backbones.registry import register
from vision_backbones.spec import BackboneSpec

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def pixels(mean_and_std: tuple, crop_pct: float) -> dict[str, Any]:
    """Returns the fields of a spec that define its transform."""
    mean, std = mean_and_std
    return {"mean": mean, "std": std, "interpolation": "bicubic", "crop_pct": crop_pct}


def add(family: str, id: str, arch: str, image_size: int, transform: dict[str, Any], **fields) -> BackboneSpec:
    """Registers a single network."""
    return register(BackboneSpec(id, arch=arch, image_size=image_size, family=family, **transform, **fields))


def add_aligned(family: str, id: str, arch: str, image_size: int, transform: dict[str, Any], **fields) -> None:
    """Registers a locality-aligned ViT: MaskEmbed weights, soft-capped attention."""
    weights = id.removesuffix("-aligned") + "-maskembed"
    add(family, id, arch, image_size, transform, soft_cap=30.0, aligned=True, weights=weights, **fields)


# CLIP by OpenAI was trained with QuickGELU: timm's plain ids compute another activation.
CLIP, CLIP_CROPPED = pixels(OPENAI, 1.0), pixels(OPENAI, 0.9)
add("clip", "clip-vit-b", "vit_base_patch16_clip_quickgelu_224.openai", 224, CLIP_CROPPED)
add("clip", "clip-vit-l", "vit_large_patch14_clip_quickgelu_224.openai", 224, CLIP)
CLIP_336 = add("clip", "clip-vit-l-336px", "vit_large_patch14_clip_quickgelu_336.openai", 336, CLIP)

# Without the tag timm gives SigLIP 2 ("v2_webli").
SIGLIP = pixels(HALF, 1.0)
add("siglip", "siglip-vit-b16-224px", "vit_base_patch16_siglip_224.webli", 224, SIGLIP)
add("siglip", "siglip-vit-b16-256px", "vit_base_patch16_siglip_256.webli", 256, SIGLIP)
add("siglip", "siglip-vit-b16-384px", "vit_base_patch16_siglip_384.webli", 384, SIGLIP)
SO400M = add("siglip", "siglip-vit-so400m", "vit_so400m_patch14_siglip_224.webli", 224, SIGLIP)
SO400M_384 = add(
    "siglip", "siglip-vit-so400m-384px", "vit_so400m_patch14_siglip_384.webli", 384, SIGLIP, allow_border=True
)  # 27 patches of 14 cover 378 pixels

DINO = pixels(IMAGENET, 1.0)
DINOV2_L = add("dinov2", "dinov2-vit-l", "vit_large_patch14_reg4_dinov2.lvd142m", 224, DINO)

IN1K = pixels(HALF, 1.0)
add("in1k", "in1k-vit-l", "vit_large_patch16_224.augreg_in21k_ft_in1k", 224, IN1K)

# Fused on one patch grid.
for id, parts, image_size, border in (
    ("dinoclip-vit-l-336px", (DINOV2_L, CLIP_336), 336, False),
    ("dinosiglip-vit-so-224px", (DINOV2_L, SO400M), 224, False),
    ("dinosiglip-vit-so-384px", (DINOV2_L, SO400M_384), 384, True),
):
    register(BackboneSpec(id, parts=parts, image_size=image_size, family="fused", allow_border=border))

# Locality-aligned by MaskEmbed.
IN1K_CROPPED = pixels(HALF, 0.9)
add_aligned("in1k", "in1k-vit-l-aligned", "vit_large_patch16_224", 224, IN1K_CROPPED)
add_aligned("clip", "clip-vit-b-aligned", "vit_base_patch16_clip_quickgelu_224", 224, CLIP)
add_aligned("clip", "clip-vit-l-aligned", "vit_large_patch14_clip_quickgelu_224", 224, CLIP)
add_aligned("clip", "clip-vit-l-336px-aligned", "vit_large_patch14_clip_quickgelu_336", 336, CLIP)
add_aligned("siglip", "siglip-vit-b-aligned", "vit_base_patch16_siglip_224", 224, SIGLIP)
add_aligned("siglip", "siglip-vit-so400m-aligned", "vit_so400m_patch14_siglip_224", 224, SIGLIP)
SO400M_384_ALIGNED = "siglip-vit-so400m-384px-aligned"
add_aligned("siglip", SO400M_384_ALIGNED, "vit_so400m_patch14_siglip_384", 384, SIGLIP, allow_border=True)

# For patch probing.
ZOO, ZOO_HALF = pixels(IMAGENET, 0.9), pixels(HALF, 0.9)
add("in1k", "in1k-vit-t", "vit_tiny_patch16_224.augreg_in21k_ft_in1k", 224, IN1K)
add("in1k", "in1k-vit-s", "vit_small_patch16_224.augreg_in21k_ft_in1k", 224, IN1K)
add("in1k", "in1k-vit-b", "vit_base_patch16_224.augreg_in21k_ft_in1k", 224, IN1K)
add("siglip", "siglip-vit-b", "vit_base_patch16_siglip_224.webli", 224, SIGLIP)
add("mae", "mae-vit-b", "vit_base_patch16_224.mae", 224, ZOO)
add("mae", "mae-vit-l", "vit_large_patch16_224.mae", 224, ZOO)
add("mae", "mae-vit-h", "vit_huge_patch14_224.mae", 224, ZOO)
add("openclip", "openclip-vit-b", "vit_base_patch16_clip_224.laion2b", 224, CLIP)
add("openclip", "openclip-vit-l", "vit_large_patch14_clip_224.laion2b", 224, pixels(HALF, 1.0))
add("openclip", "openclip-vit-h", "vit_huge_patch14_clip_224.laion2b", 224, CLIP)
add("dfn", "dfn-vit-b", "vit_base_patch16_clip_224.dfn2b", 224, CLIP)
add("dfn", "dfn-vit-l", "vit_large_patch14_clip_quickgelu_224.dfn2b", 224, CLIP)
# GELU, as the list of probed models has them, although timm notes that DFN-5B was trained with QuickGELU.
add("dfn", "dfn-vit-h", "vit_huge_patch14_clip_224.dfn5b", 224, CLIP)
add("dfn", "dfn-vit-h-378px", "vit_huge_patch14_clip_378.dfn5b", 378, CLIP)
add("ijepa", "ijepa-vit-h", "vit_huge_patch14_gap_224.in22k_ijepa", 224, ZOO)
add("dino", "dino-vit-b", "vit_base_patch16_224.dino", 224, ZOO)
add("moco", "moco-vit-b", "vit_base_patch16_224", 224, ZOO, weights="moco-vit-b")  # MoCo v3 is not in timm
add("beit", "beit-vit-b", "beit_base_patch16_224.in22k_ft_in22k_in1k", 224, ZOO_HALF)
add("beit", "beitv2-vit-b", "beitv2_base_patch16_224.in1k_ft_in22k_in1k", 224, ZOO)
add("eva02", "eva02-vit-b", "eva02_base_patch16_clip_224.merged2b", 224, CLIP_CROPPED)
add("eva02", "eva02-vit-l", "eva02_large_patch14_clip_224.merged2b", 224, CLIP_CROPPED)
add("dinov2", "dinov2-vit-b", "vit_base_patch14_reg4_dinov2.lvd142m", 224, DINO)

# Of 2024 and later. SigLIP's own evaluation resizes to the image size itself, as for its first version.
for size in (224, 256, 384, 512):
    add("siglip2", f"siglip2-vit-b16-{size}px", f"vit_base_patch16_siglip_{size}.v2_webli", size, SIGLIP)
for size in (256, 384, 512):
    add("siglip2", f"siglip2-vit-l16-{size}px", f"vit_large_patch16_siglip_{size}.v2_webli", size, SIGLIP)
    add("siglip2", f"siglip2-vit-so400m16-{size}px", f"vit_so400m_patch16_siglip_{size}.v2_webli", size, SIGLIP)
for size in (224, 378):
    add("siglip2", f"siglip2-vit-so400m14-{size}px", f"vit_so400m_patch14_siglip_{size}.v2_webli", size, SIGLIP)
for letter, name in (("s", "small"), ("b", "base"), ("l", "large")):
    add("dinov3", f"dinov3-vit-{letter}", f"vit_{name}_patch16_dinov3.lvd1689m", 256, DINO)
add("pe", "pe-core-vit-b", "vit_pe_core_base_patch16_224.fb", 224, SIGLIP)
add("pe", "pe-core-vit-l-336px", "vit_pe_core_large_patch14_336.fb", 336, SIGLIP)
add("pe", "pe-spatial-vit-b-512px", "vit_pe_spatial_base_patch16_512.fb", 512, SIGLIP)
add("pe", "pe-spatial-vit-l-448px", "vit_pe_spatial_large_patch14_448.fb", 448, SIGLIP)
for size in (224, 336, 448):
    add("aimv2", f"aimv2-vit-l-{size}px", f"aimv2_large_patch14_{size}.apple_pt", size, CLIP)
add("metaclip", "metaclip-vit-b", "vit_base_patch16_clip_quickgelu_224.metaclip_2pt5b", 224, CLIP)
add("metaclip", "metaclip-vit-l", "vit_large_patch14_clip_quickgelu_224.metaclip_2pt5b", 224, CLIP)
add("metaclip", "metaclip-vit-h", "vit_huge_patch14_clip_quickgelu_224.metaclip_2pt5b", 224, CLIP)
for letter, name in (("b", "base"), ("l", "large")):
    add("radio", f"radio-v3-vit-{letter}", f"vit_{name}_patch16_radio_v3.c_radio", 512, CLIP)

# Feature maps (see feature_maps.py).
for letter, name in (("t", "tiny"), ("s", "small"), ("b", "base"), ("l", "large")):
    add("dinov3", f"convnext-dinov3-{letter}", f"convnext_{name}.dinov3_lvd1689m", 224, DINO)
add("swin", "swinv2-b-256px", "swinv2_base_window16_256.ms_in1k", 256, ZOO)
add("hiera", "hiera-b", "hiera_base_224.mae", 224, ZOO)
add("sam", "sam-vit-b", "samvit_base_patch16.sa1b", 1024, DINO)
for letter, name in (("b", "base"), ("so400m", "so400m")):
    add("siglip2", f"siglip2-naflex-vit-{letter}", f"naflexvit_{name}_patch16_siglip.v2_webli", 384, SIGLIP)

# The bundled ViT: small enough for the package, deep enough to show what alignment does.
MINIATURE = {"img_size": 48, "patch_size": 8, "embed_dim": 96, "depth": 8, "num_heads": 4}
add("miniature", "miniature", "vit_tiny_patch16_224", 48, IN1K, arch_kwargs=MINIATURE, weights="miniature")
MINIATURE_ALIGNED = {"arch_kwargs": MINIATURE, "soft_cap": 30.0, "aligned": True, "weights": "miniature-aligned"}
add("miniature", "miniature-aligned", "vit_tiny_patch16_224", 48, IN1K, **MINIATURE_ALIGNED)
