"""Object detection with Detectron2 on the backbones of this suite.

`register_backbones()` puts them into Detectron2's registry, for any config of one's own; importing
this package registers nothing and imports neither torch nor Detectron2.
"""

import importlib
from typing import Any

# Name -> the module of this package that defines it.
_LAZY = {
    "add_sebench_config": "backbone",
    "build_detectron2_backbone": "backbone",
    "register_backbones": "backbone",
    "use_weights": "backbone",
    "load_detector": "detector",
    "read_annotations": "annotations",
    "read_results": "annotations",
    "DetectionConfig": "config",
    "score": "scoring",
    "score_results": "scoring",
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'detection' has no attribute {name!r}")
    return getattr(importlib.import_module(f"detection.{_LAZY[name]}"), name)
