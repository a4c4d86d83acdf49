"""Small files in the formats of the spatial benchmarks, with drawn pictures and invented questions."""

import base64
import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from prismatic.miniature.scenes import scene

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(number: int) -> bytes:
    """A picture of the miniature world as a file."""
    file = io.BytesIO()
    Image.fromarray(scene(77, number).image).save(file, "PNG")
    return file.getvalue()


def base64_of(number: int) -> str:
    return base64.b64encode(png(number)).decode()


def image(number: int | None) -> dict | None:
    return None if number is None else {"bytes": png(number), "path": f"{number}.png"}


def write_parquet(path: Path, rows: list[dict], images=("image",), compression="NONE", **options) -> Path:
    """Rows as `datasets` writes them; columns of images are structs, or lists of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(n for row in rows for n in row)}
    kinds = {
        name: pa.list_(IMAGE) if any(isinstance(value, list) for value in columns[name]) else IMAGE
        for name in images
        if not any(isinstance(value, str) for value in columns[name])
    }
    arrays = {name: pa.array(values, kinds.get(name)) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), path, compression=compression, use_dictionary=False, **options)
    return path


def write_tsv(path: Path, rows: list[dict]) -> Path:
    """Rows as pandas writes them for VLMEvalKit: what is absent is empty, cells are quoted where they have to be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(n for row in rows for n in row)), "", delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_text(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def write_image(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(number))
    return path


def cv_bench(root: Path) -> None:
    """Three questions about ADE20K, one about COCO, two about Omni3D."""

    def row(idx, source, task, answer, *choices):
        kind = "3D" if source == "Omni3D" else "2D"
        options = "".join(f"\n({letter}) {choice}" for letter, choice in zip("ABCDEF", choices, strict=False))
        question = f"Question {idx}?"
        return {
            "idx": idx, "type": kind, "task": task, "image": image(idx), "question": question, "choices": list(choices),
            "answer": f"({answer})", "prompt": f"{question} Select from the following.{options}", "source": source,
            "target_size": None, "bbox": [[0.0, 1.0]],
        }  # fmt: skip

    write_parquet(
        root / "cv-bench/test_2d.parquet",
        [
            row(0, "ADE20K", "Count", "B", "1", "2", "3", "4"),
            row(1, "ADE20K", "Relation", "A", "left", "right"),
            row(2, "ADE20K", "Count", "F", "0", "1", "2", "3", "4", "5"),
            row(3, "COCO", "Relation", "B", "above", "below"),
        ],
    )
    write_parquet(
        root / "cv-bench/test_3d.parquet",
        [row(4, "Omni3D", "Depth", "A", "sofa", "lamp"), row(5, "Omni3D", "Distance", "B", "sofa", "lamp")],
    )


def mmvp(root: Path) -> None:
    """Two pairs, in the layout of the authors and in that of the corrected copy."""
    rows = [
        {"Index": 1, "Question": "Is it open?", "Options": "(a) yes (b) no", "Correct Answer": "(a)"},
        {"Index": 2, "Question": "Is it open?", "Options": "(a) yes (b) no", "Correct Answer": "(b)"},
        {
            "Index": 3,
            "Question": "Where is it?",
            "Options": "(a) at the left (b) at the right",
            "Correct Answer": "(b)",
        },
        {
            "Index": 4,
            "Question": "Where is it?",
            "Options": "(a) at the left (b) at the right",
            "Correct Answer": "(a)",
        },
    ]
    text = "lndex,Question,Options,Correct Answer\n"
    text += "".join(",".join(str(value) for value in row.values()) + "\n" for row in rows)
    write_text(root / "mmvp/Questions.csv", text)
    for row in rows:
        write_image(root / f"mmvp/MMVP Images/{row['Index']}.jpg", row["Index"])
    corrected = [row | {"image": image(row["Index"])} for row in rows]
    write_parquet(root / "mmvp-corrected/data/train-00000-of-00001.parquet", corrected)


def blink(root: Path) -> None:
    """Two questions of every task, about one to four images."""
    from eval.tasks.blink import SIZES

    for place, task in enumerate(SIZES):
        pictures = {"Multi-view_Reasoning": 2, "Jigsaw": 3, "Visual_Similarity": 4}.get(task, 1)
        rows = [
            {
                "idx": f"val_{task}_{number}", "question": "Which?", "sub_task": task, "choices": ["one", "the other"],
                "answer": "(A)" if number == 1 else "(B)",
                "prompt": "Which?\nSelect from the following choices.\n(A) one\n(B) the other", "explanation": "",
            }
            | {f"image_{n}": image(place * 8 + n + 4 * number) if n <= pictures else None for n in (1, 2, 3, 4)}
            for number in (1, 2)
        ]  # fmt: skip
        names = [f"image_{n}" for n in (1, 2, 3, 4)]
        write_parquet(root / f"blink/{task}/val-00000-of-00001.parquet", rows, names)


def realworldqa(root: Path) -> None:
    """Two questions that ask for a letter, one for a number, one for words; in two files."""
    lettered = "Which way?\n\nA. left\nB. right\nC. ahead\nPlease answer directly with only the letter."
    rows = [
        {"image": image(1), "question": lettered, "answer": "B"},
        {"image": image(2), "question": "How many?\nPlease answer with a number.", "answer": "3"},
    ]
    more = [
        {"image": image(3), "question": "What colour?\nPlease answer in a word or two.", "answer": "Dark red"},
        {"image": image(4), "question": lettered, "answer": "A"},
    ]
    write_parquet(root / "realworldqa/data/test-00000-of-00002.parquet", rows)
    write_parquet(root / "realworldqa/data/test-00001-of-00002.parquet", more)


def vstar(root: Path) -> None:
    """Two questions on attributes, one on positions; the right option is the first."""
    for place, (folder, name, options) in enumerate(
        [
            ("direct_attributes", "sa_1", ["red", "blue", "green", "grey"]),
            ("direct_attributes", "sa_2", ["wood", "glass", "stone", "steel"]),
            ("relative_position", "sa_3", ["The cup is left of the pan.", "The cup is right of the pan."]),
        ]
    ):
        row = {"target_object": ["cup"], "bbox": [[1, 2, 3, 4]], "question": "What of the cup?", "options": options}
        write_text(root / f"vstar/{folder}/{name}.json", row)
        write_image(root / f"vstar/{folder}/{name}.jpg", place)


def embspatial(root: Path) -> None:
    """Four questions of three sources; two of them about equal pictures."""
    options = ["left of it", "right of it", "above it", "below it"]
    rows = [
        {
            "data_source": source, "scene_id": "s", "question_id": f"{source}_{number}", "question": "Where is it?",
            "relation": relation, "image": base64_of(number), "answer_options": options, "answer": answer,
            "objects": [{"name": "pan", "bbox": [1, 2, 3, 4]}],
        }
        for number, (source, relation, answer) in enumerate(
            [("mp3d", "left", 0), ("ai2thor", "right", 1), ("scannet", "above", 2), ("mp3d", "under", 3)]
        )
    ]  # fmt: skip
    write_text(root / "embspatial/embspatial_bench.json", rows)


def threedsrbench(root: Path) -> None:
    """A question of two options and one of four, in all orders, the first also of its mirrored picture."""
    two, four = ["yes", "no"], ["left", "right", "front", "back"]
    rows = []
    for qid, number, category, options in (
        ("aaaa1111", 1, "height_higher", two),
        ("aaaa1111-flip", 2, "height_higher", two),
        ("bbbb2222", 3, "orientation_viewpoint", four),
    ):
        for turn in range(len(options)):
            turned = options[turn:] + options[:turn]
            cells = dict(zip("ABCD", turned, strict=False))
            answer = "ABCD"[turned.index(options[0])]
            name = qid + (f"-{turn}" if turn else "")
            rows.append(
                {
                    "index": len(rows),
                    "qid": name,
                    "question": 'Is it "higher"?\nLook.',
                    "A": "",
                    "B": "",
                    "C": "",
                    "D": "",
                }
                | cells
                | {"answer": answer, "category": category, "image": base64_of(number)}
            )
    write_tsv(root / "3dsrbench/3dsrbench_v1_vlmevalkit_circular.tsv", rows)
    write_tsv(root / "3dsrbench/3dsrbench_v1_vlmevalkit.tsv", [row for row in rows if row["qid"][-2] != "-"])


def whatsup(root: Path) -> None:
    """One pair of things in each set, in all four relations; the right caption is the first."""
    for name, folder, relations in (
        ("controlled_images_dataset", "controlled_images", ("left_of", "right_of", "on", "under")),
        ("controlled_clevr_dataset", "controlled_clevr", ("left_of", "right_of", "in-front_of", "behind")),
    ):
        rows = []
        for place, relation in enumerate(relations):
            captions = [f"A mug {other.replace('_', ' ')} a cap" for other in relations]
            captions.insert(0, captions.pop(place))
            path = f"data/{folder}/mug_{relation}_cap.jpeg"
            rows.append({"image_path": path, "caption_options": captions})
            write_image(root / f"whatsup/{folder}/mug_{relation}_cap.jpeg", place)
        write_text(root / f"whatsup/{name}.json", rows)


def spatialeval(root: Path) -> None:
    """One question of each task, as an image and as an image with words."""
    for mode in ("vqa", "vtqa"):
        rows = [
            {
                "id": f"{task}.{mode}.{number}.{kind}", "image": image(number),
                "text": f"Look at it. {ask} Available options:\nA. {first}\nB. {second}.",
                "oracle_answer": first, "oracle_option": answer, "oracle_full_answer": f"{answer}. {first}",
            }
            for number, (task, kind, ask, first, second, answer) in enumerate(
                [
                    ("spatialmap", 0, "Where?", "Northeast", "Southwest", "A"),
                    ("mazenav", 2, "Is there a way?", "Yes", "No", "A"),
                    ("spatialgrid", 1, "How many?", "1", "10", "B"),
                    ("spatialreal", 0, "Which?", "cup", "pan", "B"),
                ]
            )
        ]  # fmt: skip
        write_parquet(root / f"spatialeval/{mode}/test-00000-of-00001.parquet", rows)


def seed_bench(root: Path) -> None:
    """Questions of four kinds, two of which are spatial; numbers of kinds also as text."""
    kinds = [(4, "A"), (1, "B"), ("6", "C"), (6, "D"), (10, "A")]
    rows = [
        {
            "answer": answer, "choice_a": "left", "choice_b": "right", "choice_c": "front", "choice_d": "back",
            "data_id": f"{number}_7", "data_type": "image", "question": f"Where is thing {number}?",
            "question_id": str(100 + number), "question_type_id": kind,
        }
        for number, (kind, answer) in enumerate(kinds)
    ]  # fmt: skip
    write_text(root / "seed-bench/SEED-Bench.json", {"questions": rows, "question_type": {}})
    for number in range(len(kinds)):
        write_image(root / f"seed-bench/SEED-Bench-image/{number}_7", number)


def mmbench(root: Path) -> None:
    """Three questions, two of them spatial, in all orders; copies name the row that holds the picture."""
    rows = []
    for index, category, hint, options in (
        (241, "object_localization", "nan", ["up", "down", "left"]),
        (242, "ocr", "", ["x", "y"]),
        (243, "spatial_relationship", "It is seen\tfrom above.", ["left", "right"]),
    ):
        for turn in range(len(options)):
            turned = options[turn:] + options[:turn]
            cells = {"A": "", "B": "", "C": "", "D": ""} | dict(zip("ABCD", turned, strict=False))
            rows.append(
                {"index": index + turn * 1_000_000, "question": "Where is it?", "hint": hint}
                | cells
                | {"answer": "ABCD"[turned.index(options[0])], "category": category, "l2-category": "x", "split": "dev"}
                | {"image": base64_of(index) if not turn else str(index)}
            )
    write_tsv(root / "mmbench/MMBench_DEV_EN.tsv", rows)


WRITERS = {
    "cv-bench": cv_bench,
    "mmvp": mmvp,
    "blink": blink,
    "realworldqa": realworldqa,
    "vstar": vstar,
    "embspatial": embspatial,
    "3dsrbench": threedsrbench,
    "whatsup": whatsup,
    "spatialeval": spatialeval,
    "seed-bench-spatial": seed_bench,
    "mmbench-spatial": mmbench,
}
