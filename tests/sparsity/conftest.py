"""Backends that the layers are tested with."""

import pytest
import torch

from snn_core.kernels.native import native_backend


def _backends():
    """``reference`` always; the choice among all where the native operators are there."""
    native_backend(torch.device("cpu"))
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    there = all(has_kernel(f"snn_core::{name}", "CPU") for name in ("nm_spikes", "nm_dense"))
    return ("reference", "auto") if there else ("reference",)


@pytest.fixture(params=_backends())
def backend(request):
    return request.param


@pytest.fixture(autouse=True)
def _without_native_operators(monkeypatch):
    if "auto" not in _backends():
        monkeypatch.setenv("SNN_BACKEND", "reference")
