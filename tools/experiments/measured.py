"""The costs of two networks, measured side by side in one process: a small file beside the runs.

The latencies of two single runs are of two moments of a machine and say nothing of each other; these
were taken in turns. `sebench measure A B -o A-B.cost.json` writes the file, a report reads it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Len

from backbones import files
from backbones.config import NonNegative
from tools.experiments.record import Network, find_files, read_all
from tools.experiments.typed_json import json_schema, read_typed

SUFFIX = ".cost.json"
WITHIN = 0.01  # a share: costs that are no further apart are called equal
Factor = Annotated[float, Ge(1e-6), Le(1e6)]  # a ratio of costs
Counted = Annotated[int, Ge(0), Le(2**63 - 1)]


@dataclass(frozen=True)
class Ratio:
    """The second network's cost over the first's: the median over rounds and its 95 % interval."""

    value: Factor | None  # None: unavailable, see reason
    low: Factor | None = None  # None: a few rounds have no such bound
    high: Factor | None = None
    rounds: Counted = 0
    reason: str | None = None


@dataclass(frozen=True)
class Side:
    """One of the two networks; medians over the rounds."""

    network: Network
    parameters: Counted
    multiply_adds: Counted
    latency_ms: NonNegative | None = None  # of one image alone
    images_per_second: NonNegative | None = None  # at the batch size
    peak_memory_bytes: Counted | None = None  # weights, and what a batch needs beside them
    joules_per_image: NonNegative | None = None


@dataclass(frozen=True)
class Conditions:
    """What the numbers depend on."""

    device: str  # "cpu" or "cuda"
    device_name: str
    threads: Annotated[Counted, Ge(1)]
    clock: str
    image: Annotated[list[Counted], Len(3, 3)]  # channels, height, width
    batch_size: Annotated[Counted, Ge(1)]
    mode: str  # of `backbones.inference.prepare_for_inference`
    classes: Counted  # of the classifier


@dataclass(frozen=True)
class Measured:
    """Latency, throughput, memory and energy of two networks, in turns in one process."""

    created: str  # UTC, ISO 8601
    first: Side
    second: Side
    latency: Ratio
    throughput: Ratio
    peak_memory: Ratio
    energy: Ratio
    conditions: Conditions
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    schema: Literal[1] = 1

    def turned(self) -> Measured:
        """The same with the networks the other way round."""
        ratios: dict[str, Any] = {name: _inverse(getattr(self, name)) for name in RATIOS}
        return dataclasses.replace(self, first=self.second, second=self.first, **ratios)


RATIOS = ("latency", "throughput", "peak_memory", "energy")


def write_measured(measured: Measured, path: Path) -> None:
    """Write the file whole.

    Raises:
        ValueError: its name is none that a report finds.
    """
    if not path.name.endswith(SUFFIX):
        raise ValueError(f"{path}: a report finds measured costs by their names, NAME{SUFFIX}")
    content = dataclasses.asdict(measured)
    text = json.dumps({"schema": content.pop("schema"), **content}, indent=1, allow_nan=False)
    files.write_whole(path, text + "\n")


def read_measured(path: Path) -> Measured:
    """Read one such file.

    Raises:
        ValueError: it is damaged; the message names it.
    """
    try:
        return read_typed(path, Measured)
    except ValueError as error:
        raise ValueError(f"{path}: no measured costs: {error}") from None


def load_measured(paths: Iterable[Path | str]) -> tuple[list[Measured], list[str]]:
    """Every such file in or under folders, oldest first, and a warning for each that was skipped."""
    places = [path for path in paths if Path(path).is_dir()]
    found, warnings = read_all(read_measured, find_files(places, f"*{SUFFIX}"))
    return sorted(found.values(), key=lambda measured: measured.created), warnings


def _inverse(ratio: Ratio) -> Ratio:
    def over(bound: float | None) -> float | None:
        return None if bound is None else 1 / bound

    return dataclasses.replace(
        ratio, value=over(ratio.value), low=over(ratio.high), high=over(ratio.low)
    )


if __name__ == "__main__":  # write the schema anew
    text = json.dumps(json_schema(Measured), indent=1) + "\n"
    Path(__file__).with_name("measured.schema.json").write_text(text, encoding="utf-8")
