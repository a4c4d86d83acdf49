"""The settings of trackers."""

from dataclasses import dataclass


@dataclass
class WandbConfig:
    """Where Weights & Biases, `--trackers wandb`, keeps a run."""

    # project that the run belongs to
    project: str = "prismatic"
    # user or team that the project belongs to; null: your default one
    entity: str | None = None
    # name under which the run is shown; null: the name of its folder
    name: str | None = None
    # id of the W&B run to write to, which continues if it exists; null: one of its own, the same when it is resumed
    id: str | None = None
