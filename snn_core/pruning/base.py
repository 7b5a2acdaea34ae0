"""What all pruners share: attaching to layers, one mask a step, freeze, resume."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from snn_core.errors import ArgumentError, CheckpointError
from snn_core.pruning.config import PruneConfig
from snn_core.pruning.groups import BlockGroup, PrunedLayer
from snn_core.pruning.layers import LayerReport, select_layers
from snn_core.pruning.masking import SnapshotMask, StraightThrough, clear_dropped, restore_weight, show_weight
from snn_core.pruning.schedule import Schedule, schedule_at
from snn_core.sparsity import MaskedLayer, NMPattern, check_nm


class _MaskHook:
    """Forward pre-hook of a pruned layer. A copy of the model gets a snapshot of the mask, not of the pruner."""

    def __init__(self, pruner: NMPruner, layer: PrunedLayer) -> None:
        self.pruner, self.layer = pruner, layer

    def __call__(self, module: nn.Module, args: Any) -> None:
        show_weight(module, self.pruner._masked_weight(self.layer))

    def __deepcopy__(self, memo: dict[int, Any]) -> SnapshotMask:
        return SnapshotMask(self.pruner.masks[self.layer.name].clone())


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

    Args:
        model: any module with Linear, Conv1d or Conv2d layers.
        pattern: N:M; overrides ``config.pattern``.
        config: settings.
        include, exclude: layer names with shell wildcards; override the config's.
        optimizer, total_steps: given together they call :meth:`begin`.

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
    ) -> None:
        changes: dict[str, Any] = {}
        if pattern is not None:
            changes["pattern"] = str(NMPattern.parse(pattern))
        if include is not None:
            changes["include"] = tuple(include)
        if exclude is not None:
            changes["exclude"] = tuple(exclude)
        self.config = (config or PruneConfig()).model_copy(update=changes)
        self.pattern = NMPattern.parse(self.config.pattern)
        self.model = model
        chosen, self._reports = select_layers(
            model,
            self.pattern,
            include=self.config.include,
            exclude=self.config.exclude,
            keep_first_dense=self.config.keep_first_dense,
            keep_last_dense=self.config.keep_last_dense,
        )
        self.layers = [PrunedLayer(name, module, slice(0)) for name, module in chosen]
        self.group = BlockGroup(self.layers, self.pattern)
        self.total_steps = 0
        self.steps_done = 0
        self.frozen = False
        self._optimizer: torch.optim.Optimizer | None = None
        self._optimizer_handle: RemovableHandle | None = None
        self._handles: list[RemovableHandle] = []
        self._evaluation: tuple[tuple[int, ...], dict[str, Tensor]] | None = None
        self._resumed_total_steps = 0
        self._attach()
        if (optimizer is None) != (total_steps is None):
            raise ArgumentError(
                "optimizer and total_steps must be given together (or neither, and begin() called later)"
            )
        if optimizer is not None and total_steps is not None:
            self.begin(model, optimizer, total_steps)

    # ---- what a method defines -------------------------------------------------------------------------------------

    @abstractmethod
    def _training_key(self) -> Tensor:
        """Key ``[M, blocks]`` whose top N are the mask of this training step."""

    @abstractmethod
    def _evaluation_key(self) -> Tensor:
        """Deterministic key ``[M, blocks]`` of the mask for evaluation and freeze."""

    def _before_optimizer_step(self) -> None:
        """In the search phase, when gradients are complete and weights not yet changed. Optional."""
        return

    def _freeze_fraction(self) -> float:
        return self.config.freeze

    def _method_state(self) -> dict[str, Tensor]:
        return {}

    def _load_method_state(self, state: dict[str, Tensor]) -> None:
        return None

    # ---- the three calls, and the training hook --------------------------------------------------------------------

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        """Bind the optimiser of the weights and the length of the run, on which the schedules depend.

        Raises:
            ArgumentError: ``total_steps`` < 1 or not that of the state loaded before, ``model`` does not contain the
                attached layers, or ``optimizer`` does not hold their weights.
        """
        if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1:
            raise ArgumentError(f"total_steps must be a positive integer, got {total_steps!r}")
        if self._resumed_total_steps not in (0, total_steps):
            raise ArgumentError(f"total_steps: the loaded state is of {self._resumed_total_steps}, got {total_steps}")
        inside = {id(parameter) for parameter in model.parameters()}
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for layer in self.layers:
            if id(layer.weight) not in inside:
                raise ArgumentError(f"model: does not contain layer {layer.name!r}, which this pruner is attached to")
            if id(layer.weight) not in held:
                raise ArgumentError(f"optimizer: does not hold the weight of pruned layer {layer.name!r}")
        if self._optimizer_handle is not None:
            self._optimizer_handle.remove()
        self._optimizer, self.total_steps = optimizer, total_steps
        self._optimizer_handle = optimizer.register_step_pre_hook(self._optimizer_pre_hook)
        self._freeze_when_due()

    def step(self) -> None:
        """Count one optimiser step; freezes the masks when their time has come.

        Raises:
            ArgumentError: the pruner has no optimiser yet.
        """
        if self._optimizer is None:
            raise ArgumentError("pruner.step(): pass optimizer and total_steps when making the pruner, or call begin()")
        self.steps_done += 1
        self._evaluation = None
        for layer in self.layers:
            layer.forget_step()
        self._freeze_when_due()

    def finalize(self) -> dict[str, Tensor]:
        """Freeze the masks if they are not, remove every hook, check the pattern.

        Returns:
            Layer name -> boolean mask of the weight's shape. Call it again for the same masks.
        """
        if not self.frozen:
            self._freeze()
        if self._optimizer_handle is not None:
            self._optimizer_handle.remove()
            self._optimizer_handle = None
        for layer in self.layers:
            assert layer.mask is not None
            clear_dropped(layer.weight, ~layer.mask, self._optimizer)
            violations = check_nm(layer.weight, self.pattern)
            assert violations == 0, f"{layer.name}: {violations} blocks break {self.pattern}"
        return self.masks

    def end(self) -> None:
        """:meth:`finalize`, as the training hook's last call."""
        self.finalize()

    def metrics(self) -> dict[str, float]:
        """Figures for the log: ``kept`` (fraction of weights that pruned layers use) and what the method adds."""
        kept = sum(int(mask.sum()) for mask in self.masks.values())
        return {"kept": kept / sum(layer.weight.numel() for layer in self.layers)}

    # ---- what can be read ------------------------------------------------------------------------------------------

    @property
    def masks(self) -> dict[str, Tensor]:
        """Layer name -> boolean mask that evaluation uses now (final after the freeze). Exactly N of M are true."""
        if self.frozen:
            return {layer.name: layer.mask for layer in self.layers if layer.mask is not None}
        versions = tuple(layer.weight._version for layer in self.layers)
        if self._evaluation is None or self._evaluation[0] != versions:
            with torch.no_grad():
                hard = self.group.top(self._evaluation_key())
                masks = {layer.name: self.group.spread(hard, layer) for layer in self.layers}
            self._evaluation = (versions, masks)
        return self._evaluation[1]

    @property
    def patterns(self) -> dict[str, str]:
        """Layer name -> ``"N:M"`` of every pruned layer, as ``snn_core.sparsity.save_compressed`` takes it."""
        return {layer.name: str(self.pattern) for layer in self.layers}

    def report(self) -> list[LayerReport]:
        """Every Linear, Conv1d and Conv2d of the model: pruned, or dense and why."""
        return list(self._reports)

    def schedule(self) -> Schedule:
        """Temperature, noise and the like at the present step."""
        return schedule_at(self.config, self.steps_done, self._freeze_step(), self.total_steps)

    # ---- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs beside the model and its optimiser. Take it after :meth:`step`."""
        state = {
            "identity": _text_tensor(self._identity()),
            "steps_done": torch.tensor(self.steps_done),
            "frozen": torch.tensor(self.frozen),
        }
        if self.frozen:
            state |= {f"mask/{name}": mask.contiguous().clone() for name, mask in self.masks.items()}
        return state | self._method_state()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back :meth:`state_dict`; model and optimiser are loaded by whoever owns them, before this.

        Raises:
            CheckpointError: the state is of another method, pattern, config, set of layers or length of run, of a
                search while this pruner's masks are final, or incomplete.
        """
        try:
            total_steps = self._check_identity(json.loads(bytes(state["identity"].flatten().tolist())))
            steps_done, frozen = int(state["steps_done"]), bool(state["frozen"])
            if self.frozen and not frozen:
                raise CheckpointError("pruning state is of a search, but this pruner's masks are final: make a new one")
            if frozen:
                masks = {layer.name: _saved_mask(state, layer) for layer in self.layers}
            self._load_method_state(state)
        except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"pruning state is incomplete or damaged: {error}") from error
        self.steps_done, self._resumed_total_steps = steps_done, total_steps
        self._evaluation = None
        for layer in self.layers:
            layer.forget_step()
        if frozen:
            self._freeze(masks)

    def _check_identity(self, saved: dict[str, Any]) -> int:
        """Compare with :meth:`_identity`; returns the length of the run that the state is of."""
        own = self._identity()
        if self.total_steps == 0:  # begin() is still to come, and compares then
            own["total_steps"] = saved["total_steps"]
        different = [key for key, value in own.items() if saved.get(key) != value]
        if different:
            key = different[0]
            raise CheckpointError(
                f"pruning state is of another run: {', '.join(different)} differ; {key} in the state: "
                f"{saved.get(key)}, here: {own[key]}"
            )
        return int(saved["total_steps"])

    def _identity(self) -> dict[str, Any]:
        layers = {layer.name: list(layer.weight.shape) for layer in self.layers}
        return {
            "method": self.method,
            "pattern": str(self.pattern),
            "layers": layers,
            "config": self.config.model_dump(mode="json"),
            "total_steps": self.total_steps,
        }

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        for layer in self.layers:
            self._handles.append(layer.module.register_forward_pre_hook(_MaskHook(self, layer)))
            self._handles.append(layer.module.register_forward_hook(restore_weight, always_call=True))

    def _masked_weight(self, layer: PrunedLayer) -> Tensor:
        weight = layer.weight
        layer.called = True
        if not layer.module.training:
            return StraightThrough.apply(weight, weight.detach() * self.masks[layer.name])
        if layer.drawn is None:
            self._draw()
        assert layer.drawn is not None
        if layer.effective is None or layer.effective_version != weight._version:
            layer.effective = self._apply_mask(weight.detach(), layer.drawn)
            layer.effective_version = weight._version
        return StraightThrough.apply(weight, layer.effective)

    def _apply_mask(self, weight: Tensor, mask: Tensor) -> Tensor:
        beta = self.schedule().beta
        return weight * mask if beta == 0 else weight * (mask + (~mask) * beta)

    @torch.no_grad()
    def _draw(self) -> None:
        """One draw for all layers, used by every training forward pass until the next step."""
        hard = self.group.top(self._training_key())
        for layer in self.layers:
            layer.drawn = self.group.spread(hard, layer)

    def _freeze_step(self) -> int:
        return round(self._freeze_fraction() * self.total_steps)

    def _freeze_when_due(self) -> None:
        if not self.frozen and self.steps_done >= self._freeze_step():
            self._freeze()

    def _freeze(self, masks: dict[str, Tensor] | None = None) -> None:
        """Make the masks final: zero the dropped weights and their moments, take the hooks off the layers."""
        masks = self.masks if masks is None else masks
        for layer in self.layers:
            layer.mask = masks[layer.name].to(layer.weight.device)
            clear_dropped(layer.weight, ~layer.mask, self._optimizer)
            if isinstance(layer.module, MaskedLayer):  # it had a mask of its own while this one was searched
                layer.module.set_mask(layer.mask, self.pattern)
            layer.forget_step()
        self.frozen = True
        self._evaluation = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.no_grad()
    def _optimizer_pre_hook(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self.frozen:
            for layer in self.layers:
                if layer.weight.grad is not None and layer.mask is not None:
                    layer.weight.grad.masked_fill_(~layer.mask, 0)
            return
        for layer in self.layers:
            if layer.weight.grad is not None and not layer.called:
                raise ArgumentError(
                    f"layer {layer.name!r} got a gradient without ever being called: the model uses its weight "
                    "directly, so its mask cannot take part; exclude it"
                )
        self._before_optimizer_step()


def _saved_mask(state: dict[str, Tensor], layer: PrunedLayer) -> Tensor:
    mask = state[f"mask/{layer.name}"]
    if mask.dtype != torch.bool or mask.shape != layer.weight.shape:
        raise ValueError(f"mask/{layer.name} is {mask.dtype} {list(mask.shape)}, not bool {list(layer.weight.shape)}")
    return mask


def _text_tensor(value: Any) -> Tensor:
    return torch.tensor(list(json.dumps(value, sort_keys=True).encode()), dtype=torch.uint8)
