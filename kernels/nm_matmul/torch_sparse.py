"""Products that need another form of a compressed weight: torch's cuSPARSELt and CUTLASS, and the dense ones.

torch keeps a 2:4 weight in a tensor subclass of its own. It, or the dense weight, is made from the compressed weight at
first use and kept as long as the weight lives and the product is used now and then: a second copy of weights that
nobody reads would waste what compression saved.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from snn_core.kernels.native import native_backend
from snn_core.kernels.nm_compress.compressed import CompressedNM
from snn_core.kernels.nm_compress.pattern import NMPattern
from snn_core.kernels.nm_matmul.operands import OUT_DTYPES

#: Types whose products sum in float32 without losing bits of the operands first (float32 would become TF32).
DTYPES = (torch.bfloat16, torch.float16)
#: Rows of a torch 2:4 weight, and its columns, are multiples of these (both libraries, 16-bit types).
MULTIPLES = (32, 64)
#: A converted weight that was offered so often without being used is forgotten.
IDLE_OFFERS = 8
#: Rows for which oneDNN is asked to order a weight.
ONEDNN_ROWS = 64
#: Compute capabilities that CUTLASS's product in torch knows (it raises on others), and those with 2:4 at all.
CUTLASS_MAJOR, FIRST_MAJOR = 8, 8


def torch_candidates(
    x: Tensor, weight: Tensor | CompressedNM, bias: Tensor | None
) -> list[tuple[str, Callable[[], Tensor]]]:
    """Ways in which torch multiplies ``x`` with a 2:4 weight: name and call.

    Args:
        x: ``[..., K]`` on a GPU.
        weight: ``[O, K]``; a dense one gives no candidates.
        bias: ``[O]`` in any floating dtype, or None.

    Returns:
        Of ``cusparselt`` and ``cutlass`` those that can run here; calls return ``[..., O]`` in the dtype of ``x``.
    """
    if not isinstance(weight, CompressedNM) or why_not(x, weight):
        return []
    kept = conversions(weight)
    found: list[tuple[str, Callable[[], Tensor]]] = []
    for name in LIBRARIES:
        if _library_runs(name, x.device):
            kept.offer(name)
            found.append((name, functools.partial(_product, name, kept, x, weight, bias)))
    return found


def why_not(x: Tensor, weight: CompressedNM) -> str:
    """Why torch's 2:4 products do not take these operands; empty where they do."""
    if not is_two_of_four(weight.pattern):
        return f"a {weight.pattern} weight is not 2:4"
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}; taken: {', '.join(map(str, DTYPES))}"
    if x.device.type != "cuda" or torch.cuda.get_device_capability(x.device)[0] < FIRST_MAJOR:
        return "2:4 products need a GPU of compute capability 8.0 or later"
    shape = weight.shape
    if len(shape) != 2 or any(size % multiple or not size for size, multiple in zip(shape, MULTIPLES, strict=True)):
        return f"the weight is {list(shape)}; both sizes must be multiples of {list(MULTIPLES)}"
    return ""


def is_two_of_four(pattern: NMPattern) -> bool:
    """Whether every weight that obeys the pattern obeys 2:4: 2:4 itself, 1:4 and 1:2."""
    return (pattern.m == 4 and pattern.n <= 2) or (pattern.n, pattern.m) == (1, 2)


def _cusparselt_runs(device: torch.device) -> bool:
    return bool(torch.backends.cusparselt.is_available())


def _cutlass_runs(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] == CUTLASS_MAJOR


LIBRARIES = {"cusparselt": _cusparselt_runs, "cutlass": _cutlass_runs}


@functools.cache
def _library_runs(name: str, device: torch.device) -> bool:
    return LIBRARIES[name](device)


def counted_parts(*parts: Tensor | None) -> tuple[Tensor, ...]:
    """The tensors whose changes in place are counted: not those made in inference mode."""
    return tuple(part for part in parts if part is not None and not part.is_inference())


def version_of(counted: tuple[Tensor, ...]) -> int:
    """A number that grows with every change in place."""
    version = 0
    for part in counted:
        version += part._version
    return version


@dataclass
class Conversions:
    """The forms of one weight in torch's tensor subclass, by library and dtype."""

    version: int
    scale: Tensor | None
    tensors: dict[tuple[str, torch.dtype], Tensor] = field(default_factory=dict)
    idle: dict[str, int] = field(default_factory=dict)

    def offer(self, name: str) -> None:
        self.idle[name] = self.idle.get(name, 0) + 1
        if self.idle[name] > IDLE_OFFERS:
            self.drop(name)

    def current(
        self, name: str, counted: tuple[Tensor, ...], scale: Tensor | None, dtype: torch.dtype
    ) -> Tensor | None:
        """What is kept of a weight of these :func:`counted_parts`; None where there is nothing, or it has changed."""
        version = self.version
        for part in counted:  # version_of, without a call
            version -= part._version
        return self.tensors.get((name, dtype)) if version == 0 and self.scale is scale else None

    def drop(self, name: str) -> None:
        self.tensors = {key: tensor for key, tensor in self.tensors.items() if key[0] != name}

    def get(self, name: str, weight: CompressedNM, dtype: torch.dtype) -> Tensor:
        self.idle[name] = 0
        if (name, dtype) not in self.tensors:
            self.tensors[name, dtype] = convert(name, weight, dtype)
        return self.tensors[name, dtype]


#: By the identity of a weight's values, for as long as those live.
_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()


def conversions(weight: CompressedNM) -> Conversions:
    """What is kept of a weight, emptied where it has changed."""
    version = version_of(counted_parts(weight.values, weight.indices, weight.scale))
    kept = _kept.get(weight.values)
    # Another scale over the same values (a folded batch norm) is another weight.
    if kept is None or kept.version != version or kept.scale is not weight.scale:
        kept = _kept[weight.values] = Conversions(version, weight.scale)
    return kept


def kept_dense(weight: CompressedNM, dtype: torch.dtype, form: str = "dense") -> Tensor:
    """The dense weight, made once for all calls: as ``dense``, or in the order of ``onednn``."""
    return conversions(weight).get(form, weight, dtype)


def drop_dense(weight: CompressedNM, form: str = "dense") -> None:
    """Give back what :func:`kept_dense` made."""
    conversions(weight).drop(form)


def takes_onednn(x: Tensor) -> bool:
    """Whether oneDNN multiplies such activations, as ``torch.compile`` calls it for frozen weights."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    return _onednn_runs(x.dtype)


@functools.cache
def _onednn_runs(dtype: torch.dtype) -> bool:
    operators: Any = torch.ops.mkldnn
    try:
        return bool(torch.backends.mkldnn.is_available()) and (
            onednn_product is not None
            and operators._reorder_linear_weight.default is not None
            and (dtype == torch.float32 or bool(operators._is_mkldnn_bf16_supported()))
        )
    except AttributeError:  # a torch without them
        return False


def _onednn_product() -> Any:
    try:
        return torch.ops.mkldnn._linear_pointwise.default
    except AttributeError:
        return None


#: oneDNN's product of ``x``, a weight in its order, bias (or None), and :data:`ONEDNN_PLAIN`; None in a torch without.
onednn_product = _onednn_product()
#: No activation behind the product: its name, numbers and variant.
ONEDNN_PLAIN: tuple[Any, ...] = ("none", [], "")


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` of a weight that :func:`kept_dense` made for ``onednn``."""
    return cast("Tensor", onednn_product(x, weight, bias, *ONEDNN_PLAIN))


def convert(name: str, weight: CompressedNM, dtype: torch.dtype) -> Tensor:
    """The weight as torch's SparseSemiStructuredTensor, or dense; its scale multiplied in."""
    if name == "dense":
        return weight.to_dense(dtype)
    if name == "onednn":
        # Its order suits any number of rows; told of one row it takes another, which is slower for more.
        return cast("Tensor", torch.ops.mkldnn._reorder_linear_weight(weight.to_dense(dtype).contiguous(), ONEDNN_ROWS))
    from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

    subclasses = {"cusparselt": SparseSemiStructuredTensorCUSPARSELT, "cutlass": SparseSemiStructuredTensorCUTLASS}
    return subclasses[name].from_dense(weight.to_dense(dtype).contiguous())


def _product(name: str, kept: Conversions, x: Tensor, weight: CompressedNM, bias: Tensor | None) -> Tensor:
    matrix = kept.get(name, weight, x.dtype)
    return F.linear(x, matrix, None if bias is None else bias.to(x.dtype))


def decompress(weight: Tensor | CompressedNM, dtype: torch.dtype) -> Tensor:
    """The dense weight of its own shape in ``dtype``, by the native operator where it is there."""
    if isinstance(weight, Tensor):
        return weight.to(dtype)
    if dtype not in OUT_DTYPES or native_backend(weight.values.device) is None or weight.values.requires_grad:
        return weight.to_dense(dtype)
    pattern, shape = weight.pattern, weight.shape
    matrix = torch.ops.snn_core.nm_decompress(
        weight.values, weight.indices, pattern.n, pattern.m, shape[0], weight.scale, dtype
    )
    return matrix if len(shape) == 2 else matrix.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
