"""Makes everything that is shipped trained: `python -m recipes.reproduce.bundled` (2 to 3 hours on two cores).

Backbone, its aligned sibling, LLM and the vision-language model of both, each by the command that its card names, from
nothing but the parts before it. `--parts llm,vlm` makes some, from the others as they are. Cards are in
`prismatic/miniature/assets/cards.json`: command, seconds, versions, fingerprints of what was made and what it was made
from, and what it scores.
"""

import argparse
import dataclasses
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from prismatic import miniature
from vision_backbones.weights import ASSETS as BACKBONES

ROOT = Path(__file__).parents[2]  # where commands are run, whose places are relative
ASSETS = Path(miniature.__file__).parent / "assets"
CARDS = ASSETS / "cards.json"
RUNS = ROOT / "runs" / "bundled"
ALIGNED = BACKBONES / "miniature-aligned.safetensors"
FILES = {  # what a part consists of, folders with all that is in them
    "vit": [BACKBONES / "miniature.safetensors"],
    "aligned": [ALIGNED, BACKBONES / "miniature-aligned.decoder.safetensors"],
    "llm": [ASSETS / "llm"],
    "vlm": [ASSETS / "vlm"],
}
MADE_FROM = {"vit": (), "aligned": ("vit",), "llm": (), "vlm": ("aligned", "llm")}
COMMANDS = {
    "vit": "python -m prismatic.miniature.make_vit",
    "aligned": "python -m recipes.align --data.train miniature:50000 --epochs 2"
    " --run_root runs/bundled --run_id aligned",
    "llm": "python -m prismatic.miniature.make_llm",
    "vlm": "python -m recipes.finetune --eval_tasks [] --run_root runs/bundled --run_id vlm",
}
TASKS = "refcoco,ocid-ref,tallyqa,vsr,ai2d,mmvp+llava,cv-bench:2D+llava,whatsup+llava,embspatial"
SCENES = 400  # of each benchmark on which the vision-language model's card says how good it is


def main(argv: list[str]) -> None:
    """Makes parts in order, each with its card."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.reproduce.bundled",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", default=",".join(FILES), help=f"which, of {', '.join(FILES)} (default: all)")
    parts = parser.parse_args(argv).parts.split(",")
    if unknown := [part for part in parts if part not in FILES]:
        parser.error(f"unknown part '{unknown[0]}': choose from {', '.join(FILES)}")
    for part in [part for part in FILES if part in parts]:
        make(part)


def make(part: str) -> None:
    """Makes one part, puts it where it is shipped from, and writes its card."""
    from eval.fingerprints import made_by
    from recipes.reproduce.run import shares

    print(f"{part}: {COMMANDS[part]}", flush=True)
    maker, started = made_by(), time.perf_counter()  # of the code as it is before what it makes has changed files of it
    if part in INSTALL:
        shutil.rmtree(RUNS / part, ignore_errors=True)
    subprocess.run([sys.executable, *shlex.split(COMMANDS[part])[1:]], cwd=ROOT, check=True)
    seconds = time.perf_counter() - started
    if part in INSTALL:
        INSTALL[part](RUNS / part)
    write_card(part, {"seconds": seconds, "cores": len(shares(1)[0])} | maker)


def write_card(part: str, making: dict) -> None:
    """Writes what was made by which command from what, and what it scores; `making` says how it went."""
    from vision_backbones.files import write_json

    cards = json.loads(CARDS.read_text()) if CARDS.is_file() else {}
    card = {"command": COMMANDS[part], "fingerprint": fingerprint(part)} | making
    card |= {"made_from": {name: fingerprint(name) for name in MADE_FROM[part]}, "measured": MEASURE[part]()}
    write_json(CARDS, {name: cards[name] for name in FILES if name in cards and name != part} | {part: card})
    print(f"{part}: {json.dumps(card['measured'])}", flush=True)


def files(part: str) -> list[Path]:
    """The files of a part."""
    return [file for path in FILES[part] for file in (sorted(path.iterdir()) if path.is_dir() else [path])]


def fingerprint(part: str) -> str:
    """A hash of the files of a part."""
    digest = hashlib.sha256()
    for path in files(part):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def install_aligned(run: Path) -> None:
    """Stores the last epoch's backbone and decoder in float16, under the name that it is registered by."""
    from safetensors.torch import load_file

    from vision_backbones import get_spec
    from vision_backbones.backbone_files import decoder_path, save_backbone
    from vision_backbones.weights import read_header

    last = run / "checkpoints" / "last" / "backbone.safetensors"
    about = read_header(decoder_path(last))[1]
    state, decoder = ({name: t.half() for name, t in load_file(p).items()} for p in (last, decoder_path(last)))
    heads, alignment = json.loads(about["decoder"])["num_heads"], json.loads(about["alignment"])
    spec = dataclasses.replace(get_spec(str(run)), id="miniature-aligned", weights=None)
    save_backbone(ALIGNED, state, spec, decoder, heads, alignment, made_by=COMMANDS["aligned"])


def install_vlm(run: Path) -> None:
    """Stores the finetuned model in float16, without the places on this disk that its parts were read from."""
    from recipes.export import export
    from recipes.push import without_places
    from vision_backbones.files import write_json

    out = RUNS / "vlm-float16"
    shutil.rmtree(out, ignore_errors=True)
    export(str(run), out, dtype="float16")
    write_json(out / "config.json", without_places(json.loads((out / "config.json").read_text())))
    shutil.rmtree(ASSETS / "vlm")
    shutil.copytree(out, ASSETS / "vlm", ignore=shutil.ignore_patterns("*.sha256", "README.md"))


def measure_vit() -> dict:
    """Image-level recall and precision."""
    from recipes.reproduce.costs import image_level

    return {name: image_level("miniature")[name] for name in ("recall", "precision")}


def measure_aligned() -> dict:
    """Loss on held-out scenes in the last epoch."""
    lines = [json.loads(line) for line in (RUNS / "aligned" / "metrics.jsonl").read_text().splitlines()]
    return {"validation_loss": [line["validation_loss"] for line in lines if "validation_loss" in line][-1]}


def measure_llm(scenes: int = 512) -> dict:
    """Share of right answers about maps, by kind of question."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    from prismatic.miniature.make_llm import Reader, accuracy

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "llm", trust_remote_code=False)
    model = LlamaForCausalLM.from_pretrained(ASSETS / "llm", dtype=torch.float32)
    return accuracy(Reader(model, tokenizer), tokenizer, scenes, seed=123_456)


def measure_vlm() -> dict:
    """Scores on the benchmarks."""
    settings = ["--model", "miniature", "--data_root", f"miniature:{SCENES}", "--allow_partial", "true"]
    settings += ["--precision", "fp32", "--out", str(RUNS / "eval"), "--overwrite", "true", "--tasks", TASKS]
    subprocess.run([sys.executable, "-m", "recipes.evaluate", *settings], cwd=ROOT, check=True)
    tasks = json.loads((RUNS / "eval" / "results.json").read_text())["tasks"]
    return {name: task["metrics"][task["main"]] for name, task in tasks.items()}


INSTALL = {"aligned": install_aligned, "vlm": install_vlm}
MEASURE = {"vit": measure_vit, "aligned": measure_aligned, "llm": measure_llm, "vlm": measure_vlm}


if __name__ == "__main__":
    main(sys.argv[1:])
