"""Questions of how many there are, in parquet with images."""

from collections.abc import Sequence
from pathlib import Path

from eval.data.embedded import only, rows_with_images
from eval.data.readers import find_all, reading, text, whole
from eval.task import Example

MOST = 10_000


def read_counts(root: Path, task: str, folders: Sequence[str], split: str, number: str) -> list[Example]:
    """One example a row, whose place is its id; the answer is a whole number as text.

    Args:
        root: Data root.
        task: Name of the task.
        folders: Where its files may lie.
        split: In the names of the files.
        number: Column of the answer.

    Raises:
        MissingData: Nothing is there.
        ValueError: The files are not as expected.
    """
    shape = f"parquet with image, question and {number}"
    examples = []
    for path in find_all(root, task, folders, f"data/{split}-*.parquet", f"{split}-*.parquet"):
        with reading(path, task, shape) as each:
            for row in each(rows_with_images(path, root)):
                question = text(row["question"]).replace("<image>", "").strip()
                if not question:
                    raise ValueError("the question is empty")
                answer = str(whole(row[number], below=MOST))
                examples.append(Example(str(len(examples)), only(row["image"]), question, answer))
    return examples
