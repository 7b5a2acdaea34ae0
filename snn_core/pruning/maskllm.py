"""MaskLLM: every block has a categorical distribution over all its N:M masks, learned through a Gumbel-softmax.

Fang, Yin, Muralidharan, Heinrich, Pool, Kautz, Molchanov, Wang: "MaskLLM: Learnable Semi-Structured Sparsity for Large
Language Models", NeurIPS 2024 (arXiv 2409.17481). With ``S [K, M]`` the ``K = C(M, N)`` masks of a block, logits ``pi``
and Gumbel noise ``g``::

    y = softmax((kappa pi + g) / tau);   m = y S;   the layer computes with w * m
    loss -= lambda * sum (w * m)^2                      keeps the kept weights, and so the gradients, large
    pi = N(0, 0.01^2) + 0.01 alpha (overlap of S_k with a prior mask - mean overlap)

kappa 100 to 500, tau 4 to 0.05, alpha 3, lambda 1e-5 falling to 0, Adam with rate 5e-4 and betas (0.9, 0.95): as
published, with their code's straight lines from start to end. Evaluation takes the likeliest mask.

Ours differs: they learn masks for a trained network with frozen weights; here weights train together with the logits
from random initialisation (gradient ``m * dL/d(w m)``), the prior is the magnitude mask of the initial weights, the
schedules end at the freeze, after which the weights are fine-tuned, and the logits' rate is constant, without decay.
"""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import Any

import torch
from torch import Tensor

from snn_core.errors import ArgumentError
from snn_core.kernels.topk_sampler import gumbel_noise
from snn_core.pruning.base import NMPruner
from snn_core.pruning.block_state import has_moved, load_columns, save_columns, split_columns
from snn_core.pruning.config import PruneConfig
from snn_core.pruning.groups import BlockGroup, PrunedLayer
from snn_core.seeding import make_generator
from snn_core.sparsity import NMPattern

#: More masks a block are refused: logits and their moments take 3 K / M times the memory of the weights.
MOST_CANDIDATES = 64
INITIAL_DEVIATION = 0.01
_MOMENTS = ("exp_avg", "exp_avg_sq")


def candidate_masks(pattern: NMPattern) -> Tensor:
    """All masks of a block, float32 ``[K, M]``, in lexicographic order of their positions.

    Raises:
        ArgumentError: there are more than ``MOST_CANDIDATES``.
    """
    count = comb(pattern.m, pattern.n)
    if count > MOST_CANDIDATES:
        raise ArgumentError(
            f"pattern {pattern}: maskllm learns one logit for each of the {count:,} masks of a block; "
            f"at most {MOST_CANDIDATES} are allowed"
        )
    masks = torch.zeros(count, pattern.m)
    for row, positions in enumerate(combinations(range(pattern.m), pattern.n)):
        masks[row, list(positions)] = 1
    return masks


class MaskCategories:
    """The distributions of one group's blocks: logits ``[K, blocks]``, their draw, their gradient, their Adam.

    Args:
        group: of blocks; its present weights are the prior.
        config: settings.
        generator: of the initial logits, on the group's device.
    """

    def __init__(self, group: BlockGroup, config: PruneConfig, generator: torch.Generator) -> None:
        self.group = group
        self.candidates = candidate_masks(group.pattern).to(group.device)
        logits = torch.randn(len(self.candidates), group.num_blocks, generator=generator, device=group.device).mul_(
            INITIAL_DEVIATION
        )
        prior = group.top(group.gather(lambda layer: layer.weight.detach().abs())).float()
        overlap = self.candidates @ prior
        logits.add_(overlap - overlap.mean(dim=0), alpha=config.maskllm_prior * INITIAL_DEVIATION)
        self.logits = logits.requires_grad_()
        self.adam = torch.optim.Adam([self.logits], lr=config.maskllm_learning_rate, betas=(0.9, 0.95))
        self.choice: Tensor | None = None

    def draw(self, kappa: float, temperature: float, generator: torch.Generator) -> Tensor:
        """Soft masks ``[M, blocks]``, each block in [0, 1] and summing to N."""
        noise = gumbel_noise(self.logits.shape, generator, self.logits.dtype)
        key = noise.add_(self.logits.detach(), alpha=kappa).div_(temperature)
        self.choice = torch.softmax(key, dim=0)
        return self.candidates.t() @ self.choice

    def learn(self, gradient: Tensor, scale: float) -> None:
        """One step of Adam for ``gradient = dL/dm`` ``[M, blocks]`` of the last draw; ``scale = kappa / tau``.

        Raises:
            NonFiniteError: the gradient is not finite; the message names the layer.
        """
        assert self.choice is not None
        inward = self.candidates @ gradient
        inward = self.choice * (inward - (self.choice * inward).sum(dim=0)) * scale  # through the softmax
        self.group.check_finite(inward, "the gradient of the logits")
        self.logits.grad = inward
        self.adam.step()
        self.logits.grad = None

    def likeliest(self) -> Tensor:
        """The likeliest mask of every block, float32 ``[M, blocks]`` of 0 and 1."""
        self.group.check_finite(self.logits.detach(), "the logits")
        return self.candidates[self.logits.detach().argmax(dim=0)].t()

    def state(self, moments: bool) -> dict[str, Tensor]:
        """Tensors for a checkpoint, with Adam's where ``moments`` asks for them and there are any."""
        adam = self.adam.state.get(self.logits, {}) if moments else {}
        columns = {"logits": self.logits.detach()} | {name: adam[name] for name in _MOMENTS if name in adam}
        state: dict[str, Tensor] = {}
        for name, value in columns.items():
            state |= save_columns(name, value, self.group)
        return state | {f"adam_step/{layer.name}": adam["step"].clone() for layer in self.group.layers if adam}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take back :meth:`state`."""
        self.choice = None
        self.logits.data.copy_(load_columns("logits", state, self.group, self.logits.detach()))
        self.adam.state.clear()
        step = f"adam_step/{self.group.layers[0].name}"
        if step in state:
            moments = {name: load_columns(name, state, self.group, self.logits.detach()) for name in _MOMENTS}
            self.adam.state[self.logits] = {"step": state[step].clone(), **moments}


class MaskLLMPruner(NMPruner):
    """The comparison "maskllm"; uses ``maskllm_*``, ``freeze`` and ``seed`` of the config. See :class:`NMPruner`.

    The gradients of the weights are multiplied by the soft mask when the optimiser steps: what clips gradients before
    that sees them unmultiplied.

    Raises:
        ArgumentError: as :class:`NMPruner`, and for a pattern with too many masks a block.
        NonFiniteError: logits or their gradient became NaN or infinite; the message names the layer.
    """

    method = "maskllm"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._searches: dict[BlockGroup, MaskCategories] = {}
        super().__init__(*arguments, **options)

    def _attach(self) -> None:
        for group in self.groups:
            candidate_masks(group.pattern)
        super()._attach()

    @property
    def logits(self) -> dict[str, Tensor]:
        """Category logits by layer name, float32 ``[blocks, K]``, masks in the order of :func:`candidate_masks`."""
        self._prepare()
        parts = [split_columns(search.logits.detach(), group) for group, search in self._searches.items()]
        return {name: rows for part in parts for name, rows in part.items()}

    def _prepare(self) -> None:
        """At first use, when the weights are on the device where they train."""
        if any(has_moved(search.logits, group, self.steps_done) for group, search in self._searches.items()):
            self._searches = {}
        if not self._searches:
            self._generator = make_generator(self.config.seed, "maskllm", device=self.groups[0].device)
            self._searches = {group: MaskCategories(group, self.config, self._generator) for group in self.groups}

    def _present(self) -> tuple[float, float, float]:
        """kappa, temperature and the weight of the regulariser at the present step."""
        progress = self.schedule().progress
        kappa, temperature = (
            start + (end - start) * progress
            for start, end in (self.config.maskllm_kappa, self.config.maskllm_temperature)
        )
        return kappa, temperature, self.config.maskllm_regularization * (1 - progress)

    def _training_key(self, group: BlockGroup) -> Tensor:
        raise NotImplementedError("soft masks have no key")

    def _evaluation_key(self, group: BlockGroup) -> Tensor:
        self._prepare()
        return self._searches[group].likeliest()

    @torch.no_grad()
    def _draw(self) -> None:
        self._prepare()
        kappa, temperature, _ = self._present()
        for group, search in self._searches.items():
            soft = search.draw(kappa, temperature, self._generator)
            for layer in group.layers:
                layer.drawn = group.spread(soft, layer)

    def _apply_mask(self, weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask.to(weight.dtype)

    def _before_optimizer_step(self) -> None:
        if self.layers[0].drawn is None:
            return
        kappa, temperature, regularization = self._present()
        for group, search in self._searches.items():
            gradient = group.gather(lambda layer: _mask_gradient(layer, regularization))
            search.learn(gradient, kappa / temperature)
        for layer in self.layers:
            if layer.weight.grad is not None and layer.drawn is not None:
                layer.weight.grad.mul_(layer.drawn)

    def metrics(self) -> dict[str, float]:
        """As :meth:`NMPruner.metrics`, and in the search phase ``temperature`` and ``kappa``."""
        figures = super().metrics()
        if self.frozen:
            return figures
        kappa, temperature, _ = self._present()
        return figures | {"kappa": kappa, "temperature": temperature}

    def _shared_tensors(self) -> dict[str, Tensor]:
        return {f"the logits of pattern {group.pattern}": search.logits for group, search in self._searches.items()}

    def _method_state(self) -> dict[str, Tensor]:
        self._prepare()
        state = {"generator": self._generator.get_state()}
        for search in self._searches.values():
            state |= search.state(moments=not self.frozen)
        return state

    def _load_method_state(self, state: dict[str, Tensor]) -> None:
        self._prepare()
        self._generator.set_state(state["generator"].cpu())
        for search in self._searches.values():
            search.load(state)


def _mask_gradient(layer: PrunedLayer, regularization: float) -> Tensor:
    """dL/dm of ``L(w m) - regularization * sum (w m)^2``, in the weight's shape; 0 where the layer was not used."""
    weight = layer.weight.detach()
    if layer.weight.grad is None or layer.drawn is None:
        return torch.zeros_like(weight)
    return weight * (layer.weight.grad - 2 * regularization * weight * layer.drawn)
