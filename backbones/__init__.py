"""Networks, plain and with squeeze-and-excitation. Depends on torch and timm; knows no task.

Importing it does not import torch: the table of networks (`zoo`) is plain data, and what needs
torch is loaded when first asked for.
"""

import importlib
from typing import Any

from backbones.config import BackboneInfo, BackboneSettings, InputFormat
from backbones.device import keep_large_tensors_on_heap
from backbones.registry import (
    describe_backbone,
    list_backbones,
    load_user_module,
    register_backbone,
    twin_of,
)

# Name -> the module of this package that defines it; those modules import torch.
_NEEDS_TORCH = {
    "Backbone": "features",
    "FeatureSpec": "features",
    "Network": "features",
    "build_backbone": "build",
    "build_network": "build",
    "register_attention": "slot",
    "SEBlock": "squeeze_excite",
    "count_multiply_adds": "cost",
    "count_parameters": "cost",
    "measure_latency": "cost",
    "prepare_for_inference": "inference",
    "fit_backbone": "weights.load",
    "check_finite": "weights.load",
    "load_weights": "weights.load",
    "read_weights": "weights.load",
    "save_weights": "weights.load",
}

__all__ = [
    "BackboneInfo",
    "BackboneSettings",
    "InputFormat",
    "describe_backbone",
    "keep_large_tensors_on_heap",
    "list_backbones",
    "load_user_module",
    "register_backbone",
    "twin_of",
    *_NEEDS_TORCH,
]


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module 'backbones' has no attribute {name!r}")
    return getattr(importlib.import_module(f"backbones.{_NEEDS_TORCH[name]}"), name)
