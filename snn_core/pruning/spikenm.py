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

from snn_core.errors import NonFiniteError
from snn_core.pruning.base import NMPruner
from snn_core.pruning.block_state import has_moved
from snn_core.pruning.eligibility import CreditCapture
from snn_core.pruning.groups import BlockGroup
from snn_core.pruning.search import GroupSearch, NonFiniteBlocks, pull_dropped

__all__ = ["SpikeNMPruner", "pull_dropped"]


class SpikeNMPruner(NMPruner):
    """Learns N:M masks with the weights; see :class:`NMPruner` for how to use it and :class:`PruneConfig` for settings.

    Every step draws ``top N of kappa * logits + rho * |w| / std(|w|) + eta * Gumbel``. The logits follow the loss
    through the relaxed draws, and EID's soft targets, with their own Adam. With ``rho = 1``, no noise, no
    mask decay and a logit rate of 0 it is SR-STE with a freeze.

    With ``draws="relaxed"``, an ablation, training computes with the relaxed draws themselves, ``w * soft`` (sum N a
    block, dense until the temperature is low), and its true gradients: those of the weights are multiplied by ``soft``
    when the optimiser steps. The freeze cuts to the top N. Mask decay and the pull of dropped weights do not apply.

    Raises:
        NonFiniteError: from :meth:`step`'s optimiser hook or a forward pass, when logits, their gradient or weights
            become NaN or infinite; the message names the layer.
    """

    method = "spikenm"

    def _fades(self) -> bool:
        return self.config.draws == "exact"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._searches: dict[BlockGroup, GroupSearch] = {}
        self._captures: dict[str, CreditCapture] = {}
        self._non_finite = NonFiniteBlocks()
        super().__init__(*arguments, **options)

    # ---- keys ------------------------------------------------------------------------------------------------------

    @property
    def logits(self) -> dict[str, Tensor]:
        """Basis logits by layer name, float32 ``[blocks, M]``, blocks in the order of ``sparsity.to_blocks``."""
        return {
            layer.name: group.block_rows(self._search(group).logits, layer)
            for group in self.groups
            for layer in group.layers
        }

    def _search(self, group: BlockGroup) -> GroupSearch:
        self._prepare()
        return self._searches[group]

    def _prepare(self) -> None:
        """Logits, on the device where the weights are at first use."""
        if any(has_moved(search.logits, group, self.steps_done) for group, search in self._searches.items()):
            self._searches = {}
        if not self._searches:
            self._searches = {group: GroupSearch(group, self.config, self._non_finite) for group in self.groups}

    def _evaluation_key(self, group: BlockGroup) -> Tensor:
        return self._search(group).clean_key(self.schedule())

    def _training_key(self, group: BlockGroup) -> Tensor:
        raise AssertionError("the sampler draws without a key in memory")

    def _draw(self) -> None:
        schedule = self.schedule()
        self._prepare()
        for search in self._searches.values():
            search.draw(schedule, self.steps_done)
        for capture in self._captures.values():
            capture.due = schedule.eid_due

    def _apply_mask(self, weight: Tensor, mask: Tensor) -> Tensor:
        return super()._apply_mask(weight, mask).to(weight.dtype)  # relaxed masks are float32

    def _evaluation_masks(self) -> dict[str, Tensor]:
        self._prepare()
        schedule = self.schedule()
        search_of = {layer.name: search for group, search in self._searches.items() for layer in group.layers}
        masks = {layer.name: search_of[layer.name].evaluation_mask(layer, schedule) for layer in self.layers}
        self._non_finite.check()
        return masks

    # ---- learning --------------------------------------------------------------------------------------------------

    def _before_optimizer_step(self) -> None:
        schedule = self.schedule()
        drawn = [search for search in self._searches.values() if search.drawn]
        if drawn and schedule.eid_due:
            self._update_credits()
        if self.config.logit_learning_rate > 0:
            for search in drawn:
                search.update_logits(schedule)
        elif self.config.sr_ste_decay > 0 and self.config.draws == "exact":
            pull_dropped(self.layers, self.config.sr_ste_decay)
        if self.config.draws == "relaxed":
            for layer in self.layers:
                if layer.weight.grad is not None and layer.drawn is not None:
                    layer.weight.grad.mul_(layer.drawn)
        self._non_finite.check()  # before the weights change

    def _update_credits(self) -> None:
        """The credits captured since the last step, of all ranks, into the running means.

        Credits of a scaled loss may overflow where the gradients do not: the blocks keep the credits that they have.
        """
        fresh = self._fresh_credits()
        found = [(search, *item) for search in self._searches.values() for item in search.update_credits(fresh)]
        if not found:
            return
        counts = torch.stack([item[2] for item in found]).tolist()  # read in one go
        for (search, layer, _), (wrong, with_credit) in zip(found, counts, strict=True):
            if wrong and self.grad_scaler is None:
                raise NonFiniteError(f"layer {layer.name!r}: EID's credit became non-finite ({wrong} blocks)")
            search.set_pull(layer, with_credit > 0)

    def _fresh_credits(self) -> dict[str, Tensor | None]:
        """By layer, with their signs, in the weight's shape; None where there is none.

        Without captures the weights' gradients are the credits: those are reduced and unscaled already.
        """
        if not self._captures:
            grads = {layer.name: layer.weight.grad for layer in self.layers}
            return {name: None if grad is None else grad.float() for name, grad in grads.items()}
        credits = {layer.name: self._captures[layer.name].take() for layer in self.layers}
        if self._ranks.size > 1:
            credits = self._of_all_ranks(credits)
        if self.grad_scaler is not None:
            scale = self.grad_scaler.scale(torch.ones((), device=self.groups[0].device))
            credits = {name: credit if credit is None else credit.div_(scale) for name, credit in credits.items()}
        return credits

    def _of_all_ranks(self, credits: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
        """Means over the ranks, as gradients are; of layers that at least one rank has a credit of."""
        device = self.groups[0].device
        known = torch.tensor([credit is not None for credit in credits.values()], dtype=torch.float32, device=device)
        having = [layer for layer, count in zip(self.layers, self._ranks.sum(known).tolist(), strict=True) if count > 0]
        if not having:
            return credits
        parts = [credits[layer.name] for layer in having]
        flat = torch.cat(
            [torch.zeros(layer.weight.numel(), device=device) if part is None else part.reshape(-1)
             for layer, part in zip(having, parts, strict=True)]
        )  # fmt: skip
        means = self._ranks.sum(flat).mul_(1 / self._ranks.size).split([layer.weight.numel() for layer in having])
        found = {layer.name: mean.view(layer.weight.shape) for layer, mean in zip(having, means, strict=True)}
        return {name: found.get(name) for name in credits}

    def metrics(self) -> dict[str, float]:
        """As :meth:`NMPruner.metrics`, and in the search phase ``temperature``, ``eta``, ``entropy`` and ``eid``.

        ``entropy``: mean over blocks of the entropy, in bits, of the first of the N draws (log2 M where nothing is
        decided, 0 without noise). ``eid``: mean over layers of the mean KL divergence of a block from its soft target.
        """
        figures = super().metrics()
        if self.frozen:
            return figures
        self._prepare()
        schedule = self.schedule()
        figures |= {"temperature": schedule.temperature, "eta": schedule.eta}
        searches = self._searches.values()
        blocks = sum(group.num_blocks for group in self.groups)
        figures["entropy"] = sum(search.entropy(schedule) for search in searches) / blocks
        if any(search.targets is not None for search in searches):
            figures["eid"] = sum(search.divergence(schedule) for search in searches) / len(self.layers)
        return figures

    # ---- hooks and state -------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        super()._attach()
        config = self.config
        # A trace without memory is the input itself, and its product the gradient of the weight. So it is of pictures,
        # which are one time step.
        pictures = getattr(self.model, "spiking", True) is False
        free = config.eid_credit == "gradient" or config.trace_decay == 0 or config.time_steps == 1 or pictures
        if config.eid_weight == 0 or free:
            return
        options: dict[str, Any] = {
            "decay": config.trace_decay,
            "time_steps": config.time_steps,
            "dtype": torch.bfloat16 if config.eid_credit == "bfloat16" else None,
            "sums": config.eid_credit == "sums",
        }
        for layer in self.layers:
            capture = CreditCapture(layer.name, layer.module, self.model, **options)
            self._captures[layer.name] = capture
            self._handles.extend(capture.handles)

    def step(self) -> None:
        """As :meth:`NMPruner.step`."""
        before = self.steps_done
        super().step()
        if self.steps_done > before:
            for search in self._searches.values():
                search.forget_step()
            for capture in self._captures.values():
                capture.clear()

    def _after_skipped_step(self) -> None:
        for capture in self._captures.values():
            capture.stale = True

    def _shared_tensors(self) -> dict[str, Tensor]:
        return {f"the logits of pattern {group.pattern}": search.logits for group, search in self._searches.items()}

    def _method_state(self) -> dict[str, Tensor]:
        self._prepare()
        state: dict[str, Tensor] = {}
        for search in self._searches.values():
            state |= search.state(self.frozen)
            if search.adam_steps > 0 and not self.frozen:
                state["adam_step"] = torch.tensor(search.adam_steps)
        return state

    def _load_method_state(self, state: dict[str, Tensor]) -> None:
        self._prepare()
        for search in self._searches.values():
            search.load(state)
