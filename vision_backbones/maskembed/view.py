"""What MaskEmbed trains, for one image and one mask: how far the reconstruction of each patch is from its target."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from safetensors.torch import load_file

from vision_backbones.backbone_files import decoder_path
from vision_backbones.factory import check_spec
from vision_backbones.files import read_json
from vision_backbones.maskembed.loss import check_loss, reconstruction_loss
from vision_backbones.maskembed.masked_forward import mask_pixels
from vision_backbones.maskembed.pairing import check_pair
from vision_backbones.maskembed.student import MaskEmbedStudent
from vision_backbones.maskembed.teacher import Teacher, unit_scale
from vision_backbones.patch_views import seen_picture
from vision_backbones.spec import BackboneSpec
from vision_backbones.state_dicts import check_numbers
from vision_backbones.transforms import image_transform
from vision_backbones.vit import load_vit
from vision_backbones.weights import find_weights, read_header

SUMMARY, SETTINGS = "summary.json", "config.yaml"  # of a run


@dataclass(frozen=True)
class Alignment:
    """What a decoder was trained against.

    Attributes:
        teacher: Name of the backbone, as it was given.
        skip_blocks: The teacher's last blocks that were left out.
        scale: What its tokens were multiplied by.
        loss: Name of the loss.
        prefix_only: Only prefix tokens were predicted.
        as_reference: With the bugs of the paper's code.
    """

    teacher: str
    skip_blocks: int
    scale: float
    loss: str
    prefix_only: bool = False
    as_reference: bool = False


def find_alignment(spec: BackboneSpec) -> Alignment:
    """What a backbone's decoder was trained against: from its metadata, or from the run folder that it lies in.

    Raises:
        ValueError: The backbone has no decoder, or it is not recorded what it was trained against.
    """
    file = _decoder_of(spec)
    written = read_header(file)[1].get("alignment")
    run = file.parent.parent.parent  # RUN/checkpoints/best/
    if written is None and file.parent.parent.name == "checkpoints" and (run / SETTINGS).is_file():
        return _of_run(run)
    try:
        alignment = Alignment(**json.loads(written or "{}"))
        wrong = [f.name for f in fields(alignment) if not isinstance(getattr(alignment, f.name), f.type)]
        if wrong:
            raise TypeError(f"{wrong[0]} is {getattr(alignment, wrong[0])!r}")
    except (ValueError, TypeError) as error:
        what = f"has an `alignment` in its metadata that cannot be read ({error})" if written else "does not say"
        raise ValueError(
            f"{file} {what}: its teacher, the teacher's skip_blocks and scale, and the loss are missing; align again, "
            "or give them as an `Alignment`"
        ) from error
    return alignment


def _decoder_of(spec: BackboneSpec) -> Path:
    if spec.parts or not spec.aligned:
        kind = "fused" if spec.parts else "not aligned"
        raise ValueError(f"backbone '{spec.id}' is {kind}: choose one that was aligned, such as miniature-aligned")
    weights = find_weights(spec)
    file = decoder_path(weights) if weights else None
    if file is None or not file.is_file():
        raise ValueError(
            f"the decoder of backbone '{spec.id}' is missing: no file {file or 'for weights of timm'}; put there the "
            "one it was aligned with"
        )
    return file


def _of_run(run: Path) -> Alignment:
    """What a run of an earlier version recorded beside its checkpoints."""
    import yaml

    try:
        settings = yaml.safe_load((run / SETTINGS).read_text(encoding="utf-8"))
        names = ("teacher", "teacher_skip_blocks", "loss", "prefix_only", "as_reference")
        teacher, skip_blocks, loss, prefix_only, as_reference = (settings[name] for name in names)
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{run / SETTINGS} does not say what was aligned ({error!r}): restore the file") from error
    scale = 1.0
    if loss == "mse":
        if not (run / SUMMARY).is_file():
            raise ValueError(f"the scale of the teacher's tokens is missing: {run} has no {SUMMARY}; finish the run")
        scale = unit_scale(read_json(run / SUMMARY, "finish the run again", "teacher_variance")["teacher_variance"])
    return Alignment(teacher, skip_blocks, scale, loss, prefix_only, as_reference)


class MaskedView(NamedTuple):
    """One image seen through one mask.

    Attributes:
        picture: RGB, what the teacher sees: hidden patches are of the mean colour.
        distances: `[N]`, float32: of each patch's reconstruction to the teacher's token, in units of the training loss.
        prefix: The same of prefix tokens, `[P]`.
        loss: The loss of this image and mask: the mean over all patches and prefix tokens.
    """

    picture: Image.Image
    distances: torch.Tensor
    prefix: torch.Tensor
    loss: float


class MaskEmbedView:
    """An aligned backbone with its decoder and its teacher; computes in float32 whatever it was trained in.

    Args:
        name: Registered id or a run of recipes/align.py.
        alignment: What it was trained against, where that is not recorded.

    Attributes:
        grid: Patch rows and columns.
        patch: Side of a patch in pixels of a view's picture.
        alignment: What it was trained against.

    Raises:
        ValueError: The backbone or its teacher is unknown, not aligned, or without decoder; it is not recorded what it
            was trained against; only prefix tokens were; or weights do not fit.
    """

    def __init__(self, name: str | BackboneSpec, alignment: Alignment | None = None):
        self.spec = check_spec(name)
        self.alignment = alignment = alignment or find_alignment(self.spec)
        check_loss(alignment.loss, prefix_only=alignment.prefix_only)
        if alignment.prefix_only:
            raise ValueError(f"'{self.spec.id}' was aligned with prefix_only: its patches have no targets to compare")
        try:
            taught, _ = check_pair(alignment.teacher, self.spec, self.spec.soft_cap, image_size=self.spec.image_size)
        except ValueError as error:
            raise ValueError(f"the teacher that '{self.spec.id}' was aligned with: {error}") from error
        self.teacher = Teacher(load_vit(taught, pretrained=True), skip_blocks=alignment.skip_blocks)
        self.teacher.scale.fill_(alignment.scale)
        self.student = _student(self.spec, alignment, self.teacher.vit.embed_dim)
        patches = self.student.encoder.patch_embed
        self.grid, self.patch = tuple(patches.grid_size), patches.feat_ratio()
        self.transform = image_transform(self.spec)

    @torch.no_grad()
    def __call__(self, image: Image.Image, visible: torch.Tensor) -> MaskedView:
        """Returns what becomes of an image through a mask, bool `[N]`, True where a patch is visible.

        Raises:
            ValueError: The mask is of another shape or type.
        """
        rows, columns = self.grid
        if visible.dtype != torch.bool or visible.shape != (rows * columns,):
            raise ValueError(
                f"the mask is {visible.dtype} {list(visible.shape)}, expected torch.bool [{rows * columns}]: one value "
                f"for each of {rows} x {columns} patches"
            )
        pixels, masks = self.transform(image)[None], visible[None]
        targets, found = self.teacher(pixels, masks), self.student(pixels, masks)
        prefix = found.shape[1] - len(visible)
        each = [self._loss(found, targets, masks, token, prefix) for token in range(found.shape[1])]
        shown = mask_pixels(pixels, masks, self.grid, self.student.encoder.patch_embed.patch_size)[0]
        loss = reconstruction_loss(found, targets, masks, self.alignment.loss).item()
        return MaskedView(self._covered(shown), torch.stack(each[prefix:]), torch.tensor(each[:prefix]), loss)

    def see(self, image: Image.Image) -> Image.Image:
        """Returns the picture that patches cover, with none hidden."""
        return self._covered(self.transform(image))

    def _covered(self, pixels: torch.Tensor) -> Image.Image:
        height, width = (length * self.patch for length in self.grid)
        return seen_picture(pixels, self.spec).crop((0, 0, width, height))

    def _loss(self, found: torch.Tensor, targets: torch.Tensor, masks: torch.Tensor, token: int, prefix: int):
        """The loss of one token alone: every loss is a mean over tokens."""
        one = slice(token, token + 1)
        mask = masks[:, :0] if token < prefix else masks[:, token - prefix : token - prefix + 1]
        return reconstruction_loss(found[:, one], targets[:, one], mask, self.alignment.loss)


def _student(spec: BackboneSpec, alignment: Alignment, target_dim: int) -> MaskEmbedStudent:
    """The encoder with its own decoder, whose shape the file tells."""
    file = _decoder_of(spec)
    shapes, metadata = read_header(file)
    lacking = [name for name in ("decoder.pos_embed", "decoder.head.weight") if name not in shapes]
    lacking += [] if any(name.startswith("encoder.head.") for name in shapes) else ["encoder.head (encoder to decoder)"]
    try:
        heads = json.loads(metadata["decoder"])["num_heads"]
    except (LookupError, ValueError, TypeError):
        lacking.append("the number of attention heads in its metadata")
    if lacking:
        raise ValueError(f"the decoder {file} lacks {', '.join(lacking)}: put the one there that was trained with it")
    vit = load_vit(spec, pretrained=True)
    norm = vit.norm.state_dict()  # as_reference makes a new one
    blocks = len({name.split(".")[2] for name in shapes if name.startswith("decoder.blocks.")})
    student = MaskEmbedStudent(
        vit, target_dim, head="mlp" if "encoder.head.fc1.weight" in shapes else "linear",
        decoder_blocks=blocks, decoder_width=shapes["decoder.pos_embed"][-1], decoder_heads=heads,
        decoder_qk_norm="decoder.blocks.0.attn.q_norm.weight" in shapes if blocks else None,
        decoder_qkv_bias=not blocks or "decoder.blocks.0.attn.qkv.bias" in shapes, as_reference=alignment.as_reference,
    )  # fmt: skip
    student.encoder.norm.load_state_dict(norm)
    own = {k: v for k, v in student.state_dict().items() if k.startswith(("decoder.", "encoder.head."))}
    for name in sorted(own.keys() | shapes.keys()):
        wanted = list(own[name].shape) if name in own else "absent"
        if wanted != (given := shapes.get(name, "absent")):
            raise ValueError(
                f"the decoder {file} does not fit '{spec.id}' and its teacher: {name} is {given}, expected {wanted}"
            )
    state = load_file(file)
    check_numbers(state, file)
    student.load_state_dict(state, strict=False)
    return student.requires_grad_(False).eval()
