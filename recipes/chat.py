"""Talks with a vision-language model in the terminal: `prismatic chat [RUN] [--image FILE]`; see `--help`."""

import contextlib
import gc
from pathlib import Path

from recipes import cli
from recipes.config.chat import ChatConfig, parse_chat


def main(config: ChatConfig) -> None:
    """Answers a file of questions, or whoever types."""
    from eval.streaming import Request
    from eval.streaming.start import start_engine
    from recipes.chatting.pictures import example_file
    from recipes.chatting.question_file import read_questions, write_answers
    from recipes.chatting.terminal import Conversation, converse

    questions = read_questions(Path(config.questions)) if config.questions else []
    if config.out and (Path(config.out).exists() or not Path(config.out).absolute().parent.is_dir()):
        raise ValueError(f"--out {config.out} is there already, or its folder is not: choose another")
    request = Request([], (), config.max_new_tokens, config.temperature, config.top_p, seed=config.seed)
    same = {name: getattr(config, name) for name in ("precision", "device", "batch_size", "prompt_style", "base")}
    engine = start_engine(config.model, **same)
    gc.enable(), gc.freeze()
    try:
        if config.questions:
            out = Path(config.out) if config.out else None
            if errors := write_answers(engine, questions, out, request, config.system):
                raise ValueError(f"{errors} questions could not be answered; their lines say why")
            return
        images = config.image or ([str(example_file(0))] if config.model == "miniature" else [])
        conversation = Conversation(engine, images, request, config.system)
        shown = f"about {', '.join(conversation.files)}" if images else "without a picture: /image FILE shows it one"
        print(f"talking with {config.model} {shown}\n/help lists commands")
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 -- gives `input` editing and history
        converse(conversation)
    finally:
        engine.close(finish=False)


if __name__ == "__main__":
    cli.run(main, parse_chat)
