"""Two networks of SpikingJelly's model zoo, built by its own code, for benchmarks/accelerate.py and the tests."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn


def zoo(name: str) -> ModuleType:
    """``spikingjelly.activation_based.model.<name>``.

    These modules import torchvision for one function that downloads pretrained weights, which torch.hub has under the
    same name. Where torchvision is absent that function alone stands in for it while they are imported.
    """
    if importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module(f"spikingjelly.activation_based.model.{name}")
    names = ("torchvision", "torchvision.models", "torchvision.models.utils")
    stand_ins = {key: ModuleType(key) for key in names}
    vars(stand_ins[names[2]])["load_state_dict_from_url"] = torch.hub.load_state_dict_from_url
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module(f"spikingjelly.activation_based.model.{name}")
    finally:
        for key in names:
            del sys.modules[key]


def sew_resnet18(classes: int = 10, **options: Any) -> nn.Module:
    """SEW-ResNet18 (Fang et al. 2021, ADD) as the zoo builds it, in step mode ``"m"``: ``[T, N, 3, H, W]`` in,
    ``[T, N, classes]`` out. ``options`` are those of the neuron."""
    net = zoo("sew_resnet").sew_resnet18(num_classes=classes, cnf="ADD", **_neuron(options))
    functional.set_step_mode(net, "m")
    return net


def spiking_vgg11(classes: int = 10, **options: Any) -> nn.Module:
    """The convolutions, batch norms, poolings and neurons of the zoo's ``spiking_vgg11_bn``, then the mean over the
    image and one linear layer, in place of the zoo's head for 224 x 224 pixels (120 million weights)."""
    vgg = zoo("spiking_vgg")
    features = vgg.SpikingVGG.make_layers(
        cfg=vgg.cfgs["A"], batch_norm=True, **{"neuron" if k == "spiking_neuron" else k: v
                                               for k, v in _neuron(options).items()}
    )  # fmt: skip
    net = nn.Sequential(features, layer.AdaptiveAvgPool2d((1, 1)), layer.Flatten(), layer.Linear(512, classes))
    functional.set_step_mode(net, "m")
    return net


NETWORKS: dict[str, Callable[..., nn.Module]] = {"sew_resnet18": sew_resnet18, "spiking_vgg11": spiking_vgg11}


def _neuron(options: dict[str, Any]) -> dict[str, Any]:
    """LIF with the arctangent surrogate and a detached reset, as the zoo's training scripts have them, then options."""
    defaults = {"spiking_neuron": neuron.LIFNode, "surrogate_function": surrogate.ATan(), "detach_reset": True}
    return defaults | options
