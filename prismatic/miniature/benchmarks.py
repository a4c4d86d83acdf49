"""Spatial benchmarks on held-out miniature scenes, on disk as the real downloads are: the paper's five."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np

from prismatic.miniature.drawn_files import dump, save
from prismatic.miniature.llava_writer import WORLD_VERSION, all_or_nothing, cached
from prismatic.miniature.newer_benchmarks import NEWER_WRITERS
from prismatic.miniature.scenes import CLASSES, IMAGE_SIZE, Scene, scene
from prismatic.miniature.spatial import Choice, choice, count, expressions, statement

BENCHMARKS_VERSION = 3  # goes up when the same world is asked other things
BENCHMARK_SEED = 400_000  # and those after it, one a benchmark; no training set draws these worlds
OCID_SIZE = (640, 480)  # pixels; readers may take it for granted
REFCOCO_STYLES = {"refcoco": ("unc", "place"), "refcoco+": ("unc", "appearance"), "refcocog": ("umd", "relation")}


@all_or_nothing
def write_benchmarks(folder: Path, count: int) -> None:
    """Writes a data root with the paper's five benchmarks and the newer ones, `count` scenes each; returns `folder`.

    Every benchmark has scenes of its own. Nothing is written if the folder is there already; it appears only when it
    is complete.
    """
    for number, (name, write) in enumerate((WRITERS | NEWER_WRITERS).items()):
        (folder / name).mkdir(parents=True)
        drawn = [scene(BENCHMARK_SEED + number, index, 2 + index % 3, 2 + index % 3) for index in range(count)]
        write(folder / name, drawn, np.random.default_rng((BENCHMARK_SEED, number)))


def miniature_benchmarks(count: int) -> Path:
    """The folder of `write_benchmarks` in the user's cache, written on first use."""
    return write_benchmarks(cached(f"benchmarks-v{WORLD_VERSION}.{BENCHMARKS_VERSION}-{count}"), count)


def write_refcoco(root: Path, drawn: list[Scene], rng: np.random.Generator) -> None:
    """RefCOCO tells things apart by place, RefCOCO+ by looks, RefCOCOg by relation; up to two sentences a thing."""
    images, annotations, refs = [], [], {name: [] for name in REFCOCO_STYLES}
    sentences = dict.fromkeys(REFCOCO_STYLES, 0)
    for index, shown in enumerate(drawn):
        image_id = 800_000 + index
        file_name = f"COCO_train2014_{image_id:012d}.jpg"
        save(shown.image, root / "train2014" / file_name)
        images.append({"id": image_id, "file_name": file_name, "width": IMAGE_SIZE, "height": IMAGE_SIZE, "license": 1})
        said = expressions(shown.things)
        for number, thing in enumerate(shown.things):
            x1, y1, x2, y2 = map(float, thing.box)
            annotation = {"id": 4 * index + number, "image_id": image_id, "iscrowd": 0}
            annotation |= {"category_id": 1 + CLASSES.index(thing.name), "area": float(thing.mask().sum())}
            annotation |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
            annotations.append(annotation)
            for name, (by, style) in REFCOCO_STYLES.items():
                fitting = [e.text for e in said if e.thing is thing and e.style == style]
                spoken = [fitting[i] for i in rng.permutation(len(fitting))[:2]]
                if spoken:
                    first, sentences[name] = sentences[name], sentences[name] + len(spoken)
                    ids = list(range(first, sentences[name]))
                    split = ("val", "val", "test", "test") if by == "umd" else ("val", "val", "testA", "testB")
                    ref = {"ref_id": len(refs[name]), "ann_id": annotation["id"], "image_id": image_id}
                    ref |= {"category_id": annotation["category_id"], "split": split[index // 3 % 4]}
                    ref |= {"file_name": f"{file_name.removesuffix('.jpg')}_{number}.jpg", "sent_ids": ids}
                    ref["sentences"] = [
                        {"sent_id": i, "sent": text, "raw": text.upper(), "tokens": text.split()}
                        for i, text in zip(ids, spoken, strict=True)
                    ]
                    refs[name].append(ref)
    categories = [{"id": 1 + i, "name": name, "supercategory": name.split()[1]} for i, name in enumerate(CLASSES)]
    instances = {"info": {"description": "miniature world"}, "licenses": [{"id": 1, "name": "none", "url": ""}]}
    instances |= {"images": images, "annotations": annotations, "categories": categories}
    for name, (by, _) in REFCOCO_STYLES.items():
        dump(root / name / "instances.json", instances)
        (root / name / f"refs({by}).p").write_bytes(pickle.dumps(refs[name], protocol=2))


def write_ocid_ref(root: Path, drawn: list[Scene], rng: np.random.Generator) -> None:
    """Up to three sentences an image, of any style; two, three and four things are the three levels of clutter."""
    rows = {}
    for index, shown in enumerate(drawn):
        level = len(shown.things) - 2
        take = (index // 3 % 10, 10 + index // 3 % 7, 17 + index // 3 % 4)[max(level, 0)]
        subset = ("ARID10", "ARID20", "YCB10")[index // 3 % 3]
        sequence = f"{subset}/{('floor', 'table')[index // 9 % 2]}/{('top', 'bottom')[index // 18 % 2]}/seq{index:02d}"
        path = f"{sequence}/rgb/result_2018-08-{1 + index // 86_400:02d}-"
        path += f"{index // 3600 % 24:02d}-{index // 60 % 60:02d}-{index % 60:02d}.png"
        save(shown.image, root / "OCID-dataset" / path, OCID_SIZE)
        said = expressions(shown.things)
        for expression in (said[i] for i in rng.permutation(len(said))[:3]):
            thing, number = expression.thing, shown.things.index(expression.thing)
            scale = [size / IMAGE_SIZE for size in OCID_SIZE] * 2
            sentence = f"the {expression.text}"
            rows[str(len(rows))] = {
                "seq_id": index,
                "scene_id": index,
                "take_id": take,
                "scene_path": path,
                "sequence_path": sequence,
                "sub_dataset": subset,
                "instance_id": str(4 * index + number),
                "scene_instance_id": number + 1,
                "class": thing.shape,
                "class_instance": f"{thing.shape}_{number + 1}",
                "new_class": thing.shape,
                "sentence": sentence,
                "tokens": sentence.split(),
                "bbox": str([round(edge * s) for edge, s in zip(thing.box, scale, strict=True)]),
                "sentence_type": {"appearance": "attribute"}.get(expression.style, expression.style),
            }
    dump(root / "val_expressions.json", rows)


def write_tallyqa(root: Path, drawn: list[Scene], rng: np.random.Generator) -> None:
    """Up to three different questions an image: simple, complex, complex."""
    rows = []
    for index, shown in enumerate(drawn):
        image = f"{('VG_100K', 'VG_100K_2')[index % 2]}/{2_300_000 + index}.jpg"
        save(shown.image, root / image)
        for asked in dict.fromkeys(count(shown.things, rng, simple) for simple in (True, False, False)):
            row = {"answer": asked.answer, "data_source": "miniature", "image": image}
            row |= {"image_id": 92_300_000 + index, "issimple": asked.simple}
            rows.append(row | {"question": asked.text, "question_id": 30_000_000 + len(rows)})
    dump(root / "test.json", rows)


def write_vsr(root: Path, drawn: list[Scene], rng: np.random.Generator) -> None:
    """Two sentences an image where things have names; every second sentence is true.

    They relate things along either axis. Along that of the greater distance, as training questions do, they would all
    be at least ten pixels apart, and a vision-language model near the ceiling.
    """
    lines = []
    for index, shown in enumerate(drawn):
        image = f"{500_000 + index:012d}.jpg"
        save(shown.image, root / "images" / image)
        for holds in rng.permutation(2):
            if said := statement(shown.things, rng, bool(holds), either_axis=True):
                votes = {"vote_true_validator_id": str([1, 2] * holds), "vote_false_validator_id": str([1, 2][holds:])}
                row = {"image": image, "image_link": f"http://images.cocodataset.org/train2017/{image}"}
                row |= {"caption": said.text, "label": int(holds), "relation": said.relation}
                lines.append(json.dumps(row | {"subj": said.subject, "obj": said.object, "annotator_id": 0} | votes))
    (root / "test.jsonl").write_text("\n".join(lines) + "\n")


def write_ai2d(root: Path, drawn: list[Scene], rng: np.random.Generator) -> None:
    """Up to three questions an image, one in ten about letters that only the annotations hold; right options even."""
    inside, asked, places = root / "ai2d", 0, [0, 1, 2, 3]
    categories, tested = {}, []
    for index, shown in enumerate(drawn):
        name = f"{index}.png"
        save(shown.image, inside / "images" / name)
        categories[name] = "scenes"
        tested += [index] if index % 2 else []
        letters = dict(zip(shown.things, rng.permutation(list("ABCD")).tolist(), strict=False))
        questions = {}
        for _ in range(3):
            if asked % 4 == 0:
                places = rng.permutation(4).tolist()
            of_letters = asked % 10 == 9 and len({t.name for t in shown.things}) == len(shown.things)
            if of_letters:
                said = _about_letters(letters, rng, places[asked % 4])
            else:
                said = choice(shown.things, rng, places[asked % 4])
            if said and said.text not in questions:
                row = {"abcLabel": of_letters, "answerTexts": list(said.options), "correctAnswer": said.correct}
                questions[said.text] = row | {"questionId": f"{name}-{len(questions)}"}
                asked += 1
        dump(inside / "questions" / f"{name}.json", {"imageName": name, "questions": questions})
        labels, blobs = {}, {}
        for number, (thing, letter) in enumerate(letters.items()):
            x1, y1, x2, y2 = thing.box
            around = [[thing.x - 4, thing.y - 4], [thing.x + 4, thing.y + 4]]
            labels[f"T{number}"] = {"id": f"T{number}", "rectangle": around, "value": thing.name}
            labels[f"T{number}"]["replacementText"] = letter
            blobs[f"B{number}"] = {"id": f"B{number}", "polygon": [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]}
        others = {kind: {} for kind in ("arrows", "arrowHeads", "relationships", "imageConsts")}
        dump(inside / "annotations" / f"{name}.json", {"text": labels, "blobs": blobs, **others})
    dump(inside / "categories.json", categories)
    (root / "ai2d_test_ids.csv").write_text("".join(f"{number}\n" for number in tested))


def _about_letters(letters: dict, rng: np.random.Generator, correct: int) -> Choice:
    thing = list(letters)[rng.integers(len(letters))]
    options = [letter for letter in rng.permutation(list("ABCD")).tolist() if letter != letters[thing]]
    options.insert(correct, letters[thing])
    return Choice(f"Which letter is on the {thing.name}?", tuple(options), correct)


Writer = Callable[[Path, list[Scene], np.random.Generator], None]
WRITERS: dict[str, Writer] = {
    "refcoco": write_refcoco,
    "ocid-ref": write_ocid_ref,
    "tallyqa": write_tallyqa,
    "vsr": write_vsr,
    "ai2d": write_ai2d,
}
