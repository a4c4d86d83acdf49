"""Gets a training data set ready: downloads, converts, mixes and checks it. What is done is not done again."""

import shutil
from pathlib import Path

from eval.prepare import ARCHIVES, fetch_all
from recipes.training_data.known import Table, check_room, files_of, find, is_there, mark_ready, read_table
from recipes.training_data.mixing import AGAIN, check_count, write_mix


def prepare(name: str, data_root: Path, table: Table | None = None) -> int:
    """Makes a data set ready to be trained on, prints how to, and returns the exit status.

    Started again after it was interrupted, it goes on where it stopped. Where files cannot be fetched, it lists them
    with where to put them, and the status is 1.

    Args:
        name: Of the data set.
        data_root: Where data sets lie.
        table: What is known, if not `data_sets.json`.

    Raises:
        ValueError: The name is unknown, the disk has no room, a file is not what was expected, another process prepares
            data below the same root, or rows or images are missing in the end.
    """
    from filelock import FileLock, Timeout

    table = table or read_table()
    data_set, root = find(name, table), Path(data_root)
    files = files_of(name, table)
    missing = [file for file in files if not is_there(file, root)]
    check_room(missing, root)
    (root / ARCHIVES).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / ARCHIVES / ".prepare.lock", timeout=0):
            _remove_halves(files, root)
            if status := fetch_all(missing, root, f"prismatic data prepare {name} --data_root {root}"):
                return status
            for file in files:
                _convert(root / file["to"], file)
            write_mix(name, root, table)
            rows = _checked_rows(name, root, table)
            mark_ready(name, rows, root)
    except Timeout:
        raise ValueError(f"another prismatic data prepare works below {root}: wait for it to end") from None
    annotations = root / data_set["annotations"]
    stage = "" if data_set["stage"] == "finetune" else f" --stage {data_set['stage']}"
    print(f"{name}: {rows:,} rows in {annotations}, all images there")
    if any((root / ARCHIVES / file["save"]).exists() for file in files if "save" in file):
        print(f"The archives in {root / ARCHIVES} are no longer needed.")
    print(f"prismatic data look {annotations}")
    print(f"prismatic finetune --model {data_set['model']}{stage} --data.annotations {annotations}")
    return 0


def _remove_halves(files: list[dict], root: Path) -> None:
    """Removes what unpacking left when it was killed: no other process unpacks now."""
    for place in (root / file["to"] for file in files):
        for left in place.parent.glob(f".{place.name}.*"):
            if left.suffix[1:].isdigit():
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _convert(place: Path, file: dict) -> None:
    if file.get("spread") and place.is_dir():
        for path in sorted(place.iterdir()):
            path.rename(place.parent / path.name)
        place.rmdir()
    if file.get("to_jpg"):
        to_jpg(place)


def to_jpg(folder: Path) -> None:
    """Writes a .jpg beside every image of a folder that has another suffix, as LLaVA's rows name them.

    Of animations it holds the first frame. Images that cannot be read are left out; it is printed how many.
    """
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    for left in folder.glob(".*.unfinished"):
        left.unlink()
    names = {path.name for path in folder.iterdir() if path.name[0] != "." and path.is_file()}
    others = [folder / name for name in sorted(names) if f"{Path(name).stem}.jpg" not in names]
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter
        problems = list(tqdm(pool.map(_to_jpg, others), f"{folder.name} to jpg", len(others), delay=1))
    wrong = [problem for problem in problems if problem]
    if wrong:
        print(f"{len(wrong)} of {len(others)} images in {folder} cannot be converted, such as {wrong[0]}")


def _to_jpg(path: Path) -> str | None:
    """Writes the JPEG of an image; returns what is wrong with one that cannot be read."""
    from vision_backbones.files import replacing
    from vision_backbones.safe_images import open_image, to_rgb

    try:
        with replacing(path.with_suffix(".jpg")) as tmp_path, open_image(path) as image:
            if image.format == "JPEG":
                shutil.copyfile(path, tmp_path)
            else:
                to_rgb(image).save(tmp_path, "JPEG")
    except Exception as error:  # damaged images raise nearly anything
        return f"{path.name} ({type(error).__name__}: {error})"


def _checked_rows(name: str, root: Path, table: Table) -> int:
    """The number of rows; training finds all of them sound, and their images there."""
    from prismatic.data.conversation_dataset import ConversationDataset

    data_set = find(name, table)
    annotations = root / data_set["annotations"]
    dataset = ConversationDataset(annotations, annotations.parent)
    check_count(len(dataset), data_set["rows"], annotations, AGAIN)
    dataset.check_rows()
    dataset.check_images()
    return len(dataset)
