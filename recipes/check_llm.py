"""Checks whether a language model works here, before GPUs are rented: `prismatic check-llm ID|FOLDER ...`."""

import argparse
import tempfile
import warnings

from recipes import cli

LONG = 10_000
COLUMNS = ("one turn", "several turns", "packed = padded", "engine = generate", "stops", "export reloads")
CONVERSATION = [
    {"from": "human", "value": "What color is the circle to the left?"}, {"from": "gpt", "value": "red"},
    {"from": "human", "value": "And the square?"}, {"from": "gpt", "value": "It is blue."},
]  # fmt: skip


def check(llm: str, prompt_style: str = "auto") -> dict[str, str]:
    """What works with a language model, by `COLUMNS`: "yes", or what happens instead.

    Args:
        llm: Registered id, Hugging Face id or folder.
        prompt_style: Its chat template.

    Raises:
        ValueError: It cannot be read, or sees later tokens.
    """
    from eval.sharing import sharing_problem
    from prismatic.models.build import build
    from prismatic.models.padding import padding_problem
    from prismatic.models.self_check import packing_problem

    model, processor = build("miniature-aligned", llm, "linear", prompt_style=prompt_style)
    model.eval()
    packing, sharing = packing_problem(model), sharing_problem(model, processor)
    alone = sharing and padding_problem(model, processor)
    values = (
        _trains(processor.tokenizer, CONVERSATION[:2]),
        _trains(processor.tokenizer, CONVERSATION),
        f"refused: {packing}" if packing else "yes",
        f"{'one by one' if alone else 'in batches'}: {sharing}" if sharing else "yes",
        _stops(model, processor.tokenizer),
        _reloads(model, processor),
    )
    return dict(zip(COLUMNS, values, strict=True))


def _trains(tokenizer, conversation: list[dict]) -> str:
    """Whether every answer is what is supervised, after the very tokens that an evaluation asks it with."""
    from prismatic.text.conversations import tokenize_conversation

    try:
        ids = tokenize_conversation(conversation, tokenizer, LONG)[0]
        for end in range(1, len(conversation), 2):
            asked = tokenize_conversation(conversation[:end], tokenizer, LONG)[0]
            row, labels = tokenize_conversation(conversation[: end + 1], tokenizer, LONG)
            if ids[: len(asked)] != asked or row[: len(asked)] != asked:
                return f"no: answer {end // 2 + 1} follows other tokens in training than in evaluation"
            supervised = [label for label in labels[len(asked) :] if label >= 0]
            decoded = tokenizer.decode(supervised, skip_special_tokens=True)
            if decoded.strip() != conversation[end]["value"]:
                return f"no: answer {end // 2 + 1} is {decoded[:40]!r}"
    except ValueError as error:
        return f"no: {error}"
    return "yes"


def _stops(model, tokenizer) -> str:
    """At which tokens generation ends, if what ends a trained answer is among them."""
    from prismatic.text.conversations import tokenize_conversation

    stops = model.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    shown = " ".join(tokenizer.convert_ids_to_tokens(stops))
    _, labels = tokenize_conversation(CONVERSATION[:2], tokenizer, LONG)
    return shown if [label for label in labels if label >= 0][-1] in stops else f"no: only at {shown}"


def _reloads(model, processor) -> str:
    """Whether a saved model is the same one."""
    import torch

    import prismatic
    from prismatic.models.self_check import differ, draw

    ids = draw(model, 20, 0)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder), processor.save_pretrained(folder)
        again, _ = prismatic.load(folder, dtype=model.dtype)
        problem = differ(again(input_ids=ids).logits, model(input_ids=ids).logits)
        stops = again.generation_config.eos_token_id == model.generation_config.eos_token_id
    return f"no: {problem}" if problem else "yes" if stops else "no: it stops at other tokens"


def main(config: argparse.Namespace) -> None:
    """Prints the table; ends with exit status 1 where an LLM cannot be used at all."""
    from transformers.utils import logging

    from vision_backbones.table import table

    warnings.simplefilter("ignore", FutureWarning)
    logging.disable_progress_bar()
    rows, notes, failed = [], [], []
    for llm in config.llm:
        try:
            found = check(llm, config.prompt_style)
        except Exception as error:  # of a stranger's architecture: anything, and the others continue
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            failed.append(f"{llm}: {kind}{error}")
            continue
        rows.append([llm, *(value.split(": ")[0] for value in found.values())])
        notes += [f"{llm}, {column}: {value}" for column, value in found.items() if ": " in value]
    if rows:
        print("\n".join([table(rows, ["LLM", *COLUMNS]), "", *notes]))
    if failed:
        raise ValueError("; ".join(failed))


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.check_llm", description=__doc__)
    parser.add_argument("llm", nargs="+", help="registered id, Hugging Face id or folder")
    parser.add_argument("--prompt_style", default="auto", help="name, FILE.jinja, or auto: the LLM's own")
    return parser.parse_args(argv)


if __name__ == "__main__":
    cli.run(main, parse)
