"""Other VLMs in the evaluation: pictures encoded once and prompts read once, against batches and one at a time.

`python benchmarks/other_models.py [FOLDER ...]` takes image-text-to-text models of transformers. Without one it makes a
small LLaVA with new weights (a CLIP-shaped ViT of 196 patches, a Llama 256 wide, 32,064 words) by `prismatic export
--format llava`. Answers of the three ways must be equal.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from eval.engine import Question
from eval.generate_engine import load_engine
from eval.task import Choose, Generate
from prismatic.table import table
from prismatic.training import loop

PICTURES, EACH, BATCH = 4, 12, 24
KINDS = {
    "box": Generate(16),
    "letter": Choose(tuple("ABCD")),
    "sentence": Choose(("a red circle", "a blue square of some size", "nothing of the kind", "two yellow crosses")),
}


def llava(folder: Path) -> Path:
    """A small LLaVA with new weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    import prismatic
    from prismatic.models.llava import export_llava
    from vision_backbones import BackboneSpec, register

    size = {"img_size": 224, "patch_size": 16, "embed_dim": 192, "depth": 6, "num_heads": 3}
    register(BackboneSpec("small-clip", arch="vit_base_patch16_clip_quickgelu_224", image_size=224, arch_kwargs=size))
    bundled = prismatic.load("miniature")[1].tokenizer
    text = LlamaConfig(
        vocab_size=32_064, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=8,
        bos_token_id=bundled.bos_token_id, eos_token_id=bundled.eos_token_id, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(text).save_pretrained(folder / "llm")
    bundled.save_pretrained(folder / "llm")
    parts = prismatic.build("small-clip", str(folder / "llm"), "gelu-mlp", pretrained=True)
    export_llava(*parts, folder / "llava", "float32")
    return folder / "llava"


def measure(folder: str) -> list[list[str]]:
    """A row for each kind of question."""
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 255, (256, 256, 3), dtype=np.uint8)) for _ in range(PICTURES)]
    rows = []
    for name, kind in KINDS.items():
        asked = [
            Question(n, f"Where is object {i}, and what is it?", kind) for n in range(PICTURES) for i in range(EACH)
        ]
        speed, said = {}, {}
        for way, strict in (("one at a time", True), ("batches", False), ("shared", False)):
            engine = load_engine(folder, dtype=torch.float32, device="cpu", batch_size=BATCH, strict=strict)
            if way == "batches":
                engine.shared.encodes_once = engine.shared.reads_once = False
            engine.answer(pictures, asked[: BATCH if way != "one at a time" else 2])
            started = time.perf_counter()
            said[way] = [answer.text for answer in engine.answer(pictures, asked)]
            speed[way] = len(asked) / (time.perf_counter() - started)
        assert said["one at a time"] == said["batches"] == said["shared"], f"answers of {name} differ"
        shares = speed["shared"] / speed["batches"], speed["shared"] / speed["one at a time"]
        rows.append([Path(folder).name, name, *(f"{speed[way]:.1f}" for way in speed), *(f"{s:.2f}" for s in shares)])
    return rows


def main() -> None:
    """Prints the table."""
    loop.launch("fp32", [], ".")
    with tempfile.TemporaryDirectory() as folder:
        folders = sys.argv[1:] or [str(llava(Path(folder)))]
        rows = [row for place in folders for row in measure(place)]
    names = ["model", "answer", "one/s", "batches/s", "shared/s", "shared/batches", "shared/one"]
    print(table(names, rows))


if __name__ == "__main__":
    main()
