"""Small vision backbones of every family that timm has: specs of 64 pixels or of 3 x 3 patches."""

from vision_backbones import BackboneSpec

BLOCKS = {"depth": 3, "embed_dim": 48, "num_heads": 4}
WINDOWS = {"depths": (1, 1, 2, 1), "embed_dim": 12, "num_heads": (1, 2, 2, 4)}
NETWORKS = {
    "convnext": ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 96)}),
    "swin": ("swin_tiny_patch4_window7_224", WINDOWS),
    "swinv2": ("swinv2_tiny_window8_256", WINDOWS | {"window_size": 2}),
    "hiera": ("hiera_tiny_224", {"embed_dim": 12, "num_heads": 1, "stages": (1, 1, 2, 1)}),
    "sam": ("samvit_base_patch16", {"embed_dim": 48, "depth": 2, "num_heads": 2, "window_size": 2,
                                    "global_attn_indexes": (1,), "neck_chans": 16}),
    "naflex": ("naflexvit_base_patch16_siglip", BLOCKS),
    "radio-naflex": ("naflexvit_base_patch16_radio_v3", BLOCKS),
}  # fmt: skip
PIXELS = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0, "interpolation": "bicubic"}


def of(family: str, arch: str, image_size: int, arch_kwargs: dict) -> BackboneSpec:
    """A spec that needs nothing of timm's."""
    return BackboneSpec(
        f"small-{family}", arch=arch, image_size=image_size, family=family, arch_kwargs=arch_kwargs, **PIXELS
    )


MAPS = {family: of(family, arch, 64, kwargs) for family, (arch, kwargs) in NETWORKS.items()}
VITS = {
    family: of(family, arch, 3 * patch, BLOCKS)
    for family, arch, patch in (
        ("siglip2", "vit_base_patch16_siglip_gap_224", 16), ("aimv2", "aimv2_large_patch14_224", 14),
        ("mae", "vit_base_patch16_224", 16), ("dinov2-reg", "vit_base_patch14_reg4_dinov2", 14),
        ("flexivit", "flexivit_small", 16), ("deit3", "deit3_base_patch16_224", 16),
        ("tipsv2", "vit_base_patch14_reg1_tipsv2", 14),
        ("dinov3", "vit_base_patch16_dinov3", 16), ("pe-core", "vit_pe_core_base_patch16_224", 16),
        ("eva02", "eva02_base_patch14_224", 14), ("pe-spatial", "vit_pe_spatial_base_patch16_512", 16),
        ("rope-vit", "vit_base_patch16_rope_224", 16), ("rope-mixed", "vit_base_patch16_rope_mixed_224", 16),
        ("beit", "beit_base_patch16_224", 16), ("beitv2", "beitv2_base_patch16_224", 16),
        ("beit3", "beit3_base_patch16_224", 16), ("internvit", "vit_intern300m_patch14_448", 14),
        ("gap", "vit_medium_patch16_gap_256", 16), ("radio", "vit_base_patch16_radio_v3", 16),
    )
}  # fmt: skip
