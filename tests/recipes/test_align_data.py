"""What an alignment refuses, and pictures on disk as its data."""

import forked
import numpy as np
import pytest
from image_runs import SMALL, interrupt, metrics, run_align
from PIL import Image
from safetensors.torch import load_file, save_file

from vision_backbones.weights import ASSETS

pytestmark = pytest.mark.usefixtures("quick")
TWO_STEPS = ["--max_steps", "2", "--data.validation", "miniature:2:4"]


def registered(tmp_path, monkeypatch, source, **changes):
    """A plugin that registers `miniature` under another name with some fields changed."""
    (tmp_path / f"{source}.py").write_text(
        "import dataclasses\nfrom vision_backbones import get_spec, register\n"
        f"register(dataclasses.replace(get_spec('miniature'), id={source!r}, **{changes!r}))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return ["--plugins", source, "--teacher", source]


def test_a_poisoned_teacher_is_refused(tmp_path, monkeypatch):
    weights = load_file(ASSETS / "miniature.safetensors")
    save_file({k: v * float("nan") for k, v in weights.items()}, tmp_path / "poisoned.safetensors")
    changes = {"weights": str(tmp_path / "poisoned.safetensors")}
    with pytest.raises(ValueError, match="poisoned.safetensors are damaged: .* infinite or not a number"):
        run_align(tmp_path, "run", *registered(tmp_path, monkeypatch, "poisoned_teacher", **changes))


def test_a_teacher_of_another_architecture_is_refused(tmp_path, monkeypatch):
    narrow = {"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 8, "num_heads": 4}
    changes = {"arch_kwargs": narrow, "weights": str(ASSETS / "miniature.safetensors")}
    with pytest.raises(ValueError, match=r"cls_token: file \[1, 1, 96\], model \[1, 1, 48\]"):
        run_align(tmp_path, "run", *registered(tmp_path, monkeypatch, "narrow_teacher", **changes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--student clip-vit-b", "6 x 6 patches of a 48 px image, student 'clip-vit-b' 14 x 14 patches of a 224 px"),
        ("--student timm:vit_tiny_patch8_224", "no model"),
        ("--teacher miniatur", "did you mean .*miniature"),
        ("--teacher dinosiglip-vit-so-384px", "fused: align its parts"),
        ("--loss maskedmse", "did you mean masked_mse"),
        ("--loss masked_mse --prefix_only true", "prefix_only leaves none"),
        ("--masks.sampler blockwise --masks.keep_ratio 0.3", "raise keep_ratio above 0.47"),
        ("--data.train nowhere", "nothing at nowhere"),
        ("--data.train miniature:x", "names no scenes"),
        ("--trackers no-such-tracker", "tracker no-such-tracker is not installed"),
    ],
)
def test_bad_settings_fail_before_weights_are_read(arguments, message, tmp_path, monkeypatch):
    def read_no_weights(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr("vision_backbones.vit.load_vit", read_no_weights)
    with pytest.raises(ValueError, match=message):
        run_align(tmp_path, "run", *arguments.split())
    assert not (tmp_path / "run").exists(), "a refused run leaves no folder"


def write_pictures(folder, count, bad=()):
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    for number in bad:
        (folder / f"{number}.png").write_bytes(b"not a picture")
    return folder


def test_unreadable_pictures_stop_the_run_or_are_counted(tmp_path):
    pictures = write_pictures(tmp_path / "pictures" / "some class", 8, bad=[5])
    data = ["--data.train", str(pictures.parent), "--data.validation", "miniature:2:4", "--data.crop_mode", "rkrc",
            "--global_batch_size", "4", "--per_device_batch_size", "4"]  # fmt: skip
    with pytest.raises(ValueError, match=r"some class/5\.png: unreadable"):
        run_align(tmp_path, "stops", *data)
    summary = run_align(tmp_path, "skips", *data, "--data.on_bad_image", "skip")
    assert summary["skipped_images"] == 2 and summary["steps"] == 4  # once an epoch
    assert [row["loss_terms"] for row in metrics(tmp_path / "skips") if "loss" in row].count(3) == 2
    write_pictures(tmp_path / "nothing", 2, bad=[0, 1])
    with pytest.raises(ValueError, match="one process can read none of its validation images of .*nothing"):
        run_align(
            tmp_path, "blind", *data, "--data.on_bad_image", "skip", "--data.validation", str(tmp_path / "nothing")
        )


def test_a_run_does_not_continue_on_fewer_pictures(tmp_path, monkeypatch):
    pictures = write_pictures(tmp_path / "pictures", 8)
    data = ["--data.train", str(pictures), "--data.validation", "miniature:2:4", "--data.crop_mode", "rkrc"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 3)
        run_align(tmp_path, "run", *data)
    (pictures / "3.png").unlink()
    with pytest.raises(
        ValueError, match=r"was trained on other data \(8 images then, 7 now, other pixels now\): restore that data"
    ):
        run_align(tmp_path, "run", *data)


def test_an_unreadable_picture_in_a_worker_is_one_line(tmp_path):
    pictures = write_pictures(tmp_path / "pictures", 4, bad=[2])
    data = ["--data.train", str(pictures), "--data.validation", "miniature:2:4", "--data.workers", "1"]
    with pytest.raises(ValueError, match=r"2\.png: unreadable") as caught:
        run_align(tmp_path, "run", *data, "--global_batch_size", "4")
    assert "\n" not in str(caught.value)


def test_errors_of_the_command_line_are_one_line(tmp_path):
    done = forked.run(["recipes/align.py", *SMALL, "--student", "clip-vit-b", "--run_root", tmp_path])
    assert done.returncode == 1
    assert done.stderr.startswith("error: teacher 'miniature'") and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_tar_shards_are_data(tmp_path):
    import tarfile

    pictures = write_pictures(tmp_path / "pictures", 8)
    for shard in range(2):
        with tarfile.open(tmp_path / f"shard-{shard}.tar", "w") as tar:
            for number in range(4 * shard, 4 * shard + 4):
                tar.add(pictures / f"{number}.png", f"{number:04d}.png")
    shards = str(tmp_path / "shard-{0..1}.tar")
    data = ["--data.train", shards, "--data.validation", shards, "--global_batch_size", "4"]
    summary = run_align(tmp_path, "run", *data, "--epochs", "1", "--data.crop_mode", "rkrc")
    assert summary["steps"] == 2
    assert [row["loss_terms"] for row in metrics(tmp_path / "run") if "loss" in row] == [4, 4]
