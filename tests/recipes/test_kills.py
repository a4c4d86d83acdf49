"""Every recipe, killed at random moments and started again: it leaves bit for bit what an undisturbed run leaves."""

import pytest
from killed import outlives_kills

FINETUNE = ["recipes/finetune.py", "--data.annotations", "miniature:64", "--data.workers", "0", "--epochs", "2",
            "--global_batch_size", "8", "--per_device_batch_size", "4", "--data.held_out_limit", "8",
            "--save_every_steps", "1", "--eval_tasks", "vsr", "--eval_root", "miniature:20"]  # fmt: skip
IMAGES = ["--data.train", "miniature:96", "--data.validation", "miniature:16:4", "--data.workers", "0", "--epochs", "3",
          "--global_batch_size", "8", "--per_device_batch_size", "8", "--save_every_steps", "2"]  # fmt: skip
RUNS = {
    "finetune": [*FINETUNE, "--data.packing", "false"],
    "packing": [*FINETUNE, "--data.packing", "true"],
    "lora": [*FINETUNE, "--stage", "lora", "--lora.rank", "4"],
    "projector": [*FINETUNE, "--stage", "align"],
    "align": ["recipes/align.py", *IMAGES],
    "mim": ["recipes/mim.py", *IMAGES],
    "classify": ["recipes/classify.py", *IMAGES],
    "evaluate": ["recipes/evaluate.py", "--model", "miniature", "--data_root", "miniature:20", "--allow_partial",
                 "true", "--tasks", "vsr,tallyqa,refcoco"],
    "probe": ["recipes/probe.py", "--dataset", "miniature", "--data_root", "miniature:64:16", "--workers", "0",
              "--backbone", "miniature,miniature-aligned", "--batch_size", "8", "--epochs", "3", "--warmup_steps", "2"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_kills_at_random_moments_change_nothing(name, tmp_path):
    def command(number):
        place = ["--out", tmp_path / str(number)] if name == "evaluate" else [
            "--run_root", tmp_path, "--run_id", str(number)]  # fmt: skip
        return [*RUNS[name], *place]

    outlives_kills(command, tmp_path, name)
