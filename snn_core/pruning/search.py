"""SpikeNM's search in one group of blocks: logits with their Adam, keys, and EID's credits and targets."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from snn_core.kernels.topk_sampler import gumbel_noise, relaxed_topk_backward
from snn_core.pruning.config import PruneConfig
from snn_core.pruning.eligibility import soft_targets
from snn_core.pruning.groups import BlockGroup, PrunedLayer
from snn_core.pruning.schedule import Schedule


class GroupSearch:
    """All tensors are float32 ``[M, blocks]`` of the group, on the device of its weights.

    Attributes:
        logits: the basis logits.
        key, clean: of the present training step, with and without noise; None before a forward pass.
        credit: running mean of EID's credits; 0 for layers that never had one. None before the first.
        targets: soft targets made of it.
    """

    def __init__(self, group: BlockGroup, config: PruneConfig) -> None:
        self.group, self.config = group, config
        self.logits = group.empty().zero_().requires_grad_()
        self.adam = torch.optim.Adam([self.logits], lr=config.logit_learning_rate, betas=(0.9, 0.99))
        self.key: Tensor | None = None
        self.clean: Tensor | None = None
        self.credit: Tensor | None = None
        self.targets: Tensor | None = None
        self._pull: Tensor | None = None

    # ---- keys ------------------------------------------------------------------------------------------------------

    def clean_key(self, schedule: Schedule) -> Tensor:
        """``kappa * logits + rho * |w| / std(|w|)``, a new tensor."""
        key = self.logits.detach() * schedule.kappa
        return key if self.config.rho == 0 else key.add_(self._anchor(), alpha=self.config.rho)

    def _anchor(self) -> Tensor:
        """``|w| / std(|w|)`` of every layer; the deviation is that of the whole layer."""
        magnitude = self.group.gather(lambda layer: layer.weight.detach()).abs_()
        for layer in self.group.layers:
            part = magnitude[:, layer.columns]
            part.div_(part.std().clamp(min=1e-12))
        return magnitude

    def draw_key(self, schedule: Schedule, generator: torch.Generator) -> Tensor:
        """The key of a training step: the clean one with fresh noise."""
        self.clean = self.key = self.clean_key(schedule)
        if schedule.eta > 0:
            noise = gumbel_noise(self.clean.shape, generator, self.clean.dtype)
            self.key = noise.mul_(schedule.eta).add_(self.clean)
        return self.key

    # ---- learning --------------------------------------------------------------------------------------------------

    def update_logits(self, schedule: Schedule) -> None:
        """One step of Adam along the gradient of the loss through the relaxed draws, and EID's pull."""
        assert self.key is not None
        gradient = self.group.gather(mask_gradient)
        n, temperature = self.group.pattern.n, schedule.temperature
        gradient = relaxed_topk_backward(gradient.t(), self.key.t(), n, temperature).t()
        gradient = gradient.mul_(schedule.kappa * (1 - schedule.beta))
        if schedule.eid and self.targets is not None:
            assert self.clean is not None
            assert self._pull is not None
            scale = schedule.kappa if self.config.eid_match == "key" else 1.0
            pull = self._probability(self.clean).sub_(self.targets).mul_(self._pull)
            gradient.add_(pull, alpha=self.config.eid_weight * scale)
        self.group.check_finite(gradient, "the gradient of the logits")
        self.logits.grad = gradient
        self.adam.step()
        self.logits.grad = None

    def _probability(self, clean_key: Tensor) -> Tensor:
        """The distribution that EID pulls."""
        return torch.softmax(clean_key if self.config.eid_match == "key" else self.logits.detach(), dim=0)

    def update_credit(self, fresh: Tensor, seen: list[bool]) -> None:
        """Running mean of absolute credits; layers that are not ``seen`` this time keep what they have."""
        momentum = self.config.eid_momentum
        if self.credit is None:
            self.credit = torch.zeros_like(fresh)
            momentum_of = [0.0] * len(seen)
        else:
            momentum_of = [
                momentum if bool(self._part(self.credit, layer).any()) else 0.0 for layer in self.group.layers
            ]
        for layer, new, keep in zip(self.group.layers, seen, momentum_of, strict=True):
            if new:
                self._part(self.credit, layer).mul_(keep).add_(self._part(fresh, layer), alpha=1 - keep)
        self.set_targets()

    def set_targets(self) -> None:
        """Soft targets and the weight of their pull, 1 / blocks of the layer, from the credit."""
        assert self.credit is not None
        self.targets = soft_targets(self.credit, self.config.eid_temperature)
        self._pull = self.credit.new_zeros(self.group.num_blocks)
        for layer in self.group.layers:
            if bool(self._part(self.credit, layer).any()):
                self._pull[layer.columns] = 1 / (layer.columns.stop - layer.columns.start)

    def _part(self, columns: Tensor, layer: PrunedLayer) -> Tensor:
        return columns[:, layer.columns]

    # ---- figures ---------------------------------------------------------------------------------------------------

    def divergence(self, schedule: Schedule) -> float:
        """Sum over layers of the mean KL divergence of a block from its soft target."""
        if self.targets is None or self._pull is None:
            return 0.0
        probability = self._probability(self.clean_key(schedule)).clamp_(min=1e-30)
        kl = (self.targets * (self.targets.clamp(min=1e-30).log() - probability.log())).sum(dim=0)
        return float((kl * self._pull).sum())

    def entropy(self, schedule: Schedule) -> float:
        """Sum over blocks of the entropy, in bits, of the first of the N draws: 0 once there is no noise."""
        if schedule.eta == 0:
            return 0.0
        p = torch.softmax(self.clean_key(schedule) / schedule.eta, dim=0)
        return -float(torch.special.xlogy(p, p).sum()) / log(2)

    # ---- state -----------------------------------------------------------------------------------------------------

    def state(self, frozen: bool) -> dict[str, Tensor]:
        """``<tensor>/<layer>`` -> ``[blocks, M]``; after the freeze the logits alone."""
        columns = {"logits": self.logits.detach()}
        if not frozen:
            adam = self.adam.state.get(self.logits, {})
            columns |= {name: adam[name] for name in ("exp_avg", "exp_avg_sq") if name in adam}
            if self.credit is not None:
                columns["credit"] = self.credit
        return {
            f"{name}/{layer.name}": self._part(value, layer).t().clone(memory_format=torch.contiguous_format)
            for name, value in columns.items()
            for layer in self.group.layers
        }

    def adam_step(self) -> Tensor | None:
        """Adam's count of steps; None before the first."""
        adam = self.adam.state.get(self.logits)
        return adam["step"].clone() if adam else None

    def load(self, state: dict[str, Tensor]) -> None:
        """Take back :meth:`state` and, as ``adam_step``, :meth:`adam_step`."""
        self.logits.data.copy_(self._joined("logits", state))
        self.key = self.clean = self.credit = self.targets = self._pull = None
        first = self.group.layers[0].name
        if f"credit/{first}" in state:
            self.credit = self._joined("credit", state)
            self.set_targets()
        self.adam.state.clear()
        if f"exp_avg/{first}" in state:
            self.adam.state[self.logits] = {
                "step": state["adam_step"].clone(),
                "exp_avg": self._joined("exp_avg", state),
                "exp_avg_sq": self._joined("exp_avg_sq", state),
            }

    def _joined(self, name: str, state: dict[str, Tensor]) -> Tensor:
        result = self.group.empty()
        for layer in self.group.layers:
            self._part(result, layer).copy_(state[f"{name}/{layer.name}"].t())
        return result


def mask_gradient(layer: PrunedLayer) -> Tensor:
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
