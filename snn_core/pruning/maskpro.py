"""MaskPro: M logits a block, N draws without replacement, and the policy gradient of the loss.

Sun, Zhang, Yu, Zhang, Shen, Tao: "MaskPro: Linear-Space Probabilistic Learning for Strict (N:M)-Sparsity on Large
Language Models", 2025 (arXiv 2506.12876). Nothing is relaxed; the logits ``pi`` of the drawn masks ``m`` follow::

    pi -= rate * (loss - baseline) * d log P(m) / d pi
    P(m) = sum over the orders of m's N positions of prod p_i / (1 - p of those drawn before),   p = softmax(pi)
    baseline = momentum * baseline + (1 - momentum) * loss

Evaluation takes the N largest logits. The estimator is unbiased for every baseline that does not depend on ``m``, so
the baseline of a step is that of the steps before.

Ours differs: they learn masks for a trained network with frozen weights; here weights train with the drawn masks from
random initialisation (gradient ``m * dL/d(w m)``). They first subtract the loss of an initial mask on the same batch,
which has no meaning while weights train; the moving average is of the loss itself, and faster (momentum 0.9, theirs
0.99), because a training loss falls and a late baseline would reward every mask. Logits start at 5 on the largest
initial weights, rate 10 (theirs: 10 on another pruner's mask, rate 50, for networks of many thousand times the blocks,
where the rare draws of other masks still are many). Masks are final after ``freeze`` of the steps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from snn_core.errors import ArgumentError, NonFiniteError
from snn_core.kernels.topk_sampler import gumbel_noise
from snn_core.pruning.base import NMPruner
from snn_core.pruning.block_state import has_moved, load_columns, save_columns, split_columns
from snn_core.pruning.groups import BlockGroup, PrunedLayer
from snn_core.seeding import make_generator

#: The probability of a set of N positions is a recursion over its 2^N subsets.
LARGEST_N = 8


def log_probability(logits: Tensor, mask: Tensor) -> Tensor:
    """Logarithm of the probability that N draws without replacement give ``mask``, in any order; differentiable.

    Args:
        logits: ``[M, blocks]``, floating point.
        mask: bool ``[M, blocks]``, the same number N of true entries in every block.

    Returns:
        ``[blocks]``. Work and memory grow with 2^N.
    """
    if bool(mask.all()):
        return logits.sum(dim=0) * 0  # certain
    chosen = logits.gather(0, _positions(mask))
    return _of_set(chosen, logits.masked_fill(mask, -torch.inf).logsumexp(dim=0))


def score(logits: Tensor, mask: Tensor) -> Tensor:
    """Gradient of the sum of :func:`log_probability` to the logits, ``[M, blocks]``; arguments as there.

    Autograd sees the N chosen logits and the sum of the others alone, not all M.
    """
    if bool(mask.all()):
        return torch.zeros_like(logits)
    positions = _positions(mask)
    rest = logits.masked_fill(mask, -torch.inf)
    chosen, others = logits.gather(0, positions), rest.logsumexp(dim=0)
    with torch.enable_grad():
        inputs = (chosen.requires_grad_(), others.requires_grad_())
        to_chosen, to_others = torch.autograd.grad(_of_set(*inputs).sum(), inputs)
    return rest.sub_(others.detach()).exp_().mul_(to_others).scatter_(0, positions, to_chosen)


def _positions(mask: Tensor) -> Tensor:
    """Where bool ``[M, blocks]`` is true: int64 ``[N, blocks]``."""
    blocks = mask.shape[1]
    return mask.t().nonzero()[:, 1].view(blocks, -1).t()


def _of_set(chosen: Tensor, others: Tensor) -> Tensor:
    """:func:`log_probability` of the chosen logits ``[N, blocks]``, given the logsumexp of the others."""
    n = len(chosen)
    reached = [torch.zeros_like(others)]  # log P that the draws so far are this subset, by its bits
    left = [_log_sum([others, *chosen])]  # log of what is left to draw from then
    for subset in range(1, 2**n):
        members = [i for i in range(n) if subset >> i & 1]
        before = [subset ^ (1 << i) for i in members]
        reached.append(_log_sum([reached[b] + chosen[i] - left[b] for i, b in zip(members, before, strict=True)]))
        left.append(_log_sum([others, *(chosen[i] for i in range(n) if i not in members)]))
    return reached[-1]


def _log_sum(terms: list[Tensor]) -> Tensor:
    if len(terms) == 1:
        return terms[0]
    return torch.logaddexp(*terms) if len(terms) == 2 else torch.stack(terms).logsumexp(dim=0)


class MaskProPruner(NMPruner):
    """The comparison "maskpro"; uses ``maskpro_*``, ``freeze`` and ``seed`` of the config. See :class:`NMPruner`.

    It needs the loss of every step: ``snn_core.training`` passes it on; in another loop call :meth:`observe_loss`
    between the forward pass and ``optimizer.step()``. Gradients of the weights are masked when the optimiser steps:
    what clips gradients before that sees them unmasked.

    Raises:
        ArgumentError: as :class:`NMPruner`, for a pattern with N above 8, and from ``optimizer.step()`` when the loss
            of the step was not observed.
        NonFiniteError: the loss or the logits became NaN or infinite.
    """

    method = "maskpro"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._logits: dict[BlockGroup, Tensor] = {}
        self._losses: list[float] = []
        self._baseline: float | None = None
        super().__init__(*arguments, **options)

    def _attach(self) -> None:
        for group in self.groups:
            if group.pattern.n > LARGEST_N:
                raise ArgumentError(
                    f"pattern {group.pattern}: maskpro sums over the 2^N subsets of a mask; N is at most {LARGEST_N}"
                )
        super()._attach()

    def observe_loss(self, loss: float | Tensor) -> None:
        """The loss of this step's forward pass, a scalar; of several (accumulated gradients) the mean counts.

        Raises:
            NonFiniteError: it is NaN or infinite.
        """
        value = float(loss.detach() if isinstance(loss, Tensor) else loss)
        if not math.isfinite(value):
            raise NonFiniteError(f"maskpro: the loss became {value} after step {self.steps_done}")
        if not self.frozen:
            self._losses.append(value)

    def step(self) -> None:
        """As :meth:`NMPruner.step`."""
        before = self.steps_done
        super().step()
        if self.steps_done > before:
            self._losses.clear()

    @property
    def logits(self) -> dict[str, Tensor]:
        """Logits by layer name, float32 ``[blocks, M]``, blocks in the order of ``sparsity.to_blocks``."""
        self._prepare()
        parts = [split_columns(logits, group) for group, logits in self._logits.items()]
        return {name: rows for part in parts for name, rows in part.items()}

    def _prepare(self) -> None:
        """At first use, when the weights are on the device where they train."""
        if any(has_moved(logits, group, self.steps_done) for group, logits in self._logits.items()):
            self._logits = {}
        if not self._logits:
            self._generator = make_generator(self.config.seed, "maskpro", device=self.groups[0].device)
            for group in self.groups:
                largest = group.top(group.gather(lambda layer: layer.weight.detach().abs()))
                self._logits[group] = largest.float().mul_(self.config.maskpro_initial)

    def _training_key(self, group: BlockGroup) -> Tensor:
        logits = self._evaluation_key(group)
        return gumbel_noise(logits.shape, self._generator, logits.dtype).add_(logits)

    def _evaluation_key(self, group: BlockGroup) -> Tensor:
        self._prepare()
        return self._logits[group]

    def _apply_mask(self, weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    def _before_optimizer_step(self) -> None:
        if self.layers[0].drawn is None:
            return
        if not self._losses:
            raise ArgumentError(
                "maskpro learns from the loss: call pruner.observe_loss(loss) in every step, after the forward pass "
                "and before optimizer.step()"
            )
        loss = self._mean_loss()
        if self._baseline is not None:
            self._follow(loss - self._baseline)
        before, momentum = loss if self._baseline is None else self._baseline, self.config.maskpro_momentum
        self._baseline = momentum * before + (1 - momentum) * loss
        for layer in self.layers:
            if layer.weight.grad is not None and layer.drawn is not None:
                layer.weight.grad.masked_fill_(~layer.drawn, 0)

    def _mean_loss(self) -> float:
        """Over the passes of this step, and over the ranks: the masks must stay the same on all of them."""
        loss = torch.tensor(sum(self._losses) / len(self._losses), dtype=torch.float64, device=self.groups[0].device)
        return float(self._ranks.sum(loss)) / self._ranks.size

    def _follow(self, advantage: float) -> None:
        for group, logits in self._logits.items():
            mask = group.gather(_drawn).bool()
            logits.add_(score(logits, mask), alpha=-self.config.maskpro_learning_rate * advantage)

    def metrics(self) -> dict[str, float]:
        """As :meth:`NMPruner.metrics`, and in the search phase the ``baseline`` once there is one."""
        figures = super().metrics()
        return figures if self.frozen or self._baseline is None else figures | {"baseline": self._baseline}

    def _shared_tensors(self) -> dict[str, Tensor]:
        return {f"the logits of pattern {group.pattern}": logits for group, logits in self._logits.items()}

    def _method_state(self) -> dict[str, Tensor]:
        self._prepare()
        state = {"generator": self._generator.get_state()}
        if self._baseline is not None:
            state["baseline"] = torch.tensor(self._baseline, dtype=torch.float64)
        for group, logits in self._logits.items():
            state |= save_columns("logits", logits, group)
        return state

    def _load_method_state(self, state: dict[str, Tensor]) -> None:
        self._prepare()
        loaded = {group: load_columns("logits", state, group, logits) for group, logits in self._logits.items()}
        self._generator.set_state(state["generator"].cpu())
        self._logits, self._baseline = loaded, float(state["baseline"]) if "baseline" in state else None
        self._losses.clear()


def _drawn(layer: PrunedLayer) -> Tensor:
    assert layer.drawn is not None
    return layer.drawn
