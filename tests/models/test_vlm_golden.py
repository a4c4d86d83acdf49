import pytest
import torch
from golden_cases import case_names, requires_golden
from reference import IMAGE_TOKEN_ID, ours, placeholders, vlm_case

from prismatic.training.losses import supervised_loss, supervised_tokens

CASES = case_names("B_prismatic/B5_vlm/cases.json")


def batch_of(case, g, model, with_image=None, pixels=None):
    multimodal = g["batch.multimodal_indices"].tolist()
    with_image = [i in multimodal for i in range(len(g["batch.input_ids"]))] if with_image is None else with_image
    ids, labels = placeholders(
        g["batch.input_ids"], g["batch.labels"], g["batch.attention_mask"], with_image,
        model.vision_backbone.num_tokens, case["pad_token_id"],
    )  # fmt: skip
    pixels = g["batch.pixel_values"][[i for i, has in enumerate(with_image) if has]] if pixels is None else pixels
    return {"input_ids": ids, "labels": labels, "pixel_values": pixels if any(with_image) else None}


def compare_logits(g, model, batch):
    """The recorded logits of a mixed batch, at the positions recorded."""
    multimodal = g["batch.multimodal_indices"].tolist()
    order = multimodal + [i for i in range(len(batch["input_ids"])) if i not in multimodal]
    logits = model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"]).logits
    compared = 0
    for row, ours_row in enumerate(order):
        for column, position in enumerate(g["out.logit_positions"].tolist()):
            if g["fused.attention_mask"][row, position]:
                expected = g["out.logits_at_positions"][row, column]
                torch.testing.assert_close(logits[ours_row, position], expected, atol=1e-4, rtol=1e-5)
                compared += 1
    assert compared > 10


@requires_golden
@pytest.mark.parametrize("name", CASES)
def test_loss_logits_and_gradients_of_a_mixed_batch(name):
    case, g, model = vlm_case(name)
    batch = batch_of(case, g, model)
    loss = supervised_loss(model, batch) / supervised_tokens(batch)
    torch.testing.assert_close(loss, g["out.loss"], atol=1e-5, rtol=1e-5)
    compare_logits(g, model, batch)

    model.vision_backbone.requires_grad_(False)
    loss.backward()
    parameters = dict(model.named_parameters())
    gradients = {k.removeprefix("grad."): v for k, v in g.items() if k.startswith("grad.")}
    for key, expected in gradients.items():
        atol = 1e-5 * expected.abs().max().item() + 1e-7
        torch.testing.assert_close(parameters[ours(key)].grad, expected, atol=atol, rtol=1e-4)


@requires_golden
@pytest.mark.parametrize("name", CASES)
def test_loss_without_text_only_rows_and_without_images(name):
    case, g, model = vlm_case(name)
    rows = len(g["batch.input_ids"])
    multimodal = g["batch.multimodal_indices"].tolist()
    pixels = g["batch.pixel_values"][multimodal[0]].repeat(rows, 1, 1, 1)
    for with_image, expected in (([True] * rows, "loss_all_multimodal"), ([False] * rows, "loss_unimodal_only")):
        batch = batch_of(case, g, model, with_image, pixels if all(with_image) else None)
        loss = supervised_loss(model, batch) / supervised_tokens(batch)
        assert loss.item() == pytest.approx(case[expected], rel=1e-5)


@requires_golden
@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_and_option_probabilities(name):
    case, g, model = vlm_case(name)
    count, pixels = model.vision_backbone.num_tokens, g["batch.pixel_values"][g["batch.multimodal_indices"][0]][None]
    prompts = []
    for generation in case["generation"]:
        has_image = generation["pixel_values"] is not None
        ids = generation["input_ids"]
        ids = ids[:1] + [IMAGE_TOKEN_ID] * (count if has_image else 0) + ids[1:]
        prompts.append((ids, has_image))
        inputs = {"input_ids": torch.tensor([ids]), "pixel_values": pixels if has_image else None}
        new = model.generate(
            **inputs, attention_mask=torch.ones_like(inputs["input_ids"]), max_new_tokens=12, do_sample=False,
            pad_token_id=case["pad_token_id"], eos_token_id=2,
        )[0, len(ids) :].tolist()  # fmt: skip
        assert new == generation["greedy_new_ids_generate"][: len(new)]
        assert len(new) == 12 or new[-1] == 2

        probabilities = model(**inputs).logits[0, -1].softmax(0)
        for options in ("True False", "Yes No", "A B C D E F G H I J K L M N O P"):
            key = "probs_A-P" if options.startswith("A ") else "probs_" + options.replace(" ", "")
            chosen = probabilities[[case["string2idx"][o] for o in options.split()]]
            torch.testing.assert_close(chosen / chosen.sum(), torch.tensor(generation[key]), atol=1e-5, rtol=0)

    # All prompts at once, padded on the left, give the same tokens.
    longest = max(len(ids) for ids, _ in prompts)
    padded = torch.tensor([[case["pad_token_id"]] * (longest - len(ids)) + ids for ids, _ in prompts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in prompts])
    new = model.generate(
        input_ids=padded, attention_mask=mask, pixel_values=pixels.repeat(sum(has for _, has in prompts), 1, 1, 1),
        max_new_tokens=12, do_sample=False, pad_token_id=case["pad_token_id"], eos_token_id=2,
    )[:, longest:]  # fmt: skip
    for row, generation in zip(new.tolist(), case["generation"], strict=True):
        row = row[: row.index(2) + 1] if 2 in row else row
        assert row == generation["greedy_new_ids_generate"][: len(row)]
