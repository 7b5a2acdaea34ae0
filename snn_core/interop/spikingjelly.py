"""Run the neurons of a SpikingJelly model on this package's ``lif`` operator, in one call.

::

    from snn_core.interop.spikingjelly import accelerate

    print(accelerate(model))      # which neurons were replaced, and which were kept and why

Needs SpikingJelly 2 (an optional dependency, imported on the first call).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from torch import nn

from snn_core.errors import ArgumentError, SnnCoreError
from snn_core.kernels.native import BACKENDS

_NEURON_PACKAGE = "spikingjelly.activation_based.neuron."


class SpikingJellyMissingError(SnnCoreError, ImportError):
    """SpikingJelly 2 is not installed, or does not import."""

    exit_code = 5


@dataclass(frozen=True)
class ReplacedNeuron:
    """A neuron that runs on the ``lif`` operator: its name in the model and the class it had."""

    name: str
    kind: str


@dataclass(frozen=True)
class KeptNeuron:
    """A neuron that was left as it is, and why."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class AccelerationReport:
    """What :func:`accelerate` did; printing it gives a line a kept neuron."""

    replaced: tuple[ReplacedNeuron, ...]
    kept: tuple[KeptNeuron, ...]

    def __str__(self) -> str:
        count = len(self.replaced) + len(self.kept)
        lines = [f"{len(self.replaced)} of {count} SpikingJelly neurons run on snn_core's lif operator"]
        lines += [f"  kept {neuron.name} ({neuron.kind}): {neuron.reason}" for neuron in self.kept]
        return "\n".join(lines)


def accelerate(model: nn.Module, *, backend: str = "auto", strict: bool = False) -> AccelerationReport:
    """Make every SpikingJelly neuron of ``model`` run on the ``lif`` operator whose dynamics that reproduces exactly.

    These are IFNode, LIFNode, ParametricLIFNode and subclasses that leave their dynamics alone, with the surrogates
    ATan, Sigmoid, PiecewiseQuadratic, Rect and SuperSpike, all their options and both step modes. The model is changed
    in place: a neuron stays the same object and gets a subclass of its own class that overrides only the computation.
    So spikes stay equal bit for bit in float32 (gradients to rounding), and everything around a neuron keeps working:
    ``functional.reset_net``, ``set_step_mode``, ``detach_net``, memories, state_dict and old checkpoints, hooks,
    monitors, optimizers that hold the ``w`` of a ParametricLIFNode, copies and pickles (which need this package).

    Settings are read at every call; where a neuron is later given settings, or gets an input, that the operator does
    not take (another surrogate, float64), SpikingJelly's own code runs. With bfloat16 and float16 input the state is
    float32, where SpikingJelly's has the input's dtype: spikes may then differ. An infinite input spikes and is reset,
    where SpikingJelly's potential becomes NaN. The backward recomputes from the input, so autograd refuses where that
    was changed in place after the call (SpikingJelly keeps potentials instead); a second derivative is refused.

    Tools that go by a module's exact class (NIR export, SpikingJelly's precision policies) want the neurons as they
    were: use them before, or after :func:`restore`.

    Args:
        model: any module; may itself be a neuron. One that is accelerated already keeps so, with ``backend``.
        backend: as of :func:`snn_core.kernels.lif`. ``"auto"`` leaves tensors for which this machine has no compiled
            kernel to SpikingJelly's code.
        strict: raise if any neuron has to be kept.

    Returns:
        What was replaced, and what was kept and why; neurons used in several places count once, under the first name.

    Raises:
        SpikingJellyMissingError: SpikingJelly 2 is not installed.
        ArgumentError: unknown ``backend``, ``model`` is no module, or ``strict`` and a neuron that is not supported.
            After any error the model is as it was.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    if backend not in ("auto", *BACKENDS):
        raise ArgumentError(f"backend is {backend!r}; allowed: auto, {', '.join(BACKENDS)}")
    neurons = _neurons_module()
    plan: list[tuple[nn.Module, type]] = []
    replaced, kept = [], []
    for name, module in model.named_modules():
        if not _is_neuron(module):
            continue
        accelerated = isinstance(module, neurons.AcceleratedNeuron)
        kind = neurons.original_class(module) if accelerated else type(module)
        if reason := neurons.why_not(module):
            kept.append(KeptNeuron(name or "(the model itself)", kind.__name__, reason))
        else:
            replaced.append(ReplacedNeuron(name or "(the model itself)", kind.__name__))
            plan.append((module, neurons.accelerated_class(kind)))
    report = AccelerationReport(tuple(replaced), tuple(kept))
    if strict and kept:
        raise ArgumentError(f"strict is True, and the model is left as it was: {report}")
    _apply(plan, backend)
    return report


def restore(model: nn.Module) -> int:
    """Give every accelerated neuron of ``model`` its own class back, with state and parameters as they are.

    Returns:
        How many there were.

    Raises:
        SpikingJellyMissingError: SpikingJelly 2 is not installed.
    """
    neurons = _neurons_module()
    accelerated = [module for module in model.modules() if neurons.AcceleratedNeuron in type(module).__bases__]
    for module in accelerated:
        module.__class__ = neurons.original_class(module)
        vars(module).pop("_snn_core_backend", None)
    return len(accelerated)


def _apply(plan: list[tuple[nn.Module, type]], backend: str) -> None:
    """Change all classes, or none."""
    before = [(module, type(module), vars(module).get("_snn_core_backend")) for module, _ in plan]
    try:
        for module, cls in plan:
            module.__class__ = cls
            vars(module)["_snn_core_backend"] = backend
    except BaseException:
        for module, cls, old_backend in before:
            module.__class__ = cls
            vars(module).pop("_snn_core_backend", None)
            if old_backend is not None:
                vars(module)["_snn_core_backend"] = old_backend
        raise


def _is_neuron(module: nn.Module) -> bool:
    return any(f"{cls.__module__}.".startswith(_NEURON_PACKAGE) for cls in type(module).__mro__)


def _neurons_module() -> ModuleType:
    try:
        from snn_core.interop import spikingjelly_neuron
    except (ImportError, AttributeError) as error:
        raise SpikingJellyMissingError(
            f"SpikingJelly 2 is needed and does not import ({type(error).__name__}: {error}); "
            'install it with: pip install "spikingjelly>=2.0,<3"'
        ) from error
    return spikingjelly_neuron
