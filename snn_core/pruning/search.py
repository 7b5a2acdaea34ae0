"""SpikeNM's search in one group of blocks: logits with their Adam, keys, and EID's credits and targets."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from snn_core.errors import NonFiniteError
from snn_core.kernels.topk_sampler import (
    AdamOptions,
    KeyOptions,
    absolute_deviation,
    mask_weight,
    relaxed_mask,
    update_credit_,
    update_logits_,
    weight_columns,
)
from snn_core.pruning.config import PruneConfig
from snn_core.pruning.groups import BlockGroup, PrunedLayer
from snn_core.pruning.schedule import Schedule
from snn_core.seeding import derive_seed


class NonFiniteBlocks:
    """Numbers of blocks that are not finite, by layer: what a device has counted is read in one go, once a step.

    Every single reading would make the host wait for the device, and the device then for the host.
    """

    def __init__(self) -> None:
        self._unread: list[tuple[str, str, Tensor]] = []

    def add(self, layer: str, what: str, count: int | Tensor) -> None:
        """Note a count, or raise as :meth:`check` does where it is a number already."""
        if isinstance(count, Tensor):
            self._unread.append((layer, what, count))
        elif count:
            self._refuse(layer, what, count)

    def check(self) -> None:
        """Raise NonFiniteError, naming the layer, if one of the counts is not 0."""
        unread, self._unread = self._unread, []
        if not unread:
            return
        for (layer, what, _), count in zip(unread, torch.stack([item[2] for item in unread]).tolist(), strict=True):
            if count:
                self._refuse(layer, what, count)

    def clear(self) -> None:
        """Forget them."""
        self._unread = []

    def _refuse(self, layer: str, what: str, count: int) -> None:
        raise NonFiniteError(f"layer {layer!r}: {what} became non-finite ({count} blocks)")


class GroupSearch:
    """All tensors are float32 ``[M, blocks]`` of the group, on the device of its weights.

    Attributes:
        logits: the basis logits.
        exp_avg, exp_avg_sq: Adam's moments of them, and ``adam_steps`` its count.
        drawn: whether the present training step has its masks.
        credit: running mean of EID's credits; 0 for layers that never had one. None before the first.
        targets: soft targets made of it.
    """

    def __init__(self, group: BlockGroup, config: PruneConfig, non_finite: NonFiniteBlocks) -> None:
        self.group, self.config, self.non_finite = group, config, non_finite
        self.logits, self.exp_avg, self.exp_avg_sq = (group.empty().zero_() for _ in range(3))
        self.adam_steps = 0
        self.credit: Tensor | None = None
        self.targets: Tensor | None = None
        self._pull_of: dict[str, float] = {}
        self._keys: dict[str, KeyOptions] = {}  # that the masks of this step were drawn with
        self._seeds = {layer.name: derive_seed(config.seed, "spikenm", layer.name) for layer in group.layers}

    @property
    def drawn(self) -> bool:
        """Whether the present training step has its masks."""
        return bool(self._keys)

    def forget_step(self) -> None:
        """Drop what belongs to one training step."""
        self._keys = {}

    # ---- keys ------------------------------------------------------------------------------------------------------

    def clean_key(self, schedule: Schedule) -> Tensor:
        """``kappa * logits + rho * |w| / std(|w|)``, a new tensor; the deviation is that of the whole layer."""
        key = self.logits * schedule.kappa
        if self.config.rho > 0:
            magnitude = self.group.gather(lambda layer: layer.weight.detach()).abs_()
            for layer in self.group.layers:
                key[:, layer.columns].add_(magnitude[:, layer.columns], alpha=float(self._rho(layer)))
        return key

    def _rho(self, layer: PrunedLayer) -> float | Tensor:
        """The factor of ``|w|`` in the key; a tensor where the deviation is one."""
        if self.config.rho == 0:
            return 0.0
        deviation = absolute_deviation(layer.weight)
        # Magnitudes that are all alike say nothing, and 1 / 1e-12 of them would drown logits and noise. NaN stays.
        if isinstance(deviation, Tensor):
            return torch.where(deviation < 1e-12, 0.0, self.config.rho / deviation)
        return 0.0 if deviation < 1e-12 else self.config.rho / deviation

    def draw(self, schedule: Schedule, step: int) -> None:
        """Masks and masked weights of a training step; the noise is a function of seed, layer and step."""
        for layer in self.group.layers:
            options = KeyOptions(
                self.group.pattern.n, schedule.kappa, self._rho(layer), schedule.eta, self._seeds[layer.name], step
            )
            if self.config.draws == "relaxed":
                layer.drawn = self._relaxed(layer, options, schedule.temperature)
                effective = (layer.weight.detach() * layer.drawn).to(layer.weight.dtype)
            else:
                effective, layer.drawn = self._masked(layer, options, schedule.beta)
            layer.keep_effective(effective)
            self._keys[layer.name] = options

    def evaluation_mask(self, layer: PrunedLayer, schedule: Schedule) -> Tensor:
        """The top N of the noise-free key, in the weight's shape."""
        options = KeyOptions(self.group.pattern.n, schedule.kappa, self._rho(layer))
        return self._masked(layer, options, 0.0)[1]

    def _masked(self, layer: PrunedLayer, options: KeyOptions, beta: float) -> tuple[Tensor, Tensor]:
        logits = self._part(self.logits, layer)
        masked, mask, wrong = mask_weight(layer.weight.detach(), logits, self.group.pattern.m, options, beta)
        self.non_finite.add(layer.name, "the weights or logits", wrong)
        return masked, mask

    def _relaxed(self, layer: PrunedLayer, options: KeyOptions, temperature: float) -> Tensor:
        soft = relaxed_mask(layer.weight, self._part(self.logits, layer), self.group.pattern.m, options, temperature)
        wrong = (~torch.isfinite(weight_columns(soft, self.group.pattern.m).sum(dim=0))).sum()
        self.non_finite.add(layer.name, "the weights or logits", int(wrong) if wrong.device.type == "cpu" else wrong)
        return soft

    # ---- learning --------------------------------------------------------------------------------------------------

    def update_logits(self, schedule: Schedule) -> None:
        """One step of Adam along the gradient of the loss through the relaxed draws, and EID's pull.

        In the same pass the gradients of the weights get ``sr_ste_decay`` times what the masks dropped.
        """
        self.adam_steps += 1
        config = self.config
        adam = AdamOptions(config.logit_learning_rate, self.adam_steps, 0.9, 0.99)
        eid = schedule.eid and self.targets is not None
        slope = schedule.kappa if config.eid_match == "key" else 1.0
        for layer in self.group.layers:
            weight = layer.weight
            pull = self._pull_of.get(layer.name, 0.0) if eid else 0.0
            wrong = update_logits_(
                (self._part(self.logits, layer), self._part(self.exp_avg, layer), self._part(self.exp_avg_sq, layer)),
                torch.zeros_like(weight) if weight.grad is None else weight.grad,
                weight,
                self._keys[layer.name],
                adam,
                temperature=schedule.temperature,
                scale=schedule.kappa * (1 - schedule.beta),
                target=self._part(self.targets, layer) if pull and self.targets is not None else None,
                pull=config.eid_weight * slope * pull,
                pull_key=config.eid_match == "key",
                decay=config.sr_ste_decay if config.draws == "exact" else 0.0,
                mask=layer.drawn,
            )
            self.non_finite.add(layer.name, "the gradient of the logits", wrong)

    def _probability(self, clean_key: Tensor) -> Tensor:
        """The distribution that EID pulls."""
        return torch.softmax(clean_key if self.config.eid_match == "key" else self.logits, dim=0)

    def update_credits(self, fresh: dict[str, Tensor | None]) -> list[tuple[PrunedLayer, Tensor]]:
        """Running means of absolute credits, and soft targets.

        Args:
            fresh: by layer, with its sign, in the weight's shape; layers with None keep what they have.

        Returns:
            The others, each with the counts of :func:`update_credit_` for :meth:`set_pull`, which nobody has read yet.
        """
        if self.credit is None or self.targets is None:
            self.credit, self.targets = self.group.empty().zero_(), self.group.empty().zero_()
        counts = []
        for layer in self.group.layers:
            credit = fresh[layer.name]
            if credit is not None:
                weight = layer.weight if self.config.eid_use_weight else None
                keep = self.config.eid_momentum if layer.name in self._pull_of else 0.0
                counts.append((layer, self._update_credit(layer, credit, weight, keep)))
        return counts

    def _update_credit(self, layer: PrunedLayer, fresh: Tensor | None, weight: Tensor | None, keep: float) -> Tensor:
        assert self.credit is not None
        assert self.targets is not None
        columns = self._part(self.credit, layer), self._part(self.targets, layer)
        return update_credit_(*columns, fresh, weight, keep=keep, temperature=self.config.eid_temperature)

    def set_pull(self, layer: PrunedLayer, has_credit: bool) -> None:
        """Pull a layer to its targets, by 1 / blocks of it, if it has a credit at all."""
        if has_credit:
            self._pull_of[layer.name] = 1 / (layer.columns.stop - layer.columns.start)
        else:
            self._pull_of.pop(layer.name, None)

    def _part(self, columns: Tensor, layer: PrunedLayer) -> Tensor:
        return columns[:, layer.columns]

    # ---- figures ---------------------------------------------------------------------------------------------------

    def divergence(self, schedule: Schedule) -> float:
        """Sum over layers of the mean KL divergence of a block from its soft target."""
        if self.targets is None:
            return 0.0
        probability = self._probability(self.clean_key(schedule)).clamp_(min=1e-30)
        kl = (self.targets * (self.targets.clamp(min=1e-30).log() - probability.log())).sum(dim=0)
        pulled = [layer for layer in self.group.layers if layer.name in self._pull_of]
        return sum(float(kl[layer.columns].sum()) * self._pull_of[layer.name] for layer in pulled)

    def entropy(self, schedule: Schedule) -> float:
        """Sum over blocks of the entropy, in bits, of the first of the N draws: 0 once there is no noise."""
        if schedule.eta == 0:
            return 0.0
        p = torch.softmax(self.clean_key(schedule) / schedule.eta, dim=0)
        return -float(torch.special.xlogy(p, p).sum()) / log(2)

    # ---- state -----------------------------------------------------------------------------------------------------

    def state(self, frozen: bool) -> dict[str, Tensor]:
        """``<tensor>/<layer>`` -> ``[blocks, M]``; after the freeze the logits alone."""
        columns = {"logits": self.logits}
        if not frozen:
            if self.adam_steps > 0:
                columns |= {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
            if self.credit is not None:
                columns["credit"] = self.credit
        return {
            f"{name}/{layer.name}": self.group.block_rows(value, layer).clone()
            for name, value in columns.items()
            for layer in self.group.layers
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Take back :meth:`state` and, as ``adam_step``, ``adam_steps``."""
        self._join("logits", state, self.logits)
        self._keys, self._pull_of = {}, {}
        self.credit = self.targets = None
        first = self.group.layers[0].name
        if f"credit/{first}" in state:
            self.credit, self.targets = self.group.empty(), self.group.empty()
            self._join("credit", state, self.credit)
            for layer in self.group.layers:
                self.set_pull(layer, int(self._update_credit(layer, None, None, 1.0)[1]) > 0)
        self.adam_steps = 0
        if f"exp_avg/{first}" in state:
            self.adam_steps = int(state["adam_step"])
            self._join("exp_avg", state, self.exp_avg)
            self._join("exp_avg_sq", state, self.exp_avg_sq)
        else:
            self.exp_avg.zero_()
            self.exp_avg_sq.zero_()

    def _join(self, name: str, state: dict[str, Tensor], columns: Tensor) -> None:
        for layer in self.group.layers:
            self.group.set_block_rows(columns, layer, state[f"{name}/{layer.name}"])


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
