"""Paired statistics of twins: what makes a difference believable.

``accuracy`` compares classifiers row by row, ``coco_metrics`` detectors image by image on what
``matching`` matched; ``differences`` holds what both end in.
"""

from tools.statistics.accuracy import (
    Predictions,
    class_p_values,
    compare_accuracy,
    load_predictions,
    mcnemar,
    wilson_interval,
)
from tools.statistics.coco_metrics import (
    MatchedDetections,
    bootstrap_coco_metrics,
    coco_metrics_alone,
    compare_coco_metrics,
)
from tools.statistics.differences import Difference, effect_sizes, holm, paired_seeds_test

__all__ = [
    "Difference",
    "MatchedDetections",
    "Predictions",
    "bootstrap_coco_metrics",
    "class_p_values",
    "coco_metrics_alone",
    "compare_accuracy",
    "compare_coco_metrics",
    "effect_sizes",
    "holm",
    "load_predictions",
    "mcnemar",
    "paired_seeds_test",
    "wilson_interval",
]
