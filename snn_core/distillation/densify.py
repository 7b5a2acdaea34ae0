"""SDR: spike features densified with the membrane potential that is left after the reset.

PACE names the idea (densify spike features with residual membrane potentials). The concrete form is this project's:

    f[t] = s[t] + beta * v[t] / v_threshold        v[t]: membrane potential after reset, beta = 0: spikes only

Spikes are zero almost everywhere and their gradient is a surrogate; the residual potential is real-valued and
differentiable without the surrogate's bias between spikes.

Works with any model whose spiking layers run in step mode "m" and keep the potential of every step as ``.v_seq`` when
``.store_v_seq`` is true: this package's neurons and SpikingJelly's.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn_core.errors import ArgumentError


def densify(spike_seq: Tensor, v_seq: Tensor, *, v_threshold: float | Tensor = 1.0, beta: float = 1.0) -> Tensor:
    """``spike_seq + beta * v_seq / v_threshold``.

    Args:
        spike_seq: spikes ``[T, B, ...]``. v_seq: membrane potential after reset, same shape.
        v_threshold: the neuron's threshold, in the unit of ``v_seq``. beta: weight of the residual.

    Returns:
        Features of the same shape and dtype, in the autograd graph of both inputs.

    Raises:
        ArgumentError: the shapes differ.
    """
    if spike_seq.shape != v_seq.shape:
        raise ArgumentError(f"v_seq: got shape {tuple(v_seq.shape)}, need that of spike_seq, {tuple(spike_seq.shape)}")
    if beta == 0:
        return spike_seq
    return spike_seq + (beta / v_threshold) * v_seq


def pool_feature_maps(features: Tensor, kernel: int = 1) -> Tensor:
    """Average-pool feature maps by ``kernel`` x ``kernel`` and flatten: ``[T, B, C, H, W]`` -> ``[T, B, D]``.

    Features without spatial dimensions, and maps smaller than the kernel, are only flattened. Rows and columns that do
    not fill a window are left out, as by the network's own pooling.
    """
    if kernel > 1 and features.ndim == 5 and min(features.shape[-2:]) >= kernel:
        pooled = F.avg_pool2d(features.flatten(0, 1), kernel)
        features = pooled.unflatten(0, features.shape[:2])
    return features.flatten(2)


def find_spiking_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules of a model's spiking layers, in order.

    A model that has a method ``spiking_layers()`` is asked; otherwise every submodule that has both ``v_threshold``
    and ``store_v_seq`` counts, in registration order.
    """
    named = getattr(model, "spiking_layers", None)
    if callable(named):
        return list(named())
    return [
        (name, module)
        for name, module in model.named_modules()
        if hasattr(module, "v_threshold") and hasattr(module, "store_v_seq")
    ]


def choose_layers(model: nn.Module, layers: Sequence[str | int] | None) -> list[tuple[str, nn.Module]]:
    """The spiking layers called for, by name or by index (negative counts from the last); None means all.

    Raises:
        ArgumentError: no spiking layer at all, or a name or index that the model does not have.
    """
    available = find_spiking_layers(model)
    if not available:
        raise ArgumentError(f"model: {type(model).__name__} has no spiking layer with store_v_seq (v_seq is needed)")
    if layers is None:
        return available
    names = [name for name, _ in available]
    chosen = []
    for layer in layers:
        if isinstance(layer, str) and layer in names:
            chosen.append(available[names.index(layer)])
        elif isinstance(layer, int) and -len(names) <= layer < len(names):
            chosen.append(available[layer])
        else:
            raise ArgumentError(f"layers: {layer!r} is not a spiking layer of this model; it has {names}")
    if not chosen:
        raise ArgumentError(f"layers: empty; choose from {names}")
    return chosen


class FeatureCollector:
    """Collects SDR features of a model's spiking layers while the model runs, by forward hooks.

    Args:
        model: any network of multi-step (``step_mode="m"``) spiking layers; input and state are the caller's business.
        layers: names or indices of spiking layers; None means all.
        beta: weight of the residual membrane potential (0: spikes only). Several: the features of each weight,
            concatenated along D in that order.
        feature_pool: feature maps are average-pooled by this kernel; 1 keeps them.

    Raises:
        ArgumentError: no such layer; a layer in step mode "s", or one that does not fill ``v_seq``.

    Example::

        with FeatureCollector(teacher, beta=1.0) as collector:
            logits = teacher(frames)                  # frames [T, B, 2, H, W]
            features = collector.take()               # list of [T, B, D], one a layer, in the autograd graph
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str | int] | None = None,
        *,
        beta: float | Sequence[float] = 1.0,
        feature_pool: int = 1,
    ) -> None:
        betas = tuple(beta) if isinstance(beta, Sequence) else (beta,)
        if not betas or min(betas) < 0 or feature_pool < 1:
            raise ArgumentError(f"beta ({beta}) must be >= 0 and feature_pool ({feature_pool}) >= 1")
        self.betas = betas
        self.feature_pool = feature_pool
        self._chosen = choose_layers(model, layers)
        self._collected: dict[str, Tensor] = {}
        self._undo: list[Any] = []
        self._stored_before: list[Any] = []

    @property
    def layer_names(self) -> list[str]:
        """Names of the collected layers, in the order of :meth:`take`."""
        return [name for name, _ in self._chosen]

    def __enter__(self) -> FeatureCollector:
        for name, module in self._chosen:
            self._stored_before.append(getattr(module, "store_v_seq"))  # noqa: B009 (nn.Module has no such attribute)
            setattr(module, "store_v_seq", True)  # noqa: B010
            self._undo.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._undo:
            handle.remove()
        for (_, module), before in zip(self._chosen, self._stored_before, strict=True):
            setattr(module, "store_v_seq", before)  # noqa: B010
        self._undo.clear()
        self._stored_before.clear()
        self._collected.clear()

    def take(self) -> list[Tensor]:
        """Features ``[T, B, D]`` of the last forward pass, one tensor a layer; the collector forgets them.

        Raises:
            ArgumentError: a layer did not run since the last call.
        """
        missing = [name for name in self.layer_names if name not in self._collected]
        if missing:
            raise ArgumentError(f"layers {missing} did not run since the last take()")
        features = [self._collected[name] for name in self.layer_names]
        self._collected.clear()
        return features

    def _hook(self, name: str) -> Any:
        def collect(module: nn.Module, inputs: Any, spike_seq: Tensor) -> None:
            v_seq = getattr(module, "v_seq", None)
            if getattr(module, "step_mode", "m") != "m" or not isinstance(v_seq, Tensor):
                raise ArgumentError(f"layer {name}: needs step_mode 'm' and a filled v_seq (store_v_seq=True)")
            v_threshold = module.v_threshold
            assert isinstance(v_threshold, float | int | Tensor)
            parts = [
                pool_feature_maps(densify(spike_seq, v_seq, v_threshold=v_threshold, beta=beta), self.feature_pool)
                for beta in self.betas
            ]
            self._collected[name] = parts[0] if len(parts) == 1 else torch.cat(parts, -1)

        return collect


def collect_features(
    model: nn.Module,
    x_seq: Tensor,
    layers: Sequence[str | int] | None = None,
    *,
    beta: float | Sequence[float] = 1.0,
    feature_pool: int = 1,
) -> list[Tensor]:
    """SDR features of one pass, ``x_seq`` ``[T, B, 2, H, W]`` -> one ``[T, B, D]`` a layer; see FeatureCollector.

    The state of every module with ``reset()`` is reset before and after, so that passes do not see each other.
    """
    with FeatureCollector(model, layers, beta=beta, feature_pool=feature_pool) as collector:
        _reset_states(model)
        model(x_seq)
        features = collector.take()
    _reset_states(model)
    return features


def _reset_states(model: nn.Module) -> None:
    """Reset neurons of this package and of others alike (both have ``reset()``)."""
    for module in model.modules():
        reset = getattr(module, "reset", None)
        if callable(reset) and hasattr(module, "v_threshold"):
            reset()
