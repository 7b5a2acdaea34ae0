"""Where is what: boxes on the feature maps of any backbone, their loss, and average precision."""

from snn_core.localization.average_precision import AveragePrecision, average_precision, class_blind, targets_of
from snn_core.localization.boxes import box_area, box_iou, clip_boxes, non_maximum_suppression, paired_iou
from snn_core.localization.detections import Detections, HeadMaps, decode
from snn_core.localization.head import AnchorFreeHead, Localiser
from snn_core.localization.loss import localization_loss
from snn_core.localization.training import (
    LocalizationConfig,
    detect_all,
    detect_steps,
    evaluate_detections,
    train_localiser,
)

__all__ = [
    "AnchorFreeHead",
    "AveragePrecision",
    "Detections",
    "HeadMaps",
    "Localiser",
    "LocalizationConfig",
    "average_precision",
    "box_area",
    "box_iou",
    "class_blind",
    "clip_boxes",
    "decode",
    "detect_all",
    "detect_steps",
    "evaluate_detections",
    "localization_loss",
    "non_maximum_suppression",
    "paired_iou",
    "targets_of",
    "train_localiser",
]
