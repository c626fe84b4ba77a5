"""From YAML to settings: nested mappings checked against settings classes, and errors people can act on."""

from __future__ import annotations

import copy
import difflib
import functools
import re
import typing
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pydantic
import yaml

from backbones.config import describe_error, describe_settings, flatten, printable
from tools.experiments.typed_json import adapter

_LARGEST_FILE = 4 << 20  # bytes of a YAML file
_MOST_VALUES = 100_000  # of a YAML file, those that aliases repeat counted each time


def build_settings(settings_class: type, parts: Iterable[tuple[str, Mapping[str, Any]]]) -> Any:
    """An object of a settings class from nested mappings, later ones over earlier ones.

    Each part comes with what to call it in an error message.

    Raises:
        ValueError: an unknown key, with near matches, or a value of the wrong type, outside its
            range or not among its choices.
    """
    parts = list(parts)
    merged: dict[str, Any] = {}
    for source, part in parts:
        _check_keys(settings_class, part, source)
        _merge(merged, part)
    _write_choices_as_text(settings_class, merged)
    try:
        return adapter(settings_class).validate_python(merged)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ValueError(_source(first["loc"], parts) + describe_error(first)) from None


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, the second's values over the first's."""
    merged: dict[str, Any] = {}
    for part in (first, second):
        _merge(merged, part)
    return merged


def _merge(into: dict[str, Any], part: Mapping[str, Any]) -> None:
    for key, value in part.items():
        if isinstance(value, Mapping):
            held = into.get(key)
            into[key] = dict(held) if isinstance(held, Mapping) else {}
            _merge(into[key], value)
        else:
            into[key] = value


def _write_choices_as_text(settings_class: type, values: dict[str, Any]) -> None:
    """YAML reads `size: 256` as a number where the choices are texts."""
    for name, hint in _hints(settings_class).items():
        value = values.get(name)
        if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
            _write_choices_as_text(hint, value)
        elif str(value) in typing.get_args(hint):
            values[name] = str(value)


@functools.cache
def _hints(settings_class: type) -> Mapping[str, Any]:
    return typing.get_type_hints(settings_class)


def _check_keys(settings_class: type, part: Mapping[str, Any], source: str) -> None:
    """Raise a ValueError for a key that no setting has, or a value in the place of a group."""
    known = _known(settings_class)
    for key, value in flatten(part).items():
        names = key.split(".")
        if {".".join(names[: length + 1]) for length in range(len(names))} & known:
            continue  # a setting, or a key inside a setting that is a free mapping
        shown = printable(key)
        where = "" if not source or source.startswith(key) else f" in {source}"
        if inside := [name for name in known if name.startswith(f"{key}.")]:
            if value == {}:
                continue
            raise ValueError(f"{shown!r}{where} is a group of settings; set {', '.join(inside)}")
        same = [name for name in known if name.rpartition(".")[2] == names[-1]]
        near = same[:3] or difflib.get_close_matches(key, known, n=3)
        groups = dict.fromkeys(name.partition(".")[0] for name in known)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(groups)}"
        raise ValueError(f"unknown key {shown!r}{where}; {hint}")


@functools.cache
def _known(settings_class: type) -> Set[str]:
    return {info.name: None for info in describe_settings(settings_class)}.keys()


def _source(location: tuple[int | str, ...], parts: list[tuple[str, Mapping[str, Any]]]) -> str:
    """What the part that gave a value is called, unless its name says the value already."""
    key = ".".join(str(part) for part in location if not isinstance(part, int))
    for source, part in reversed(parts):
        if any(f"{name}.".startswith(f"{key}.") for name in flatten(part)):
            return f"{source}: " if source and not source.startswith(key) else ""
    return ""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises ValueError, naming the file, for anything else."""
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST_FILE:
        raise ValueError(f"{path}: larger than {_LARGEST_FILE >> 20} MB, so no settings file")
    try:
        found = _parse(content)
    except ValueError as error:
        raise ValueError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected keys with values")
    return found


def parse_override(text: str) -> dict[str, Any]:
    """The nested mapping of "train.epochs=3"; the value is YAML. Raises ValueError."""
    key, equals, value = text.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ValueError(f"{text!r}: write an override as key=value, e.g. train.epochs=10")
    try:
        content = _parse(value.encode())
    except ValueError as error:
        raise ValueError(f"{text!r}: the value is not readable as YAML") from error
    return _under(names, content)


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings from values by dotted names; those that are None are left out."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        if value is not None:
            _merge(nested, _under(key.split("."), value))
    return nested


def _under(names: Sequence[str], value: Any) -> Any:
    for name in reversed(names):
        value = {name: value}
    return value


# YAML --------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Plain values only, a key stands once, 1e-4 is a number and a date is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as yaml declares it
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith("timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    loader.flatten_mapping(node)
    if twice := [key for key in keys if keys.count(key) > 1] if len(keys) < 1000 else []:
        raise yaml.YAMLError(f"key {twice[0]!r} stands twice")
    mapping = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.YAMLError("a key is a list or a mapping")
        mapping[key_node.value] = loader.construct_object(value_node, deep=True)
    return mapping


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _parse(text: bytes) -> Any:
    return copy.deepcopy(_parsed(text))


@functools.lru_cache(maxsize=8)  # the recipe of a study is read for each of its cells
def _parsed(text: bytes) -> Any:
    """The value of a YAML document; ValueError, in one line, for what is none or grows too large."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(printable(" ".join(str(error).split()))) from None


def _count(node: yaml.Node, counts: dict[yaml.Node, int | None]) -> int:
    """How many values a node holds once its aliases are written out."""
    if node in counts:
        known = counts[node]
        if known is None:
            raise ValueError("an alias stands inside what it names")
        return known
    counts[node] = None
    inside: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        inside = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inside = node.value
    total = 1 + sum(_count(part, counts) for part in inside)
    if total > _MOST_VALUES:
        raise ValueError(f"more than {_MOST_VALUES} values")
    counts[node] = total
    return total
