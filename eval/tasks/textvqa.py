"""TextVQA: reading text in photographs; `textvqa-ocr` says what an OCR system read, `textvqa` does not."""

from dataclasses import replace
from pathlib import Path

from eval.data.readers import (
    find,
    image_folder,
    name_of,
    read_json,
    read_rows,
    reading,
    text,
    texts,
)
from eval.data.reference_metadata import or_prepared
from eval.scoring.normalise import textvqa_answer
from eval.scoring.scorers import vqa_accuracy
from eval.task import Example, Generate, Task, register
from eval.tasks import prompts

FOLDERS = ("text-vqa", "textvqa")
HINT = "\nReference OCR token:"


@or_prepared("textvqa", "text-vqa", split="val")
def read(root: Path, split: str) -> list[Example]:
    """One example a question, OCR hint included."""
    data_path = find(root, "textvqa", FOLDERS, "TextVQA_0.5.1_val.json")
    ocr_path = find(root, "textvqa", FOLDERS, "textvqa_val_v051_ocr.jsonl")
    images = image_folder(root, FOLDERS, "train_images", "train_val_images/train_images", "train_val_images")
    shape = "an object with data: questions with question_id, image_id and answers of ten people"
    content = read_json(data_path, "textvqa", shape)
    with reading(data_path, "textvqa", shape) as each:
        rows = [
            (name_of(row["question_id"]), text(row["image_id"]), texts(row["answers"])) for row in each(content["data"])
        ]
    shape = f"JSON lines with text, one for each question of {data_path.name}, in its order"
    hinted = read_rows(ocr_path, "textvqa", shape)
    with reading(ocr_path, "textvqa", shape) as each:  # by place: its question_id is the image's id, and repeats
        if (names := [row["image"].removesuffix(".jpg") for row in each(hinted)]) != [image for _, image, _ in rows]:
            raise ValueError(f"{len(names)} lines whose images are not those of the {len(rows)} questions")
        return [
            Example(id, f"{images}/{image}.jpg", text(hint["text"]), answers)
            for (id, image, answers), hint in each(zip(rows, hinted, strict=True))
        ]


def without_hint(example: Example) -> str:
    """The question without what an OCR system read, to be answered in a word or two."""
    return prompts.short_answer(replace(example, question=example.question.split(HINT)[0]))


for name, prompt in (("textvqa", without_hint), ("textvqa-ocr", prompts.short_answer)):
    register(
        Task(
            name=name,
            version=1,
            read=read,
            prompt=prompt,
            answer=lambda example: Generate(),
            scorer=vqa_accuracy(textvqa_answer, textvqa_answer),
            num_examples={"val": {"": 5000}},
            files=(
                "text-vqa/TextVQA_0.5.1_val.json",
                "text-vqa/textvqa_val_v051_ocr.jsonl",
                "text-vqa/train_val_images/",
            ),
        )
    )
