"""`python -m prismatic export`: checkpoints of real runs of two processes become plain folders, and nothing changes."""

import json
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
from safetensors import safe_open

import prismatic
from recipes.cli import main
from recipes.export import export

ARGUMENTS = (
    "--data.annotations miniature:48 --data.workers 0 --data.held_out_limit 1 --global_batch_size 8 --eval_tasks [] "
    "--per_device_batch_size 4 --max_steps 2 --save_every_steps 2 --lora.rank 4 --lora.targets [q_proj,down_proj]"
).split()
STEP, EPOCH = Path("checkpoints/step-00000002"), Path("checkpoints/epoch-01")  # of the same moment


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


def a_run(root: Path, stage: str) -> Path:
    """A run sharded over two processes, called as its stage. Rank 0 reads the last checkpoint at its end."""
    if not (root / stage).exists():
        place = ["--stage", stage, "--run_root", root, "--run_id", stage]
        done = forked.run(["recipes/finetune.py", *ARGUMENTS, *place], processes=2)
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(list((root / stage / STEP).glob("shard-*"))) == 2
    return root / stage


@pytest.fixture(scope="module")
def runs(root) -> Path:
    """A folder with a run called `finetune`."""
    return a_run(root, "finetune").parent


@pytest.fixture(scope="module")
def adapters(root) -> Path:
    return a_run(root, "lora")


@torch.no_grad()
def logits(place: Path, **options) -> torch.Tensor:
    """What a model says about fixed noise."""
    model, processor = prismatic.load(place, **options)
    vlm = model.get_base_model() if hasattr(model, "peft_config") else model
    ids = torch.arange(3, 23)[None]
    ids = torch.cat([torch.full((1, processor.num_image_tokens), vlm.config.image_token_id), ids], 1)
    pixels = torch.randn(1, 3, *[vlm.config.image_size] * 2, generator=torch.Generator().manual_seed(0))
    dtype = options.get("dtype", torch.float32)
    return model(input_ids=ids, pixel_values=pixels.to(dtype)).logits.float()


def precisions(folder: Path) -> set[str]:
    found = set()
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("what", [STEP, EPOCH, ""])
def test_the_export_is_the_model_that_training_had(what, runs, tmp_path):
    """`epoch-01` was gathered from the processes by training itself."""
    out = export(str(runs / "finetune" / what), tmp_path / "out")
    assert precisions(out) == {"F32"} and not list(out.glob("shard-*")) and (out / "tokenizer.json").is_file()
    model = prismatic.load(out)[0].state_dict()
    expected = prismatic.load(runs / "finetune" / EPOCH)[0].state_dict()
    assert model.keys() == expected.keys() and all(torch.equal(model[n], v) for n, v in expected.items())
    found = logits(out)
    assert torch.equal(found, logits(runs / "finetune" / EPOCH))
    assert (found - logits("miniature")).abs().max() > 0.01, "whatever the weights, the logits are equal"


@pytest.mark.parametrize(("dtype", "stored"), [("bfloat16", "BF16"), ("float16", "F16")])
@pytest.mark.parametrize(
    ("run", "options"),
    [
        ("finetune", []),
        pytest.param("lora", [], marks=pytest.mark.slow),
        pytest.param("lora", ["--keep_adapters"], marks=pytest.mark.slow),
    ],
)
def test_precision_is_as_asked(run, options, dtype, stored, root, tmp_path, monkeypatch, capsys):
    runs = a_run(root, run).parent
    out = tmp_path / "deep" / "out"
    argv = ["prismatic", "export", str(runs / run / STEP), str(out), "--dtype", dtype, *options]
    monkeypatch.setattr(sys, "argv", argv)
    main()
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert precisions(out) == {stored}
    if not options:
        assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    exact = logits(runs / run / STEP)
    difference = (logits(out) - exact).abs().max() / exact.abs().max()
    assert 0 < difference < (0.05 if dtype == "bfloat16" else 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("what", [STEP, EPOCH])
def test_adapters_merged_and_kept_are_the_same_model(what, adapters, tmp_path):
    run = str(adapters / what)
    merged, kept = export(run, tmp_path / "merged"), export(run, tmp_path / "kept", keep_adapters=True)
    assert not (merged / "adapter_config.json").exists() and not (kept / "config.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"merged", "kept"}
    unmerged = logits(kept, merge=False)
    torch.testing.assert_close(logits(merged), unmerged, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(adapters / EPOCH, merge=False), unmerged, atol=0, rtol=0)
    model = prismatic.load(kept, merge=False)[0]
    assert max(p.abs().max().item() for n, p in model.named_parameters() if "lora_B" in n) > 1e-4, "nothing was trained"


@pytest.mark.parametrize(
    ("run", "out", "options", "message"),
    [
        ("nothing", "out", [], "no model called"),
        ("nothing", "out", ["--keep_adapters"], "no folder"),
        ("finetune", "finetune", [], "exists already: choose another folder"),
        ("finetune", "out", ["--keep_adapters"], "(step-00000002|epoch-01) holds no adapters to keep"),
        (f"finetune/{EPOCH}", "out", ["--keep_adapters"], "epoch-01 holds no adapters to keep"),
        (f"finetune/{STEP}", "out", ["--keep_adapters"], "step-00000002 holds no adapters to keep"),
        ("empty", "out", [], "holds neither config.json nor checkpoints/"),
        ("empty-run", "out", [], "holds no checkpoint yet"),
        ("damaged", "out", [], "is damaged: shard-00002"),
    ],
)
def test_mistakes_are_one_line(run, out, options, message, runs, tmp_path):
    root = tmp_path / "runs"
    subprocess.run(["cp", "-r", runs, root], check=True)
    (root / "empty").mkdir()
    (root / "empty-run" / "checkpoints").mkdir(parents=True)
    subprocess.run(["cp", "-r", root / "finetune" / STEP, root / "damaged"], check=True)
    shard = next((root / "damaged").glob("shard-00002-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match=message) as stopped:
        patch.setattr(sys, "argv", ["prismatic", "export", str(root / run), str(root / out), *options])
        main()
    assert str(stopped.value).startswith("error: ") and "\n" not in str(stopped.value)
    assert not (root / "out").exists()
