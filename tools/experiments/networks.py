"""The networks of a study's entry: by name or pattern, each after its plain twin, and their folders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from backbones import files
from backbones.config import unknown
from backbones.equal_cost import COUNTED, find_equal_cost
from backbones.registry import EXTERNAL, list_backbones, twin_of

EQUAL_DEPTH = "equal_depth"
TWINS = (EQUAL_DEPTH, *COUNTED)  # what a study may ask for
_KEYS = {"name", "options", "weights", "twin"}


def _read_twins(asked: bool | Sequence[str]) -> Sequence[str]:
    """Which plain twins a study asks for: some of TWINS."""
    if isinstance(asked, bool):
        return [EQUAL_DEPTH] * asked
    for name in asked:
        if name == "latency":
            raise ValueError(
                "twins: latency is measured, not counted: find the network once, by `sebench twin NAME"
                " --match latency`, and list it among the backbones; a report pairs it"
            )
        if name not in TWINS:
            raise ValueError(f"twins: {unknown('twin', name, TWINS)}")
    return asked


def expand(
    networks: Sequence[Any], twins: bool | Sequence[str], where: str
) -> list[dict[str, Any]]:
    """Each network of an entry after its plain twins, none twice.

    Args:
        networks: names or patterns ("se_resnet*"), or mappings of `name`, `options`, `weights`, `twin`.
        twins: whether plain twins are added, or which of TWINS.
        where: what to call the entry in an error.

    Raises:
        ValueError: something else, or a pattern that no network matches.
    """
    asked = _read_twins(twins)
    found: list[dict[str, Any]] = []
    for item in networks:
        told = f"{where}: backbones: {item!r}: give a name, or name, options, weights and twin"
        for network in _matching(_read(item, _KEYS, told), where):
            # A twin has weights of its own; where a network starts from some, both are listed.
            try:
                plain = [] if network.get("weights") else [_plain(network, twin) for twin in asked]
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            for each in (*plain, network):
                if each and each not in found:
                    found.append(each)
    return found


def read_twin(item: Any) -> dict[str, Any]:
    """A network given by its name, or as {name: ..., options: {...}}: always the latter."""
    told = f"twin: {item!r}: give a name, or a name and options"
    return {"options": {}, **_read(item, {"name", "options"}, told)}


def folder_name(network: Mapping[str, Any]) -> str:
    """What tells a network from the others of its entry, fit for a folder."""
    options = [f"{key}={value}" for key, value in network.get("options", {}).items()]
    parts = [network["name"], *options]
    if network.get("weights"):
        path = Path(network["weights"])
        # The weights of a run are all called the same: its folder says which they are.
        parts.append(path.parent.name if path.name == files.WEIGHTS else path.stem)
    return re.sub(r"[^\w.=+,-]+", "_", "-".join(parts))[:120]


def _read(item: Any, keys: set[str], told: str) -> dict[str, Any]:
    """A network that is given by its name, or as a mapping of some of these keys."""
    network: Any = {"name": item} if isinstance(item, str) else item
    if (
        not isinstance(network, Mapping)
        or set(network) - keys
        or not isinstance(network.get("name"), str)
        or not isinstance(network.get("options", {}), Mapping)
        or not isinstance(network.get("weights", ""), str)
    ):
        raise ValueError(told)
    return dict(network)


def _matching(network: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """The network itself, or those of the table, or registered, that its name is a pattern of."""
    pattern = network["name"]
    if not any(letter in pattern for letter in "*?["):
        yield network
        return
    if pattern.startswith(EXTERNAL) or network.get("weights") or network.get("twin"):
        raise ValueError(
            f"{where}: backbones: {pattern!r}: a pattern stands for networks of `sebench list "
            "backbones`, without weights or twin; name others one by one"
        )
    names = [info.name for info in list_backbones()]
    matching = [name for name in names if fnmatchcase(name, pattern)]
    if not matching:
        raise ValueError(f"{where}: {unknown('backbone pattern', pattern, names)}")
    yield from ({**network, "name": name} for name in matching)


def _plain(network: Mapping[str, Any], asked: str) -> dict[str, Any] | None:
    """The plain twin that a network declares or the table knows, or that of equal cost."""
    name, options = network["name"], network.get("options", {})
    if asked == EQUAL_DEPTH and network.get("twin"):
        plain = read_twin(network["twin"])
    else:
        twin = twin_of(name, options)
        if twin is None:
            return None
        plain = {"name": twin[0], "options": twin[1]}
        if asked != EQUAL_DEPTH:
            plain["options"] = find_equal_cost(name, options, asked).options
    return plain if plain["options"] else {"name": plain["name"]}


def network_label(name: str, options: Mapping[str, Any]) -> str:
    """Name and options of a network, as in "se_resnet50 (reduction=4)"."""
    listed = ", ".join(f"{key}={value}" for key, value in sorted(options.items()))
    return f"{name} ({listed})" if listed else name
