"""torch.compile takes the model as one graph, torch.export its vision backbone; both compute the same."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import prismatic
from prismatic.miniature.scenes import scene
from vision_backbones.maskembed.loss import reconstruction_loss
from vision_backbones.maskembed.mask_samplers import sample_masks
from vision_backbones.maskembed.student import MaskEmbedStudent
from vision_backbones.vit import build_vit


@pytest.fixture(autouse=True)
def fresh():
    """Nothing compiled is left for, or from, other tests."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def model_and_inputs():
    model, processor = prismatic.load("miniature")
    pictures = [Image.fromarray(scene(3, number).image) for number in range(2)]
    inputs = dict(processor(images=pictures, text=["<image>What color is the cross?", "<image>Is it so?"]))
    return model, inputs


def gradients(model, compute):
    """Of a loss that `compute` gives, as one vector."""
    model.zero_grad()
    loss = compute()
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.slow
def test_a_finetune_step_is_one_graph(model_and_inputs):
    model, inputs = model_and_inputs
    labels = inputs["input_ids"].where(inputs["input_ids"] != model.config.image_token_id, -100)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = gradients(model, lambda: model(**inputs, labels=labels).loss)
    for one, two in zip(gradients(model, lambda: compiled(**inputs, labels=labels).loss), expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_images_without_placeholders_are_noticed(model_and_inputs):
    model, inputs = model_and_inputs
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad(), pytest.raises(RuntimeError, match="image placeholders"):
        compiled(**inputs | {"pixel_values": inputs["pixel_values"][:1]})


@pytest.mark.slow
def test_an_alignment_step_is_one_graph():
    torch.manual_seed(0)
    student = MaskEmbedStudent(build_vit(prismatic.load("miniature")[0].vision_backbone.spec), 32)
    for block in (student.encoder.head, *(block.ls1 for block in student.decoder.blocks)):
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.05)  # at zero nothing would reach the encoder
    side, patches = student.encoder.patch_embed.img_size[0], student.encoder.patch_embed.num_patches
    pixels, masks = torch.randn(2, 3, side, side), sample_masks(np.random.default_rng(0), 2, patches)
    targets = torch.randn(len(masks), student.encoder.num_prefix_tokens + patches, 32)
    compiled = torch.compile(student, fullgraph=True, backend="aot_eager")
    expected = gradients(student, lambda: reconstruction_loss(student(pixels, masks), targets, masks))
    found = gradients(student, lambda: reconstruction_loss(compiled(pixels, masks), targets, masks))
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_the_backbone_is_exported(model_and_inputs):
    model, inputs = model_and_inputs
    backbone, pixels = model.vision_backbone, inputs["pixel_values"]
    exported = torch.export.export(backbone, (pixels,), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    with torch.no_grad():
        for images in (pixels, pixels[:1], torch.cat([pixels, -pixels])):
            torch.testing.assert_close(exported(images), backbone(images), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_generation_is_compiled(model_and_inputs):
    model, inputs = model_and_inputs
    asked = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": "static"}
    expected = model.generate(**inputs, **asked)
    compiled = copy.deepcopy(model)
    torch._dynamo.utils.counters.clear()
    compiled.forward = torch.compile(compiled.forward)
    assert torch.equal(compiled.generate(**inputs, **asked), expected)
    assert not torch._dynamo.utils.counters["graph_break"], torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
