"""Networks behind one interface: ``create(name, **options)``."""

from snn_core.backbones.convnet import ConvSNN
from snn_core.backbones.features import Backbone, FeatureInfo, SpikingBackbone, SpikingOptions
from snn_core.backbones.options import nearest
from snn_core.backbones.registry import create, list_backbones, register
from snn_core.backbones.resnet import SpikingResNet
from snn_core.backbones.sdt import SpikeDrivenTransformer
from snn_core.backbones.spikformer import Spikformer
from snn_core.backbones.vgg import SpikingVGG
from snn_core.backbones.vit import frozen_vit
from snn_core.backbones.weights import load_weights

__all__ = [
    "Backbone",
    "ConvSNN",
    "FeatureInfo",
    "SpikeDrivenTransformer",
    "Spikformer",
    "SpikingBackbone",
    "SpikingOptions",
    "SpikingResNet",
    "SpikingVGG",
    "create",
    "frozen_vit",
    "list_backbones",
    "load_weights",
    "nearest",
    "register",
]
