"""A page on this machine to chat, to see where backbones look, and to follow runs: `prismatic app`; see `--help`."""

import gc
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

from recipes import cli
from recipes.config.app import AppConfig, parse_app

QUESTIONS = [  # about drawn scenes
    "What color is the circle?",
    "How many objects are there?",
    'Please provide the bounding box coordinate of the region this sentence describes: "the yellow circle"',
]


def main(config: AppConfig) -> None:
    """Loads the models and serves the page until Ctrl-C."""
    if not find_spec("gradio"):
        raise ValueError("the page needs gradio: pip install 'prismatic-locality[app]', or make chat")
    from eval.streaming.start import start_engine
    from recipes.chatting.pictures import SCENES, example_file
    from recipes.serving.server import bind, is_local
    from recipes.web.page import build_page, launch, temporary_files
    from vision_backbones import import_plugins

    import_plugins(config.plugins)
    check_views(config)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it ends as with Ctrl-C
    with bind(config.host, config.port) as found:  # a port that is taken is found before models are loaded
        port = found.getsockname()[1]
    examples = pictures_in(Path(config.images)) if config.images else [example_file(number) for number in range(SCENES)]
    names = dict.fromkeys(filter(None, (config.model, config.compare)))
    same = {name: getattr(config, name) for name in ("precision", "device", "batch_size")}
    engines = {name: start_engine(name, **same) for name in names}
    gc.enable(), gc.freeze()
    if not is_local(config.host):
        print("warning: there is no authentication: whoever reaches this address can use the page", file=sys.stderr)
    places = {"backbones": config.backbones, "probes": config.probes, "run_root": Path(config.run_root)}
    places["others"] = is_local(config.host)
    try:
        with temporary_files():
            page = build_page(engines, examples, [] if config.images else QUESTIONS, **places)
            print(f"open http://{config.host}:{port} in a browser; Ctrl-C ends it", flush=True)
            launch(page, config.host, port)
    finally:
        for engine in engines.values():
            engine.close(finish=False)


def check_views(config: AppConfig) -> None:
    """Raises ValueError for backbones, probes and a folder of runs that are not there; reads no weights."""
    from eval.probing.saved import check_probe
    from vision_backbones import check_spec

    for name in config.backbones:
        try:
            check_spec(name)
        except ValueError as error:
            if not any((Path(name) / inside).exists() for inside in ("config.json", "checkpoints")):  # no VLM either
                raise ValueError(f"--backbones: {error}") from None
    for folder in config.probes:
        check_probe(Path(folder))
    if (root := Path(config.run_root)).exists() and not root.is_dir():
        raise ValueError(f"--run_root {root} is no folder")


def pictures_in(folder: Path, most: int = 24) -> list[Path]:
    """The first pictures in a folder by name; those that cannot be read are named and left out.

    Raises:
        ValueError: There are none.
    """
    from recipes.chatting.pictures import open_picture
    from vision_backbones.safe_images import FORMATS

    endings = {f".{name.lower()}" for name in FORMATS} | {".jpg", ".tif"}
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in endings and path.is_file())
    readable = []
    for path in found[: 4 * most]:
        try:
            open_picture(path)
            readable.append(path)
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
        if len(readable) == most:
            break
    if not readable:
        raise ValueError(f"--images {folder} holds no pictures: expected {', '.join(sorted(endings))}")
    return readable


if __name__ == "__main__":
    cli.run(main, parse_app)
