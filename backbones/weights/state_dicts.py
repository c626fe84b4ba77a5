"""Find the state dict in what training scripts wrap around it, and give its tensors plain names."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbones.config import printable
from backbones.weights.pickled_objects import Foreign

# Where training scripts keep the state dict; averaged weights first, as timm prefers them too.
# mmengine's `ema_state_dict` is not among them: it holds what was NOT averaged, once saved.
_AVERAGED = ("state_dict_ema", "model_ema", "ema_model", "model_ema_state_dict", "ema")
_CONTAINERS = (
    *_AVERAGED,
    "state_dict",
    "model_state_dict",
    "model",
    "model_state",
    "net",
    "network",
    "net_state_dict",
    "network_state_dict",
    "module",
    "weights",
    "weight",
    "params",
    "blobs",
)
# What lies beside a state dict and has tensors of its own.
_BESIDE = (
    "optim",
    "sched",
    "scaler",
    "amp",
    "rng",
    "loop",
    "callback",
    "criterion",
    "loss",
    "hyper",
)
_DEPTH = 8  # of wrappers; real checkpoints have three

_NAME = 500  # letters; real names have up to a hundred

# Left anywhere in a name by torch.compile, FSDP and activation checkpointing.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Left before all names by DataParallel and AveragedModel, by Lightning and scripts of one's own.
_PREFIXES = ("module.", "model.", "net.", "network.", "ema_model.")
# What such a wrapper has beside the network: counters of averaging, losses, metrics.
_COUNTERS = ("n_averaged", "steps", "step", "num_updates", "updates", "decay", "initted")
_LOSSES = ("criterion", "loss", "loss_fn", "loss_function", "train_acc", "val_acc", "test_acc")


def find_state_dict(content: Any) -> tuple[Mapping[Any, Any], str]:
    """Look for a state dict in what was read from a file.

    Returns:
        The state dict, and the keys that led to it, e.g. "checkpoint.model_ema"; "" for none.

    Raises:
        ValueError: there is none, or there are several and none has a usual name.
    """
    mapping = _as_mapping(content)
    if mapping is None:
        kind = content.name if isinstance(content, Foreign) else type(content).__name__
        raise ValueError(f"it holds a {printable(kind)}, not a dictionary of tensors")
    found = _find(mapping, set(), 0)
    if found is None:
        raise ValueError("it holds no tensors; a state dict or a dictionary of arrays is wanted")
    return found


def tensors_of(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of a state dict by name, without what wrappers left in the names.

    Lists of arrays (Caffe's blobs) become `NAME/0`, `NAME/1`, ...; what is no tensor is left out.

    Raises:
        ValueError: two tensors have one name, or a name has characters that cannot be printed.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in _flat(state):
        if not name.isprintable() or len(name) > _NAME:
            raise ValueError(f"a tensor is named '{printable(name[:_NAME])}'")
        parts = name.split(".")
        name = ".".join(part for part in parts if part not in _WRAPPERS) or name
        if name in tensors:
            raise ValueError(f"two tensors are named {name}")
        tensors[name] = value
    while stripped := _without_prefix(tensors):
        tensors = stripped
    return tensors


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Drop a wrapper's prefix, and what the wrapper has beside the network; None: has neither."""
    for prefix in _PREFIXES:
        inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        beside = [name for name in tensors if not name.startswith(prefix)]
        if inside and all(n in _COUNTERS or n.partition(".")[0] in _LOSSES for n in beside):
            return inside
    return None


def _find(content: Any, seen: set[int], depth: int) -> tuple[Mapping[Any, Any], str] | None:
    mapping = _as_mapping(content)
    if mapping is None or id(content) in seen or depth > _DEPTH:
        return None
    seen.add(id(content))
    for key in _CONTAINERS:
        if key in mapping and (found := _find(mapping[key], seen, depth + 1)):
            return found[0], f"{key}.{found[1]}".rstrip(".")
    if any(True for _ in _flat(mapping)):
        return mapping, ""
    inner = {}
    for key, value in mapping.items():
        if not any(word in str(key).lower() for word in _BESIDE):
            found = _find(value, seen, depth + 1)
            if found is not None:
                inner[printable(str(key))] = found
    if len(inner) > 1:
        raise ValueError(
            f"it holds several state dicts, under {', '.join(list(inner)[:6])}; save the one that"
            " is meant on its own"
        )
    for key, (state, path) in inner.items():
        return state, f"{key}.{path}".rstrip(".")
    return None


def _as_mapping(value: Any) -> Mapping[Any, Any] | None:
    """See a mapping in a dictionary, a placeholder of a subclass of it, or a module."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Foreign):
        if isinstance(value.state, Mapping) and "_modules" in value.state:
            return dict(_module_tensors(value, "", set(), 0))
        if value.content:
            return value.content
        if isinstance(value.state, Mapping):
            return value.state
    return None


def _module_tensors(
    module: Any, prefix: str, seen: set[int], depth: int
) -> Iterator[tuple[str, Any]]:
    """Read the state dict off a module that was pickled whole: its attributes, without its class."""
    state = module.state if isinstance(module, Foreign) else None
    if not isinstance(state, Mapping) or id(module) in seen or depth > 50:
        return
    seen.add(id(module))
    transient = state.get("_non_persistent_buffers_set")
    for group in ("_parameters", "_buffers"):
        values = state.get(group)
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if not isinstance(transient, set) or name not in transient:
                yield f"{prefix}{name}", value
    children = state.get("_modules")
    for name, child in children.items() if isinstance(children, Mapping) else ():
        yield from _module_tensors(child, f"{prefix}{name}.", seen, depth + 1)


def _flat(state: Mapping[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        name = key.decode("latin1") if isinstance(key, bytes) else str(key)
        is_list = isinstance(value, (list, tuple))
        for index, item in enumerate(value if is_list else [value]):
            if (tensor := _as_tensor(item)) is not None:
                yield f"{name}/{index}" if is_list else name, tensor


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))
    return None
