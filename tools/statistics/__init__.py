"""Paired statistics of twins: what makes a difference believable.

``accuracy`` compares classifiers row by row, ``average_precision`` detectors image by image on
what ``matching`` matched; ``differences`` holds what both end in.
"""

from tools.statistics.accuracy import (
    Predictions,
    compare_accuracy,
    load_predictions,
    mcnemar,
    wilson_interval,
)
from tools.statistics.average_precision import (
    METRICS as DETECTION_METRICS,
)
from tools.statistics.average_precision import (
    MatchedDetections,
    bootstrap_average_precision,
    compare_average_precision,
)
from tools.statistics.differences import Difference, effect_sizes, holm, paired_seeds_test
from tools.statistics.matching import load_ground_truth

__all__ = [
    "DETECTION_METRICS",
    "Difference",
    "MatchedDetections",
    "Predictions",
    "bootstrap_average_precision",
    "compare_accuracy",
    "compare_average_precision",
    "effect_sizes",
    "holm",
    "load_ground_truth",
    "load_predictions",
    "mcnemar",
    "paired_seeds_test",
    "wilson_interval",
]
