"""A row as a model sees it: its pixels, and its tokens with what is supervised and what is cut off."""

import base64
import io
import itertools
import sys
from typing import Any, NamedTuple

from prismatic.data.llava_rows import row_problems
from prismatic.models.processing import encode_counting
from prismatic.text.conversations import IGNORE_INDEX
from prismatic.text.visible import visible

STAGE = "finetune"
MOST_IMAGES = 4  # of a row
IMAGE_BYTES = 80_000  # of all images of a row
LONGEST, LONGEST_CUT = 12_000, 2_000  # characters of a row: seen, and cut off
SIDE = 384  # pixels


class Segment(NamedTuple):
    """Consecutive tokens of one kind: `context`, `said` (supervised), `image`, or `cut` (off)."""

    kind: str
    text: str
    tokens: int
    left_out: int = 0  # characters that are not shown


def segments(row: dict[str, Any], processor, max_length: int) -> list[Segment]:
    """A row's tokens as training makes them, in order; those beyond `max_length` of text are cut off.

    Raises:
        ValueError: The row cannot be trained on.
    """
    _, labels, _ = encode_counting(row, processor, max_length, STAGE)
    ids, _, _ = encode_counting(row, processor, sys.maxsize, STAGE)
    kinds = ["said" if label != IGNORE_INDEX else "context" for label in labels] + ["cut"] * (len(ids) - len(labels))
    kinds = ["image" if id == processor.image_token_id else kind for id, kind in zip(ids, kinds, strict=True)]
    found, so_far, before = [], [], ""
    for kind, group in itertools.groupby(zip(kinds, ids, strict=True), key=lambda pair: pair[0]):
        tokens = [id for _, id in group]
        if kind == "image":
            found.append(Segment(kind, "", len(tokens)))
            continue
        so_far += tokens
        text = _decoded(so_far, processor)
        # By itself, a piece would lose the blank that some tokenizers write into its first token.
        piece = text[len(before) :] if text.startswith(before) else _decoded(tokens, processor)
        found.append(Segment(kind, piece, len(tokens)))
        before = text
    return found


def _decoded(ids: list[int], processor) -> str:
    return processor.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def shown(source, number: int, processor, max_length: int) -> dict[str, Any]:
    """What a page shows of a row: `id`, `number`, `segments`, `images`, `counts` of tokens by kind, `problem`."""
    row = source[number]
    found: list[Segment] = []
    images = []
    problem = next((f"cannot be trained on: {text}" for _, text in row_problems(row)), None)
    try:
        found = segments(row, processor, max_length)
    except ValueError as error:
        problem = problem or f"cannot be trained on: {error}"
    try:
        images = [picture(image, processor) for image in source.load_images(number)[:MOST_IMAGES]]
        images = [_data_uri(image, IMAGE_BYTES // len(images)) for image in images]
    except ValueError as error:  # missing, damaged or refused
        problem = problem or f"its image cannot be read: {error}"
    counts = {kind: sum(s.tokens for s in found if s.kind == kind) for kind in ("context", "said", "image", "cut")}
    return {
        "id": visible(row["id"]),
        "number": number,
        "segments": _limited(found),
        "counts": counts,
        "images": images,
        "more_images": int(source.image_counts[number]) - len(images),
        "problem": problem and visible(problem),
    }


def _limited(found: list[Segment]) -> list[Segment]:
    room, shortened = {"cut": LONGEST_CUT}, []
    for segment in found:
        group = segment.kind if segment.kind == "cut" else "seen"
        text = segment.text[: room.setdefault(group, LONGEST)]
        room[group] -= len(text)
        shortened.append(segment._replace(text=visible(text), left_out=len(segment.text) - len(text)))
    return shortened


def picture(image, processor):
    """The pixels that the model gets of an image, without the normalisation; of a fused backbone, its first part's."""
    from vision_backbones import BackboneSpec
    from vision_backbones.patch_views import seen_picture
    from vision_backbones.registry import resolve_spec

    images = processor.image_processor
    spec = resolve_spec(BackboneSpec.from_dict(images.vision_config), image_size=images.image_size)
    return seen_picture(images.transform(image), spec)


def _data_uri(image, most: int) -> dict[str, Any]:
    """The image as a file of at most so many bytes, or of the fewest that are tried, and its size in pixels."""
    size = image.size
    image.thumbnail((SIDE, SIDE))
    tries: tuple[dict[str, Any], ...] = ({"format": "PNG"}, *({"format": "JPEG", "quality": q} for q in (90, 75, 50)))
    smaller = image.resize([max(1, side // 2) for side in image.size])
    for shown, options in (*((image, options) for options in tries), (smaller, tries[-1])):
        file = io.BytesIO()
        shown.save(file, **options)
        if file.tell() <= most:
            break
    kind = options["format"].lower()
    return {"uri": f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}", "size": size}
