"""RealWorldQA: where things are in photographs, many taken from cars; letters, numbers or short words as answers."""

from pathlib import Path
from string import ascii_uppercase

from eval.data.embedded import only, rows_with_images
from eval.data.readers import filled, find_all, listed_choices, reading
from eval.scoring.choices import multiple_choice
from eval.task import Choose, Example, Generate, Task, register
from eval.tasks import prompts

FOLDERS = ("realworldqa",)
SHAPE = "parquet with image, question (options and how to answer are in it) and answer"
BRIEF = Generate(16)


def read(root: Path, split: str) -> list[Example]:
    """One example a row, whose place is its id; those that ask for a letter have `info["choices"]`."""
    examples = []
    for path in find_all(root, "realworldqa", FOLDERS, "data/test-*.parquet", "test-*.parquet"):
        with reading(path, "realworldqa", SHAPE) as each:
            for row in each(rows_with_images(path, root)):
                question, answer = filled(row["question"]), filled(row["answer"]).strip()
                choices = listed_choices(question)
                lettered = len(answer) == 1 and answer in ascii_uppercase[: len(choices)]
                info = {"choices": choices if lettered and len(choices) > 1 else []}
                examples.append(Example(str(len(examples)), only(row["image"]), question, answer, "", info))
    return examples


def answer(example: Example) -> Choose | Generate:
    """A letter where the question asks for one."""
    return prompts.choose_letter(example) if example.info["choices"] else BRIEF


register(
    Task(
        name="realworldqa",
        version=2,
        read=read,
        prompt=lambda example: example.question.strip(),
        answer=answer,
        scorer=multiple_choice(about="likeliest option, or exact match"),
        num_examples={"test": {"": 765}},
        files=("realworldqa/data/test-*.parquet",),
        variants={"text": {"answer": lambda example: BRIEF}},
        licence="CC BY-ND 4.0",
        note="the questions say themselves how to answer; the set that VLMEvalKit made of it is another",
    )
)
