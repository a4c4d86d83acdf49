"""VQAv2: short answers about photographs, compared with what ten people said."""

from pathlib import Path

from eval.data.readers import (
    find,
    image_folder,
    name_of,
    read_json,
    reading,
    text,
    texts,
    whole,
)
from eval.data.reference_metadata import or_prepared
from eval.scoring.normalise import strip_punctuation, vqav2_prediction
from eval.scoring.scorers import vqa_accuracy
from eval.task import Example, Generate, Task, register
from eval.tasks import prompts

FOLDERS = ("vqa-v2", "vqav2")


@or_prepared("vqav2", "vqa-v2", split="val")
def read(root: Path, split: str) -> list[Example]:
    """One example a question, in the order of the questions file."""
    names = ("v2_val2014_questions.json", "v2_OpenEnded_mscoco_val2014_questions.json")
    questions_path = find(root, "vqav2", FOLDERS, *names)
    annotations_path = find(root, "vqav2", FOLDERS, "v2_val2014_annotations.json", "v2_mscoco_val2014_annotations.json")
    images = image_folder(root, FOLDERS, "val2014", "images_val2014/val2014", "images_val2014")
    shape = "an object with annotations: question_id, answers of ten people, question_type, answer_type"
    content = read_json(annotations_path, "vqav2", shape)
    with reading(annotations_path, "vqav2", shape) as each:
        annotations = {a["question_id"]: a for a in each(content["annotations"])}
        answers = {id: texts([said["answer"] for said in a["answers"]]) for id, a in each(annotations.items())}
        info = {
            id: {kind: text(a[kind]) if kind in a else None for kind in ("answer_type", "question_type")}
            for id, a in each(annotations.items())
        }
    shape = "an object with questions: question_id, image_id and question, each with an annotation"
    content = read_json(questions_path, "vqav2", shape)
    with reading(questions_path, "vqav2", shape) as each:
        return [
            Example(
                id=name_of(row["question_id"]),
                image=f"{images}/COCO_val2014_{whole(row['image_id']):012d}.jpg",
                question=row["question"],
                answer=answers[row["question_id"]],
                info=info[row["question_id"]],
            )
            for row in each(content["questions"])
        ]


register(
    Task(
        name="vqav2",
        version=1,
        read=read,
        prompt=prompts.short_answer,
        answer=lambda example: Generate(),
        scorer=vqa_accuracy(vqav2_prediction, strip_punctuation, groups=("answer_type", "question_type")),
        num_examples={"val": {"": 214354}},
        files=("vqa-v2/v2_val2014_questions.json", "vqa-v2/v2_val2014_annotations.json", "vqa-v2/images_val2014/"),
    )
)
