"""What this suite writes beside the tensors: which network they are of, and the input it was fed."""

import functools
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Len

from backbones.config import Count, InputFormat, describe_error
from backbones.weights.files import TensorFile

Option = bool | int | float | str | None


@dataclass(frozen=True)
class NamedBackbone:
    """Which network the tensors are of."""

    name: Annotated[str, Len(1, 500)]
    options: dict[str, Option | list[Option]] = field(default_factory=dict)


@dataclass(frozen=True)
class Metadata:
    """Of a network or, without structure and classes, of the backbone in a whole detector."""

    backbone: NamedBackbone
    input_format: InputFormat
    structure: dict[str, Option] | None = None  # what tensors alone do not tell
    num_classes: Count | None = None
    classes: list[str] | None = None


def read_metadata(file: TensorFile) -> Metadata | None:
    """Check this suite's own metadata in a file; None where there are none.

    Raises:
        ValueError: they are of other types, or say other than the tensors.
    """
    told = dict(file.metadata)
    if isinstance(told.get("detector"), dict):
        told = {
            "backbone": told["detector"].get("backbone"),
            "input_format": told.get("input_format"),
        }
    if "backbone" not in told:
        return None
    import pydantic  # only where there are metadata to check

    damaged = f"{file.path}: its own metadata are damaged"
    try:
        metadata = _adapter().validate_python(told)
    except pydantic.ValidationError as error:
        raise ValueError(f"{damaged}: {describe_error(error.errors()[0])}") from None
    head = file.tensors.get("head.fc.weight")
    counts = {
        "num_classes": metadata.num_classes,
        "names of classes": None if metadata.classes is None else len(metadata.classes),
        "rows of head.fc.weight": None if head is None or not head.ndim else len(head),
    }
    told_counts = {what: count for what, count in counts.items() if count is not None}
    if len(set(told_counts.values())) > 1:
        words = ", ".join(f"{count} {what}" for what, count in told_counts.items())
        raise ValueError(f"{damaged}: {words}")
    return metadata


@functools.cache
def _adapter() -> Any:
    import pydantic

    return pydantic.TypeAdapter(Metadata)
