"""A training loop for a few parameters of a network, and how well a detector does."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from snn_core.detectors.detector import Detector, detection_loss
from snn_core.detectors.splices import scores
from snn_core.errors import ArgumentError, NonFiniteError
from snn_core.progress import progress
from snn_core.seeding import make_generator, seeded


def fit(
    network: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    count: int,
    *,
    parameters: Iterable[nn.Parameter] | None = None,
    steps: int = 200,
    batch_size: int = 64,
    lr: float = 2e-3,
    weight_decay: float = 0.01,
    seed: int = 0,
    name: str = "",
) -> float:
    """AdamW with a one-cycle learning rate on the parameters that take gradients.

    Args:
        network: put into training mode, and into evaluation mode at the end.
        loss_of: the loss of samples, whose numbers ``[batch_size]`` (int64) it is given.
        count: of samples.
        parameters: what is optimised; default all of ``network`` that take gradients.
        steps, batch_size, lr, weight_decay: of the optimiser; ``lr`` is the highest.
        seed: of the order of the samples, and of dropout.
        name: shown with the progress, on a terminal.

    Returns:
        Mean loss of the last tenth of the steps.

    Raises:
        ArgumentError: nothing to train, no samples or no steps.
        NonFiniteError: the loss is NaN or infinite.
    """
    trained = [p for p in (network.parameters() if parameters is None else parameters) if p.requires_grad]
    if not trained or count < 1 or steps < 1 or batch_size < 1:
        raise ArgumentError(
            f"nothing to train: {len(trained)} parameters, {count} samples, {steps} steps of {batch_size}"
        )
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
    generator, last = make_generator(seed, "order"), []
    order = torch.randperm(count, generator=generator)
    network.train()
    with seeded(seed, "fit"):
        for step in progress(range(steps), description=name, quiet=not name):
            while len(order) < batch_size:
                order = torch.cat([order, torch.randperm(count, generator=generator)])
            chosen, order = order[:batch_size], order[batch_size:]
            loss = loss_of(chosen)
            if not torch.isfinite(loss):
                raise NonFiniteError(f"{name or 'training'}: the loss is {loss.item()} at step {step}")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            last.append(loss.item())
    network.eval()
    tail = last[-max(1, steps // 10) :]
    return sum(tail) / len(tail)


def fit_detector(detector: Detector, data: tuple[Tensor, Tensor, Tensor], **options: float | int | str) -> float:
    """:func:`fit` of what trains in a detector, by :func:`detection_loss`.

    Args:
        detector: on the device of ``data``.
        data: what :func:`snn_core.detectors.spliced` gave.
        **options: of :func:`fit`.
    """
    x, forged, mask = data
    return fit(detector, lambda i: detection_loss(detector(x[i]), forged[i], mask[i]), len(x), **options)  # type: ignore[arg-type]


@torch.no_grad()
def evaluate_detector(
    detector: Detector, data: tuple[Tensor, Tensor, Tensor], batch_size: int = 256
) -> dict[str, float]:
    """:func:`snn_core.detectors.scores` of a detector, in evaluation mode, on ``data`` as for :func:`fit_detector`."""
    x, forged, mask = data
    detector.eval()
    found = [detector(part) for part in x.split(batch_size)]
    return scores(torch.cat([f.image for f in found]), torch.cat([f.mask for f in found]), forged, mask)
