"""Where golden cases and data samples lie, and how tests read them."""

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def golden_dir() -> Path:
    return Path(os.environ.get("GOLDEN_DIR", ROOT.parent / "shared" / "golden"))


def samples_dir() -> Path:
    return Path(os.environ.get("DATA_SAMPLES", ROOT.parent / "shared" / "data-samples"))


def load_json(relative: str):
    return json.loads((golden_dir() / relative).read_text())


def load_tensors(relative: str) -> dict:
    from safetensors.torch import load_file

    return load_file(golden_dir() / relative)


def case_names(relative: str) -> list[str]:
    """Case names of an index file whose top level is an object; empty when the golden set is not there."""
    path = golden_dir() / relative
    return sorted(json.loads(path.read_text())) if path.exists() else []


def unsaid_heads() -> int:
    """Attention heads where a case does not say how many: no tensor's shape tells."""
    return load_json("sizes.json")["num_heads"] if (golden_dir() / "sizes.json").exists() else 4


def requires_golden(function):
    """Marks a test as golden and skips it where the golden set is not there."""
    absent = not golden_dir().is_dir()
    return pytest.mark.golden(pytest.mark.skipif(absent, reason=f"no golden set at {golden_dir()}")(function))


requires_samples = pytest.mark.skipif(not samples_dir().is_dir(), reason=f"no data samples at {samples_dir()}")
