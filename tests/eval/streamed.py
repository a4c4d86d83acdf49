"""Conversations for the streaming engine, and what `generate` says to them."""

import torch
from PIL import Image

import prismatic
from eval.streaming import Request
from prismatic.miniature.scenes import scene
from prismatic.text.conversations import encode_prompt, insert_image_tokens

QUESTIONS = ["What color is the cross?", "How many objects are there?", "Where is the blue square? " * 9]
PICTURES = [Image.fromarray(scene(77, index).image) for index in range(4)]


def build(llm, prompt_style="vicuna-v1.5"):
    """A pretrained LLM behind a random projector: what it says depends on the pictures."""
    torch.manual_seed(0)
    model, processor = prismatic.build("miniature", llm, "gelu-mlp", prompt_style=prompt_style)
    for parameter in model.projector.parameters():
        parameter.data.mul_(3)
    return model.eval(), processor


def alone(model, processor, request):
    """What `generate` says, by ids written here: BOS, images, text."""
    ids = encode_prompt(list(request.messages), processor.tokenizer)
    count = len(request.images) * processor.num_image_tokens
    bos = processor.tokenizer.bos_token_id
    ids, _ = insert_image_tokens(ids, [0] * len(ids), processor.image_token_id, count, bos_token_id=bos)
    inputs = {"input_ids": torch.tensor([ids])}
    if request.images:
        inputs["pixel_values"] = torch.stack([processor.image_processor.transform(image) for image in request.images])
    mask = torch.ones_like(inputs["input_ids"])
    out = model.generate(**inputs, attention_mask=mask, max_new_tokens=request.max_new_tokens, do_sample=False)
    return processor.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()


def asked(text, *pictures, **options):
    return Request([{"role": "user", "content": text}], pictures, **options)


def mixed(longest):
    """Questions of all kinds: with an image, with several, with none, of several turns, short and long answers."""
    requests = [asked(q, PICTURES[i], max_new_tokens=longest - 7 * i) for i in range(4) for q in QUESTIONS]
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": QUESTIONS[0]},
    ]
    system = [{"role": "system", "content": "Be brief."}, *turns]
    requests += [Request(turns, PICTURES[:1], max_new_tokens=longest), Request(system, (), max_new_tokens=9)]
    return [*requests, asked(QUESTIONS[1], max_new_tokens=longest), asked(QUESTIONS[0], *PICTURES[:2])]
