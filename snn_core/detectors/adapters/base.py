"""What all adapters share: where they stand, what they know of the tokens, and their names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from snn_core.backbones.options import check_types, hints_of, nearest, one_of
from snn_core.errors import ArgumentError


@dataclass
class Pass:
    """What a network tells its adapters in one forward pass, and what they leave there.

    Attributes:
        prefix: tokens before those of the picture (class and register tokens).
        grid: height and width of the picture in patches.
        gate: ``[B]`` in 0 to 1, how far adversary experts are on; None: no detector.
        adversary: ``[B]`` logits of the adversary detector.
        losses: terms to be added to the loss, one a router.
    """

    prefix: int = 0
    grid: tuple[int, int] = (0, 0)
    gate: Tensor | None = None
    adversary: Tensor | None = None
    losses: list[Tensor] = field(default_factory=list)

    def begin(self, prefix: int, grid: tuple[int, int]) -> None:
        """Before the blocks."""
        self.prefix, self.grid = prefix, grid
        self.end()

    def end(self) -> None:
        """After them: nothing of a graph stays (it would hold memory, and could not be copied)."""
        self.gate = self.adversary = None
        self.losses = []


@dataclass
class Host:
    """The network that adapters are attached to.

    Attributes:
        blocks: its transformer blocks; adapters go into them, in place.
        width: channels of a token.
        in_channels: of the picture.
        state: shared by all adapters.
        planned: blocks, paths in them, and the adapters that will stand there.
    """

    blocks: nn.Module
    width: int
    in_channels: int
    state: Pass
    planned: list[tuple[nn.Module, str, Adapter]] = field(default_factory=list)


class Adapter(nn.Module):
    """A small module beside a frozen one. ``forward(x, y)``: what is added to ``y = frozen(x)``.

    A subclass gives zero when it is new, so that a network answers as before.
    """

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``x``: input of the frozen module, ``y``: its output -> of the shape of ``y``."""
        raise NotImplementedError


class Beside(nn.Module):
    """A frozen module and the adapters beside it: ``y = base(x)``, ``y + sum of adapter(x, y)``."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleList()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the frozen module."""
        y: Tensor = self.base(x, *args, **kwargs)
        total = y
        for adapter in self.adapters:
            total = total + adapter(x, y)
        return total


def beside(host: Host, block: nn.Module, path: str, adapter: Adapter, what: str) -> None:
    """Plan ``adapter`` beside the submodule ``path`` of a transformer block; :func:`attach` puts it there.

    Raises:
        ArgumentError: the block has none of that name; ``what`` says whose it would have been.
    """
    _place(block, path, what)
    host.planned.append((block, path, adapter))


def _place(block: nn.Module, path: str, what: str) -> tuple[nn.Module, str, Any]:
    """Owner, name and module of ``path``, looking through adapters that stand around a part of it."""
    owner, module, name = block, block, ""
    for name in path.split("."):
        owner = module.base if isinstance(module, Beside) else module
        child = owner._modules.get(name)
        if child is None:
            children = [child for child, _ in block.named_modules() if child and ".adapters" not in child]
            near = difflib.get_close_matches(path, children, n=3, cutoff=0.3)
            raise ArgumentError(
                f"adapters: {what} stands beside {path!r}, which a {type(block).__name__} has not; nearest: "
                f"{', '.join(near) or 'none'}"
            )
        module = child
    return owner, name, module


def _put(block: nn.Module, path: str, adapter: Adapter) -> None:
    owner, name, module = _place(block, path, "it")
    if not isinstance(module, Beside):
        module = Beside(module)
        setattr(owner, name, module)
    module.adapters.append(adapter)


def features_of(block: nn.Module, path: str, what: str) -> tuple[int, int]:
    """Inputs and outputs of the linear layer ``path`` of a block.

    Raises:
        ArgumentError: as :func:`beside`, or it is no linear layer.
    """
    module: Any = _place(block, path, what)[2]
    module = module.base if isinstance(module, Beside) else module
    if not hasattr(module, "in_features") or not hasattr(module, "out_features"):
        raise ArgumentError(f"adapters: {what} stands beside linear layers, and {path!r} is a {type(module).__name__}")
    return int(module.in_features), int(module.out_features)


def as_maps(tokens: Tensor, state: Pass) -> tuple[Tensor, Tensor | None]:
    """Tokens as pictures of channels.

    Args:
        tokens: ``[B, prefix + H * W, C]``, or ``[B, H, W, C]`` as SAM's encoder and its windows have them.
        state: of this forward pass.

    Returns:
        ``[B, C, H, W]``, and the tokens before them ``[B, prefix, C]`` or None.

    Raises:
        ArgumentError: a number of tokens that is not the picture's (some were dropped).
    """
    if tokens.ndim == 4:
        return tokens.permute(0, 3, 1, 2), None
    height, width = state.grid
    prefix = tokens.shape[1] - height * width
    if prefix not in (0, state.prefix):
        raise ArgumentError(
            f"tokens: {tokens.shape[1]} tokens are no grid of {height} x {width} and {state.prefix} before it"
        )
    maps = tokens[:, prefix:].transpose(1, 2).unflatten(2, (height, width))
    return maps, tokens[:, :prefix] if prefix else None


def as_tokens(maps: Tensor, prefix: Tensor | None, like: Tensor) -> Tensor:
    """The inverse of :func:`as_maps`; ``like`` says which form."""
    if like.ndim == 4:
        return maps.permute(0, 2, 3, 1)
    tokens = maps.flatten(2).transpose(1, 2)
    return tokens if prefix is None else torch.cat([prefix, tokens], 1)


class MapAdapter(Adapter):
    """An adapter that sees the tokens of the picture as maps; to the tokens before them it adds nothing.

    Args:
        state: of the network.
    """

    of_output = False  # whether it sees what the frozen module gives; else what that is given

    def __init__(self, state: Pass) -> None:
        super().__init__()
        self.state = state

    def on_maps(self, maps: Tensor, tokens: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` (and the tokens that they are) -> ``[B, C, H, W]``."""
        raise NotImplementedError

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Tokens -> the same shape."""
        tokens = y if self.of_output else x
        maps, prefix = as_maps(tokens, self.state)
        return as_tokens(self.on_maps(maps, tokens), None if prefix is None else torch.zeros_like(prefix), tokens)


def zero_(layer: nn.Linear | nn.Conv2d) -> Any:
    """The layer with zeros: what an adapter ends with."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def positive(name: str, value: Any) -> int:
    """A positive integer.

    Raises:
        ArgumentError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArgumentError(f"adapters: {name} is {value!r}; it must be a positive integer")
    return value


#: What attaches a form to a network. It may return a module that sees the picture before the blocks do.
Attach = Callable[..., nn.Module | None]
_FORMS: dict[str, Attach] = {}


def adapter_form(name: str) -> Callable[[Attach], Attach]:
    """Decorator: make a form known under ``name``."""

    def add(attach: Attach) -> Attach:
        _FORMS[name] = attach
        return attach

    return add


def list_adapters() -> list[str]:
    """Names of the forms."""
    return sorted(_FORMS)


def attach(host: Host, form: str, options: Mapping[str, Any]) -> nn.Module | None:
    """Attach one form to all blocks of a network.

    Returns:
        A module to be called with the picture before the blocks, or None.

    Raises:
        ArgumentError: unknown form or option (with the nearest name), or values that are not allowed.
    """
    one_of("adapters: form", form, list_adapters())
    hints = hints_of(_FORMS[form]) or {}
    known = list(hints)[1:]
    for name in options:
        if name not in known:
            raise ArgumentError(
                f"adapters: {form} has no option {name!r}{nearest(name, known)}; allowed: {', '.join(known)}"
            )
    check_types(options, hints, f"adapters: {form}: ")
    front = _FORMS[form](host, **options)
    for block, path, adapter in host.planned:  # only now, so that a refused form leaves the network as it was
        _put(block, path, adapter)
    host.planned.clear()
    return front
