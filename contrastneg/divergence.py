"""A run whose loss or weights are no longer finite: it ends with one line, and its last good checkpoint stays."""

from pathlib import Path

import pytorch_lightning as pl
import torch

from contrastneg import distributed
from contrastneg.device import LIGHTNING_PRECISION


class Diverged(Exception):
    """The loss or the weights are not finite: no step can mend that."""


def check_weights(trainer: pl.Trainer) -> None:
    """Refuse to go on with weights that are not finite; asked before they are saved, on all ranks.

    Raises:
        Diverged: On all ranks, if any rank has such a weight.
    """
    broken = [~parameter.detach().isfinite().all() for parameter in trainer.lightning_module.parameters()]
    if distributed.largest(int(torch.stack(broken).any()) if broken else 0):  # one number is read from the device
        raise diverged(trainer, "weights are not finite at", trainer.global_step - 1)


def check_loss(trainer: pl.Trainer, found: tuple[int, float] | None) -> None:
    """Refuse to go on after a loss that is not finite; asked on all ranks at the same steps.

    Args:
        trainer: The trainer.
        found: Step and value of the first such loss on this rank, None if there is none.

    Raises:
        Diverged: On all ranks, if any rank has found one.
    """
    if distributed.largest(int(found is not None)):
        if found is None:
            raise diverged(trainer, "the loss on another process is not finite, at or before", trainer.global_step - 1)
        raise diverged(trainer, f"the loss is {found[1]} at", found[0])


def diverged(trainer: pl.Trainer, what: str, step: int) -> Diverged:
    """The line that ends the run: where, what to look at, and what is left.

    Args:
        trainer: Its ``default_root_dir`` is the run folder.
        what: What was found, up to the word before the step.
        step: Optimizer step, counted as in ``metrics.csv``.
    """
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    temperature = getattr(trainer.lightning_module, "temperature", float("nan"))
    names = {theirs: own for own, theirs in LIGHTNING_PRECISION.items()}
    precision = names.get(trainer.precision, trainer.precision)
    looked_at = f"the learning rate ({rate:.3g}), the temperature ({temperature:g}) and the precision ({precision})"
    checkpoint = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
    left = (
        f"the last checkpoint, still finite, is {checkpoint}"
        if checkpoint.exists()
        else "there is no earlier checkpoint"
    )
    return Diverged(f"{what} step {step}, epoch {trainer.current_epoch + 1}: look at {looked_at}; {left}")
