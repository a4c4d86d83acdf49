"""The Prismatic VLMs that their authors released, by id: fetched from the Hugging Face hub and imported once.

`prismatic.load` then reads `$PRISMATIC_MODELS/ID` (by default `~/.cache/prismatic/models/ID`), a plain model's folder.
The authors' checkpoint stays in the hub's own cache, where other programs may use it.
"""

import os
import sys
from pathlib import Path

from vision_backbones.downloads import alone, offline

HUB_REPO = "TRI-ML/prismatic-vlms"
CONFIG, CHECKPOINT = "config.json", "checkpoints/latest-checkpoint.pt"  # of every model, in a folder of its id
IDS = (
    "reproduction-llava-v15+7b", "reproduction-llava-v15+13b", "one-stage+7b", "one-stage+13b",
    "full-ft-multi-stage+7b", "full-ft-one-stage+7b", "in1k-224px+7b", "dinov2-224px+7b", "clip-224px+7b",
    "siglip-224px+7b", "clip-336px-resize-crop+7b", "clip-336px-resize-naive+7b", "siglip-384px-letterbox+7b",
    "siglip-384px-resize-crop+7b", "siglip-384px-resize-naive+7b", "dinoclip-336px-letterbox+7b",
    "dinoclip-336px-resize-naive+7b", "dinosiglip-384px-letterbox+7b", "dinosiglip-384px-resize-naive+7b", "llama2+7b",
    "llama2+13b", "vicuna-no-cotraining+7b", "llama2-no-cotraining+7b", "train-1.25-epochs+7b", "train-1.5-epochs+7b",
    "train-2-epochs+7b", "train-3-epochs+7b", "llava-lvis4v+7b", "llava-lrv+7b", "llava-lvis4v-lrv+7b",
    "prism-clip-controlled+7b", "prism-clip-controlled+13b", "prism-clip+7b", "prism-clip+13b",
    "prism-siglip-controlled+7b", "prism-siglip+7b", "prism-siglip+13b", "prism-dinosiglip-controlled+7b",
    "prism-dinosiglip-controlled+13b", "prism-dinosiglip+7b", "prism-dinosiglip+13b",
    "prism-dinosiglip-224px-controlled+7b", "prism-dinosiglip-224px+7b", "llama2-chat+7b", "llama2-chat+13b",
    "mistral-v0.1+7b", "mistral-instruct-v0.1+7b", "phi-2+3b",
)  # fmt: skip


def models_folder() -> Path:
    """The folder of imported models: `$PRISMATIC_MODELS`, by default `prismatic/models` in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PRISMATIC_MODELS") or cache / "prismatic" / "models").expanduser()


def imported_folder(model_id: str) -> Path:
    """Where a released model lies once it is imported."""
    return models_folder() / model_id


def obtain(model_id: str) -> Path:
    """Fetches and imports a released model unless that was done before; returns its folder.

    Of several processes that ask at once, one works and the others wait. What was interrupted goes on when it is
    started again.

    Args:
        model_id: One of `IDS`.

    Raises:
        ValueError: Its files, or those of its LLM and vision backbone, cannot be fetched (the message says how to do
            without a network), it is not a checkpoint of the reference or would run code, or its folder cannot be
            written.
    """
    folder = imported_folder(model_id)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder.with_name(f".{model_id}.lock"), f"waiting for another process, which imports {model_id}"):
            if not folder.is_dir():
                _import(model_id, folder)
    except OSError as error:
        raise ValueError(
            f"{model_id} cannot be imported into {folder} ({error}): set PRISMATIC_MODELS to a folder with room"
        ) from error
    return folder


def _import(model_id: str, folder: Path) -> None:
    from prismatic.models.llm import get_llm_spec, load_tokenizer
    from prismatic.models.reference import import_reference, read_settings

    run = _fetch(model_id, CONFIG).parent
    parts = read_settings(run)
    try:
        load_tokenizer(parts["llm"])  # small, and of a gated LLM: before tens of gigabytes are fetched
    except ValueError as error:
        raise ValueError(
            f"{model_id} needs the tokenizer of {get_llm_spec(parts['llm']).hub}: {error}. A gated LLM asks for "
            "consent on its page of the hub. With the tokenizer and config.json in a folder LLM, "
            f"{_by_hand(model_id, folder)} --llm LLM"
        ) from error
    print(f"{model_id}: fetched once from {HUB_REPO}, then imported into {folder}", file=sys.stderr)
    checkpoint = _fetch(model_id, CHECKPOINT)
    print(import_reference(checkpoint, folder), file=sys.stderr)


def _fetch(model_id: str, name: str) -> Path:
    """A file of a model, in the hub's cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(HUB_REPO, f"{model_id}/{name}"))
    except Exception as error:  # the hub's own errors and those of its connections have no common base class
        cause = (error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None) or error
        reason = "HF_HUB_OFFLINE is set" if offline() else " ".join(str(cause).split())[:200]
        raise ValueError(
            f"{model_id} is a released model, of which {name} is neither in the cache of the hub (HF_HOME) nor could "
            f"be fetched ({reason.rstrip('.')}): {_by_hand(model_id, imported_folder(model_id))}"
        ) from error


def _by_hand(model_id: str, folder: Path) -> str:
    files = f"{model_id}/{CONFIG} {model_id}/{CHECKPOINT}"
    return (
        f"fetch {HUB_REPO}, on a machine with a network if there is none here, with `hf download {HUB_REPO} {files} "
        f"--local-dir DIR` and run `prismatic import-reference DIR/{model_id} {folder}`"
    )
