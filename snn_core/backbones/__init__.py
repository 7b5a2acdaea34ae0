"""Networks behind one interface: ``create(name, **options)``."""

from snn_core.backbones.convnet import ConvSNN
from snn_core.backbones.registry import create, list_backbones, register

__all__ = ["ConvSNN", "create", "list_backbones", "register"]
