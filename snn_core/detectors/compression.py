"""Which weights of a frozen transformer stay: by magnitude, or by magnitude times the size of their inputs (Wanda)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from snn_core.detectors.frozen import check_layers, compress_layer
from snn_core.errors import ArgumentError
from snn_core.kernels.nm_compress import NMPattern, nm_mask_by_magnitude


def compress_by_magnitude(
    blocks: nn.Module, pattern: NMPattern | str, dtype: torch.dtype | None = None, backend: str = "compressed"
) -> None:
    """Exchange every linear layer of ``blocks``, in place, for a :class:`FrozenLinear` of its largest weights.

    Args:
        blocks: of a transformer.
        pattern: N:M along the inputs.
        dtype: of the stored values; default that of the layers.
        backend: as in :class:`FrozenLinear`.

    Raises:
        ArgumentError: a layer that cannot be compressed, named; nothing is changed then.
    """
    pattern = NMPattern.parse(pattern)
    made = {
        name: compress_layer(layer, pattern, nm_mask_by_magnitude(layer.weight.detach(), pattern), dtype, backend)
        for name, layer in check_layers(blocks, pattern).items()
    }
    for name, compressed in made.items():
        _exchange(blocks, name, compressed)


@torch.no_grad()
def compress_by_wanda(
    model: nn.Module,
    blocks: nn.Module,
    pattern: NMPattern | str,
    calibration: Tensor | Iterable[Tensor],
    dtype: torch.dtype | None = None,
    backend: str = "compressed",
) -> None:
    """As :func:`compress_by_magnitude`, but of each block of M the weights with the largest ``|w_ij| ||x_j||_2`` stay.

    Source: Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models" (Wanda). As there, one
    transformer block after the other: the inputs of a block are those that the compressed blocks before it give.

    Args:
        model: what is called with the calibration pictures; it calls ``blocks`` one after the other, each once.
        blocks, pattern, dtype, backend: as in :func:`compress_by_magnitude`.
        calibration: a batch ``[B, C, H, W]`` or several; some dozens of pictures.

    Raises:
        ArgumentError: as there, and for calibration pictures that are none, or not finite.

    Whatever ends it early (an error of the model, Ctrl-C), no layer is changed then.
    """
    pattern = NMPattern.parse(pattern)
    pictures = _one_batch(calibration)
    layers = check_layers(blocks, pattern)
    norms: dict[nn.Module, Tensor] = {}
    made: dict[nn.Module, nn.Module] = {}
    was_training, handles, done = model.training, [], []

    def after_block(block: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        for layer in [module for module in block.modules() if module in norms]:
            mask = nm_mask_by_magnitude(layer.weight.abs() * norms.pop(layer), pattern)  # type: ignore[operator]
            made[layer] = compress_layer(layer, pattern, mask, dtype, backend)  # type: ignore[arg-type]
        done.append(block)
        return type(block).forward(block, *args, **kwargs)  # not the call: it would come here again

    def after_layer(layer: nn.Module, args: Any, output: Any) -> Any:
        compressed = made.get(layer)  # what the blocks behind this one are to see
        return output if compressed is None else compressed(*args)

    for layer in layers.values():
        handles.append(layer.register_forward_pre_hook(lambda of, args: norms.update({of: _input_norm(args[0])})))
        handles.append(layer.register_forward_hook(after_layer))
    for block in blocks.children():
        handles.append(block.register_forward_hook(after_block, with_kwargs=True))
    try:
        model.eval()(pictures)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    silent = [name for name, layer in layers.items() if layer not in made]
    if len(done) != len(list(blocks.children())) or silent:
        unused = f", and never layer {silent[0]}" if silent else ""
        raise ArgumentError(f"model: it called {len(done)} of its {len(list(blocks.children()))} blocks{unused}")
    for name, layer in layers.items():  # only now: all of them
        _exchange(blocks, name, made[layer])


def _one_batch(calibration: Tensor | Iterable[Tensor]) -> Tensor:
    batches = [calibration] if isinstance(calibration, Tensor) else list(calibration)
    if not batches or not all(isinstance(batch, Tensor) and batch.ndim == 4 for batch in batches):
        raise ArgumentError("calibration: expected a batch of pictures [B, C, H, W], or several")
    pictures = torch.cat(batches)
    if not len(pictures) or not torch.isfinite(pictures).all():
        raise ArgumentError("calibration: no pictures, or values that are not finite")
    return pictures


def _input_norm(x: Tensor) -> Tensor:
    """Length of each input feature's vector over all tokens: ``[in_features]``, in the dtype of ``x``."""
    return x.detach().flatten(0, -2).float().square().sum(0).sqrt().to(x.dtype)


def _exchange(root: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, new)
