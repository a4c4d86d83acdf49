"""The VLM as a Hugging Face model: saving, loading, generating, refusing."""

import dataclasses
import shutil

import forked
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import prismatic
from prismatic.miniature.scenes import scene
from prismatic.models.build import build_processor
from prismatic.text.rendering import render_prompt
from vision_backbones import BackboneSpec, get_spec, register

PROMPTS = ("What color is the cross?", "How many objects are there?", "Is there a red circle?\nAnswer shortly.", "Hi")


@pytest.fixture(scope="module", autouse=True)
def rope_backbone():
    """A tiny ViT whose rotary tables are buffers that no checkpoint holds."""
    register(
        BackboneSpec(
            "tiny-rope",
            arch="eva02_tiny_patch14_224",
            image_size=28,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            crop_pct=1.0,
            arch_kwargs={"embed_dim": 48, "depth": 2, "num_heads": 4},
            interpolation="bicubic",
        )  # fmt: skip
    )
    mini = get_spec("miniature")
    register(BackboneSpec("tiny-fused", parts=(mini, dataclasses.replace(mini, id="second")), image_size=48))


def vlm(backbone="miniature", projector="gelu-mlp", seed=0, **options):
    """A VLM with the miniature LLM's real weights (random ones repeat few tokens) and a random projector."""
    torch.manual_seed(seed)
    model, processor = prismatic.build(backbone, "miniature", projector, pretrained=False, **options)
    model.take_llm(prismatic.build("miniature", "miniature", "linear")[0].llm)
    with torch.no_grad():
        for parameter in model.projector.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval(), processor


def inputs_of(processor, rows=(0, 1, 2, 3)):
    """Prompts with images, but for the last, which is text only."""
    images = [Image.fromarray(scene(3, i).image) for i in rows if i != 3]
    texts = [
        ("<image>" if i != 3 else "") + render_prompt([{"from": "human", "value": PROMPTS[i]}], processor.tokenizer)
        for i in rows
    ]
    return processor(images=images or None, text=texts)


IN_A_FRESH_PROCESS = """
import sys, torch
from PIL import Image
import prismatic
from transformers import AutoModelForImageTextToText, AutoProcessor
from safetensors.torch import load_file
folder = sys.argv[1]
model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
stored = load_file(folder + "/../stored.safetensors")
inputs = processor(images=Image.open(folder + "/../image.png"), text="<image>In: What?\\nOut:")
assert torch.equal(inputs["input_ids"], stored["input_ids"]), inputs["input_ids"]
assert torch.equal(inputs["pixel_values"], stored["pixel_values"])
with torch.no_grad():
    logits = model(**inputs).logits
assert torch.equal(logits, stored["logits"]), (logits - stored["logits"]).abs().max()
print("identical")
"""


@pytest.mark.parametrize(
    ("backbone", "projector"),
    [("miniature", "gelu-mlp"), ("miniature", "truncated"), ("miniature", "transformer"), ("tiny-rope", "linear"),
     ("tiny-fused", "fused-gelu-mlp")],
)  # fmt: skip
def test_a_fresh_process_loads_identical_logits_without_network(backbone, projector, tmp_path):
    model, processor = vlm(backbone, projector, image_resize_strategy="letterbox")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    inputs = processor(images=image, text="<image>In: What?\nOut:")
    with torch.no_grad():
        logits = model(**inputs).logits
    save_file(
        {"logits": logits, **{k: inputs[k] for k in ("input_ids", "pixel_values")}}, tmp_path / "stored.safetensors"
    )
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    done = forked.run(["-c", IN_A_FRESH_PROCESS, tmp_path / "model"])
    assert done.stdout.strip().endswith("identical"), done.stderr[-2000:]


@pytest.mark.parametrize(("backbone", "projector"), [("miniature", "gelu-mlp"), ("tiny-rope", "transformer")])
def test_a_batch_generates_what_its_rows_generate_alone(backbone, projector):
    model, processor = vlm(backbone, projector)
    inputs = inputs_of(processor)
    width = inputs["input_ids"].shape[1]
    together = model.generate(**inputs, max_new_tokens=12, do_sample=False)[:, width:]
    assert len(set(map(tuple, together.tolist()))) >= 3 and len(set(together.flatten().tolist())) >= 6
    for i in range(4):
        single = inputs_of(processor, rows=(i,))
        alone = model.generate(**single, max_new_tokens=12, do_sample=False)[0, single["input_ids"].shape[1] :]
        end = processor.tokenizer.eos_token_id
        shown = together[i].tolist()
        shown = shown[: shown.index(end) + 1] if end in shown else shown
        assert shown == alone.tolist()[: len(shown)]


def test_the_image_changes_the_answer_distribution():
    model, processor = vlm()
    inputs = inputs_of(processor, rows=(0, 1))
    with torch.no_grad():
        one = model(**inputs).logits[:, -1]
        two = model(**inputs | {"pixel_values": inputs["pixel_values"].flip(0)}).logits[:, -1]
    assert not torch.allclose(one, two, atol=1e-3)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "mismatched"])
def test_a_checkpoint_that_does_not_hold_the_model_is_refused(damage, tmp_path):
    model, processor = vlm()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    key = "model.vision_backbone.vit.pos_embed"
    if damage == "missing":
        del state[key]
    elif damage == "unexpected":
        state["model.vision_backbone.vit.stray"] = torch.zeros(2)
        key = "stray"
    else:
        state[key] = state[key][:, :-1].contiguous()
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match=key):
        prismatic.load(tmp_path)


def test_processor_writes_placeholders_after_bos_and_checks_counts():
    model, processor = vlm()
    image = Image.fromarray(scene(3, 0).image)
    tokens = model.vision_backbone.num_tokens
    ids = processor(images=image, text="<image>\nIn: Hi\nOut:")["input_ids"][0].tolist()
    plain = processor.tokenizer("In: Hi\nOut:").input_ids
    assert ids == plain[:1] + [processor.image_token_id] * tokens + plain[1:]
    batch = processor(images=[image], text=["<image>In: Hi, you there?\nOut:", "In: Hi\nOut:"])
    assert batch["attention_mask"][1, 0] == 0 and batch["attention_mask"][0].all(), "pads on the left"
    with pytest.raises(ValueError, match="1 images for 2 prompts"):
        processor(images=[image], text=["<image> a", "<image> b"])
    with pytest.raises(ValueError, match="1 images for 2 <image> in the prompts"):
        processor(images=[image], text="<image> <image> a")
    with pytest.raises(ValueError, match="image placeholders in input_ids"):
        model(input_ids=torch.tensor([ids[:-10]]).repeat(2, 1), pixel_values=torch.zeros(1, 3, 48, 48))


def test_chat_template_of_hugging_face_pipelines():
    model, processor = vlm()
    content = [{"type": "image", "image": Image.fromarray(scene(3, 0).image)}, {"type": "text", "text": PROMPTS[0]}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    assert torch.equal(torch.as_tensor(inputs["input_ids"]), inputs_of(processor, rows=(0,))["input_ids"])
    assert torch.equal(inputs["pixel_values"], inputs_of(processor, rows=(0,))["pixel_values"])


def test_gradient_checkpointing_changes_no_gradient():
    model, processor = vlm()
    model.train()
    inputs = inputs_of(processor)
    labels = inputs["input_ids"]
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        model(**inputs, labels=labels, use_cache=False).loss.backward()
        found.append(model.llm.model.layers[0].mlp.up_proj.weight.grad.clone())
    torch.testing.assert_close(found[0], found[1])


def test_lora_adapters_reload_and_merge(tmp_path):
    from prismatic.models.lora import add_lora, save_parts

    parts = {"vision_backbone": "miniature", "llm": "miniature", "projector": "gelu-mlp"}
    torch.manual_seed(1)
    model, processor = prismatic.build(**parts)
    base_names = [n for n, _ in model.named_modules()]
    tuned = add_lora(model.float(), rank=4, alpha=8, dropout=0.0, targets=["q_proj", "v_proj"])
    trained = {n for n, p in tuned.named_parameters() if p.requires_grad}
    assert all("lora" in n or "projector" in n for n in trained)
    assert sum("lora_A" in n for n in trained) == 2 * sum(n.endswith("self_attn") for n in base_names)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name in trained:
                parameter.normal_(std=0.05)
    inputs = inputs_of(processor)
    with torch.no_grad():
        expected = tuned.eval()(**inputs).logits
    tuned.save_pretrained(tmp_path / "adapters")
    processor.save_pretrained(tmp_path / "adapters")
    save_parts(tmp_path / "adapters", parts)
    assert "model.safetensors" not in {p.name for p in (tmp_path / "adapters").iterdir()}
    for merge, tolerance in ((False, 1e-6), (True, 1e-4)):
        loaded, _ = prismatic.load(tmp_path / "adapters", merge=merge)
        with torch.no_grad():
            torch.testing.assert_close(loaded(**inputs).logits, expected, atol=tolerance, rtol=tolerance)


def test_adapters_and_models_that_were_changed_are_refused(tmp_path):
    """Missing, renamed and added adapters; weights that are not numbers, in adapters and whole models."""
    from prismatic.checkpoints.epoch import save_model
    from prismatic.models.lora import PARTS_FILE, add_lora

    parts = {"vision_backbone": "miniature", "llm": "miniature", "projector": "gelu-mlp"}
    model, processor = prismatic.build(**parts)
    save_model(model, processor, tmp_path / "whole")
    tuned = add_lora(model.float(), rank=4, alpha=8, dropout=0.0, targets=["q_proj"])
    save_model(tuned, processor, tmp_path / "adapters", metadata={PARTS_FILE: parts})
    prismatic.load(tmp_path / "adapters")
    nan, whole_number = (lambda v: v * float("nan")), (lambda v: v.to(torch.int32))
    for name, change, said in (
        ("adapters", lambda t: {k: v for k, v in t.items() if "lora_B" not in k}, "missing: .*lora_B"),
        (
            "adapters",
            lambda t: {k.replace("layers.0.", "layers.9."): v for k, v in t.items()},
            "unexpected: .*layers.9",
        ),
        ("adapters", lambda t: t | {"base_model.model.evil.lora_A.weight": torch.zeros(3)}, "unexpected: .*evil"),
        ("adapters", lambda t: {k: v[:1] for k, v in t.items()}, "does not hold the adapters of this model"),
        ("adapters", lambda t: {k: nan(v) for k, v in t.items()}, "are damaged: .* infinite or not a number"),
        (
            "whole",
            lambda t: {k: nan(v) if k == "model.projector.0.weight" else v for k, v in t.items()},
            "are damaged: model.projector.0.weight",
        ),
        (
            "whole",
            lambda t: {k: whole_number(v) if k == "model.projector.0.weight" else v for k, v in t.items()},
            "model.projector.0.weight is I32",
        ),
    ):
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / name, folder)
        (file,) = folder.glob("*.safetensors")
        save_file(change(load_file(file)), file, {"format": "pt"})
        with pytest.raises(ValueError, match=said):
            prismatic.load(folder)
    (file,) = (tmp_path / "whole").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"weights in .*whole are damaged .* copy or download them again"):
        prismatic.load(tmp_path / "whole")


def test_names_and_folders_that_hold_no_model(tmp_path):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    with pytest.raises(ValueError, match="did you mean .*first"):
        prismatic.load(tmp_path / "runs" / "frist")
    with pytest.raises(ValueError, match="neither here nor on the hub"):
        prismatic.load("nobody/no-model")
    with pytest.raises(ValueError, match="neither config.json nor checkpoints"):
        prismatic.load(tmp_path / "runs" / "first")
    (tmp_path / "runs" / "first" / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="no checkpoint yet"):
        prismatic.load(tmp_path / "runs" / "first")


def test_processor_of_a_model_counts_prefix_tokens():
    model, _ = vlm(projector="truncated")
    processor = build_processor(model, vlm()[1].tokenizer)
    assert processor.num_image_tokens == model.vision_backbone.num_tokens == 37


def test_the_decoder_of_an_aligned_backbone_is_found_or_asked_for(tmp_path):
    weights = tmp_path / "mine.safetensors"
    aligned = dataclasses.replace(get_spec("miniature"), id="tiny-aligned", aligned=True, soft_cap=30.0)
    register(dataclasses.replace(aligned, weights=str(weights)))
    parts = ("tiny-aligned", "miniature", "pretrained-decoder")
    with pytest.raises(ValueError, match="no weights file .*mine.safetensors"):
        prismatic.build(*parts)
    source, _ = prismatic.build(*parts, pretrained=False)
    save_file({k: v.contiguous() for k, v in source.vision_backbone.vit.state_dict().items()}, weights)
    with pytest.raises(ValueError, match="mine.decoder.safetensors; put it there"):
        prismatic.build(*parts)
    with torch.no_grad():
        decoder = {k: torch.randn_like(v) for k, v in source.projector.state_dict().items() if not k.startswith("head")}
    names = {k: f"encoder.head.{k[8:]}" if k.startswith("in_proj.") else f"decoder.{k}" for k in decoder}
    save_file({names[k]: v for k, v in decoder.items()}, tmp_path / "mine.decoder.safetensors")
    model, processor = prismatic.build(*parts)
    state = model.projector.state_dict()
    assert all(torch.equal(state[k], v) for k, v in decoder.items()) and state["head.weight"].abs().max() == 0
    assert processor.num_image_tokens == 37, "an aligned backbone keeps its class token"
