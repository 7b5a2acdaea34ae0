"""SpikingJelly's neurons on the ``lif`` operator; what :mod:`snn_core.interop.spikingjelly` gives a model.

An accelerated neuron is the same object with another class: a subclass of its own class that overrides the forward
methods only. Parameters, memories, hooks, names in the state_dict, references from optimizers, parents and shared uses
stay what they are, ``isinstance`` and ``functional.reset_net``, ``detach_net``, ``set_step_mode`` keep working, and
going back is assigning the old class. This module imports SpikingJelly.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor

from snn_core.kernels.lif import lif
from snn_core.kernels.lif.checks import NATIVE_DTYPES
from snn_core.kernels.native import resolve_backend

#: SpikingJelly's surrogates whose derivative is one of the operator's, with the same ``alpha``
#: (tests/interop/test_spikingjelly.py compares them point by point).
SURROGATE_NAMES = {
    surrogate.ATan: "atan",
    surrogate.Sigmoid: "sigmoid",
    surrogate.PiecewiseQuadratic: "triangle",
    surrogate.Rect: "rectangle",
    surrogate.SuperSpike: "fast_sigmoid",
}
NEURONS = (neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode)
#: What a subclass may change without changing the dynamics.
_HARMLESS = frozenset(
    {"__init__", "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__slots__",
     "__firstlineno__", "__static_attributes__", "__repr__", "__str__", "_get_name", "extra_repr", "reset", "detach",
     "__abstractmethods__", "_abc_impl", "__parameters__", "__orig_bases__"}
)  # fmt: skip
_FORWARD_METHODS = ("forward", "single_step_forward", "multi_step_forward", "functional_forward", "materialize_states",
                    "single_step_functional_forward", "multi_step_functional_forward", "_call_impl")  # fmt: skip


def kernel_options(node: Any) -> dict[str, Any] | str:
    """The operator's keyword arguments for a neuron's present settings, or why there are none."""
    function = node.surrogate_function
    name = SURROGATE_NAMES.get(type(function))
    if name is None:
        return f"surrogate function {type(function).__name__} is not one of the lif operator's"
    if not function.spiking:
        return "surrogate function has spiking=False"
    numbers = {"alpha": function.alpha, "v_threshold": node.v_threshold, "v_reset": node.v_reset, "tau": 2.0}
    if isinstance(node, neuron.LIFNode):
        numbers["tau"] = node.tau
    for key, value in numbers.items():
        if not (isinstance(value, float | int) and math.isfinite(value)) and not (key == "v_reset" and value is None):
            return f"{key} is {value!r}, not a finite number"
    for key, least in (("alpha", 0.0), ("v_threshold", 0.0), ("tau", 1.0)):
        if not numbers[key] > least:
            return f"{key} is {numbers[key]}; the lif operator needs more than {least:g}"
    if node._neuron_precision is not None:
        return "SpikingJelly's precision policy is set for it"
    options = numbers | {"surrogate": name, "detach_reset": bool(node.detach_reset), "decay_input": False}
    if isinstance(node, neuron.IFNode):
        return options | {"tau": math.inf}
    if isinstance(node, neuron.ParametricLIFNode) and (node.w.ndim != 0 or node.w.dtype not in NATIVE_DTYPES):
        return f"w is {node.w.dtype} of shape {tuple(node.w.shape)}, not one number"
    return options | {"decay_input": bool(node.decay_input)}


def why_not(node: Any) -> str:
    """Why a SpikingJelly neuron cannot be accelerated; empty where it can."""
    base = next((kind for kind in NEURONS if isinstance(node, kind)), None)
    if base is None:
        return f"{type(node).__name__} has other dynamics than IFNode, LIFNode and ParametricLIFNode"
    if torch.nn.utils.parametrize.is_parametrized(node):
        return "is parametrized (torch.nn.utils.parametrize)"
    changed = [
        name
        for cls in type(node).__mro__
        if cls not in base.__mro__ and not issubclass(cls, AcceleratedNeuron)
        for name in vars(cls)
        if name not in _HARMLESS and (hasattr(base, name) or name.startswith("neuronal_"))
    ]
    changed += [name for name in _FORWARD_METHODS if name in vars(node)]
    if changed:
        return f"{type(node).__name__} overrides {', '.join(sorted(set(changed)))} of {base.__name__}"
    if list(node._memories) != ["v"]:
        return f"has the memories {', '.join(node._memories)} where {base.__name__} has v alone"
    options = kernel_options(node)
    if isinstance(options, str):
        return options
    function = node.surrogate_function
    hooks = (function._forward_hooks, function._forward_pre_hooks, function._backward_hooks,
             function._backward_pre_hooks)  # fmt: skip
    if any(hooks):
        return "surrogate function has hooks, which would no longer run"
    if any(name in vars(function) for name in ("forward", "spiking_function", "_call_impl")):
        return "surrogate function has an overridden forward"
    return ""


class AcceleratedNeuron(neuron.BaseNode):
    """Mixed in before a SpikingJelly neuron class; see the module's text.

    Settings are read at every call. Where they or the input have become something the operator does not do exactly
    (another surrogate, float64, a device without compiled kernels), SpikingJelly's own code runs.

    With bfloat16 or float16 input the state ``v`` is float32, where SpikingJelly keeps it, and computes, in the
    input's dtype: potentials are then more accurate, and spikes not always the same.
    """

    _snn_core_backend: str = "auto"

    def _options_for(self, x: Any) -> dict[str, Any] | None:
        """Arguments of the operator for this input; None where SpikingJelly's code must run."""
        if not isinstance(x, Tensor) or x.dtype not in NATIVE_DTYPES or x.layout is not torch.strided:
            return None
        backend = self._snn_core_backend
        # Plain torch through our reference would gain nothing over SpikingJelly's own kernels.
        if backend == "auto" and resolve_backend(backend, x.device, x.dtype, NATIVE_DTYPES) == "reference":
            return None
        options = kernel_options(self)
        return None if isinstance(options, str) else options | {"backend": backend}

    def _advance(self, x_seq: Tensor, v: Any, options: dict[str, Any], return_v_seq: bool) -> tuple[Tensor, ...]:
        if isinstance(self, neuron.ParametricLIFNode):
            options["reciprocal_tau"] = self.w.float().sigmoid()
        return lif(x_seq, v if isinstance(v, Tensor) else None, return_v_seq=return_v_seq, **options)

    def materialize_states(self, inputs: tuple[Any, ...], states: tuple[Any, ...], step_mode: str) -> tuple[Any, ...]:
        """SpikingJelly's rules for the state, except that it is float32, and that the number it has before the first
        step stays a number: the operator needs no tensor filled with it."""
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        if len(inputs) != 1 or self._options_for(x) is None:
            return super().materialize_states(inputs, states, step_mode)
        v = states[0]
        reset = 0.0 if self.v_reset is None else float(self.v_reset)
        if isinstance(v, Tensor):
            v = v.to(device=x.device, dtype=torch.float32) if v.shape == x.shape else reset
        elif v != reset:
            v = torch.full_like(x, v, dtype=torch.float32, requires_grad=False)
        return (v, *states[1:])

    def single_step_functional_forward(
        self, inputs: tuple[Any, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        options = self._options_for(inputs[0]) if len(inputs) == 1 and not kwargs else None
        if options is None:
            states = super().materialize_states(inputs, states, "s")
            return super().single_step_functional_forward(inputs, states, **kwargs)
        s_seq, v = self._advance(inputs[0].unsqueeze(0), states[0], options, False)
        return (s_seq.squeeze(0),), (v, *states[1:])

    def multi_step_functional_forward(
        self, inputs: tuple[Any, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        options = self._options_for(inputs[0]) if len(inputs) == 1 and not kwargs else None
        if options is None:
            states = super().materialize_states(inputs, states, "m")
            return super().multi_step_functional_forward(inputs, states, **kwargs)
        s_seq, v = self._advance(inputs[0], states[0], options, False)
        return (s_seq,), (v, *states[1:])

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Any:
        options = None if args or kwargs else self._options_for(x_seq)
        if options is None:
            return super().multi_step_forward(x_seq, *args, **kwargs)
        memories = self._memories
        (v,) = self.materialize_states((x_seq,), (memories["v"],), "m")
        s_seq, memories["v"], *v_seq = self._advance(x_seq, v, options, self.store_v_seq)
        self.v_seq = v_seq[0] if v_seq else None
        return s_seq

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles name the original class: the accelerated one exists only at run time."""
        _, _, *state = super().__reduce_ex__(max(int(protocol), 2))
        return _new_instance, (original_class(self),), *state


@functools.cache
def accelerated_class(original: type) -> Any:
    """The accelerated subclass of a SpikingJelly neuron class."""
    return type(f"Accelerated{original.__name__}", (AcceleratedNeuron, original), {"__module__": __name__})


def original_class(node: Any) -> type:
    """The class an accelerated neuron had before."""
    return next(cls for cls in type(node).__mro__ if cls.__bases__[0] is AcceleratedNeuron).__bases__[1]


def _new_instance(original: type) -> Any:
    cls = accelerated_class(original)
    return cls.__new__(cls)
