"""Forgery detectors: frozen vision transformers on N:M weights, adapters and heads that train, and a task to learn."""

from snn_core.detectors.adapters import list_adapters
from snn_core.detectors.compression import compress_by_magnitude, compress_by_wanda
from snn_core.detectors.detector import Detection, Detector, detection_loss
from snn_core.detectors.footprint import Footprint, footprint
from snn_core.detectors.frozen import FrozenLinear, freeze
from snn_core.detectors.heads import ImageHead, MaskHead
from snn_core.detectors.splices import scores, spliced, with_texture
from snn_core.detectors.timm_models import list_models
from snn_core.detectors.training import evaluate_detector, fit, fit_detector
from snn_core.detectors.vit import FrozenViT
from snn_core.detectors.weights import load_trained, trained_state

__all__ = [
    "Detection",
    "Detector",
    "Footprint",
    "FrozenLinear",
    "FrozenViT",
    "ImageHead",
    "MaskHead",
    "compress_by_magnitude",
    "compress_by_wanda",
    "detection_loss",
    "evaluate_detector",
    "fit",
    "fit_detector",
    "footprint",
    "freeze",
    "list_adapters",
    "list_models",
    "load_trained",
    "scores",
    "spliced",
    "trained_state",
    "with_texture",
]
