"""The table of `python -m vision_backbones list`; imports neither torch nor timm unless it is asked for more."""

import fnmatch
import re
from collections.abc import Iterator

from vision_backbones.factory import check_spec
from vision_backbones.names import suggest
from vision_backbones.registry import get_spec, list_backbones
from vision_backbones.spec import BackboneSpec

UNKNOWN = "see the model card"
TAGS = {  # of pretrained weights: their licence, as timm records it
    "apache-2.0": "openai webli v2_webli lvd142m laion2b dino fb sa1b augreg_in21k_ft_in1k in22k_ft_in22k_in1k "
    "in1k_ft_in22k_in1k",
    "apple-ascl": "dfn2b dfn5b apple_pt",
    "cc-by-nc-4.0": "mae in22k_ijepa metaclip_2pt5b",
    "dinov3-license": "lvd1689m dinov3_lvd1689m",
    "mit": "merged2b ms_in1k",
    "nvidia-open-model-license": "c_radio",
}
LICENCES = {tag: licence for licence, tags in TAGS.items() for tag in tags.split()}
STRIDES = {"convnext": 32, "swin": 32, "hiera": 32}  # of feature maps, by the beginning of timm's id
COLUMNS = ("id", "family", "px", "tokens", "aligned", "licence", "timm id")
MORE = ("id", "family", "px", "tokens", "aligned", "width", "parameters", "licence", "timm id")


def rows(full: bool = False) -> list[tuple[str, ...]]:
    """Returns the cells of every registered backbone under `COLUMNS`, or under `MORE` if `full`.

    `full` builds each on the meta device, which takes half a minute; otherwise tokens are told from timm's id.
    """
    return [_row(get_spec(id), full) for id in list_backbones()]


def _row(spec: BackboneSpec, full: bool) -> tuple[str, ...]:
    tokens, more = num_tokens(spec), ()
    if full:
        backbone = _on_meta(spec)
        tokens = backbone.num_tokens
        more = (str(backbone.embed_dim), f"{sum(p.numel() for p in backbone.parameters()):,}")
    sibling = f"{spec.id}-aligned" in list_backbones()
    aligned = "is" if spec.aligned else "has" if sibling else ""
    names = spec.arch or " + ".join(part.id for part in spec.parts)
    shown = "" if tokens is None else str(tokens)
    return (spec.id, spec.family, str(spec.image_size or ""), shown, aligned, *more, licence(spec), names)


def num_tokens(spec: BackboneSpec) -> int | None:
    """Returns the tokens that a backbone gives, as far as its spec tells without building it; None where it does not.

    Tokens are patches; those of ViTs whose last block is read have prefix tokens in front.
    """
    parts = spec.parts or (spec,)
    patch = parts[0].arch_kwargs.get("patch_size") or _patch(parts[0].arch)
    if patch is None or spec.image_size is None:
        return None
    prefixes = {_prefix(part) if part.reads_last else 0 for part in parts}
    return (spec.image_size // patch) ** 2 + (prefixes.pop() if len(prefixes) == 1 else 0)


def _patch(arch: str) -> int | None:
    for kind, stride in STRIDES.items():
        if arch.startswith(kind):
            return stride
    found = re.search(r"patch(\d+)", arch)
    return int(found[1]) if found else None


def _prefix(spec: BackboneSpec) -> int:
    """Class token and registers of a plain ViT, by timm's habit of naming."""
    if "siglip" in spec.arch or "_gap_" in spec.arch:
        return 0
    registers = re.search(r"reg(\d+)", spec.arch)
    return 1 + (int(registers[1]) if registers else 0)


def licence(spec: BackboneSpec) -> str:
    """Returns the licence of a backbone's weights; of several parts, all of them."""
    if spec.parts:
        return " + ".join(dict.fromkeys(licence(part) for part in spec.parts))
    if spec.family == "miniature":
        return "mit"  # this package's own
    return UNKNOWN if spec.weights else LICENCES.get(spec.arch.partition(".")[2], UNKNOWN)


def timm_rows(pattern: str) -> Iterator[tuple[str, ...]]:
    """Yields, for each timm id that fits a pattern: id, `ViT` or `feature map`, pixels, grid; or id and what is wrong.

    Each is built on the meta device; all of timm's 1,400 take about ten minutes on a CPU core.

    Raises:
        ValueError: If no id fits.
    """
    import timm

    from vision_backbones.feature_maps import patch_grid
    from vision_backbones.soft_capped_vit import NAME
    from vision_backbones.vit import is_vit

    known = [arch for arch in timm.list_models() if arch != NAME]
    found = fnmatch.filter(known, pattern)
    if not found:
        raise ValueError(
            f"timm {timm.__version__} has no model '{pattern}': {suggest(pattern, known, '*vit* has some')}"
        )
    for arch in found:
        try:
            spec = check_spec(f"timm:{arch}")
            rows, columns = patch_grid(spec)[0]
        except ValueError as error:
            yield f"timm:{arch}", f"refused: {error}"
        else:
            kind = "ViT" if is_vit(spec) else "feature map"
            yield f"timm:{arch}", kind, str(spec.image_size), f"{rows} x {columns}"


def _on_meta(spec: BackboneSpec):
    import torch

    from vision_backbones.factory import create_backbone

    with torch.device("meta"):
        return create_backbone(spec, pretrained=False)
