import copy
import json
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from golden_cases import golden_dir, load_json, load_tensors, requires_golden
from reference import ours
from test_optim import example_model
from torch.utils.data import DataLoader
from transformers import LlamaConfig

from prismatic import PrismaticConfig, PrismaticForConditionalGeneration, PrismaticImageProcessor, PrismaticProcessor
from prismatic.data import batching
from prismatic.data.batching import TrainingExamples, collate_packed, collate_padded
from prismatic.data.conversation_dataset import ConversationDataset
from prismatic.models import stages
from prismatic.models.attention import SEGMENTED, segment_lengths
from prismatic.models.processing import encode_row
from prismatic.training import loop, losses, optim
from recipes.config.finetune import FinetuneConfig
from vision_backbones import BackboneSpec

B8 = "B_prismatic/B8_training_trajectory"


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def tiny_model(seed=0):
    torch.manual_seed(seed)
    spec = BackboneSpec(
        "tiny", arch="vit_tiny_patch16_224", image_size=16,
        arch_kwargs={"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    config = PrismaticConfig(text_config=text, vision_config=spec.to_dict(), projector="gelu-mlp", image_token_id=95)
    model = PrismaticForConditionalGeneration(config)
    stages.set_trainable(model, "finetune")
    return model


def examples(count, seed=0):
    """Random examples of uneven lengths, every third without an image."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for i in range(count):
        length = int(torch.randint(5, 20, (1,), generator=generator))
        ids = torch.randint(3, 90, (length,), generator=generator)
        labels = torch.where(torch.rand(length, generator=generator) < 0.5, ids, -100)
        labels[0], labels[-1] = -100, ids[-1]
        pixels = None
        if i % 3:
            ids = torch.cat([ids[:1], torch.full((4,), 95), ids[1:]])
            labels = torch.cat([labels[:1], torch.full((4,), -100), labels[1:]])
            pixels = torch.randn(3, 16, 16, generator=generator)
        items.append({"input_ids": ids, "labels": labels, "pixel_values": pixels})
    return items


def gradients(model, batches, accelerator):
    total = sum(map(losses.supervised_tokens, batches))
    sums = loop.accumulate(model, batches, [1 / total] * len(batches), losses.supervised_loss, accelerator)
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return sum(sums).item() / total, grads


def assert_equal_gradients(one, two, tolerance):
    assert one.keys() == two.keys()
    for name in one:
        scale = one[name].abs().max().item()
        torch.testing.assert_close(one[name], two[name], atol=tolerance * scale + 1e-9, rtol=0)


def test_selected_positions_give_the_plain_hugging_face_loss(accelerator):
    model, batch = tiny_model(), collate_padded(examples(7), 0)
    plain = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], pixel_values=batch["pixel_values"],
        labels=batch["labels"],
    ).loss  # fmt: skip
    plain.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss, grads = gradients(model, [batch], accelerator)
    assert loss == pytest.approx(plain.item(), rel=1e-6)
    assert_equal_gradients(grads, expected, 1e-5)


def test_accumulation_equals_one_large_batch(accelerator):
    model, items = tiny_model(), examples(12)
    whole = gradients(model, [collate_padded(items, 0)], accelerator)
    parts = gradients(model, [collate_padded(items[i : i + 3], 0) for i in range(0, 12, 3)], accelerator)
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)
    assert_equal_gradients(parts[1], whole[1], 1e-6)


def test_packed_equals_padded(accelerator):
    model, items = tiny_model(), examples(9)
    padded = gradients(model, [collate_padded(items, 0)], accelerator)
    model.set_attn_implementation({"text_config": SEGMENTED})
    packed = gradients(model, [collate_packed(items)], accelerator)
    assert packed[0] == pytest.approx(padded[0], rel=1e-5)
    assert_equal_gradients(packed[1], padded[1], 1e-5)


def test_packed_examples_do_not_see_each_other():
    model, items = tiny_model().eval(), examples(4)
    model.set_attn_implementation({"text_config": SEGMENTED})

    def logits(batch):
        positions = batch["position_ids"]
        lengths = segment_lengths(positions)
        out = model(
            input_ids=batch["input_ids"], pixel_values=batch["pixel_values"], position_ids=positions, use_cache=False,
            segment_lengths=lengths,
        ).logits[0]  # fmt: skip
        return out.split(lengths)

    with torch.no_grad():
        before = logits(collate_packed(items))
        items[1]["input_ids"] = items[1]["input_ids"].clone()
        items[1]["input_ids"][-1] = 7
        items[1]["pixel_values"] = items[1]["pixel_values"] + 1
        after = logits(collate_packed(items))
    for number in (0, 2, 3):
        assert torch.equal(before[number], after[number])
    assert not torch.equal(before[1], after[1])


def test_packing_still_generates_from_left_padded_prompts():
    model = tiny_model().eval()
    ids = torch.tensor([[0, 0, 5, 6], [4, 5, 6, 7]])
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(input_ids=ids, attention_mask=(ids > 0).long(), **options)
    model.set_attn_implementation({"text_config": SEGMENTED})
    assert torch.equal(plain, model.generate(input_ids=ids, attention_mask=(ids > 0).long(), **options))


def run(model, batches, accelerator, steps=4, task=losses.TEXT, optimizer=None, **settings):
    optimizer = optimizer or torch.optim.AdamW(optim.parameter_groups(model.named_parameters(), 0.1), lr=1e-3)
    logged = []
    loop.fit(
        accelerator, model, optimizer, task, epochs=[(0, batches)], total_steps=steps, accumulation=2,
        rate_at=lambda step: 1e-3, max_grad_norm=1.0, log=logged.append, end_of_epoch=lambda epoch, step: None,
        **settings,
    )  # fmt: skip
    return logged


def test_metrics_of_a_step(accelerator):
    batches = [collate_padded(examples(3, seed), 0) for seed in range(8)]
    logged = run(tiny_model(), batches, accelerator, matmul_peak=1e12)
    assert [m["step"] for m in logged] == [1, 2, 3, 4]
    first = batches[:2]
    tokens, places = (
        int(sum(f(b) for b in first)) for f in (lambda b: b["attention_mask"].sum(), lambda b: b["input_ids"].numel())
    )
    assert logged[0]["padding_share"] == pytest.approx(1 - tokens / places)
    assert logged[0]["loss_terms"] == sum(map(losses.supervised_tokens, first))
    # About two FLOPs a weight forward and four backward; the backbone is frozen and attention comes on top.
    weights = sum(p.numel() for n, p in tiny_model().llm.named_parameters() if "embed" not in n and "lm_head" not in n)
    flops = logged[0]["mfu"] * 1e12 / logged[0]["tokens_per_second"]
    assert 6 * weights < flops < 12 * weights


@pytest.mark.parametrize("stage", stages.STAGES)
@pytest.mark.parametrize("own", [None, 5e-2])
def test_the_projector_learns_at_its_own_rate(stage, own, accelerator):
    """Adam's first step moves a weight by the rate, whatever its gradient is, if that is not almost nothing."""
    lora = {"rank": 2, "alpha": 4, "dropout": 0.0}
    model = stages.as_stage(tiny_model(), stage, lora)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    config = FinetuneConfig(learning_rate=1e-3, projector_learning_rate=own, weight_decay=0.0)
    batches = [collate_padded(examples(4, seed), 0) for seed in range(2)]
    run(model, batches, accelerator, steps=1, optimizer=optim.adamw(config, model))
    moved = {name: (p - before[name]).abs().max().item() for name, p in model.named_parameters() if p.requires_grad}
    assert any("projector" in name for name in moved)
    for name, most in moved.items():
        if "lora_A" not in name:  # has no gradient as long as lora_B is zero
            expected = own if own and "projector" in name else 1e-3
            assert most == pytest.approx(expected, rel=0.01), name


def test_waiting_for_data_is_told_apart(accelerator):
    """Two of the four steps' batches come late."""
    batches = [collate_padded(examples(3, seed), 0) for seed in range(8)]

    def late():
        for number, batch in enumerate(batches):
            time.sleep(0.2 * (number in (4, 5)))
            yield batch

    logged = run(tiny_model(), late(), accelerator)
    assert logged[2]["data_seconds"] >= 0.4 and logged[2]["seconds"] > logged[2]["data_seconds"]
    assert all(logged[step]["data_seconds"] < 0.2 for step in (0, 1, 3))


def test_operations_of_an_image_are_counted_on_two(accelerator):
    """Forward and for the gradient of the weights, two a weight each; masks have several rows an image."""
    model, seen = torch.nn.Linear(48, 7), []
    batch = {"pixel_values": torch.randn(6, 48), "masks": torch.ones(18, 4, dtype=torch.bool), "skipped": 0}

    def loss_sum(model, batch):
        seen.append((len(batch["pixel_values"]), len(batch["masks"]), batch["skipped"]))
        return model(batch["pixel_values"]).sum()

    images = losses.Objective(loss_sum, len, losses.image_counts, "images", sample=losses.two_images)
    optimizer = torch.optim.AdamW(model.parameters())
    assert loop.count_flops(model, optimizer, batch, images, accelerator) == 4 * 48 * 7
    assert seen == [(2, 6, 0)] and model.weight.grad is None


def test_a_loss_that_is_not_finite_stops_before_the_step(accelerator):
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    batches = [collate_padded(examples(3), 0)] * 2

    def broken(model, batch):
        return losses.supervised_loss(model, batch) * float("nan")

    with pytest.raises(FloatingPointError, match="step 1"):
        run(model, batches, accelerator, task=replace(losses.TEXT, loss_sum=broken))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_gradient_that_is_not_finite_stops_before_the_step(accelerator):
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())

    def steep(model, batch):  # the root of 0 has a finite value and no finite slope
        return losses.supervised_loss(model, batch) + (model.projector[0].bias[0] * 0).sqrt()

    with pytest.raises(FloatingPointError, match="gradient norm is nan at step 1"):
        run(model, [collate_padded(examples(3), 0)] * 2, accelerator, task=replace(losses.TEXT, loss_sum=steep))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_micro_batches_of_which_nothing_is_left(accelerator):
    whole, empty = collate_padded(examples(3), 0), collate_padded([None, None], 0)
    unsupervised = collate_padded(examples(2), 0)
    unsupervised["labels"] = torch.full_like(unsupervised["labels"], -100)
    logged = run(tiny_model(), [whole, empty, whole, unsupervised], accelerator)
    assert [m["skipped_images"] for m in logged] == [2, 0]
    expected = run(tiny_model(), [whole, unsupervised, whole, empty], accelerator)
    assert [m["loss"] for m in logged] == pytest.approx([m["loss"] for m in expected], rel=1e-6)
    with pytest.raises(ValueError, match="step 1 contains no supervised tokens"):
        run(tiny_model(), [empty, empty], accelerator)


def trajectories():
    path = golden_dir() / B8 / "cases.json"
    return sorted(json.loads(path.read_text())) if path.exists() else []


@requires_golden
@pytest.mark.parametrize("stage", trajectories())
def test_the_references_trajectory(stage, accelerator, tmp_path):
    from prismatic.text.prompts import IMAGE_TOKEN, chat_template
    from prismatic.text.tokenizers import from_tokenizer_json

    case = load_json(f"{B8}/cases.json")[stage]
    model, _ = example_model()
    rows = {row["id"]: row for row in load_json(f"{B8}/examples.json")}
    (tmp_path / "rows.json").write_text(json.dumps([rows[i] for i in case["examples"]]))
    source = ConversationDataset(tmp_path / "rows.json", golden_dir() / B8)

    tokenizer = from_tokenizer_json(golden_dir() / "B_prismatic/B3_tokenisation/tiny_tokenizer.json")
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<PAD>"})
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    tokenizer.chat_template = chat_template("pure")
    images = PrismaticImageProcessor(model.config.vision_config)
    processor = PrismaticProcessor(images, tokenizer, num_image_tokens=model.vision_backbone.num_tokens)
    model.config.image_token_id = processor.image_token_id

    encode = partial(encode_row, processor=processor, max_length=2048, stage=stage)
    order, size = case["dataset_index_order"], case["per_device_batch_size"]
    loader = DataLoader(
        TrainingExamples(source, encode, images.transform),
        batch_sampler=[order[i : i + size] for i in range(0, len(order), size)],
        collate_fn=partial(collate_padded, pad_token_id=tokenizer.pad_token_id),
    )
    stages.set_trainable(model, stage)
    groups = optim.parameter_groups(model.named_parameters(), case["weight_decay"])
    optimizer = torch.optim.AdamW(groups, lr=case["lr"])
    step_losses, norms = [], []
    # The reference averages the means of micro-batches, and its schedule is shorter than its run.
    for step, group in enumerate(batching.batched(loader, case["grad_accumulation_steps"])):
        for parameters in optimizer.param_groups:
            parameters["lr"] = case["lr_used_at_step"][step]
        counts = [losses.supervised_tokens(batch) for batch in group]
        weights = [1 / (count * case["grad_accumulation_steps"]) for count in counts]
        sums = loop.accumulate(model, group, weights, losses.supervised_loss, accelerator)
        step_losses += [s.item() / count for s, count in zip(sums, counts, strict=True)]
        trained = [p for p in model.parameters() if p.requires_grad]
        norms.append(torch.nn.utils.clip_grad_norm_(trained, 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
    assert step_losses == pytest.approx(case["micro_batch_losses"], abs=1e-3)
    assert norms == pytest.approx(case["preclip_grad_norms"], rel=1e-3)
    final = {k.removeprefix(f"{stage}.final."): v for k, v in load_tensors(f"{B8}/final_params.safetensors").items()}
    parameters = dict(model.named_parameters())
    for key, value in final.items():
        if ours(key) in parameters:
            torch.testing.assert_close(parameters[ours(key)].detach(), value, atol=2e-3, rtol=0)


def test_attention_never_takes_cudnn():
    """Which plans for every new length: packed rows in bf16 took thirty times as long on a GPU (docs/benchmarks.md)."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    loop.launch("fp32", [], ".")
    assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()
