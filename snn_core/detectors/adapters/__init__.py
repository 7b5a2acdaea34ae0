"""Adapters that train beside frozen layers, one form a file."""

from snn_core.detectors.adapters import bottleneck, forensics, global_local, histogram, lora, mixture
from snn_core.detectors.adapters.base import Adapter, Beside, Host, Pass, adapter_form, attach, list_adapters

__all__ = [
    "Adapter",
    "Beside",
    "Host",
    "Pass",
    "adapter_form",
    "attach",
    "bottleneck",
    "forensics",
    "global_local",
    "histogram",
    "list_adapters",
    "lora",
    "mixture",
]
