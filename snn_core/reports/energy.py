"""Firing rates, synaptic operations, energy and bytes of a spiking network, measured on data.

Conventions of SNN papers, so that figures can be set side by side: one synaptic operation (SynOp) is an accumulation
caused by one input spike at one kept connection; a layer has *dense MACs x input rate x kept fraction* of them. An
accumulation (AC) costs 0.9 pJ, a multiplication with accumulation (MAC) 4.6 pJ: 32-bit floating point in 45 nm
(Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014). It is an estimate of arithmetic
alone: memory traffic, neurons and norms are not in it. A layer whose input is not binary (the first one on event
counts, or after average pooling) counts as MACs at all its inputs.

A product of two activations (attention), or with a weight that no layer holds, counts where both factors are not zero,
as accumulations, if one factor is 0 or 1 everywhere; all of it counts as MACs otherwise. Sums and products entry by
entry, as in spike-driven attention, are not counted: nothing is multiplied there but spikes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from snn_core.errors import ArgumentError
from snn_core.progress import progress
from snn_core.reports.products import ProductCounter, ProductTally
from snn_core.sparsity import CompressedLayer, NMPattern, compressed_nbytes, decompress

if TYPE_CHECKING:
    from snn_core.datasets import FrameDataset

AC_PICOJOULE = 0.9
MAC_PICOJOULE = 4.6
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class LayerEnergy:
    """One Linear, Conv1d or Conv2d; all counts are per sample, over all time steps.

    Attributes:
        name, kind: of the module.
        dense_macs: multiplications of the dense layer on dense input.
        input_rate: fraction of non-zero inputs (firing rate of the layer before, after pooling).
        binary_input: whether every input was 0 or 1; if not, the layer counts as MACs.
        kept: fraction of non-zero weights.
        acs: accumulations (SynOps), 0 for a layer that counts as MACs.
        macs: multiplications with accumulation, ``dense_macs * kept`` or 0.
        neuron: name of the neuron that the layer's output goes to, None where there is none (a read-out): the first
            one called after the layer, in the first batch, whose input has the layer's channels.
    """

    name: str
    kind: str
    dense_macs: float
    input_rate: float
    binary_input: bool
    kept: float
    acs: float
    macs: float
    neuron: str | None = None

    @property
    def energy_picojoule(self) -> float:
        """0.9 pJ an AC, 4.6 pJ a MAC."""
        return AC_PICOJOULE * self.acs + MAC_PICOJOULE * self.macs


@dataclass(frozen=True)
class EnergyReport:
    """Per layer and in total; see :func:`measure_energy`.

    Attributes:
        layers: in order of first call.
        products: what each module multiplies outside of layers: ``input_rate`` is the share of the multiplications
            whose two factors are not zero, ``kept`` is 1, ``binary_input`` says that all count as accumulations. The
            totals hold them.
        firing_rates: neuron module name -> spikes per neuron and time step.
        samples: how many were measured.
        connections, kept_connections: weights of the reported layers, and the non-zero ones among them.
        bytes_dense: parameters and buffers as they are in memory.
        bytes_compressed: the same with the layers of ``patterns`` compressed (values and packed indices).
    """

    layers: list[LayerEnergy]
    firing_rates: dict[str, float]
    samples: int
    connections: int
    kept_connections: int
    bytes_dense: int
    bytes_compressed: int
    products: list[LayerEnergy] = field(default_factory=list)

    @property
    def _all(self) -> list[LayerEnergy]:
        return self.layers + self.products

    @property
    def synops(self) -> float:
        """Synaptic operations (ACs) per sample."""
        return sum(layer.acs for layer in self._all)

    @property
    def macs(self) -> float:
        """Multiplications with accumulation per sample, in layers with non-binary input."""
        return sum(layer.macs for layer in self._all)

    @property
    def energy_microjoule(self) -> float:
        """Energy estimate per sample."""
        return sum(layer.energy_picojoule for layer in self._all) * 1e-6

    @property
    def dense_energy_microjoule(self) -> float:
        """The same network without spikes and without pruning: a MAC for every connection and step."""
        return sum(layer.dense_macs for layer in self._all) * MAC_PICOJOULE * 1e-6

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON-serialisable values."""
        layers, products = (
            [asdict(layer) | {"energy_picojoule": layer.energy_picojoule} for layer in part]
            for part in (self.layers, self.products)
        )
        totals = {
            name: getattr(self, name) for name in ("synops", "macs", "energy_microjoule", "dense_energy_microjoule")
        }
        return asdict(self) | {"layers": layers, "products": products} | totals


@dataclass
class _Tally:
    macs: float = 0.0
    inputs: int = 0
    active: int = 0
    binary: bool = True
    kept: int = 0
    size: int = 0


@dataclass
class _Measurement:
    """Sums filled by the hooks."""

    layers: dict[str, _Tally] = field(default_factory=dict)
    spikes: dict[str, list[float]] = field(default_factory=dict)
    neurons: dict[str, str] = field(default_factory=dict)
    #: Layers called whose neuron is still to come, with their output channels; None once all is known.
    waiting: dict[str, int] | None = field(default_factory=dict)

    def before_layer(self, name: str, module: Any, args: tuple[Any, ...]) -> None:
        if name in self.layers:  # the second batch, or the second step of a model that is called step by step
            self.waiting = None
        tally = self.layers.setdefault(name, _Tally())
        x, weight = args[0], module.weight
        active = int(torch.count_nonzero(x))
        tally.inputs += x.numel()
        tally.active += active
        tally.binary = tally.binary and active == int((x == 1).sum())
        # Read here, where a pruner that is still attached shows the masked weight.
        tally.kept, tally.size = int(torch.count_nonzero(weight)), weight.numel()

    def after_layer(self, name: str, module: Any, args: tuple[Any, ...], output: Tensor) -> None:
        self.layers[name].macs += output.numel() * (self.layers[name].size // module.weight.shape[0])
        if self.waiting is not None:
            self.waiting[name] = module.weight.shape[0]

    def after_neuron(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            waiting = self.waiting or {}
            for layer in [layer for layer, channels in waiting.items() if channels in output.shape[1:]]:
                self.neurons[layer] = name
                del waiting[layer]
            sums = self.spikes.setdefault(name, [0.0, 0.0])
            sums[0] += float(output.sum(dtype=torch.float64))
            sums[1] += output.numel()


def measure_energy(
    model: nn.Module,
    batches: FrameDataset | Iterable[Any],
    *,
    patterns: Mapping[str, NMPattern | str] | None = None,
    batch_size: int = 100,
    max_batches: int | None = None,
    quiet: bool = True,
) -> EnergyReport:
    """Run data through the model in evaluation mode and count.

    Args:
        model: dense, masked (zeros in its weights), with a pruner attached, or compressed by
            ``snn_core.sparsity.compress`` (a copy is then measured as the pruned network that it stands for). Ours
            and SpikingJelly's neurons are recognised by their threshold, and reset before every batch and at the end.
            A convolution whose weight is used without calling it is not seen.
        batches: a :class:`snn_core.datasets.FrameDataset`, or an iterable of inputs ``[T, B, ...]`` (``[B, ...]`` of a
            backbone that is not spiking) or of tuples that begin with one.
        patterns: layer name -> N:M of the layers to count as compressed (``pruner.patterns``).
        batch_size: for a dataset.
        max_batches: stop after so many.
        quiet: no progress bar.

    Raises:
        ArgumentError: no batch, an input without time and batch dimension, or ``patterns`` naming no layer.
    """
    stored = {name: module.pattern for name, module in model.named_modules() if isinstance(module, CompressedLayer)}
    if stored:
        model, patterns = decompress(model), stored | dict(patterns or {})
    bytes_dense, bytes_compressed = _model_bytes(model, patterns or {})
    measurement, handles = _Measurement(), []
    counter = ProductCounter()
    for name, module in model.named_modules():
        layer = isinstance(module, LAYERS)
        handles.append(module.register_forward_pre_hook(partial(_enter, counter, name, layer)))
        handles.append(module.register_forward_hook(partial(_leave, counter, layer)))
        if layer:
            handles.append(module.register_forward_pre_hook(partial(measurement.before_layer, name)))
            handles.append(module.register_forward_hook(partial(measurement.after_layer, name)))
        elif hasattr(module, "v_threshold"):
            handles.append(module.register_forward_hook(partial(measurement.after_neuron, name)))
    was_training, samples = model.training, 0
    batch_dim = 0 if getattr(model, "spiking", True) is False else 1
    model.eval()
    try:
        with torch.no_grad():
            inputs = _inputs(batches, batch_size, next(model.parameters()).device)
            for number, x_seq in enumerate(progress(inputs, description="energy", quiet=quiet)):
                if max_batches is not None and number >= max_batches:
                    break
                if not isinstance(x_seq, Tensor) or x_seq.ndim < 2:
                    raise ArgumentError(f"batches: expected tensors [T, B, ...], got {_describe(x_seq)}")
                _reset_neurons(model)
                counter.restart()
                with counter:
                    model(x_seq)
                samples += x_seq.shape[batch_dim]
    finally:
        _reset_neurons(model)
        model.train(was_training)
        for handle in handles:
            handle.remove()
    if samples == 0:
        raise ArgumentError("batches: no sample to measure")
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    return EnergyReport(
        layers=[
            _layer(name, kinds[name], tally, samples, measurement.neurons.get(name))
            for name, tally in measurement.layers.items()
        ],
        products=[_product(name, kinds[name], sums, samples) for name, sums in counter.tallies.items() if sums.dense],
        firing_rates={name: total / count for name, (total, count) in measurement.spikes.items() if count},
        samples=samples,
        connections=sum(tally.size for tally in measurement.layers.values()),
        kept_connections=sum(tally.kept for tally in measurement.layers.values()),
        bytes_dense=bytes_dense,
        bytes_compressed=bytes_compressed,
    )


def _reset_neurons(model: nn.Module) -> None:
    """Batches must not see each other's membrane potentials, also where the model does not reset them itself."""
    for module in model.modules():
        reset = getattr(module, "reset", None)
        if callable(reset) and hasattr(module, "v_threshold"):
            reset()


def _layer(name: str, kind: str, tally: _Tally, samples: int, neuron: str | None) -> LayerEnergy:
    dense_macs, kept = tally.macs / samples, tally.kept / max(1, tally.size)
    rate = tally.active / max(1, tally.inputs)
    acs, macs = (dense_macs * rate * kept, 0.0) if tally.binary else (0.0, dense_macs * kept)
    return LayerEnergy(name, kind, dense_macs, rate, tally.binary, kept, acs, macs, neuron)


def _product(name: str, kind: str, tally: ProductTally, samples: int) -> LayerEnergy:
    rate, binary = tally.active / tally.dense, not tally.macs
    return LayerEnergy(
        name, kind, tally.dense / samples, rate, binary, 1.0, tally.acs / samples, tally.macs / samples
    )  # fmt: skip


def _enter(counter: ProductCounter, name: str, layer: bool, module: nn.Module, args: Any) -> None:
    counter.enter(name, layer)


def _leave(counter: ProductCounter, layer: bool, module: nn.Module, args: Any, output: Any) -> None:
    counter.leave(layer)


def _inputs(batches: Any, batch_size: int, device: torch.device) -> Iterator[Any]:
    frames = getattr(batches, "frames", None)
    if isinstance(frames, Tensor):
        for start in range(0, len(frames), batch_size):
            yield frames[start : start + batch_size].transpose(0, 1).to(device)
        return
    for batch in batches:
        x_seq = batch[0] if isinstance(batch, (tuple, list)) else batch
        yield x_seq.to(device) if isinstance(x_seq, Tensor) else x_seq


def _describe(value: Any) -> str:
    return f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _model_bytes(model: nn.Module, patterns: Mapping[str, NMPattern | str]) -> tuple[int, int]:
    """Bytes of parameters and buffers, as they are and with the layers of ``patterns`` compressed."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    dense = sum(tensor.nbytes for tensor in tensors.values())
    compressed = dense
    for name, pattern in patterns.items():
        weight = tensors.get(f"{name}.weight")
        if weight is None:
            raise ArgumentError(f"patterns: the model has no layer {name!r} with a weight")
        if not NMPattern.parse(pattern).divides(weight):
            raise ArgumentError(f"patterns: layer {name!r} of shape {list(weight.shape)} cannot be cut for {pattern}")
        compressed += compressed_nbytes(weight.shape, pattern, weight.element_size()) - weight.nbytes
    return dense, compressed
