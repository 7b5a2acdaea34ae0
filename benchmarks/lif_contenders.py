"""Who takes part in the LIF benchmarks: our backends, SpikingJelly's, other libraries', plain and compiled loops.

A library that is not installed, or that does not import here, is named with the reason. Where a library's default LIF
solves another equation (its input is not divided by tau, it has a synaptic current, ...) its times are of that one: the
work per element is of the same kind, the spikes are not the same, and they are not compared.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lif_compiled import ALPHA, TAU, compiled_forms, plain_loop
from torch import Tensor

from snn_core.errors import BackendUnavailableError
from snn_core.kernels import lif

Run = Callable[[Tensor], Tensor]


@dataclass
class Contender:
    """One way to compute the neuron.

    Args:
        name: as the tables show it.
        run: ``x_seq [T, ...]`` to spikes ``[T, ...]``, differentiable unless ``forward_only``.
        kind: ``ours``, ``spikingjelly``, ``loop``, ``compiled``, ``other`` (another equation) or ``forward``.
        bytes_per_element_step: peak memory besides x and the gradient of the spikes, to tell whether a cell fits.
            From measurements at T = 64; a guess to be on the safe side, not a result.
        overwrites: the input is overwritten (forward only).
    """

    name: str
    run: Run
    kind: str
    bytes_per_element_step: float
    overwrites: bool = False

    @property
    def forward_only(self) -> bool:
        """Inference: no gradient is recorded."""
        return self.kind == "forward"


def version(name: str) -> str | None:
    """Installed version of a distribution."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def our_backends(device: torch.device) -> tuple[str, ...]:
    """Backends of the ``lif`` operator that could run on ``device``; the first is what users get."""
    return ("cuda", "triton", "reference") if device.type == "cuda" else ("cpp", "reference")


def ours(device: torch.device, dtype: torch.dtype, tau: float = TAU) -> tuple[list[Contender], dict[str, str]]:
    """Every backend of ours that runs here, with its forward-only variants; and why the others are missing."""
    found, missing = [], {}
    for backend in our_backends(device):
        name = f"snn_core {backend}"
        heavy = 45.0 if backend == "reference" else 9.5
        probe = torch.ones(2, 8, device=device, dtype=dtype)
        variants: dict[str, dict[str, Any]] = {"": {}}
        if backend != "reference":
            variants |= {", forward": {}, ", packed": {"pack_spikes_dim": 1}, ", in place": {"inplace": True}}
        for suffix, options in variants.items():
            try:
                with torch.no_grad():
                    lif(probe.clone(), tau=tau, alpha=ALPHA, backend=backend, **options)
            except BackendUnavailableError as error:
                missing[name + suffix] = f"{type(error).__name__}: {error}"[:300]
                continue
            except Exception:  # it takes part, and fails where failures are told
                pass
            kind = "forward" if suffix else "ours"
            memory = 4.5 if suffix else heavy
            found.append(Contender(name + suffix, _our_run(backend, tau, options), kind, memory, "inplace" in options))
    return found, missing


def _our_run(backend: str, tau: float, options: dict[str, Any]) -> Run:
    def run(x_seq: Tensor) -> Tensor:
        return lif(x_seq, tau=tau, alpha=ALPHA, backend=backend, **options)[0]

    return run


def spikingjelly(device: torch.device, tau: float = TAU) -> tuple[list[Contender], dict[str, str]]:
    """SpikingJelly's multi-step LIF with a float32 state, with every implementation it has on this device."""
    try:
        from spikingjelly.activation_based import functional
        from spikingjelly.activation_based.surrogate import ATan
    except Exception as error:
        return [], {"SpikingJelly": f"{type(error).__name__}: {error}"[:300]}
    surrogate = ATan(alpha=ALPHA)

    def run(x_seq: Tensor) -> Tensor:
        v = torch.zeros_like(x_seq[0], dtype=torch.float32)
        return functional.lif_multi_step(x_seq, v, tau, True, 1.0, 0.0, surrogate, False, False)[0]

    if device.type == "cpu":
        return [Contender("SpikingJelly torch", run, "spikingjelly", 46.0)], {}
    return _spikingjelly_on_cuda(device, run)


def _spikingjelly_on_cuda(device: torch.device, run: Run) -> tuple[list[Contender], dict[str, str]]:
    """Its choice among "cuda", "triton" and "torch" has no public switch within a process; take each in turn."""
    from spikingjelly._ops.lif import _selection

    found, missing = [], {}
    x = torch.randn(4, 64, device=device)
    for implementation in ("cuda", "triton", "torch"):
        choices: dict[Any, Any] = {}

        def chosen(x_seq: Tensor, implementation: str = implementation, choices: Any = choices) -> Tensor:
            _selection._requested, _selection._selections = implementation, choices
            return run(x_seq)

        name = f"SpikingJelly {implementation}"
        try:
            leaf = x.clone().requires_grad_()
            chosen(leaf).sum().backward()
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {error}"[:300]
            continue
        found.append(Contender(name, chosen, "spikingjelly", 46.0 if implementation == "torch" else 13.0))
    return found, missing


def loops(steps: int, unroll: int, tau: float = TAU) -> list[Contender]:
    """The plain loop and its compiled forms."""
    forms = compiled_forms(steps, unroll, tau)
    return [
        Contender("plain loop", plain_loop(tau), "loop", 60.0),
        *(Contender(f"compiled loop, {name}", run, "compiled", 24.0) for name, run in forms.items()),
    ]


def others(device: torch.device) -> tuple[list[Contender], dict[str, str]]:
    """snnTorch's Leaky, norse's LIF, sinabs' LIF, with what their documentation takes by default."""
    found, missing = [], {}
    builders = {"snnTorch Leaky": _snntorch, "norse LIF": _norse, "sinabs LIF": _sinabs}
    for name, build in builders.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run = build(device)
                leaf = torch.randn(4, 64, device=device, requires_grad=True)
                run(leaf).sum().backward()
        except Exception as error:  # whatever an import or a first call of a foreign library raises
            missing[name] = f"{type(error).__name__}: {error}"[:300]
            continue
        found.append(Contender(name, run, "other", 80.0))
    return found, missing


def _snntorch(device: torch.device) -> Run:
    import snntorch
    from snntorch import surrogate

    layer = snntorch.Leaky(beta=1 - 1 / TAU, spike_grad=surrogate.atan(alpha=ALPHA)).to(device)

    def run(x_seq: Tensor) -> Tensor:
        v, spikes = layer.init_leaky(), []
        for x in x_seq.unbind(0):
            s, v = layer(x, v)
            spikes.append(s)
        return torch.stack(spikes)

    return run


def _norse(device: torch.device) -> Run:
    from norse.torch import LIF

    layer = LIF().to(device)
    return lambda x_seq: layer(x_seq)[0]


def _sinabs(device: torch.device) -> Run:
    from sinabs.layers import LIF

    layer = LIF(tau_mem=TAU).to(device)
    layer.tau_mem.requires_grad_(False)  # a parameter by default, whose gradient the others do not compute

    def run(x_seq: Tensor) -> Tensor:
        layer.reset_states()
        # [batch, time, ...] is its layout; as one sample, no copy is needed
        return layer(x_seq.unsqueeze(0)).squeeze(0)

    return run


def contenders(
    device: torch.device, dtype: torch.dtype, steps: int, unroll: int, groups: list[str], tau: float = TAU
) -> tuple[list[Contender], dict[str, str]]:
    """Everyone who can run here, ours first, and why the others cannot.

    Args:
        groups: of ``spikingjelly``, ``loop``, ``compiled``, ``other``.
        tau: time constant of those whose equation is ours; the other libraries keep their own.
    """
    found, missing = ours(device, dtype, tau)
    if "spikingjelly" in groups:
        more, why = spikingjelly(device, tau)
        found, missing = found + more, missing | why
    found += [loop for loop in loops(steps, unroll, tau) if loop.kind in groups]
    if "other" in groups:
        more, why = others(device)
        found, missing = found + more, missing | why
    return found, missing
