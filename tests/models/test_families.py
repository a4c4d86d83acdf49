"""Language models of many families, tiny and with random weights: what works, works exactly, and the rest says so."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from families import ALONE, BOTH, ELSE, PACK, SIZES, WIDE, WORK, write_llm
from golden_cases import ROOT
from PIL import Image
from small_tokenizers import byte_level
from transformers import AutoConfig, AutoModelForImageTextToText

from eval.engine import Question, SharedPrefixEngine
from eval.generate_engine import PlainEngine, load_engine
from eval.task import Choose, Generate
from prismatic.data.conversation_dataset import open_data
from prismatic.models.build import build
from prismatic.models.llm import llm_config
from prismatic.models.self_check import check_causal
from prismatic.training.held_out import generate_answers, read_items
from recipes.check_llm import COLUMNS, check
from recipes.config.finetune import DataConfig, parse_finetune
from recipes.finetune import main

pytestmark = pytest.mark.usefixtures("any_precision")


def documented():
    """The table of docs/llms.md: what is said of every family."""
    text = (ROOT / "docs" / "llms.md").read_text().split("## Adapters")[0]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    return {name: cells for name, *cells in rows}


@pytest.mark.parametrize("family", WORK | PACK | ELSE | ALONE)
def test_families_do_what_the_documentation_says(family, tmp_path):
    found = check(write_llm(tmp_path / "llm", family, **(WORK | PACK | ELSE | ALONE)[family]))
    assert [value.split(":")[0] for value in found.values()] == documented()[family]
    assert {found[column] for column in COLUMNS if "=" not in column} == {"yes", "</s>"}
    assert (found["packed = padded"] == "yes") == (family not in ELSE | ALONE)
    assert (found["engine = generate"] == "yes") == (family in WORK)


def test_the_documentation_names_no_other_families():
    assert documented().keys() == (WORK | PACK | ELSE | ALONE).keys() and len(documented()) > 30


QUESTIONS = [
    Question(0, "What color is it?", Generate(6)),
    Question(0, "Is it " + "to the left of the large red circle and " * 3 + "blue?", Generate(6)),  # beyond all windows
    Question(0, "Is it?", Choose(("Yes", "No"))),
    Question(0, "Which of the two things in the picture is it?", Choose(("Yes", "No"))),
]


@pytest.mark.parametrize(
    "family",
    [
        *("gemma3_text", "gpt_oss", "mamba", "bloom"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma2", "mistral", "smollm3", "falcon")),
    ],
)
def test_evaluations_answer_as_one_by_one(family, tmp_path):
    """Through the engine that a user gets, which is told where it is not the usual one."""
    model, processor = build(
        "miniature-aligned", write_llm(tmp_path / "llm", family, **(WORK | ELSE)[family]), "linear"
    )
    model.save_pretrained(tmp_path / "vlm"), processor.save_pretrained(tmp_path / "vlm")
    said = []
    options = {"dtype": torch.float32, "device": "cpu", "say": said.append}
    engine = load_engine(str(tmp_path / "vlm"), batch_size=8, **options)
    alone = load_engine(str(tmp_path / "vlm"), batch_size=8, strict=True, **options)
    assert isinstance(engine, SharedPrefixEngine if family in WORK else PlainEngine) and alone.batch_size == 1
    assert len(said) == (family in ELSE) and all("using generate in batches" in line for line in said)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    answers = [e.answer([e.prepare(picture)], QUESTIONS) for e in (engine, alone)]
    for one, two in zip(*answers, strict=True):
        assert one.text == two.text and one.error is None
        assert one.probabilities == pytest.approx(two.probabilities, abs=1e-5)


def test_held_out_questions_are_answered_as_one_by_one(tmp_path):
    model, processor = build("miniature-aligned", write_llm(tmp_path, "rwkv", **ALONE["rwkv"]), "linear")
    _, held_out = open_data(DataConfig(annotations="miniature:16"))
    items = read_items(held_out, 6)
    options = {"accelerator": Accelerator(cpu=True), "max_new_tokens": 4}
    together = generate_answers(model, processor, held_out, items, **options)
    assert together == [generate_answers(model, processor, held_out, [item], **options)[0] for item in items]


def test_packing_is_refused_before_training(tmp_path):
    """By the recipe; rows that are padded train."""
    llm = write_llm(tmp_path / "llm", "falcon")
    arguments = ["--llm", llm, "--data.annotations", "miniature:8", "--data.held_out_limit", "1", "--data.workers", "0",
                 "--global_batch_size", "4", "--per_device_batch_size", "4", "--max_steps", "1", "--eval_tasks", "[]",
                 "--run_root", str(tmp_path), "--run_id", "r"]  # fmt: skip
    with pytest.raises(
        ValueError, match="LLM of type falcon cannot be packed: logits differ .*; set --data.packing false"
    ):
        main(parse_finetune([*arguments, "--data.packing", "true"]))
    assert main(parse_finetune([*arguments, "--run_id", "s", "--data.packing", "false"]))["prompt_style"] == "pure"


def test_an_llm_that_sees_later_tokens_is_refused(tmp_path):
    model, _ = build("miniature-aligned", write_llm(tmp_path / "llm", "llama"), "linear")
    model.llm.model.layers[0].self_attn.is_causal = False
    with pytest.raises(ValueError, match="LLM of type llama sees later tokens"):
        check_causal(model)


def test_the_text_part_of_a_multimodal_model_is_taken(tmp_path):
    tokenizer = byte_level("<s>", "</s>")
    text = SIZES | WIDE | BOTH | {"model_type": "gemma3_text", "vocab_size": len(tokenizer)}
    sees = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14}  # fmt: skip
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=sees, mm_tokens_per_image=4)
    whole = AutoModelForImageTextToText.from_config(config).eval()
    whole.save_pretrained(tmp_path), tokenizer.save_pretrained(tmp_path)
    assert llm_config(str(tmp_path)).model_type == "gemma3_text"
    model, _ = build("miniature-aligned", str(tmp_path), "linear")
    ids = torch.randint(300, (1, 30))
    with torch.no_grad():
        ours, theirs = model(input_ids=ids).logits, whole(input_ids=ids).logits
    assert type(model.llm).__name__ == "Gemma3ForCausalLM"
    torch.testing.assert_close(ours[..., : theirs.shape[-1]], theirs)
