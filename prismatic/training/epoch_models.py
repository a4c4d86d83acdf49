"""The model that a finetune leaves behind after every epoch."""

from pathlib import Path

from safetensors import SafetensorError
from tqdm import tqdm

from prismatic.checkpoints.epoch import TRAINED, epoch_folder, has_epoch, save_model
from prismatic.checkpoints.run_folder import slower
from prismatic.models.load import start
from prismatic.models.lora import beside_adapters
from prismatic.training import sharding


class EpochModels:
    """Saves the model of every epoch as a `save_pretrained` folder: `checkpoints/epoch-01`, `epoch-02`, ...

    Args:
        config: a `FinetuneConfig`.
        run_dir: of the run.
        accelerator: its processes.
        model: as it was before it was sharded.
        processor: saved with it.
        parts: what the model was built from.
        batches: `FinetuneBatches`, which say how many steps there are.
        done: steps done before, in a run that continues.
    """

    def __init__(self, config, run_dir: Path, accelerator, model, processor, parts: dict, batches, done: int):
        self.config, self.run_dir, self.accelerator = config, run_dir, accelerator
        self.model, self.processor, self.parts = model, processor, parts
        self.steps, self.done = batches.steps, done
        if done and (done == batches.steps or done % batches.steps_per_epoch == 0):  # it may not have come to this
            self.save((done - 1) // batches.steps_per_epoch, done)

    def save(self, epoch: int, steps_done: int) -> None:
        """Saves the model of a 0-based epoch; all processes call this.

        Raises:
            FloatingPointError: a weight is not finite.
            OSError: there is no room for the last epoch's model. For earlier ones it is printed and training continues.
        """
        config, accelerator = self.config, self.accelerator
        if steps_done == self.done and has_epoch(self.run_dir, epoch, steps_done, accelerator):
            return
        sharding.check_finite(self.model, accelerator, steps_done, slower(self.run_dir))
        weights = sharding.full_state(self.model, adapters=config.stage == "lora")
        if accelerator.is_main_process:
            metadata = {TRAINED: {"step": steps_done, "epoch": epoch + 1}}
            folder = epoch_folder(self.run_dir, epoch)
            if config.stage == "lora":
                metadata |= beside_adapters(self.model, self.parts, folder)
            try:
                save_model(self._unquantized(), self.processor, folder, weights, replace=True, metadata=metadata)
            except (OSError, SafetensorError) as error:
                if steps_done == self.steps:  # the same command saves it once there is room
                    raise
                tqdm.write(f"error: the model of epoch {epoch + 1} could not be written: {error}. Training continues.")
        accelerator.wait_for_everyone()

    def _unquantized(self):
        """The model, but with the LLM as it was before it was quantised; adapters are saved without it anyway."""
        if not (self.config.quantize and self.config.stage == "align"):
            return self.model
        model, _ = start(**self.parts, base=self.config.base)
        model.projector.load_state_dict(self.model.projector.state_dict())
        return model
