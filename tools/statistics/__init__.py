"""Paired statistics of twins: what makes a difference believable.

``accuracy`` compares classifiers row by row, ``coco_metrics`` detectors image by image on what
``matching`` matched; both end in ``differences``. ``outcomes`` puts a difference into a word,
``pooling`` takes many together, ``published`` sets one beside a published number, ``planning`` says
beforehand what a study can see, ``calibration`` scores probabilities, and ``simulation`` measures
how often all this errs. Arrays in, numbers out: nothing here knows records or reports.
"""

from tools.statistics.accuracy import (
    Predictions,
    compare_accuracy,
    compare_classes,
    load_predictions,
    mid_p,
    score_interval,
    wilson_interval,
)
from tools.statistics.coco_metrics import (
    MatchedDetections,
    bootstrap_coco_metrics,
    compare_coco_metrics,
)
from tools.statistics.differences import Bounds, Difference, effect_sizes
from tools.statistics.pooling import (
    Pooled,
    Variation,
    benjamini_hochberg,
    holm,
    pool_tasks,
    variation,
    variation_of,
)

__all__ = [
    "Bounds",
    "Difference",
    "MatchedDetections",
    "Pooled",
    "Predictions",
    "Variation",
    "benjamini_hochberg",
    "bootstrap_coco_metrics",
    "compare_accuracy",
    "compare_classes",
    "compare_coco_metrics",
    "effect_sizes",
    "holm",
    "load_predictions",
    "mid_p",
    "pool_tasks",
    "score_interval",
    "variation",
    "variation_of",
    "wilson_interval",
]
