"""What all pruners share: attaching to layers, one mask a step, freeze, resume."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from snn_core.errors import ArgumentError
from snn_core.pruning.config import PruneConfig
from snn_core.pruning.distributed import Ranks, inner_model
from snn_core.pruning.groups import BlockGroup, PrunedLayer, WeightMarks, content_sum, group_by_pattern
from snn_core.pruning.layers import LayerReport, select_layers
from snn_core.pruning.masking import MaskHook, RestoreHook, StraightThrough, clear_dropped, take_over
from snn_core.pruning.optimizer_link import OptimizerLink, check_held
from snn_core.pruning.schedule import Schedule, schedule_at, warn_of_an_early_end
from snn_core.pruning.state import encode, read_state
from snn_core.pruning.statistics import flipped_fraction
from snn_core.sparsity import MaskedLayer, NMPattern, check_nm


class NMPruner(ABC):
    """Prunes a model to N:M while any loop trains it.

    Three calls: make the pruner (it attaches itself), :meth:`step` after every ``optimizer.step()`` and before
    gradients are cleared, :meth:`finalize` after the last step::

        pruner = SpikeNMPruner(model, "2:4", optimizer=optimizer, total_steps=1000)
        for x, y in batches:
            optimizer.zero_grad(); loss(model(x), y).backward(); optimizer.step(); pruner.step()
        masks = pruner.finalize()

    It is also a :class:`snn_core.training.TrainingHook`; the loop then calls :meth:`begin` itself. While the masks are
    searched, training forward passes of one step use one drawn mask with a straight-through gradient, and evaluation
    uses the deterministic mask. After the freeze the dropped weights are zero, and their gradients and optimiser
    state are kept at zero. After :meth:`finalize` the model is a plain one, without hooks.

    Gradients may be accumulated over several backward passes; a :meth:`step` without an optimiser step since the last
    one (skipped by a gradient scaler, or a part of an accumulated batch) is not counted. Under DistributedDataParallel
    every rank makes its own pruner with the same arguments, and all have the same masks.

    Args:
        model: any module with Linear, Conv1d or Conv2d layers; of a DistributedDataParallel or compiled one the inside.
        pattern: N:M; overrides ``config.pattern``.
        config: settings.
        include, exclude: layer names with shell wildcards; override the config's.
        optimizer, total_steps: given together they call :meth:`begin`.
        grad_scaler: the ``torch.amp.GradScaler`` that scales the loss, so that EID's credits are comparable over steps.
        distributed: False: ranks of ``torch.distributed`` train models of their own.

    Raises:
        ArgumentError: a pattern that makes no sense, names that match nothing, or no layer that can be pruned.
    """

    method: str

    def __init__(
        self,
        model: nn.Module,
        pattern: NMPattern | str | None = None,
        *,
        config: PruneConfig | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        total_steps: int | None = None,
        grad_scaler: torch.amp.GradScaler | None = None,
        distributed: bool = True,
    ) -> None:
        if not isinstance(config, PruneConfig | None):
            kind = type(config).__name__
            raise ArgumentError(f"config must be a PruneConfig, got {kind}; make one: PruneConfig(name=value, ...)")
        self.config = (config or PruneConfig()).with_names(pattern, include, exclude)
        self.pattern = NMPattern.parse(self.config.pattern)
        self.model = inner_model(model)
        chosen, self._reports = select_layers(
            self.model, self.pattern, layer_patterns=self.config.layer_patterns, include=self.config.include,
            exclude=self.config.exclude, keep_first_dense=self.config.keep_first_dense,
            keep_last_dense=self.config.keep_last_dense,
        )  # fmt: skip
        self.layers = [PrunedLayer(*item) for item in chosen]
        self.groups = group_by_pattern(self.layers)
        self.total_steps, self.steps_done, self.frozen = 0, 0, False
        self.grad_scaler = grad_scaler
        self._distributed = distributed
        self._ranks = Ranks(model, distributed)
        self._link: OptimizerLink | None = None
        self._handles: list[RemovableHandle] = []
        self._evaluation: dict[str, Tensor] | None = None  # the masks it uses, of the weights in _values_of
        self._values_of: dict[str, tuple[WeightMarks, Tensor | float]] = {}
        self._reported: dict[str, Tensor] | None = None  # the masks of the last metrics()
        self._resumed_total_steps = 0
        self._finalized = False
        self._attach()
        if (optimizer is None) != (total_steps is None):
            raise ArgumentError("optimizer and total_steps must be given together (or neither, and begin() called)")
        if optimizer is not None and total_steps is not None:
            self.begin(model, optimizer, total_steps)

    # ---- what a method defines -------------------------------------------------------------------------------------

    @abstractmethod
    def _training_key(self, group: BlockGroup) -> Tensor:
        """Key ``[M, blocks]`` whose top N are the mask of this training step."""

    @abstractmethod
    def _evaluation_key(self, group: BlockGroup) -> Tensor:
        """Deterministic key ``[M, blocks]`` of the mask for evaluation and freeze."""

    def _before_optimizer_step(self) -> None:
        """In the search phase, when gradients are complete and weights not yet changed. Optional."""
        return

    def _after_skipped_step(self) -> None:
        """:meth:`step` was called, but the optimiser has not stepped. Optional."""
        return

    def _freeze_fraction(self) -> float:
        return self.config.freeze

    def _fades(self) -> bool:
        """Whether the option ``mask_decay`` is this method's."""
        return False

    def _method_state(self) -> dict[str, Tensor]:
        return {}

    def _load_method_state(self, state: dict[str, Tensor]) -> None:
        return None

    def _shared_tensors(self) -> dict[str, Tensor]:
        """What the method holds and every rank must hold alike, beside the masks; compared now and then."""
        return {}

    # ---- the three calls, and the training hook --------------------------------------------------------------------

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        """Bind the optimiser of the weights and the length of the run, on which the schedules depend.

        Raises:
            ArgumentError: called after :meth:`finalize`, ``total_steps`` < 1 or not that of the state loaded before,
                ``model`` does not contain the attached layers, or ``optimizer`` does not hold their weights.
        """
        if self._finalized:
            raise ArgumentError("pruner.begin() after finalize(): make a new pruner to prune further")
        if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1:
            raise ArgumentError(f"total_steps must be a positive integer, got {total_steps!r}")
        if self._resumed_total_steps not in (0, total_steps):
            raise ArgumentError(f"total_steps: the loaded state is of {self._resumed_total_steps}, got {total_steps}")
        check_held(model, optimizer, self.layers)
        if self._link is not None:
            self._link.remove()
        self._link = OptimizerLink(optimizer, self.layers, self._on_gradients, self._after_optimizer_step)
        self.total_steps, self._ranks = total_steps, Ranks(model, self._distributed)
        self._freeze_when_due()
        if self._reported is None:
            self._reported = self._copied_masks()

    def step(self) -> None:
        """Count one optimiser step; freezes the masks when their time has come.

        Does nothing when the optimiser has not stepped since the last call.

        Raises:
            ArgumentError: the pruner has no optimiser yet, or is finalized, or weights were changed by another
                optimiser than its own.
        """
        if self._link is None:
            raise ArgumentError("pruner.step(): pass optimizer and total_steps when making the pruner, or call begin()")
        if self._finalized:
            raise ArgumentError("pruner.step() after finalize(): its hooks are gone; make a new pruner to train on")
        self._link.check_weights()
        if not self._link.stepped:
            self._after_skipped_step()
            return
        self.steps_done += 1
        self._evaluation = None
        for layer in self.layers:
            layer.forget_step()
        self._freeze_when_due()
        self._link.note_weights()

    def finalize(self) -> dict[str, Tensor]:
        """Freeze the masks if they are not, remove every hook, check the pattern.

        Returns:
            Layer name -> boolean mask of the weight's shape. Call it again for the same masks.
        """
        if not self.frozen:
            warn_of_an_early_end(self.steps_done, self._freeze_step(), self.total_steps)
            self._freeze()
        if self._link is not None:
            self._link.remove()
        self._finalized = True
        for layer in self.layers:
            assert layer.mask is not None
            clear_dropped(layer.weight, ~layer.mask, self._optimizer)
            self._check(layer)
        return self.masks

    def end(self) -> None:
        """:meth:`finalize`, as the training hook's last call."""
        self.finalize()

    def metrics(self) -> dict[str, float]:
        """Figures for the log of an epoch: ``kept`` (fraction of the weights that pruned layers use), ``flips``
        (fraction of mask entries that changed since the last call), and what the method adds."""
        masks = self.masks
        kept = sum(int(mask.sum()) for mask in masks.values())
        flips = 0.0 if self._reported is None else flipped_fraction(self._reported, masks)
        self._reported = self._copied_masks()
        return {"kept": kept / sum(layer.weight.numel() for layer in self.layers), "flips": flips}

    # ---- what can be read ------------------------------------------------------------------------------------------

    @property
    def masks(self) -> dict[str, Tensor]:
        """Layer name -> boolean mask that evaluation uses now (final after the freeze). Exactly N of M are true."""
        if self.frozen:
            return {layer.name: layer.mask for layer in self.layers if layer.mask is not None}
        return self._masks_for(self.layers)

    @property
    def patterns(self) -> dict[str, str]:
        """Layer name -> ``"N:M"`` of every pruned layer, as ``snn_core.sparsity.save_compressed`` takes it."""
        return {layer.name: str(layer.pattern) for layer in self.layers}

    def report(self) -> list[LayerReport]:
        """Every Linear, Conv1d and Conv2d of the model: pruned, or dense and why."""
        return list(self._reports)

    def schedule(self) -> Schedule:
        """Temperature, noise and the like at the present step."""
        schedule = schedule_at(self.config, self.steps_done, self._freeze_step(), self.total_steps)
        return schedule if self._fades() else replace(schedule, beta=0.0)

    # ---- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs beside the model and its optimiser. Take it after :meth:`step`."""
        state = {
            "identity": encode(self._identity()),
            "steps_done": torch.tensor(self.steps_done),
            "frozen": torch.tensor(self.frozen),
        }
        if self.frozen:
            state |= {f"mask/{name}": mask.contiguous().clone() for name, mask in self.masks.items()}
        if self._reported is not None:
            state |= {f"reported/{name}": mask.contiguous().clone() for name, mask in self._reported.items()}
        return state | self._method_state()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back :meth:`state_dict`; model and optimiser are loaded by whoever owns them, before this.

        Raises:
            CheckpointError: the state is of another method, pattern, config, set of layers or length of run, of a
                search while this pruner's masks are final, or incomplete.
        """
        saved = read_state(state, self._identity(), self.layers, self._load_method_state, frozen=self.frozen)
        self.steps_done, self._resumed_total_steps = saved.steps_done, saved.total_steps
        self._evaluation, self._reported = None, saved.reported
        for layer in self.layers:
            layer.forget_step()
        if saved.masks is not None:
            self._freeze(saved.masks)
        if self._link is not None:
            self._link.note_weights()

    def _identity(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "pattern": str(self.pattern),
            "layers": {layer.name: list(layer.weight.shape) for layer in self.layers},
            "patterns": self.patterns,
            "config": self.config.model_dump(mode="json"),
            "total_steps": self.total_steps,
        }

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        for layer in self.layers:
            take_over(layer.module, layer.name)
            hook = MaskHook(partial(self._masked_weight, layer), partial(lambda name: self.masks[name], layer.name))
            self._handles.append(layer.module.register_forward_pre_hook(hook))
            self._handles.append(layer.module.register_forward_hook(RestoreHook(), always_call=True))

    def _masked_weight(self, layer: PrunedLayer) -> Tensor:
        weight = layer.weight
        layer.called = True
        if not layer.module.training:
            return StraightThrough.apply(weight, weight.detach() * self._masks_for([layer])[layer.name])
        if layer.drawn is None or layer.drawn.device != weight.device:
            self._draw()
        assert layer.drawn is not None
        if layer.effective is None or layer.effective_of != WeightMarks.of(weight):
            layer.keep_effective(self._apply_mask(weight.detach(), layer.drawn))
        effective = layer.effective
        assert effective is not None
        # It serves the calls until their backward pass: writes through weight.data come after one, or without one.
        if not torch.is_grad_enabled():
            layer.forget_effective()
        return StraightThrough.apply(weight, effective, layer.forget_effective)

    def _masks_for(self, layers: list[PrunedLayer]) -> dict[str, Tensor]:
        """The masks of evaluation in the search phase, made anew where the weight of one of ``layers`` has changed."""
        if self._evaluation is None or any(self._values_of[layer.name] != _values(layer) for layer in layers):
            with torch.no_grad():
                self._evaluation = self._evaluation_masks()
            self._values_of = {layer.name: _values(layer) for layer in self.layers}
        return self._evaluation

    def _apply_mask(self, weight: Tensor, mask: Tensor) -> Tensor:
        beta = self.schedule().beta
        return weight * mask if beta == 0 else torch.where(mask, weight, weight * beta)

    @torch.no_grad()
    def _draw(self) -> None:
        """One draw for all layers, used by every training forward pass until the next step."""
        for group in self.groups:
            hard = group.top(self._training_key(group))
            for layer in group.layers:
                layer.drawn = group.spread(hard, layer)

    def _evaluation_masks(self) -> dict[str, Tensor]:
        masks: dict[str, Tensor] = {}
        for group in self.groups:
            hard = group.top(self._evaluation_key(group))
            masks |= {layer.name: group.spread(hard, layer) for layer in group.layers}
        return {layer.name: masks[layer.name] for layer in self.layers}

    def _copied_masks(self) -> dict[str, Tensor]:
        return {name: mask.clone() for name, mask in self.masks.items()}

    def _check(self, layer: PrunedLayer) -> None:
        """Of a finished layer: its weight must obey the pattern."""
        violations = check_nm(layer.weight, layer.pattern)
        assert violations == 0, f"{layer.name}: {violations} blocks break {layer.pattern}"

    def _freeze_step(self) -> int:
        return round(self._freeze_fraction() * self.total_steps)

    def _freeze_when_due(self) -> None:
        if not self.frozen and self.steps_done >= self._freeze_step():
            self._freeze()

    def _freeze(self, masks: dict[str, Tensor] | None = None) -> None:
        """Make the masks final: zero the dropped weights and their moments, take the hooks off the layers."""
        if masks is None:
            masks = self.masks
            for name in [layer.name for layer in self.layers if self.steps_done > 0 and not layer.called]:
                warnings.warn(f"layer {name!r} was never called in training: nothing chose its mask", stacklevel=2)
        for layer in self.layers:
            layer.mask = masks[layer.name].to(layer.weight.device)
            clear_dropped(layer.weight, ~layer.mask, self._optimizer)
            if isinstance(layer.module, MaskedLayer):  # it had a mask of its own while this one was searched
                layer.module.set_mask(layer.mask, layer.pattern)
            layer.forget_step()
        self.frozen = True
        self._evaluation = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    # ---- around the optimiser's step -------------------------------------------------------------------------------

    @property
    def _optimizer(self) -> torch.optim.Optimizer | None:
        return None if self._link is None else self._link.optimizer

    def _on_gradients(self, first: bool) -> None:
        if first:
            self._ranks.check_pruner(self._identity, self.steps_done, self.layers, self._shared_tensors)
        if self.frozen:
            for layer in self.layers:
                if layer.weight.grad is not None:
                    layer.clear_dropped(layer.weight.grad)
            return
        for layer in self.layers:
            layer.check_called()
        if first:  # LBFGS asks for gradients several times in one step
            self._before_optimizer_step()

    @torch.no_grad()
    def _after_optimizer_step(self) -> None:
        """Dropped weights have no gradient, but an update may mix weights (Muon) or add noise."""
        if self.frozen:
            for layer in self.layers:
                layer.clear_dropped(layer.weight)


def _values(layer: PrunedLayer) -> tuple[WeightMarks, Tensor | float]:
    return WeightMarks.of(layer.weight), content_sum(layer.weight)
