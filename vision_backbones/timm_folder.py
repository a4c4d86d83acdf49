"""A backbone as a folder that timm loads: `config.json`, `model.safetensors`, and a card.

`timm.create_model("local-dir:FOLDER", pretrained=True)` reads it; uploaded as it is, `hf-hub:OWNER/NAME` does.
"""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from vision_backbones.backbone_files import write_tensors
from vision_backbones.factory import check_spec
from vision_backbones.feature_maps import last_index, map_layout, patch_grid
from vision_backbones.files import put_folder, write_json, write_text
from vision_backbones.soft_capped_vit import NAME
from vision_backbones.spec import BackboneSpec
from vision_backbones.vit import is_vit, load_network

# How a network pools what it has: as its architecture does, or, where the weights of that are not kept (SigLIP's
# attention pooling, a norm after the pooling), by an average; with the final norm before it or without one.
AVERAGE = {"global_pool": "avg", "fc_norm": False}
POOLING = ({}, AVERAGE, AVERAGE | {"final_norm": False}, {"global_pool": "avg", "use_fc_norm": False})  # last: Eva's
# A norm that some have in front of the classifier even without one: in ConvNeXt's head, after BEiT's pooling.
HEAD_NORM = {f"{name}.{kind}" for name in ("head.norm", "fc_norm") for kind in ("weight", "bias")}
CARD = """\
---
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- timm
- image-feature-extraction
- vision-backbone
---
# {name}

{what}, {parameters:,} parameters, for images of {size} x {size} pixels.

```python
{imported}import timm

model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True).eval()  # or "local-dir:FOLDER"
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
maps = model.forward_intermediates(transform(image)[None], indices=[{last}], norm={norm}, intermediates_only=True)
```

`maps[0]` is `[1, {width}, {rows}, {columns}]`: the patch features that vision-language models were built on.
{needed}"""
NEEDED = """
Attention logits are soft-capped at {cap:g}, which timm alone does not compute. `import vision_backbones`, from the
package `prismatic-locality`, registers the architecture `{name}`; without it timm says `Unknown model ({name})`.
"""


def export_timm(id_or_spec: str | BackboneSpec, out: Path) -> str:
    """Writes a backbone with its weights to the new folder `out`, and has timm read it; returns a summary.

    All blocks are written, and the final norm: aligned features are `forward_features`, those of an unaligned ViT the
    second-to-last of `forward_intermediates`, feature maps the last. Pixels of timm's transform are those of
    `resize-naive`.

    Args:
        id_or_spec: As `create_backbone` takes it.
        out: Must not exist.

    Raises:
        ValueError: If `out` exists, the backbone is fused, its weights are not found, or timm does not compute its
            features from what was written.
    """
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out} exists already: choose another folder")
    spec = check_spec(id_or_spec)
    if spec.parts:
        parts = ", ".join(part.id for part in spec.parts)
        raise ValueError(f"'{spec.id}' is fused, and timm has no such model: export its parts, {parts}")
    network = load_network(spec, pretrained=True).eval()
    config = timm_config(spec, network)

    tmp_path = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(tmp_path, ignore_errors=True)
    tmp_path.mkdir(parents=True)
    try:
        # The spec, so that the file is a backbone of ours as well; its weights are this file.
        described = spec.to_dict() | {"weights": None}
        tensors = network.state_dict() | _identity_norm(config, network)
        write_tensors(tmp_path / "model.safetensors", tensors, {"format": "pt", "spec": json.dumps(described)})
        write_json(tmp_path / "config.json", config)
        write_text(tmp_path / "README.md", card(spec, network))
        _check_features(tmp_path, spec, network)
        put_folder(tmp_path, out)
    except BaseException:
        shutil.rmtree(tmp_path, ignore_errors=True)
        raise
    asked = "; needs `import vision_backbones` before it is loaded" if spec.soft_cap else ""
    return f"wrote {out}: timm.create_model('local-dir:{out}', pretrained=True), {config['architecture']}{asked}"


def timm_config(spec: BackboneSpec, network: nn.Module) -> dict[str, Any]:
    """Returns the content of timm's `config.json` for a resolved spec and the headless network of its own.

    Raises:
        ValueError: If timm has no way of building that network without its head.
    """
    arch, size = spec.arch.split(".")[0], spec.image_size
    capped = {"vit": arch, "soft_cap": spec.soft_cap} if spec.soft_cap else {}
    architecture = NAME if capped else arch
    sizes = {"img_size": size}, {}  # the latter for networks that take images of any size
    for spare, pooling, sized in itertools.product((set(), HEAD_NORM), POOLING, sizes):
        arguments = {**capped, **spec.arch_kwargs, **sized, **pooling}
        if _keys(architecture, arguments) - spare == network.state_dict().keys():
            break
    else:
        raise ValueError(f"backbone '{spec.id}': timm does not build {arch} without its pooling, which has weights")
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": network.num_features,
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [3, size, size],
            "fixed_input_size": "img_size" in arguments,  # timm then passes it
            "mean": list(spec.mean),
            "std": list(spec.std),
            "interpolation": spec.interpolation,
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "pool_size": None,
            "first_conv": network.pretrained_cfg["first_conv"],
            "classifier": network.pretrained_cfg["classifier"],
        },
    }


def _keys(architecture: str, arguments: dict[str, Any]) -> set[str]:
    """The names of all tensors of what timm builds; none where it does not take the arguments."""
    try:
        with torch.device("meta"):
            return set(timm.create_model(architecture, num_classes=0, **arguments).state_dict())
    except (TypeError, ValueError):
        return set()


def _identity_norm(config: dict[str, Any], network: nn.Module) -> dict[str, torch.Tensor]:
    """A norm of timm's head (`HEAD_NORM`) where the architecture has one, as new: features come before it."""
    missing = _keys(config["architecture"], config["model_args"]) - network.state_dict().keys()
    return {name: torch.full((network.num_features,), float(name.endswith("weight"))) for name in missing}


def card(spec: BackboneSpec, network: nn.Module) -> str:
    """Returns the text of the folder's README."""
    needed = NEEDED.format(cap=spec.soft_cap, name=NAME) if spec.soft_cap else ""
    (rows, columns), _ = patch_grid(spec)
    kind = "vision transformer" if is_vit(spec) else type(network).__name__
    what = f"A {'locality-aligned ' * spec.aligned}{kind} ({spec.arch.split('.')[0]})"
    if is_vit(spec):
        last, width = len(network.blocks) - (1 if spec.reads_last else 2), network.embed_dim
    else:
        last, width = last_index(network), map_layout(spec).width
    return CARD.format(
        name=spec.id.rstrip("/").rpartition("/")[2],
        what=what,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        size=spec.image_size,
        imported="import vision_backbones  # first\n" if spec.soft_cap else "",
        last=last,
        norm=spec.reads_last,
        width=width,
        rows=rows,
        columns=columns,
        needed=needed,
    )


@torch.no_grad()
def _check_features(folder: Path, spec: BackboneSpec, network: nn.Module) -> None:
    """Raises ValueError unless timm computes from a folder what the network does, to the last bit."""
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    shape = (1, 3, spec.image_size, spec.image_size)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    options = {"norm": spec.reads_last, "intermediates_only": True}
    theirs, ours = (model.forward_intermediates(pixels, **options) for model in (loaded, network))
    if not all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True)):
        raise ValueError(f"backbone '{spec.id}': timm {timm.__version__} does not compute its features from the export")
