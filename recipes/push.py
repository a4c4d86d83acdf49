"""`prismatic push RUN OWNER/NAME`: a trained model on the Hugging Face hub, with a card that says what it is."""

import argparse
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

from recipes.export import DTYPES
from vision_backbones.names import suggest

HELP = """\
Upload a trained model to the Hugging Face hub: model, processor, and a card with its data, settings, scores with
95 % intervals, and commit.

  prismatic push runs/mine owner/my-vlm --dry_run
  prismatic push runs/mine owner/my-vlm --private --dtype bfloat16
  prismatic push runs/mine owner/my-vlm --eval runs/eval-mine,runs/eval-pope

RUN is what `prismatic export` takes. LoRA adapters are merged: what is uploaded needs nothing that stayed on this disk.
Scores are read from `eval/` of the run and from the folders that --eval names; scores of other weights are refused.
Names of folders on this disk are left out. A token is needed (`hf auth login`, or HF_TOKEN).
"""
PLACES = (
    "_name_or_path",
    "name_or_path",
    "weights",
)  # in configurations: where something was read from, perhaps on this disk
HERE = ("is_local", "local_files_only")  # of a tokenizer's configuration: how it was read here


def main(argv: list[str]) -> None:
    """Runs the command line; errors are one line."""
    parser = argparse.ArgumentParser(
        prog="prismatic push", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="run folder or checkpoint")
    parser.add_argument("repo", metavar="OWNER/NAME", help="repository on the hub; made if it is not there")
    parser.add_argument("--dry_run", action="store_true", help="write the folder, upload nothing")
    parser.add_argument("--out", type=Path, help="where the folder is written (default with --dry_run: exported/NAME)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype of all weights (default: float32)")
    parser.add_argument("--base", help="as of prismatic export: where what LoRA adapters adapt lies now")
    parser.add_argument("--eval", type=_names, default=[], metavar="FOLDER,...", help="more evaluations of the model")
    parser.add_argument("--datasets", type=_names, default=[], metavar="ID,...", help="training data on the hub")
    parser.add_argument("--license", metavar="ID", help="license of the model, e.g. mit or llama2")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    try:
        print(push(**vars(parser.parse_args(argv))))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None


def push(
    run: str,
    repo: str,
    *,
    dry_run: bool = False,
    out: Path | None = None,
    private: bool = False,
    dtype: str = "float32",
    base: str | None = None,
    **about,
) -> str:
    """Writes a folder for the hub, uploads it, and returns what was done.

    Args:
        run: whatever `prismatic.load` reads on this disk.
        repo: `owner/name`.
        dry_run: upload nothing.
        out: where the folder stays; must not exist.
        private: make a new repository private.
        dtype: name of the precision of every tensor.
        base: see `prismatic.load`.
        about: of the card, see `write_folder`.

    Raises:
        ValueError: the name is none of a repository, there is no model, scores are of other weights, there is no token,
            or the hub cannot be reached or refuses.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo) or ".." in repo or "--" in repo:
        raise ValueError(f"{repo!r} is no name of a repository: expected OWNER/NAME, letters, digits and - _ . alone")
    if dry_run:
        folder = out or Path("exported", repo.rpartition("/")[2])
        return f"wrote {write_folder(run, folder, repo, dtype=dtype, base=base, **about)}; nothing was uploaded"
    with tempfile.TemporaryDirectory() as temporary:
        api = _signed_in()  # before the model is read, which may take long
        folder = write_folder(run, out or Path(temporary, "model"), repo, dtype=dtype, base=base, **about)
        return f"pushed {run} to {_upload(api, folder, repo, private)}"


def write_folder(
    run: str,
    out: Path,
    repo: str,
    *,
    dtype: str = "float32",
    base: str | None = None,
    eval: list[str] | None = None,
    datasets: list[str] | None = None,
    license: str | None = None,
) -> Path:
    """Writes model, processor and card to the new folder `out`.

    Args:
        run: as of `push`.
        out: must not exist.
        repo: as of `push`.
        dtype: as of `push`.
        base: as of `push`.
        eval: folders of evaluations besides the run's own.
        datasets: ids on the hub of what the model was trained on.
        license: id of a license.

    Raises:
        ValueError: as `push`.
    """
    from eval.fingerprints import made_by
    from prismatic.models.load import find_model
    from recipes.export import export
    from recipes.model_card import model_card, read_run
    from vision_backbones.files import put_folder, write_json, write_text

    if out.exists():
        raise ValueError(f"{out} exists already: choose another --out")
    place = find_model(run)
    if place is None:
        near = suggest(
            run, [path.name for path in Path("runs").glob("*")], otherwise="give a run folder or a checkpoint"
        )
        raise ValueError(f"no run {run}, neither here nor under runs/: {near}")
    made = read_run(_run_folder(place), [Path(folder) for folder in eval or []])
    for evaluation in made.evaluations:
        _check_scores(run, base, evaluation)
    tmp_path = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(tmp_path, ignore_errors=True)
    try:
        export(run, tmp_path, dtype, base=base)
        for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
            if (tmp_path / name).is_file():
                content = json.loads((tmp_path / name).read_text(encoding="utf-8"))
                write_json(tmp_path / name, without_places(content))
        config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        card = model_card(repo, config, made, made_by()["commit"], datasets or [], license)
        write_text(tmp_path / "README.md", card)
        put_folder(tmp_path, out)
    except BaseException:
        shutil.rmtree(tmp_path, ignore_errors=True)
        raise
    return out


def without_places(value):
    """Content of a JSON file without `HERE`, and with the last two names of what `PLACES` say is on this disk."""
    from recipes.model_card import short

    if isinstance(value, list):
        return [without_places(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    kept = {key: entry for key, entry in value.items() if key not in HERE}
    return {key: short(entry) if key in PLACES else without_places(entry) for key, entry in kept.items()}


def _run_folder(place: Path) -> Path:
    """The run that a folder is, or is a checkpoint of."""
    place = place.resolve()
    runs = [folder for folder in (place, place.parent.parent) if (folder / "config.yaml").is_file()]
    return runs[0] if runs else place


def _check_scores(run: str, base: str | None, evaluation: dict) -> None:
    """Raises ValueError where an evaluation is of another model; it is read in the precision of the evaluation."""
    import torch

    from eval.fingerprints import model_fingerprint
    from prismatic.models.load import load

    precision = evaluation["settings"]["precision"]
    model, _ = load(run, dtype=torch.bfloat16 if precision == "bf16" else torch.float32, base=base)
    if model_fingerprint(model) != evaluation["model_fingerprint"]:
        raise ValueError(
            f"the scores of {evaluation['model']} ({', '.join(evaluation['tasks'])}) are of other weights than {run} "
            "has: evaluate it again, or name the checkpoint that was evaluated"
        )


def _names(value: str) -> list[str]:
    return [name for name in value.split(",") if name]


def _signed_in():
    """The hub, once it has said who asks."""
    from huggingface_hub import HfApi, get_token

    if not get_token():
        raise ValueError("no token of the Hugging Face hub: run `hf auth login`, or set HF_TOKEN; --dry_run needs none")
    api = HfApi(library_name="prismatic-locality")
    _asked(api.whoami)
    return api


def _upload(api, folder: Path, repo: str, private: bool) -> str:
    """Makes the repository and uploads the folder in one commit, in which weights of earlier ones go; its address."""
    url = _asked(api.create_repo, repo, private=private, exist_ok=True)
    stale = ["*.safetensors", "*.safetensors.index.json"]
    message = "Model, processor and card"
    _asked(api.upload_folder, repo_id=repo, folder_path=folder, commit_message=message, delete_patterns=stale)
    return str(url)


def _asked(ask, *args, **kwargs):
    """What the hub answers; ValueError says in one line why it does not."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return ask(*args, **kwargs)
    except HfHubHTTPError.__bases__ as error:  # OSError, and that of the HTTP library, another in each version
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"the Hugging Face hub did not do it ({ask.__name__}): {reason}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
