"""Adapters find what they adapt where it was, or where one says it is now; never on the network."""

import shutil

import pytest
import torch

import prismatic
from prismatic.models.llm import get_llm_spec
from prismatic.models.lora import relocated
from recipes.config.evaluate import parse_evaluate
from recipes.config.finetune import parse_finetune
from recipes.evaluate import main as evaluate
from recipes.export import export
from recipes.finetune import main

pytestmark = pytest.mark.usefixtures("any_precision")
SMALL = (
    "--vision_backbone miniature-aligned --data.annotations miniature:16 --data.workers 0 --data.held_out_limit 1 "
    "--global_batch_size 4 --per_device_batch_size 4 --max_steps 1 --eval_tasks [] --stage lora --precision fp32"
).split()


def finetune(root, name, *arguments):
    main(parse_finetune([*SMALL, "--run_root", str(root), "--run_id", name, *arguments]))
    return root / name


def same(one, two):
    return all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.slow
def test_a_base_that_was_moved(tmp_path):
    llm = shutil.copytree(get_llm_spec("miniature").hub, tmp_path / "llm")
    run = finetune(tmp_path, "r", "--llm", str(llm))
    second = finetune(tmp_path, "second", "--init_from", str(run), "--stage", "lora")
    models = {place: prismatic.load(place)[0] for place in (run, run / "checkpoints" / "step-00000001", second)}
    moved = llm.rename(tmp_path / "moved")
    for place, model in models.items():
        with pytest.raises(ValueError, match=r"holds adapters of .*/llm \(llm\), which no longer exists.*--base llm="):
            prismatic.load(place)
        assert same(model, prismatic.load(place, base=str(moved))[0])
    inner = run.rename(tmp_path / "inner")
    assert same(models[second], prismatic.load(second, base=f"init_from={inner},llm={moved}")[0])
    run = inner.rename(run)
    with pytest.raises(ValueError, match="--base .*/nowhere does not exist"):
        prismatic.load(run, base=str(tmp_path / "nowhere"))

    arguments = ["--model", str(run), "--tasks", "vsr", "--data_root", "miniature:4", "--allow_partial", "true"]
    done = evaluate(parse_evaluate([*arguments, "--out", str(tmp_path / "out"), "--base", f"llm={moved}"]))
    assert done["tasks"]["vsr"]["errors"] == 0
    kept = export(str(run), tmp_path / "kept", keep_adapters=True, base=str(moved))
    assert same(models[run], prismatic.load(kept)[0]), "what is exported remembers the new place"


def test_several_parts_that_were_moved(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    parts = {"llm": "/gone/llm", "vision_backbone": "/gone/vit", "projector": "linear"}
    found = relocated(parts, f"vision_backbone={tmp_path / 'b'},llm={tmp_path / 'a'}", "r")
    assert found == {"llm": str(tmp_path / "a"), "vision_backbone": str(tmp_path / "b"), "projector": "linear"}
    with pytest.raises(ValueError, match=r"adapters of /gone/vit \(vision_backbone\)"):
        relocated(parts, str(tmp_path / "a"), "r")
    with pytest.raises(ValueError, match="--base projector=.* does not exist"):
        relocated(parts, f"projector={tmp_path}", "r")
    strange = tmp_path / "a,b=c"
    strange.mkdir()
    one = {"llm": "/gone/llm"}
    for base in (
        str(strange),
        f"llm={strange}",
        f"init_from={tmp_path},llm={strange}",
    ):  # the first may be of a run within
        assert relocated(one, base, "r") == {"llm": str(strange)}
    assert relocated({"llm": "vicuna-v15-7b"}, None, "r") == {"llm": "vicuna-v15-7b"}
