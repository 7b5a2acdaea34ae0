"""Training, evaluation and checkpoints."""

from snn_core.training.augment import augment_batch
from snn_core.training.checkpoint import load_checkpoint, load_model, save_checkpoint
from snn_core.training.config import TrainConfig
from snn_core.training.evaluation import evaluate_accuracy, predict_logits
from snn_core.training.hooks import LossObserver, TrainingHook
from snn_core.training.loop import TrainResult, train_classifier
from snn_core.training.losses import classification_loss

__all__ = [
    "LossObserver",
    "TrainConfig",
    "TrainResult",
    "TrainingHook",
    "augment_batch",
    "classification_loss",
    "evaluate_accuracy",
    "load_checkpoint",
    "load_model",
    "predict_logits",
    "save_checkpoint",
    "train_classifier",
]
