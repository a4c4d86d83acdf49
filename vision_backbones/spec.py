"""What a vision backbone is, as plain data."""

import copy
import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from vision_backbones.names import suggest

FEATURES = ("last", "second-to-last")  # blocks that features may be read from


@dataclass(frozen=True)
class BackboneSpec:
    """Everything needed to rebuild a vision backbone and its image transform, as JSON-able data.

    A spec describes either one timm ViT (`arch`) or the channel-concatenation of several (`parts`). Fields left at
    None take timm's value for `arch` when the backbone is made; `backbone.spec` is then complete, so that a saved
    spec does not change with the timm version.

    Attributes:
        id: Name in the registry.
        arch: timm id, with the pretrained tag where weights come from timm (`vit_base_patch16_224.mae`).
        image_size: Side of the square input in pixels.
        family: Group in listings (`clip`, `siglip`, ...).
        arch_kwargs: Overrides of timm's constructor, for ViTs of one's own.
        soft_cap: Caps attention logits at `soft_cap * tanh(logit / soft_cap)`, as MaskEmbed-trained ViTs need.
        aligned: Made by MaskEmbed; features are then the last block's, unless `features` says otherwise.
        features: `last`: the last block after the final norm, prefix tokens kept in front; `second-to-last`: that block
            without norm and without prefix tokens; None: `last` of an aligned ViT, `second-to-last` of another.
        parts: Specs whose features are concatenated; each is built at this spec's `image_size`.
        weights: Name or path of a safetensors file of one's own, instead of timm's weights.
        allow_border: `image_size` need not be a multiple of the patch; the pixels left over are not seen.
        mean: Per-channel mean of the normalisation, for pixels in [0, 1].
        std: Per-channel standard deviation.
        interpolation: `bicubic`, `bilinear`, ...: how images are resized.
        crop_pct: resize-crop and letterbox resize the shorter edge to `image_size / crop_pct`, then crop the centre.

    Raises:
        ValueError: If not exactly one of `arch` and `parts` is given, or fields contradict each other.
    """

    id: str
    arch: str = ""
    image_size: int | None = None
    family: str = ""
    arch_kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    soft_cap: float | None = None
    aligned: bool = False
    features: str | None = None
    parts: tuple["BackboneSpec", ...] = ()
    weights: str | None = None
    allow_border: bool = False
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None

    def __post_init__(self):
        """Refuses specs that cannot be built whatever timm offers."""
        object.__setattr__(self, "arch_kwargs", copy.deepcopy(self.arch_kwargs))  # the caller may change its own
        if bool(self.arch) == bool(self.parts):
            raise ValueError(f"backbone '{self.id}': give either arch (a timm id) or parts (other specs), not both")
        if self.image_size is not None and self.image_size <= 0:
            raise ValueError(f"backbone '{self.id}': image_size must be positive, got {self.image_size}")
        if self.features is not None and self.features not in FEATURES:
            raise ValueError(
                f"backbone '{self.id}': unknown features '{self.features}': {suggest(self.features, FEATURES)}"
            )
        if not self.parts:
            return
        if len(self.parts) < 2 or not all(isinstance(part, BackboneSpec) and part.arch for part in self.parts):
            raise ValueError(
                f"backbone '{self.id}': parts must be two or more specs of single ViTs, e.g. get_spec('clip-vit-l')"
            )
        if self.image_size is None:
            raise ValueError(f"backbone '{self.id}': a fused backbone needs image_size, which all parts share")
        own = ("arch_kwargs", "soft_cap", "aligned", "features", "weights", "mean", "std", "interpolation", "crop_pct")
        if stray := [name for name in own if getattr(self, name)]:
            raise ValueError(f"backbone '{self.id}': set {', '.join(stray)} on the parts, not on the fused spec")

    @property
    def reads_last(self) -> bool:
        """Whether features are the last block's, after the final norm and with prefix tokens."""
        return self.features == "last" if self.features else self.aligned

    def to_dict(self) -> dict[str, Any]:
        """Returns the spec as the dict that JSON reads back; parts are nested dicts."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "BackboneSpec":
        """Returns the spec that `to_dict` wrote.

        Raises:
            ValueError: On unknown keys, a missing id, or what the constructor refuses.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise ValueError(f"unknown key '{key}' in a backbone spec: {suggest(key, names)}")
        if "id" not in values:
            raise ValueError("a backbone spec needs the key 'id'")
        values = dict(values)
        for key in ("mean", "std"):
            if values.get(key) is not None:
                values[key] = tuple(values[key])
        values["parts"] = tuple(cls.from_dict(part) for part in values.get("parts", ()))
        return cls(**values)
