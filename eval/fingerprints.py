"""What an evaluation's answers depend on, and what made them."""

import hashlib
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.data import embedded
from prismatic.data.fingerprints import speech
from prismatic.text.prompts import without_marks

if TYPE_CHECKING:
    from eval.runner import Job


def made_by() -> dict[str, Any]:
    """The commit of this code and the versions of what it stands on."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True) if shutil.which("git") else None
    packages = ("torch", "transformers", "timm", "accelerate", "peft", "tokenizers", "pillow", "scikit-learn")
    return {
        "commit": commit.stdout.strip() or None if commit else None,
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in packages},
    }


def model_fingerprint(model) -> str:
    """A hash of the model's configuration, less what saving writes into it, and of all its weights."""
    import torch

    digest = hashlib.sha256(json.dumps(_settings(model.config.to_dict()), sort_keys=True, default=str).encode())
    parts = model.parts() if hasattr(model, "parts") else {"": model}  # of a VLM of ours, under names that stay
    tensors = {f"{part}.{name}".lstrip("."): t for part, m in parts.items() for name, t in m.state_dict().items()}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _settings(config: dict) -> dict:
    """Without what depends on how a model was saved: equal models, saved another way, are equal."""
    saved = ("architectures", "dtype", "torch_dtype", "transformers_version")
    kept = {key: value for key, value in config.items() if not str(key).startswith("_") and key not in saved}
    return {key: _settings(value) if isinstance(value, dict) else value for key, value in kept.items()}


def spoken(model, processor) -> dict[str, Any]:
    """What, besides weights, decides what a model says to a prompt: tokenizer, chat templates, generation settings."""
    generation = getattr(model, "generation_config", None)
    template = without_marks(getattr(processor, "chat_template", None))
    return speech(processor.tokenizer) | {
        "processor": template, "generation": _settings(generation.to_dict()) if generation else None
    }  # fmt: skip


def job_fingerprint(job: "Job", model: str, settings: dict[str, Any]) -> str:
    """A hash of all that answers depend on: model, task version, prompts, examples, the images' bytes, settings."""
    from tqdm import tqdm

    digest = hashlib.sha256(json.dumps([model, job.key, job.task.version, settings], sort_keys=True).encode())
    for example in job.examples:
        said = [example.record(), job.task.prompt(example), repr(job.task.answer(example))]
        digest.update(json.dumps(said, sort_keys=True).encode())
    images = sorted({image for example in job.examples for image in example.images})
    with ThreadPoolExecutor(4) as pool:  # hashing and reading release the interpreter
        found = pool.map(lambda image: embedded.digest(job.root, image), images)
        for sha256 in tqdm(found, desc=f"{job.key}: images' digests", total=len(images), delay=5, leave=False):
            digest.update(sha256.encode())
    return digest.hexdigest()[:16]
