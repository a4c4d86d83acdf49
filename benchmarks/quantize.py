"""LoRA against QLoRA: the same run with the frozen LLM in 32, 8 and 4 bits; loss, memory and time in one table.

SmolLM2-135M (`make smollm2`) and the miniature's ViT on the LLaVA rows of $DATA_SAMPLES, 20 steps of 4 rows, float32,
each run a process of its own. Needs bitsandbytes: `pip install bitsandbytes`, or the copy that `make test` keeps apart.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = Path(os.environ.get("DATA_SAMPLES", ROOT.parent / "shared" / "data-samples"))
ROWS = SAMPLES / "llava" / "download" / "llava-v1.5-instruct" / "llava_v1_5_mix665k.json"
MEASURED = ("loss_first", "loss_last", "memory_gb", "training_seconds")
SMALL = (
    "--config_path recipes/configs/smollm2-lora.yaml --data.packing false --data.workers 0 --eval_tasks [] "
    "--max_steps 20 --max_length 256 --save_every_steps null --gradient_checkpointing true"
).split()


def run(root: str, kind: str) -> dict:
    """The summary of a run."""
    name = f"bits-{kind}"
    place = ["--run_root", root, "--run_id", name, "--quantize", kind, "--data.annotations", str(ROWS)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / '.venv' / 'quantize'}:{os.environ.get('PYTHONPATH', '')}"}
    subprocess.run([sys.executable, "recipes/finetune.py", *SMALL, *place], cwd=ROOT, env=environment, check=True)
    return json.loads((Path(root) / name / "summary.json").read_text())


def main() -> None:
    """Prints the table."""
    from vision_backbones.table import table

    if not ROWS.is_file():
        return print(f"no {ROWS}: nothing to train on")
    with tempfile.TemporaryDirectory() as root:
        found = {kind: run(root, kind) for kind in ("null", "8bit", "4bit")}
    rows = [(kind, *(f"{summary[name]:.2f}" for name in MEASURED)) for kind, summary in found.items()]
    print(table(rows, ("bits", *(name.replace("_", " ") for name in MEASURED))))


if __name__ == "__main__":
    main()
