"""Settings: nested mappings checked against a frozen dataclass, and errors people can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


def build_settings(settings_class: type, parts: Iterable[tuple[str, Mapping[str, Any]]]) -> Any:
    """An object of a settings dataclass from nested mappings, later ones over earlier ones.

    Each part comes with what to call it in an error message.

    Raises:
        ValueError: an unknown key, with near matches, or a value of the wrong type.
    """
    schema = merged = _writable(OmegaConf.structured(settings_class))
    source = settings_class.__name__
    try:
        for source, part in parts:
            for key in _leaves(part):
                _check_key(key, schema, source)
            merged = OmegaConf.merge(merged, OmegaConf.create(dict(part)))
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(_explain(error, source)) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises ValueError, naming the file, for anything else."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys with values")
    return content


def parse_override(text: str) -> dict[str, Any]:
    """The nested mapping of "train.epochs=3"; the value is YAML. Raises ValueError."""
    key, equals, _ = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"{text!r}: write an override as key=value, e.g. train.epochs=10")
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([text]))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"{text!r}: the value is not readable as YAML") from error


def unknown(kind: str, name: object, allowed: Iterable[str]) -> str:
    """A message for a name that is not there: near matches, or all there are."""
    allowed = [str(item) for item in allowed]
    near = difflib.get_close_matches(str(name), allowed, n=3)
    if near:
        return f"unknown {kind} {str(name)!r}; did you mean {' or '.join(near)}?"
    return f"unknown {kind} {str(name)!r}; there are {', '.join(allowed) or 'none'}"


def _writable(node: DictConfig) -> DictConfig:
    """Frozen dataclasses give read-only nodes; recipes and overrides are merged into them."""
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            _writable(child)
        elif child is not None:
            child._set_flag("readonly", None)
    return node


def _leaves(part: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in part.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _check_key(key: str, schema: DictConfig, source: str) -> None:
    where = "" if source.startswith(key) else f" in {source}"
    node: Any = schema
    group = ""
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            return  # merging will say that a plain value has no parts
        if OmegaConf.get_type(node) is dict:
            return  # free keys, as in backbone.options
        if part not in list(node):  # `in node` is false for a key without a default
            known = list(_schema_keys(schema))
            same = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
            near = same[:3] or difflib.get_close_matches(key, known, n=3)
            there = ", ".join(f"{group}{name}" for name in node)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {there}"
            raise ValueError(f"unknown key {key!r}{where}; {hint}")
        node = node._get_node(part)
        group += f"{part}."
    if isinstance(node, DictConfig) and OmegaConf.get_type(node) is not dict:
        inside = ", ".join(f"{group}{name}" for name in node)
        raise ValueError(f"{key!r}{where} is a group of settings; set {inside}")


def _schema_keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and OmegaConf.get_type(child) is not dict:
            yield from _schema_keys(child, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _explain(error: OmegaConfBaseException, source: str) -> str:
    """OmegaConf's message in one line, with the full name of the key."""
    message = str(error.msg or error).splitlines()[0]
    if "is not a ListConfig" in message:
        message = "expected a list, e.g. [1, 2]"
    key = error.full_key or ""
    where = source if key and source.startswith(key) else f"{source}: {key}".rstrip(": ")
    return f"{where}: {message[0].lower()}{message[1:]}"
