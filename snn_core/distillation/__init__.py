"""PACE: event-dataset distillation, its pieces (SDR, ST-SM, PEQ-N), comparisons and evaluation.

From a real training set to a product and its worth::

    teachers = train_teachers(train_set, config.teachers)
    product = create_method("pace")(train_set, config, teachers=teachers, seed=0)
    write_product("distilled.h5", product)
    result = evaluate_product(DistilledDataset.load("distilled.h5"), test_set)
"""

from snn_core.distillation.augment import View, choose_shifts, choose_views, shared_augmentation, shift_frames
from snn_core.distillation.condense import DistillResult, distill
from snn_core.distillation.config import DistillConfig, TeacherConfig
from snn_core.distillation.decoder import ClipDecoder, learn_decoder
from snn_core.distillation.densify import FeatureCollector, collect_features, densify
from snn_core.distillation.evaluate import Evaluation, EvaluationConfig, compare, evaluate_full, evaluate_product
from snn_core.distillation.export import DistilledEvents, frames_to_events, write_spikingjelly_frames
from snn_core.distillation.formation import Formation
from snn_core.distillation.frequencies import LearnedFrequencies
from snn_core.distillation.matching import (
    MatchingLoss,
    MatchingTerms,
    characteristic_function,
    characteristic_function_loss,
    coherent_spectrum_loss,
    draw_frequencies,
    group_by_class,
    mean_feature_loss,
    sigma_from_data,
    temporal_spectrum_loss,
    unit_length,
)
from snn_core.distillation.methods import CondensationMethod, create_method, list_methods, make_product
from snn_core.distillation.product import (
    DistilledDataset,
    Provenance,
    frames_checksum,
    record_measurement,
    write_product,
)
from snn_core.distillation.quantizer import PEQN, probabilistic_quantize
from snn_core.distillation.selection import select_by_score, select_herding, select_k_centre, select_random
from snn_core.distillation.spatio_temporal import SpatioTemporalMatching
from snn_core.distillation.teachers import Teacher, TeacherPool, model_hash, train_teachers

__all__ = [
    "PEQN",
    "ClipDecoder",
    "CondensationMethod",
    "DistillConfig",
    "DistillResult",
    "DistilledDataset",
    "DistilledEvents",
    "Evaluation",
    "EvaluationConfig",
    "FeatureCollector",
    "Formation",
    "LearnedFrequencies",
    "MatchingLoss",
    "MatchingTerms",
    "Provenance",
    "SpatioTemporalMatching",
    "Teacher",
    "TeacherConfig",
    "TeacherPool",
    "View",
    "characteristic_function",
    "characteristic_function_loss",
    "choose_shifts",
    "choose_views",
    "coherent_spectrum_loss",
    "collect_features",
    "compare",
    "create_method",
    "densify",
    "distill",
    "draw_frequencies",
    "evaluate_full",
    "evaluate_product",
    "frames_checksum",
    "frames_to_events",
    "group_by_class",
    "learn_decoder",
    "list_methods",
    "make_product",
    "mean_feature_loss",
    "model_hash",
    "probabilistic_quantize",
    "record_measurement",
    "select_by_score",
    "select_herding",
    "select_k_centre",
    "select_random",
    "shared_augmentation",
    "shift_frames",
    "sigma_from_data",
    "temporal_spectrum_loss",
    "train_teachers",
    "unit_length",
    "write_product",
    "write_spikingjelly_frames",
]
