"""Runs that measure nothing, and probes that were trained a little."""

import pytest
from accelerate.state import AcceleratorState

from eval.probing import train
from prismatic.training import loop
from recipes.config.probe import parse_probe
from recipes.probe import main

DEFAULTS = {
    "--backbone": "miniature", "--labels": "union", "--precision": "fp32", "--workers": "0", "--dataset": "miniature",
    "--data_root": "miniature:64:8", "--warmup_steps": "2", "--learning_rate": "1e-2",
}  # fmt: skip


def measure_nothing(patch):
    """Makes runs measure neither the machine nor their operations."""
    patch.setattr(loop, "matmul_peak", lambda accelerator: 1e12)
    patch.setattr(loop, "count_flops", lambda *args: 1e9)


def train_probes(root, name, arguments):
    """The folder of a run of the probe recipe, of other precision than that before if need be, without its pictures."""
    unsaid = [word for flag, value in DEFAULTS.items() if f"{flag} " not in arguments for word in (flag, value)]
    with pytest.MonkeyPatch.context() as patch:
        measure_nothing(patch)
        patch.setattr(train, "draw", lambda *args: None)
        AcceleratorState._reset_state(reset_partial_state=True)
        main(parse_probe([*arguments.split(), *unsaid, "--run_root", str(root), "--run_id", name]))
    return root / name
