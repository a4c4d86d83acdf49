"""Unmodified trainers of trl train our models on what our own training trains them on."""

import itertools
import sys
from importlib.util import find_spec

import pytest
import torch
from golden_cases import ROOT
from PIL import Image

import prismatic
from prismatic.data.batching import collate_padded
from prismatic.miniature.scenes import scene
from prismatic.models.processing import encode_row
from prismatic.training.losses import supervised_loss, supervised_tokens

PLACE = ROOT / ".venv" / "templates"  # trl without what it needs, which is here
pytestmark = pytest.mark.skipif(not (find_spec("trl") or (PLACE / "trl").is_dir()), reason="trl is not installed")
PICTURES = [Image.fromarray(scene(3, number).image) for number in range(8)]
TALKS = [("What is there?", "A red circle."), ("And how many circles do you see in all?", "Two.")]
LAYERS = r".*language_model.*(q_proj|v_proj)"


@pytest.fixture(autouse=True)
def reachable(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(PLACE)])


def talk(number):
    question, answer = TALKS[number % 2]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def our_loss(folder, rows=range(4)):
    """The mean loss of answers that a finetune takes its gradient of."""
    model, processor = prismatic.load(folder)
    items = []
    for number in rows:
        row = {"id": str(number), "image": "x.png", "conversations": talk(number)}
        ids, labels = encode_row(row, processor, 4096, "finetune")
        pixels = processor.image_processor.transform(PICTURES[number])
        items.append({"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "pixel_values": pixels})
    batch = collate_padded(items, 0)
    with torch.no_grad():
        return (supervised_loss(model, batch) / supervised_tokens(batch)).item()


def arguments(kind, out, **more):
    from trl import DPOConfig, SFTConfig

    return (DPOConfig if kind == "dpo" else SFTConfig)(
        output_dir=str(out), max_steps=2, per_device_train_batch_size=4, learning_rate=2e-4, report_to=[], use_cpu=True,
        bf16=False, logging_steps=1, max_length=None, save_strategy="no",
        **{"gradient_checkpointing": False} | more,
    )  # fmt: skip


def finetuned(model, folder, tmp_path, prompts=False, lora=False, **more):
    """Losses of two steps of `SFTTrainer` on the same rows, and the trainer."""
    from datasets import Dataset
    from trl import SFTTrainer

    rows = [
        {"images": [PICTURES[number]]}
        | ({"prompt": talk(number)[:1], "completion": talk(number)[1:]} if prompts else {"messages": talk(number)})
        for number in range(4)
    ]
    options = {"peft_config": lora_config()} if lora else {}
    trainer = SFTTrainer(
        model=model, args=arguments("sft", tmp_path / "out", **more), train_dataset=Dataset.from_list(rows), **options
    )
    # In the order of the rows, so that the first batch is known.
    trainer._get_train_sampler = lambda *args: torch.utils.data.SequentialSampler(trainer.train_dataset)
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row], trainer


def lora_config():
    from peft import LoraConfig

    return LoraConfig(target_modules=LAYERS, init_lora_weights=True)


def test_the_loss_of_answers_is_that_of_a_finetune(folder, tmp_path):
    losses, _ = finetuned(prismatic.load(folder)[0], folder, tmp_path, assistant_only_loss=True)
    assert losses[0] == pytest.approx(our_loss(folder), rel=1e-4)
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    "options",
    [
        {"prompts": True}, {"lora": True, "assistant_only_loss": True}, {"lora": True, "prompts": True},
        {"assistant_only_loss": True, "gradient_checkpointing": True}, {},
    ],
    ids=str,
)  # fmt: skip
def test_kinds_of_supervised_finetunes(options, folder, tmp_path):
    losses, trainer = finetuned(str(folder), folder, tmp_path, **options)  # read from its folder by trl
    if options.get("prompts") or options.get("assistant_only_loss"):
        assert losses[0] == pytest.approx(our_loss(folder), rel=1e-4)
    assert losses[1] < losses[0]
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained) == bool(options.get("lora"))
    trainer.save_model(str(tmp_path / "saved"))
    if options.get("lora"):
        from peft import AutoPeftModel, PeftModel

        base = prismatic.load(folder)[0]
        place, allowed = tmp_path / "saved", ["prismatic.models.modeling"]
        saved = [
            PeftModel.from_pretrained(base, place),
            AutoPeftModel.from_pretrained(place, import_allowlist=allowed),
        ]  # fmt: skip
    else:
        saved = [prismatic.load(tmp_path / "saved")[0]]
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids).logits
        for model in saved:
            torch.testing.assert_close(model.eval()(input_ids=ids).logits, expected)


@pytest.mark.parametrize("lora", [False, True])
def test_preferences(lora, folder, tmp_path):
    """The first loss is log 2, for the model is its own reference; then it prefers what it should."""
    from datasets import Dataset
    from trl import DPOTrainer

    said = itertools.cycle(["A red circle.", "Nothing at all."])
    rows = [
        {"images": [PICTURES[number]], "prompt": talk(number)[:1],
         "chosen": [{"role": "assistant", "content": next(said)}],
         "rejected": [{"role": "assistant", "content": next(said)}]}
        for number in range(8)
    ]  # fmt: skip
    model, processor = prismatic.load(folder)
    trainer = DPOTrainer(
        model=model, args=arguments("dpo", tmp_path / "out"), train_dataset=Dataset.from_list(rows),
        processing_class=processor, **({"peft_config": lora_config()} if lora else {}),
    )  # fmt: skip
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3) and losses[1] < losses[0]
