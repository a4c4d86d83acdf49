"""RefCOCO, RefCOCO+ (UNC splits) and RefCOCOg (UMD splits): the box of what an expression refers to."""

from pathlib import Path

from eval.data.readers import (
    find,
    image_folder,
    name_of,
    read_json,
    reading,
    whole,
)
from eval.data.reference_metadata import or_prepared
from eval.data.restricted_pickle import load_plain
from eval.scoring.scorers import iou_at
from eval.task import Example, Generate, Task, register
from eval.tasks import prompts
from prismatic.text.parsing import true_box

FOLDERS = ("refcoco",)
DATASETS = {
    "RefCOCO": ("refcoco", "refs(unc).p"),
    "RefCOCO+": ("refcoco+", "refs(unc).p"),
    "RefCOCOg": ("refcocog", "refs(umd).p"),
}
NUM_EXAMPLES = {
    "val": {"RefCOCO": 10834, "RefCOCO+": 10758, "RefCOCOg": 4896},
    "testA": {"RefCOCO": 5657, "RefCOCO+": 5726},
    "testB": {"RefCOCO": 5095, "RefCOCO+": 4889},
    "test": {"RefCOCOg": 9602},
}


@or_prepared("refcoco", "refcoco", split="val")
def read(root: Path, split: str) -> list[Example]:
    """One example an expression, in the order of the pickles."""
    images = image_folder(root, FOLDERS, "train2014")
    return [e for subset in NUM_EXAMPLES[split] for e in read_dataset(root, subset, split, images)]


def read_dataset(root: Path, subset: str, split: str, images: str) -> list[Example]:
    """Examples of one of the three data sets."""
    folder, pickle = DATASETS[subset]
    refs_path = find(root, "refcoco", FOLDERS, f"{folder}/{pickle}")
    instances_path = find(root, "refcoco", FOLDERS, f"{folder}/instances.json")
    instances = read_json(instances_path, "refcoco", "COCO instances")
    with reading(instances_path, "refcoco", "COCO instances: images with id, width, height; annotations with id, bbox"):
        sizes = {image["id"]: (image["width"], image["height"]) for image in instances["images"]}
        boxes = {annotation["id"]: annotation["bbox"] for annotation in instances["annotations"]}
    examples = []
    with reading(
        refs_path, "refcoco", "a pickled list of refs with ref_id, ann_id, image_id, split and sentences"
    ) as each:
        for ref in each(load_plain(refs_path)):
            if ref["split"] != split:
                continue
            (width, height), (x, y, w, h) = sizes[ref["image_id"]], boxes[ref["ann_id"]]
            image = f"{images}/COCO_train2014_{whole(ref['image_id']):012d}.jpg"  # a ref's file_name is no image
            box = true_box((x, y, x + w, y + h), width, height)
            for sentence in ref["sentences"]:
                id = f"{subset}-{name_of(ref['ref_id'])}-{name_of(sentence['sent_id'])}"
                size = {"width": width, "height": height}
                examples.append(Example(id, image, sentence["sent"], box, subset, size))
    return examples


register(
    Task(
        name="refcoco",
        version=1,
        read=read,
        prompt=prompts.box,
        answer=lambda example: Generate(),
        scorer=iou_at(0.5),
        num_examples=NUM_EXAMPLES,
        files=(
            "refcoco/{refcoco,refcoco+}/refs(unc).p",
            "refcoco/refcocog/refs(umd).p",
            "refcoco/*/instances.json",
            "refcoco/train2014/",
        ),
    )
)
