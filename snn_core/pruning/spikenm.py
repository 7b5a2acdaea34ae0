"""SpikeNM: N:M masks learned from scratch with one basis logit per weight.

From the paper's abstract: M basis logits a block, N one-hot bases drawn without replacement by a differentiable top-k
sampler, eligibility-inspired distillation (EID). All formulas and settings are our own reading (docs/methods.md).

The gradient to the logits needs no graph of its own. The masked weight is ``w * mask`` with a straight-through
gradient to ``w``, hence ``dL/dmask = w * dL/dw``: when the gradients are complete, one backward pass of the relaxed
sampler on ``w * w.grad`` gives what autograd through every forward call would, at a fraction of its cost.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snn_core.kernels.topk_sampler import gumbel_noise, relaxed_topk_backward
from snn_core.pruning.base import NMPruner
from snn_core.pruning.eligibility import CreditCapture, soft_targets
from snn_core.pruning.groups import PrunedLayer
from snn_core.pruning.schedule import Schedule
from snn_core.seeding import make_generator
from snn_core.sparsity import to_blocks


class SpikeNMPruner(NMPruner):
    """Learns N:M masks with the weights; see :class:`NMPruner` for how to use it and :class:`PruneConfig` for settings.

    Every step draws ``top N of kappa * logits + rho * |w| / std(|w|) + eta * Gumbel``. The logits follow the loss
    through the relaxed draws, and EID's soft targets, with their own Adam. With ``rho = 1``, no noise and a logit
    rate of 0 it is SR-STE with a freeze.

    Raises:
        NonFiniteError: from :meth:`step`'s optimiser hook or a forward pass, when logits, their gradient or weights
            become NaN or infinite; the message names the layer.
    """

    method = "spikenm"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._logits: Tensor | None = None
        self._key: Tensor | None = None
        self._credit: Tensor | None = None
        self._targets: Tensor | None = None
        self._captures: list[CreditCapture] = []
        super().__init__(*arguments, **options)

    # ---- keys ------------------------------------------------------------------------------------------------------

    @property
    def logits(self) -> dict[str, Tensor]:
        """Basis logits by layer name, float32 ``[blocks, M]``, blocks in the order of ``sparsity.to_blocks``."""
        self._prepare()
        assert self._logits is not None
        return {layer.name: self._logits.detach()[:, layer.columns].t() for layer in self.layers}

    def _prepare(self) -> None:
        """Logits, their Adam and the noise generator, on the device where the weights are at first use."""
        if self._logits is None:
            self._logits = self.group.empty().zero_().requires_grad_()
            self._adam = torch.optim.Adam([self._logits], lr=self.config.logit_learning_rate, betas=(0.9, 0.99))
            self._generator = make_generator(self.config.seed, "spikenm", device=self.group.device)
            self._block_weight = torch.cat(
                [
                    self._logits.new_full((size,), 1 / size)
                    for size in (x.columns.stop - x.columns.start for x in self.layers)
                ]
            )

    def _clean_key(self, schedule: Schedule) -> Tensor:
        self._prepare()
        assert self._logits is not None
        key = self._logits.detach() * schedule.kappa
        if self.config.rho == 0:
            return key
        return key.add_(self._anchor(), alpha=self.config.rho)

    def _anchor(self) -> Tensor:
        """``|w| / std(|w|)`` of every layer, ``[M, blocks]``; the deviation is that of the whole layer."""
        magnitude = self.group.gather(lambda layer: layer.weight.detach()).abs_()
        for layer in self.layers:
            part = magnitude[:, layer.columns]
            part.div_(part.std().clamp(min=1e-12))
        return magnitude

    def _evaluation_key(self) -> Tensor:
        return self._clean_key(self.schedule())

    def _training_key(self) -> Tensor:
        schedule = self.schedule()
        key = self._clean_key(schedule)
        self._clean = key
        if schedule.eta > 0:
            noise = gumbel_noise(key.shape, self._generator, key.dtype)
            key = noise.mul_(schedule.eta).add_(key)
        self._key = key
        self._set_due(schedule.eid_due)
        return key

    # ---- learning --------------------------------------------------------------------------------------------------

    def _before_optimizer_step(self) -> None:
        if self._key is not None:
            schedule = self.schedule()
            self._update_credit(schedule)
            self._update_logits(schedule)
        if self.config.sr_ste_decay > 0:
            pull_dropped(self.layers, self.config.sr_ste_decay)

    def _update_logits(self, schedule: Schedule) -> None:
        assert self._logits is not None
        assert self._key is not None
        if self.config.logit_learning_rate == 0:
            return
        gradient = self.group.gather(_mask_gradient)
        gradient = relaxed_topk_backward(gradient.t(), self._key.t(), self.pattern.n, schedule.temperature).t()
        gradient = gradient.mul_(schedule.kappa * (1 - schedule.beta))
        if schedule.eid and self._targets is not None:
            probability, scale = self._mask_probability(self._clean, schedule)
            pull = probability.sub_(self._targets).mul_(self._block_weight)
            gradient.add_(pull, alpha=self.config.eid_weight * scale)
        self.group.check_finite(gradient, "the gradient of the logits")
        self._logits.grad = gradient
        self._adam.step()
        self._logits.grad = None

    def _mask_probability(self, clean_key: Tensor, schedule: Schedule) -> tuple[Tensor, float]:
        """Distribution that EID pulls, ``[M, blocks]``, and the derivative of its key to the logits."""
        if self.config.eid_match == "key":
            return torch.softmax(clean_key, dim=0), schedule.kappa
        assert self._logits is not None
        return torch.softmax(self._logits.detach(), dim=0), 1.0

    def _update_credit(self, schedule: Schedule) -> None:
        """Running mean of the captured credits, and the soft targets from it."""
        if not schedule.eid_due:
            return
        fresh = self.group.empty().zero_()
        for layer, capture in zip(self.layers, self._captures, strict=True):
            credit = capture.take()
            if credit is None:
                continue
            if self.config.eid_use_weight:
                credit.mul_(layer.weight.detach().abs())
            blocks = to_blocks(credit, self.pattern.m)
            self.group.part(fresh, layer, blocks.shape).copy_(blocks)
        momentum = self.config.eid_momentum
        self._credit = fresh if self._credit is None else self._credit.mul_(momentum).add_(fresh, alpha=1 - momentum)
        self._targets = soft_targets(self._credit, self.config.eid_temperature)

    def metrics(self) -> dict[str, float]:
        """``kept``, and in the search phase ``temperature`` and ``eid`` (mean KL of a block to its soft target)."""
        figures = super().metrics()
        if self.frozen:
            return figures
        schedule = self.schedule()
        figures["temperature"] = schedule.temperature
        if self._targets is not None:
            probability, _ = self._mask_probability(self._clean_key(schedule), schedule)
            kl = (self._targets * (self._targets.clamp(min=1e-30).log() - probability.clamp(min=1e-30).log())).sum(
                dim=0
            )
            figures["eid"] = float((kl * self._block_weight).sum() / len(self.layers))
        return figures

    # ---- hooks and state -------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        super()._attach()
        if self.config.eid_weight == 0:
            return
        for layer in self.layers:
            capture = CreditCapture(
                layer.name, layer.module, self.model, decay=self.config.trace_decay, time_steps=self.config.time_steps
            )
            self._captures.append(capture)
            self._handles.extend(capture.handles)

    def _set_due(self, due: bool) -> None:
        for capture in self._captures:
            capture.due = due

    def step(self) -> None:
        """As :meth:`NMPruner.step`."""
        self._key = None
        self._set_due(False)
        super().step()

    def _method_state(self) -> dict[str, Tensor]:
        self._prepare()
        state = {"generator": self._generator.get_state()}
        for name, columns in self._columns_to_save().items():
            for layer in self.layers:
                state[f"{name}/{layer.name}"] = (
                    columns[:, layer.columns].t().clone(memory_format=torch.contiguous_format)
                )
        if not self.frozen and self._adam_state():
            state["adam_step"] = self._adam_state()["step"].clone()
        return state

    def _adam_state(self) -> dict[str, Tensor]:
        assert self._logits is not None
        return dict(self._adam.state.get(self._logits, {}))

    def _columns_to_save(self) -> dict[str, Tensor]:
        assert self._logits is not None
        columns = {"logits": self._logits.detach()}
        if not self.frozen:
            adam = self._adam_state()
            columns |= {name: adam[name] for name in ("exp_avg", "exp_avg_sq") if name in adam}
            if self._credit is not None:
                columns["credit"] = self._credit
        return columns

    def _load_method_state(self, state: dict[str, Tensor]) -> None:
        self._prepare()
        assert self._logits is not None
        self._generator.set_state(state["generator"].cpu())
        self._logits.data.copy_(self._joined("logits", state))
        self._key = self._credit = self._targets = None
        if any(name.startswith("credit/") for name in state):
            self._credit = self._joined("credit", state)
            self._targets = soft_targets(self._credit, self.config.eid_temperature)
        self._adam.state.clear()
        if any(name.startswith("exp_avg/") for name in state):
            self._adam.state[self._logits] = {
                "step": state["adam_step"].clone(),
                "exp_avg": self._joined("exp_avg", state),
                "exp_avg_sq": self._joined("exp_avg_sq", state),
            }

    def _joined(self, name: str, state: dict[str, Tensor]) -> Tensor:
        result = self.group.empty()
        for layer in self.layers:
            result[:, layer.columns] = state[f"{name}/{layer.name}"].t().to(result.device)
        return result


def _mask_gradient(layer: PrunedLayer) -> Tensor:
    """dL/dmask = w * dL/dw (straight-through), in the weight's shape."""
    weight = layer.weight.detach()
    return torch.zeros_like(weight) if layer.weight.grad is None else weight * layer.weight.grad


def pull_dropped(layers: list[PrunedLayer], decay: float) -> None:
    """Add ``decay * (1 - mask) * w`` to the gradients: SR-STE's regulariser (Zhou et al. 2021, equation 9).

    Args:
        layers: those with a mask drawn in this step are changed in place.
        decay: lambda_W, 2e-4 in the paper.
    """
    for layer in layers:
        if layer.weight.grad is not None and layer.drawn is not None:
            dropped = layer.weight.detach().masked_fill(layer.drawn, 0)
            layer.weight.grad.add_(dropped, alpha=decay)
