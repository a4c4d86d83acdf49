"""Batch evaluation against one question at a time, with the same outputs.

ViT-tiny/16 at 224 pixels (196 patches) and a Llama 256 wide with 4 layers and 32,064 words, float32. Baseline: every
question by itself through plain `generate` (choices: a single forward pass), which is `--strict`. Ours is what
recipes/evaluate.py runs: images encoded once, BOS + image prefixes shared, questions of several images in one batch.
Questions an image are as in the real sets. The weights are scaled so that outputs vary, and the outputs must be equal.
`python benchmarks/evaluate.py memory` asks 10,000 questions and shows how the resident memory grows.
"""

import sys
import time

import numpy as np
import torch
from PIL import Image

from eval.engine import Question, SharedPrefixEngine
from eval.generate_engine import PlainEngine
from eval.task import Choose, Generate
from prismatic.training import loop
from vision_backbones.table import table

BATCH = 136
CASES = {  # questions an image set, images of a set, answer, target
    "refcoco-like": (17, 1, Generate(24), "10"),
    "tallyqa-like": (3, 1, Choose(tuple("ABCDEFGHIJKLMNOP")), "2.5"),
    "ai2d-like": (3, 1, Choose(tuple("ABCD")), "2.5"),
    "vsr-like": (1.7, 1, Choose(("A", "B")), "1.5"),
    "mmbench-like: every order of the options": (3.7, 1, Choose(tuple("ABCD")), ""),
    "blink-like: two images": (1, 2, Choose(tuple("ABCD")), ""),
    "two images, every order": (3.7, 2, Choose(tuple("ABCD")), ""),
}


def make():
    """A model of the size above with new weights, and its processor."""
    from transformers import LlamaConfig

    from prismatic import PrismaticConfig, PrismaticForConditionalGeneration
    from prismatic.models.build import build_processor
    from prismatic.models.llm import load_tokenizer
    from prismatic.text.prompts import IMAGE_TOKEN
    from vision_backbones import get_spec

    torch.manual_seed(0)
    tokenizer = load_tokenizer("miniature")
    llm = LlamaConfig(
        vocab_size=32_064, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8,
        max_position_embeddings=1024, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config = PrismaticConfig(
        text_config=llm, vision_config=get_spec("in1k-vit-t").to_dict(), projector="gelu-mlp",
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
    )  # fmt: skip
    model = PrismaticForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and name.startswith("model.language_model.layers"):
            parameter.data.mul_(6)  # small random weights would repeat one token
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, build_processor(model, tokenizer)


def questions_of(case: str, images: int) -> list[Question]:
    """Prompts of uneven length, as many an image as the case says on average."""
    per_image, _, kind, _ = CASES[case]
    rng = np.random.default_rng(0)
    words = "left right above below the red small circle large square of nearest object in front blue corner".split()
    counts = [int(per_image * (i + 1)) - int(per_image * i) for i in range(images)]
    return [
        Question(image, " ".join(rng.choice(words, rng.integers(8, 25))), kind)
        for image, count in enumerate(counts)
        for _ in range(count)
    ]


def pictures_of(sets: int, images: int) -> list[list[Image.Image]]:
    """Noise, so many images in each set."""
    rng = np.random.default_rng(1)
    return [[Image.fromarray(p) for p in rng.integers(0, 255, (images, 224, 224, 3), np.uint8)] for _ in range(sets)]


def timed(engine, pictures, questions) -> tuple[list, float]:
    """Answers, in batches as the runner makes them, and seconds, what processors do with pictures included."""
    rows, answers = engine.batch_size, []
    started = time.perf_counter()
    shown = pictures[: questions[-1].image + 1]
    prepared = [engine.prepare(images if len(images) > 1 else images[0]) for images in shown]
    start = 0
    while start < len(questions):
        last = min(start + max(rows, 1), len(questions)) - 1
        stop = last + 1
        if stop < len(questions) and rows > 1:  # whole images only
            while stop > start + 1 and questions[stop].image == questions[stop - 1].image:
                stop -= 1
        part = questions[start:stop]
        first = part[0].image
        moved = [Question(q.image - first, q.prompt, q.kind) for q in part]
        answers += engine.answer(prepared[first : part[-1].image + 1], moved)
        start = stop
    return answers, time.perf_counter() - started


def main() -> None:
    """Prints the comparison."""
    model, processor = make()
    accelerator = loop.launch("fp32", [], ".")
    rows = []
    for case, (per_image, images, _, target) in CASES.items():
        sets = round(BATCH / per_image)
        questions, pictures = questions_of(case, sets), pictures_of(sets, images)
        some = questions[: 34 if per_image > 10 else 48]
        (
            timed(PlainEngine(model, processor, 1), pictures, some[:2]),
            timed(SharedPrefixEngine(model, processor, BATCH), pictures, questions[:20]),
        )
        ratios, ours_seconds, plain_seconds = [], [], []
        for _ in range(3):  # in turns, so that a busy machine slows both
            expected, plain = timed(PlainEngine(model, processor, 1), pictures, some)
            given, ours = timed(SharedPrefixEngine(model, processor, BATCH), pictures, questions)
            plain_seconds.append(plain / len(some)), ours_seconds.append(ours / len(questions))
            ratios.append(plain_seconds[-1] / ours_seconds[-1])
        same = sum(a.text == b.text for a, b in zip(given, expected, strict=False))
        texts = {answer.text for answer in expected}
        rows.append(
            (case, per_image, min(plain_seconds) * 1e3, min(ours_seconds) * 1e3, float(np.median(ratios)), target,
             f"{same}/{len(some)}", len(texts))
        )  # fmt: skip
    header = (
        "case",
        "questions an image",
        "ms alone",
        "ms ours",
        "faster",
        "target",
        "same output",
        "different outputs",
    )
    print(table(rows, header))
    print(f"matmul peak {loop.matmul_peak(accelerator) / 1e9:.0f} GFLOP/s, batches of {BATCH} questions")


def memory(total: int = 10_000) -> None:
    """Prints resident memory while `total` questions are answered."""
    import psutil

    model, processor = make()
    loop.launch("fp32", [], ".")
    engine, process = SharedPrefixEngine(model, processor, BATCH), psutil.Process()
    questions, pictures = questions_of("refcoco-like", 8), pictures_of(8, 1)
    questions = [Question(q.image, q.prompt, Generate(1)) for q in questions]
    prepared, rows = [engine.prepare(picture) for picture in pictures], []
    for asked in range(len(questions), total + len(questions), len(questions)):
        engine.answer(prepared, questions)
        if asked // 1000 > (asked - len(questions)) // 1000:
            rows.append((asked, process.memory_info().rss / 1e9))
    print(table(rows, ("questions", "resident GB")))
    print(f"growth after the first 1,000: {rows[-1][1] / rows[0][1] - 1:+.1%}")


if __name__ == "__main__":
    memory() if sys.argv[1:] == ["memory"] else main()
