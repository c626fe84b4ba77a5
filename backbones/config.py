"""What settings are made of, and the words for what is wrong with them. Imports no torch.

A settings class is a frozen dataclass on `Settings`: its fields are checked against their types when
it is made, and each says what it means, in which unit, and whether it can change a result.
"""

from __future__ import annotations

import copy
import difflib
import functools
import math
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Len

# Ranges. Units stand with the settings that have them.
Count = Annotated[int, Ge(1)]
WholeNumber = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0), Le(1e300)]  # and not infinite
NonNegative = Annotated[float, Ge(0), Le(1e300)]
Fraction = Annotated[float, Ge(0), Le(1)]
LARGEST = 2**32 - 1  # whole number of a setting: seeds go as far
Workers = Annotated[int, Ge(-1)]
PixelStatistics = Annotated[list[float], Len(3, 3)]  # one value a channel, pixels from 0 to 255


# Messages ----------------------------------------------------------------------------------------


def unknown(kind: str, name: object, allowed: Iterable[object]) -> str:
    """A message for a name that does not exist: near matches, or all that exist."""
    names = [str(item) for item in allowed]
    near = difflib.get_close_matches(str(name), names, n=3)
    shown = printable(str(name))
    if near:
        return f"unknown {kind} {shown!r}; did you mean {' or '.join(near)}?"
    return f"unknown {kind} {shown!r}; there are {', '.join(names) or 'none'}"


def check_choice(key: str, value: object, allowed: Iterable[object]) -> None:
    """Raise a ValueError that names the key, the value and the nearest of what was allowed."""
    names = [str(item) for item in allowed]
    if value in names:
        return
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{key}={_shown(value)}: choose from {', '.join(names)}{hint}")


def printable(text: str) -> str:
    """`text` in one line, with control characters and lone surrogates written as escapes.

    For names that come from files, before they reach a terminal or a page.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def flatten(part: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by their dotted names; an empty mapping is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in part.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


# Settings ----------------------------------------------------------------------------------------


def setting(
    default: Any,
    meaning: str,
    *,
    unit: str | None = None,
    identity: bool = True,
    names_files: bool = False,
    came_later: bool = False,
) -> Any:
    """A field of a settings class.

    Args:
        default: the value that is used where nothing else is said.
        meaning: what it does, in a line.
        unit: of a number, e.g. "pixels".
        identity: False where it cannot change a result (where data lie, how many processes read
            them): experiments that differ in it are the same.
        names_files: True where it is a path, or a list of them, whose content is what counts.
        came_later: True where the default is what was done before there was such a setting: it
            counts only where it differs, so that earlier experiments stay the same.
    """
    metadata = {
        "meaning": meaning,
        "unit": unit,
        "identity": identity,
        "names_files": names_files,
        "came_later": came_later,
    }
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Settings:
    """Base of the settings classes: what is made is checked.

    Raises:
        ValueError: a value of the wrong type, outside its range or not among its choices; the
            message names the setting, the value and what was allowed.
    """

    group: ClassVar[str] = ""  # the dotted name it stands under, e.g. "train.optimizer."
    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "coerce_numbers_to_str": True,  # a folder may be called 2017
        "allow_inf_nan": False,
    }

    def __post_init__(self) -> None:
        import pydantic  # only where settings are made

        own: Any = type(self)
        for name, adapter in _adapters(own).items():
            value = getattr(self, name)
            _check_numbers(value, f"{self.group}{name}")
            try:
                adapter.validate_python(value)
            except pydantic.ValidationError as error:
                first = error.errors()[0]
                raise ValueError(describe_error(first, f"{self.group}{name}")) from None


@dataclass(frozen=True)
class BackboneSettings(Settings):
    """Which network a task uses: the group `backbone` of every task's settings."""

    group: ClassVar[str] = "backbone."
    name: str = setting("resnet50", "a network of `sebench list backbones`, timm:NAME, ...")
    options: dict[str, Any] = setting({}, "of the network or its attention, e.g. {reduction: 8}")
    weights: str | None = setting(
        None, "file to start from, or to evaluate; none: random weights", names_files=True
    )
    allow_missing: list[str] = setting(
        [], "patterns of tensors that the file may lack, e.g. 'backbone.res5.*'"
    )
    imports: list[str] = setting([], "files that register networks of your own")
    twin: str | None = setting(
        None,
        "the plain network it is compared with, where the table knows none",
        identity=False,
    )
    twin_options: dict[str, Any] = setting({}, "of the network that `twin` names", identity=False)


Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]  # PIL's


@dataclass(frozen=True)
class InputFormat:
    """How images were fed to the network in training; it travels with the weights.

    `mean` and `std` are in pixel units (0 to 255), in the order of `channel_order`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    channel_order: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[Positive, Positive, Positive] = (58.395, 57.12, 57.375)
    interpolation: Interpolation = "bilinear"
    size: Count | None = None  # pixels a side; None: not told, the task's protocol decides
    crop: Positive | None = None  # centre crop / shorter side it is cut from, e.g. 224 / 256

    def describe(self) -> dict[str, Any]:
        """As plain values, as JSON has them: lists for tuples."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}


@dataclass(frozen=True)
class BackboneInfo:
    """What is known of a network with its default options, without building it."""

    name: str
    family: str
    twin: str | None  # the same network without SE; None for plain networks
    is_se: bool
    parameters: int  # with the classifier
    multiply_adds: int  # of one image, with the classifier; counted as `cost` says
    multiply_adds_with_gating: int  # by the second rule of `cost`, global pooling and scaling too
    input_size: int  # pixels, height and width
    classes: int  # of the classifier in the counts
    detection: str | None  # why it cannot be the backbone of a detector; None: it can


@functools.cache
def _adapters(settings_class: type) -> dict[str, Any]:
    """A validator for every field that is no group of settings."""
    import pydantic

    hints = typing.get_type_hints(settings_class, include_extras=True)
    return {
        item.name: pydantic.TypeAdapter(
            hints[item.name], config=pydantic.ConfigDict(allow_inf_nan=False)
        )
        for item in fields(settings_class)
        if not is_dataclass(hints[item.name])
    }


def describe_error(error: Mapping[str, Any], key: str = "") -> str:
    """One of pydantic's errors in one line: the setting, its value, what was allowed."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "value_error":  # one of ours, or of a check over several settings
        return str(context["error"])
    # The places inside a list, which pydantic gives as numbers, are not part of a setting's name.
    inside = ".".join(str(part) for part in error["loc"] if not isinstance(part, int))
    key = key or inside
    shown = f"{key}={_shown(error['input'])}"
    if kind == "literal_error":
        choices = [word.strip(" '") for word in context["expected"].replace(" or ", ",").split(",")]
        try:
            check_choice(key, error["input"], choices)
        except ValueError as found:
            return str(found)
    bounds = {
        "greater_than_equal": "at least {ge}",
        "greater_than": "above {gt}",
        "less_than_equal": "at most {le}",
        "less_than": "below {lt}",
    }
    if kind in bounds:
        return f"{shown}: must be {bounds[kind].format(**context)}"
    if kind in ("too_short", "too_long"):
        number = context.get("min_length", context.get("max_length"))
        return f"{shown}: give a list of {number} numbers"
    if kind in ("int_from_float", "int_parsing", "int_type"):
        return f"{shown}: expected a whole number"
    if kind in ("float_parsing", "float_type", "finite_number"):
        return f"{shown}: expected a number"
    if kind == "list_type":
        return f"{shown}: expected a list, e.g. [1, 2]"
    if kind in ("dict_type", "dataclass_type"):
        return f"{shown}: expected keys with values"
    return f"{shown}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _check_numbers(value: object, key: str) -> None:
    """Numbers that neither JSON nor torch could hold, also inside dictionaries of any content."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key}={value}: expected a finite number")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"{key}={_shown(value)}: must be at most {LARGEST}")
    if isinstance(value, Mapping):
        for name, part in value.items():
            _check_numbers(part, f"{key}.{name}")
    elif isinstance(value, (list, tuple)):
        for part in value:
            _check_numbers(part, key)


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return printable(text if len(text) <= 100 else f"{text[:97]}...")


@dataclass(frozen=True)
class SettingInfo:
    """One setting as `sebench list settings` shows it."""

    name: str  # dotted, e.g. "train.optimizer.lr"
    type: str  # e.g. "int >= 1", "sgd | adam", "list of float"
    default: Any
    unit: str | None
    meaning: str
    identity: bool  # whether it can change a result


def describe_settings(settings_class: type, prefix: str = "") -> Iterator[SettingInfo]:
    """Every setting of a class of settings, groups resolved, in the order they are declared."""
    hints = typing.get_type_hints(settings_class, include_extras=True)
    for item in fields(settings_class):
        hint = hints[item.name]
        if is_dataclass(hint):
            yield from describe_settings(hints[item.name], f"{prefix}{item.name}.")
            continue
        default = item.default
        if item.default_factory is not MISSING:
            default = item.default_factory()
        yield SettingInfo(
            f"{prefix}{item.name}",
            _type_in_words(hint),
            None if default is MISSING else default,
            item.metadata.get("unit"),
            item.metadata.get("meaning", ""),
            item.metadata.get("identity", True),
        )


def _type_in_words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        base, *bounds = arguments
        signs = {Ge: (">=", "ge"), Gt: (">", "gt"), Le: ("<=", "le")}
        words = [
            f"{sign} {getattr(bound, attribute):g}"
            for bound in bounds
            for kind, (sign, attribute) in signs.items()
            if isinstance(bound, kind) and getattr(bound, attribute) < 1e300
        ]
        lengths = [f"of {bound.min_length}" for bound in bounds if isinstance(bound, Len)]
        return " ".join([_type_in_words(base), *lengths, ", ".join(words)]).strip()
    if origin is Literal:
        return " | ".join(str(choice) for choice in arguments)
    if origin in (list, dict):
        return f"{origin.__name__} of {_type_in_words(arguments[-1])}"
    if arguments:  # X | None
        return " | ".join(_type_in_words(part) for part in arguments)
    if hint is type(None):
        return "none"
    return "anything" if hint is Any else getattr(hint, "__name__", str(hint))
