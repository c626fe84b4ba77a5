"""Find, list, describe and register networks by name. Imports torch only to count what is new."""

import functools
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones.config import BackboneInfo, unknown
from backbones.zoo import PAIRS, Pair

# What other libraries build: `timm:resnet50.a1_in1k`, `torchvision:resnet50`; see `external`.
EXTERNAL = ("timm:", "torchvision:")


@dataclass(frozen=True)
class Registered:
    """A network of the user's own."""

    name: str
    builder: Callable[..., Any]
    family: str
    twin: str | None
    is_se: bool
    input_size: int


_registered: dict[str, Registered] = {}


def list_backbones() -> list[BackboneInfo]:
    """Describe every network of the table, plain before SE, and then those registered."""
    names = [name for pair in PAIRS for name in (pair.plain, pair.se)]
    return [describe_backbone(name) for name in [*names, *_registered]]


def describe_backbone(name: str) -> BackboneInfo:
    """Describe a network with its default options. Raises ValueError for an unknown name."""
    if name.startswith(EXTERNAL):
        from backbones.external import describe  # imports torch, and the library

        return describe(name)
    entry = find_backbone(name)
    if isinstance(entry, Registered):
        return _describe_registered(name)
    is_se = name == entry.se
    return BackboneInfo(
        name=name,
        family=entry.family,
        twin=entry.plain if is_se else None,
        is_se=is_se,
        parameters=entry.parameters[is_se],
        multiply_adds=entry.multiply_adds[is_se],
        multiply_adds_with_gating=entry.multiply_adds_with_gating[is_se],
        input_size=entry.input_size,
        classes=entry.classes,
        detection=entry.detection,
    )


def find_backbone(name: str) -> Pair | Registered:
    """Return the row of a network. Raises ValueError, with near matches, for an unknown name."""
    rows = {name: pair for pair in PAIRS for name in (pair.plain, pair.se)} | _registered
    if name in rows:
        return rows[name]
    raise ValueError(
        f"{unknown('backbone', name, rows)} (`sebench list backbones` lists all; timm:NAME and"
        " torchvision:NAME are theirs; a network of your own is registered by a file given with"
        " --import)"
    )


def twin_of(name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return name and options of the plain twin, or None for a plain network.

    What concerns the attention is dropped, what concerns the network (e.g. stride_in_1x1) kept.
    """
    if name.startswith(EXTERNAL):
        from backbones.libraries import twin

        plain = twin(name)
        return (plain, dict(options)) if plain else None
    entry = find_backbone(name)
    if isinstance(entry, Registered):
        return (entry.twin, dict(options)) if entry.twin else None
    if name == entry.plain:
        return None
    return entry.plain, {key: value for key, value in options.items() if key in entry.options}


def register_backbone(
    name: str,
    builder: Callable[..., Any],
    *,
    family: str,
    twin: str | None = None,
    is_se: bool = False,
    input_size: int = 224,
) -> None:
    """Add a network of one's own, e.g. from a file named by `--import`.

    Args:
        name: how settings and the command line will call it.
        builder: `builder(**options)` returns a `backbones.Backbone`. To hold attention, it takes a
            `slot` from `backbones.slot.build_slot(options, input_size)` and asks it for modules.
        family: what it is listed under.
        twin: the name of the same network without SE, if it has one; it gets the same options.
        is_se: whether it holds SE or another attention.
        input_size: height and width in pixels its cost is counted at.

    Raises:
        ValueError: the name is taken.
    """
    if name in _registered or any(name in (pair.plain, pair.se) for pair in PAIRS):
        raise ValueError(f"backbone {name!r} is already registered; choose another name")
    _registered[name] = Registered(name, builder, family, twin, is_se, input_size)


def load_user_module(path: str | Path) -> None:
    """Run a Python file that registers networks or attentions; a file that ran is not run again.

    Raises:
        ValueError: the file is missing or fails, with its own error named.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise ValueError(f"--import {path}: no such file")
    name = f"_sebench_import_{path.stem}_{abs(hash(str(path)))}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--import {path}: not a Python file (its name ends in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"--import {path}: {type(error).__name__}: {error}") from error


@functools.cache
def _describe_registered(name: str) -> BackboneInfo:
    import torch  # only for networks outside the table, which must be built to be counted

    from backbones.cost import count_everything
    from backbones.features import Network

    entry = _registered[name]
    with torch.device("meta"):
        network = Network(entry.builder(), num_classes=1000)
    strides = [spec.stride for spec in network.backbone.feature_specs.values()][-4:]
    detection = None
    if strides != [4, 8, 16, 32]:
        detection = f"its last stages have strides {strides}, a detector needs 4, 8, 16, 32"
    twin, is_se = entry.twin, entry.is_se
    counted = count_everything(network, entry.input_size)
    return BackboneInfo(name, entry.family, twin, is_se, **counted, detection=detection)
