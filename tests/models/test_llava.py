"""Models of ours as transformers' LLaVA and back: real classes read the folder, and compute the same."""

import json
import sys

import numpy as np
import pytest
import torch
from families import WORK, write_llm
from golden_cases import ROOT
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_tokenizers import byte_level_with, train_sentencepiece
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
)

import prismatic
from prismatic.models.build import build
from prismatic.models.llava import export_llava
from prismatic.models.llava_import import import_llava
from prismatic.text.tokenizers import from_sentencepiece
from recipes.cli import main
from recipes.export import export
from vision_backbones import BackboneSpec, registry

SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
SPECS = {
    "clip": {"arch": "vit_base_patch16_clip_quickgelu_224"},
    "clip-gelu": {"arch": "vit_base_patch16_clip_224", "mean": (0.5,) * 3, "interpolation": "bilinear"},
    "siglip": {"arch": "vit_base_patch16_siglip_224"},
    "siglip-border": {"arch": "vit_base_patch16_siglip_224", "image_size": 36, "allow_border": True},
    "siglip-tanh": {"arch": "vit_base_patch16_siglip_224", "arch_kwargs": SMALL | {"act_layer": "gelu_tanh"}},
    "in1k": {"arch": "vit_base_patch16_224"},
    "eva02": {"arch": "eva02_base_patch16_clip_224"},
    "capped": {"arch": "vit_base_patch16_siglip_224", "soft_cap": 30.0},
    "aligned": {"arch": "vit_base_patch16_clip_224", "aligned": True},
    "scaled": {"arch": "vit_base_patch16_siglip_224", "arch_kwargs": SMALL | {"init_values": 0.1}},
    "silu": {"arch": "vit_base_patch16_siglip_224", "arch_kwargs": SMALL | {"act_layer": "silu"}},
    "nearest": {"arch": "vit_base_patch16_siglip_224", "interpolation": "nearest"},
}
SPECS = {name: BackboneSpec(name, **({"image_size": 32, "arch_kwargs": SMALL} | spec)) for name, spec in SPECS.items()}
SPECS["fused"] = BackboneSpec("fused", parts=(SPECS["siglip"], SPECS["clip-gelu"]), image_size=32)
QUESTION = "What is to the left of it?"
CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f" {QUESTION}\n"}]}]


@pytest.fixture(scope="module", autouse=True)
def backbones():
    with pytest.MonkeyPatch.context() as patch:
        for name, spec in SPECS.items():
            patch.setitem(registry._specs, name, spec)
        yield


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return write_llm(tmp_path_factory.mktemp("llm"), "llama", tie_word_embeddings=True)


def vlm(backbone, llm, projector="gelu-mlp", **options):
    """With random weights everywhere, of a size at which each matters."""
    torch.manual_seed(0)
    model, processor = build(backbone, llm, projector, pretrained=False, **options)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embed_tokens" not in name:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        elif "projector" in name or "vision" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval(), processor


def picture(width=50, height=70, mode="RGB"):
    values = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def read(folder, **options):
    model, info = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model.eval(), AutoProcessor.from_pretrained(folder, backend="pil")


@torch.no_grad()
def compare(ours, processor, theirs, their_processor):
    """Token ids, pixels, logits and an answer, each by the side's own processor and model."""
    expected = processor.ask([QUESTION], [picture()])
    found = their_processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": picture()}, *CHAT[0]["content"][1:]]}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    assert found["input_ids"].tolist() == expected["input_ids"].tolist()
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], atol=1e-5, rtol=0)
    logits = ours(**expected).logits
    torch.testing.assert_close(theirs(**found).logits, logits, atol=1e-5, rtol=0)
    other = ours(**(dict(expected) | {"pixel_values": expected["pixel_values"] + 1})).logits
    assert (other - logits).abs().max() > 1e-2, "what is seen changes nothing"
    answers = [one.generate(**given, max_new_tokens=12, do_sample=False) for one, given in
               ((ours, expected), (theirs, found))]  # fmt: skip
    assert answers[0].tolist() == answers[1].tolist()
    texts = [one.batch_decode(answer) for one, answer in zip((processor, their_processor), answers, strict=True)]
    assert texts[0] == texts[1]
    return logits


@pytest.mark.parametrize(
    ("backbone", "projector"),
    [("clip", "gelu-mlp"), ("clip-gelu", "linear"), ("siglip", "linear"), ("siglip-border", "gelu-mlp"),
     ("siglip-tanh", "gelu-mlp")],
)  # fmt: skip
def test_there_and_back(backbone, projector, llm, tmp_path):
    model, processor = vlm(backbone, llm, projector)
    notes = export_llava(model, processor, tmp_path / "llava")
    assert any("pil" in note for note in notes) and any("linear" in note for note in notes) == (projector == "linear")
    theirs, their_processor = read(tmp_path / "llava")
    logits = compare(model, processor, theirs, their_processor)
    assert theirs.generation_config.eos_token_id == model.generation_config.eos_token_id
    assert type(their_processor) is LlavaProcessor and theirs.config.image_seq_length == processor.num_image_tokens
    told = import_llava(tmp_path / "llava", tmp_path / "back")
    assert projector in told and "resize-naive" in told and "one pixel" not in told
    again, its_processor = prismatic.load(tmp_path / "back")
    assert its_processor.chat_template == processor.chat_template
    assert again.config.projector == projector and again.generation_config.eos_token_id is not None
    inputs, expected = (one.ask([QUESTION], [picture()]) for one in (its_processor, processor))
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["qwen3", "phi3", "gemma3_text", pytest.param("mistral", marks=pytest.mark.slow)])
def test_language_models_of_other_families(family, tmp_path):
    model, processor = vlm("clip", write_llm(tmp_path / "llm", family, **WORK[family]))
    export_llava(model, processor, tmp_path / "llava")
    compare(model, processor, *read(tmp_path / "llava"))
    import_llava(tmp_path / "llava", tmp_path / "back")


CHATML = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + "
    "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
THINKING = CHATML.removesuffix("{% endif %}") + (
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


@pytest.mark.parametrize(
    ("kind", "style"),
    [*((kind, style) for kind in ("bytes", "sentencepiece") for style in ("pure", "vicuna-v1.5", "llama2-chat")),
     ("bytes", CHATML), ("bytes", CHATML.replace("{{ bos_token }}", ""))],
)  # fmt: skip
def test_prompts_are_ours_to_the_token(kind, style, tmp_path):
    tokenizer = from_sentencepiece(train_sentencepiece(tmp_path)) if kind == "sentencepiece" else None
    tokenizer = tokenizer or byte_level_with(["<|im_start|>", "<|im_end|>"])
    llm = write_llm(tmp_path / "llm", "llama", tokenizer)
    model, processor = vlm("siglip", llm, prompt_style=style)
    export_llava(model, processor, tmp_path / "llava")
    theirs = AutoProcessor.from_pretrained(tmp_path / "llava", backend="pil")
    talk = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "  Is it black, naïve 你好,\n\n12 years old?"},
    ]
    shown = [CHAT[0] | {"content": [{"type": "text", "text": "What is it?"}, {"type": "image"}]}, *talk[1:]]
    late = {"role": "user", "content": [{"type": "text", "text": talk[2]["content"]}, {"type": "image_url"}]}
    for images, chat in ((None, talk), (picture(), shown), (picture(), [*talk[:2], late])):
        expected = processor.ask([talk], [images])["input_ids"]
        text = theirs.apply_chat_template(chat, add_generation_prompt=True)
        bos = tokenizer.bos_token if expected[0, 0] == tokenizer.bos_token_id else ""
        assert text.startswith(bos + "<image>" * (images is not None)) and text.count("<image>") <= 1
        given = {"images": images} if images else {}
        assert theirs(text=text, add_special_tokens=False, **given)["input_ids"] == expected.tolist()
    assert (tmp_path / "llava" / "chat_template.jinja").read_text() == theirs.tokenizer.chat_template


def test_templates_with_thoughts_answer_without(tmp_path):
    """Training writes an empty thought before every answer, such templates before the last alone."""
    tokenizer = byte_level_with(["<|im_start|>", "<|im_end|>"])
    model, processor = vlm("siglip", write_llm(tmp_path / "llm", "qwen3", tokenizer, head_dim=8), prompt_style=THINKING)
    assert any("empty thoughts" in note for note in export_llava(model, processor, tmp_path / "llava"))
    compare(model, processor, *read(tmp_path / "llava"))


def test_pixels_of_any_image(llm, tmp_path):
    model, processor = vlm("clip", llm)
    export_llava(model, processor, tmp_path / "llava")
    exact, default = (AutoImageProcessor.from_pretrained(tmp_path / "llava", backend=name) for name in ("pil", None))
    worst = 0
    for size in ((32, 32), (1, 1), (7, 300), (300, 7), (33, 31), (640, 480), (31, 64)):
        for mode in ("RGB", "L", "P", "CMYK", "1"):
            image = picture(*size, mode)
            ours = processor.image_processor(image)["pixel_values"]
            torch.testing.assert_close(exact(image, return_tensors="pt")["pixel_values"], ours, atol=1e-5, rtol=0)
            if size == (640, 480) and mode == "RGB":
                worst = (default(image, return_tensors="pt")["pixel_values"] - ours).abs().max()
    assert 1e-5 < worst < 0.05, "what the documentation says of the default: a level or two of 255"


@pytest.mark.parametrize(("dtype", "stored", "limit"), [("bfloat16", "BF16", 5e-2), ("float16", "F16", 1e-2)])
def test_the_command_line_and_half_precision(dtype, stored, limit, llm, tmp_path, monkeypatch, capsys):
    model, processor = vlm("clip", llm)
    model.save_pretrained(tmp_path / "run"), processor.save_pretrained(tmp_path / "run")
    for words in (["export", "run", "out", "--format", "llava", "--dtype", dtype], ["import-llava", "out", "back"]):
        words = [str(tmp_path / word) if word in ("run", "out", "back") else word for word in words]
        monkeypatch.setattr(sys, "argv", ["prismatic", *words])
        main()
    said = capsys.readouterr().out
    assert f"wrote {tmp_path / 'out'}\n" in said and "note: " in said and "right after BOS" in said
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        names = list(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {stored}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    for name in ("vision_tower.vision_model.embeddings.class_embedding", "multi_modal_projector.linear_1.bias",
                 "language_model.model.norm.weight"):  # fmt: skip
        assert name in names, "llava-hf's files and what reads them have these names"
    assert "language_model.lm_head.weight" not in names, "tied"
    inputs = processor.ask([QUESTION], [picture()])
    with torch.no_grad():
        expected = model(**inputs).logits
        theirs = read(tmp_path / "out", dtype=dtype)[0]
        inputs["pixel_values"] = inputs["pixel_values"].to(theirs.dtype)
        found = theirs(**inputs).logits.float()
    assert (found - expected).abs().max() < limit * expected.abs().max()


@pytest.mark.parametrize(
    ("backbone", "projector", "options", "message"),
    [
        ("capped", "gelu-mlp", {}, "soft-capped at 30, expected none"),
        ("aligned", "gelu-mlp", {}, "last block's after the final norm"),
        ("fused", "fused-gelu-mlp", {}, "fused of 2 ViTs, expected one"),
        ("in1k", "gelu-mlp", {}, "built neither as CLIP's nor as SigLIP's"),
        ("eva02", "gelu-mlp", {}, "built neither as CLIP's nor as SigLIP's"),
        ("scaled", "gelu-mlp", {}, "CLIP and SigLIP have no blocks.0.ls1.gamma"),
        ("silu", "gelu-mlp", {}, "its activation is Swish|its activation is SiLU"),
        ("nearest", "gelu-mlp", {}, "interpolation 'nearest' .* expected bilinear, bicubic"),
        ("clip", "transformer", {}, "'transformer' .* expected gelu-mlp or linear"),
        ("clip", "truncated", {}, "'truncated' .* expected gelu-mlp or linear"),
        ("clip", "gelu-mlp", {"image_resize_strategy": "letterbox"}, "'letterbox' .* expected resize-naive"),
        ("clip", "gelu-mlp", {"image_resize_strategy": "resize-crop"}, "'resize-crop' .* expected resize-naive"),
    ],
)
def test_what_would_not_be_exact_is_refused(backbone, projector, options, message, llm, tmp_path):
    model, processor = build(backbone, llm, projector, pretrained=False, **options)
    with pytest.raises(ValueError, match=message) as refused:
        export_llava(model, processor, tmp_path / "out")
    assert "leave out --format llava" in str(refused.value) and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("phi", "it has a bias"),
        ("gpt2", "module called embed_tokens"),
        ("gpt_neox", "does not find this LLM's weights"),
        ("cohere2", "other logits .* cap or scale"),
        ("gemma2", "other logits .* cap or scale"),
    ],
)
def test_language_models_that_llava_does_not_compute_are_refused(family, message, tmp_path):
    model, processor = vlm("clip", write_llm(tmp_path / "llm", family, **WORK[family]))
    with pytest.raises(ValueError, match=message):
        export_llava(model, processor, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["llm"]


def test_other_token_ids_and_adapters_are_refused(llm, tmp_path):
    today = "{{ strftime_now('%Y-%m-%d') }}" + CHATML.replace("{{ bos_token }}", "")
    model, processor = vlm("clip", llm, prompt_style=today)
    with pytest.raises(ValueError, match="other token ids of a conversation: .* the date"):
        export_llava(model, processor, tmp_path / "out")
    with pytest.raises(ValueError, match="holds whole models, no adapters"):
        export("nothing", tmp_path / "out", keep_adapters=True, format="llava")
    with pytest.raises(ValueError, match="exists already"):
        export_llava(model, processor, tmp_path)
    with pytest.raises(ValueError, match="exists already"):
        import_llava(tmp_path, tmp_path)


LLAVA_HF = (  # the template of llava-hf/llava-1.5-7b-hf
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@pytest.fixture
def llava(tmp_path):
    """A folder as transformers itself writes it: all blocks, weights of every norm, images cropped."""
    tokenizer = byte_level_with(["<image>", "<pad>"])
    tokenizer.pad_token = "<pad>"
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=448,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    ids = {"image_token_index": tokenizer.convert_tokens_to_ids("<image>"), "image_seq_length": 16}
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, **ids))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    images = LlavaImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=LLAVA_HF,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "llava"), processor.save_pretrained(tmp_path / "llava")
    return model.eval(), tmp_path / "llava"


@torch.no_grad()
def test_llava_of_others(llava, tmp_path):
    theirs, folder = llava
    told = import_llava(folder, tmp_path / "ours")
    assert "clip_vision_model of 2 blocks" in told and "resize-crop" in told and "one pixel" in told
    model, processor = prismatic.load(tmp_path / "ours")
    inputs = processor.ask([QUESTION], [picture()])
    assert f"USER: {QUESTION} ASSISTANT:" in processor.tokenizer.decode(inputs["input_ids"][0])
    torch.testing.assert_close(model(**inputs).logits, theirs(**inputs).logits, atol=1e-5, rtol=0)
    square = picture(64, 64)
    expected = AutoImageProcessor.from_pretrained(folder, backend="pil")(square, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(processor.image_processor(square)["pixel_values"], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"projector_hidden_act": "relu"}, "projector_hidden_act is relu, expected gelu"),
        ("config.json", {"projector_hidden_act": "linear"}, "or linear before an identity"),
        ("config.json", {"vision_feature_layer": [-2, -3]}, r"layers \[-2, -3\] are joined"),
        ("config.json", {"vision_feature_layer": 7}, "vision_feature_layer is 7 of 3 blocks"),
        ("config.json", {"vision_feature_select_strategy": "full"}, "is full, expected default"),
        ("config.json", {"image_token_index": 3}, "images are token 3 in config.json"),
        ("config.json", {"vision_config.hidden_act": "relu"}, "hidden_act of the vision model is relu"),
        ("config.json", {"vision_config.layer_norm_eps": 1e-3}, "layer_norm_eps .* is 0.001, expected 1e-05"),
        ("config.json", {"vision_config.model_type": "dinov2"}, "llava with the vision model dinov2, expected"),
        ("config.json", {"model_type": "llama"}, "holds a llama with the vision model None"),
        ("config.json", {"auto_map": {"AutoModel": "x.y"}}, "names Python code to run"),
        ("processor_config.json", {"image_processor.do_center_crop": False}, "do_center_crop False"),
        ("processor_config.json", {"image_processor.rescale_factor": 1.0}, "rescaled by 1/255"),
        ("processor_config.json", {"image_processor.resample": 0}, "resample 0"),
        ("model.safetensors", "multi_modal_projector.linear_2.bias", "its projector has linear_1.bias"),
        (
            "model.safetensors",
            "vision_tower.embeddings.class_embedding",
            "lack model.vision_tower.embeddings.class_embedding",
        ),
        ("model.safetensors", "language_model.model.norm.weight", "lack model.language_model.norm.weight"),
        ("model.safetensors", None, r"no config.json or no \*.safetensors"),
    ],
)
def test_llava_that_is_none_of_ours_is_refused(file, changes, message, llava, tmp_path):
    path = llava[1] / file
    if changes is None:
        path.unlink()
    elif path.suffix == ".json":
        content = json.loads(path.read_text())
        for key, value in changes.items():
            *inside, last = key.split(".")
            place = content[inside[0]] if inside else content
            place[last] = value
        path.write_text(json.dumps(content))
    else:
        tensors = load_file(path)
        del tensors[changes]
        save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        import_llava(llava[1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_documentation_names_what_is_taken():
    text = (ROOT / "docs" / "export.md").read_text()
    assert all(word in text for word in ("--format llava", "import-llava", 'backend="pil"', "soft cap"))
