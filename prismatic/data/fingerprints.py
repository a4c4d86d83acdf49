"""What a run was trained on, so that it does not resume with something else."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismatic.text.prompts import without_marks
from vision_backbones.files import describe

if TYPE_CHECKING:
    from prismatic.data.conversation_source import ConversationSource
    from prismatic.data.image_datasets import ImageSource

SAMPLED = 64  # images, evenly over the rows, of which the pixels are looked at


def of_conversations(source: "ConversationSource", tokenizer) -> dict[str, Any]:
    """Number of rows, digests of the annotations, sampled images' pixels, tokenizer and template.

    The annotations of a mixture are those of all its parts, and how many rows there are of each; a part has a digest of
    its own as well, so that one that has changed is named.
    """
    parts = source.parts if len(source.parts) > 1 else []
    return {
        "rows": len(source),
        "annotations": source.digest,
        **{f"annotations of {part.location}": part.digest for part in parts},
        "images": _pixels(source.load_image, source.image_counts.nonzero()[0].tolist()),
        "tokenizer": _digest(speech(tokenizer)),
    }


def of_images(source: "ImageSource") -> dict[str, Any]:
    """Number of images, and digests of sampled images' pixels."""
    return {"images": len(source), "pixels": _pixels(source.load, range(len(source)))}


def of_pairs(pairs: dict[str, Sequence[tuple[Path, Path]]]) -> dict[str, Any]:
    """Number of pairs of every split, and digests of sampled images' and label maps' files."""
    found: dict[str, Any] = {}
    for split, files in pairs.items():
        sampled = [files[row] for row in _sampled(range(len(files)))]
        found[f"{split} pairs"] = len(files)
        for number, part in enumerate(("images", "label maps")):
            found[f"{split} {part}"] = [describe(pair[number])["sha256"][:16] for pair in sampled]
    return found


def check_same(before: dict[str, Any], now: dict[str, Any], where: object) -> None:
    """Compares the fingerprints of a run that resumes; what an older version did not record is not compared.

    Nor is an image that could not be read one of both times: it was repaired, or is skipped.

    Raises:
        ValueError: they differ.
    """
    changed = [name for name in now if name in before and _differs(before[name], now[name])]
    if changed:
        shown = ", ".join(
            f"{before[name]:,} {name} then, {now[name]:,} now" if isinstance(now[name], int) else f"other {name} now"
            for name in changed
        )
        raise ValueError(
            f"{where} was trained on other data ({shown}): restore that data, or choose another --run_id to start over"
        )


def _differs(one: Any, two: Any) -> bool:
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return any(a != b for a, b in zip(one, two, strict=True) if a and b)
    return one != two


def speech(tokenizer) -> dict[str, Any]:
    """What of a tokenizer decides ids: vocabulary, rules, special tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = json.loads(backend.to_str()) if backend else tokenizer.get_vocab()
    return {
        # padding and truncation are those of the last call
        "tokenizer": _digest({key: words[key] for key in words if key not in ("padding", "truncation")}),
        "special_tokens": {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
        "chat_template": without_marks(tokenizer.chat_template),
    }


def _pixels(load, rows) -> list[str | None]:
    """Digests of sampled images; None for one that cannot be read, which is dealt with elsewhere."""
    found = []
    for row in _sampled(rows):
        try:
            image = load(row)
            found.append(hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()[:16])
        except ValueError:
            found.append(None)
    return found


def _sampled(rows: Sequence[int]) -> list[int]:
    count = min(SAMPLED, len(rows))
    return [rows[len(rows) * number // count] for number in range(count)]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
