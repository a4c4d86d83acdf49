"""What an evaluation's answers depend on, and what made them."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """A hash of the model's configuration and of all its weights."""
    import torch

    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith(("_", "transformers_version"))}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def job_fingerprint(job: "Job", model: str, settings: dict[str, Any]) -> str:
    """A hash of all that answers depend on: model, task version, prompts, examples, sizes of the images, settings."""
    digest = hashlib.sha256(json.dumps([model, job.key, job.task.version, settings], sort_keys=True).encode())
    for example in job.examples:
        said = [asdict(example), job.task.prompt(example), repr(job.task.answer(example))]
        digest.update(json.dumps(said, sort_keys=True).encode())
    for image in sorted({example.image for example in job.examples}):
        digest.update(str((job.root / image).stat().st_size).encode())
    return digest.hexdigest()[:16]
