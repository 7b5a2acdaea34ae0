"""What changes over a pruning run, as a function of the step alone: nothing to save, the same after a resume."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from snn_core.pruning.config import PruneConfig


@dataclass(frozen=True)
class Schedule:
    """Values at one step.

    Attributes:
        progress: 0 at the start, 1 at the freeze.
        temperature, kappa, eta: of the sampler.
        beta: what is left of a dropped weight in the forward pass (mask decay), 1 to 0.
        eid: whether EID is on.
        eid_due: whether this step refreshes the credit.
    """

    progress: float
    temperature: float
    kappa: float
    eta: float
    beta: float
    eid: bool
    eid_due: bool


def schedule_at(config: PruneConfig, step: int, freeze_step: int, total_steps: int) -> Schedule:
    """The schedule at ``step`` (0 before the first) of a run that freezes its masks after ``freeze_step`` steps."""
    progress = min(1.0, step / max(1, freeze_step))
    kappa_final = config.kappa if config.kappa_final is None else config.kappa_final
    beta = 0.0
    if config.mask_decay > 0:
        beta = max(0.0, 1.0 - step / max(1, total_steps) / config.mask_decay)
    eid = config.eid_weight > 0 and progress < config.eid_end
    return Schedule(
        progress=progress,
        temperature=config.temperature * (config.temperature_final / config.temperature) ** progress,
        kappa=config.kappa + (kappa_final - config.kappa) * progress,
        eta=config.eta * (1 - progress),
        beta=beta,
        eid=eid,
        eid_due=eid and step % config.eid_interval == 0,
    )


def warn_of_an_early_end(steps_done: int, freeze_step: int, total_steps: int) -> None:
    """Say that masks are cut before their time: a forgotten call or a wrong length leaves no other trace."""
    if steps_done < freeze_step:
        warnings.warn(
            f"finalize() after {steps_done} of total_steps = {total_steps} steps: masks are made final now, before "
            f"step {freeze_step}; is pruner.step() called after every optimizer.step(), and total_steps right?",
            stacklevel=3,
        )
