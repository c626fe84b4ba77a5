"""JSON files whose content has a type: read as a stranger's, described by a schema."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pydantic_core
from pydantic import TypeAdapter, ValidationError

from backbones.config import describe_error, printable


def read_json(path: Path, largest: int = 1 << 20) -> Any:
    """The content of a JSON file.

    Args:
        largest: bytes.

    Raises:
        ValueError: in a line, without the path: it cannot be read, is larger, or no JSON.
    """
    try:
        with path.open("rb") as file:
            text = file.read(largest + 1)
        if len(text) > largest:
            raise ValueError(f"larger than {largest >> 20} MB")
        return pydantic_core.from_json(text, allow_inf_nan=False)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(printable(str(error))) from None


def as_type(kind: Any, content: object) -> Any:
    """Plain values as what they are, a dataclass or a list of them; unknown keys are left out.

    Raises:
        ValueError: a key is missing, or a value is of another type; the message names it.
    """
    try:
        # As JSON: among Python's values a strict check wants objects of the classes.
        text = pydantic_core.to_json(content, inf_nan_mode="constants")
        return adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = printable(".".join(str(part) for part in first["loc"]))
        if first["type"] == "missing":
            raise ValueError(f"it lacks {place}") from None
        raise ValueError(describe_error(first, place)) from None


def read_typed(path: Path, kind: Any, largest: int = 1 << 20) -> Any:
    """`as_type` of a file, and its errors."""
    return as_type(kind, read_json(path, largest))


def json_schema(kind: Any) -> dict[str, Any]:
    """The JSON schema of a type."""
    schema = adapter(kind).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


@functools.cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """What checks values of a type."""
    return TypeAdapter(kind)
