"""What experiments need from a network: brought before, or missed before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from backbones.offline import is_offline, require_network
from backbones.registry import EXTERNAL
from classification.catalog import DATASETS
from tools.experiments.experiment import Experiment, named_files, synthetic_marker
from tools.experiments.tasks import load_function

if TYPE_CHECKING:
    from tools.experiments.study import Cell


@dataclass(frozen=True)
class Fetched:
    """One thing that experiments need."""

    what: str  # "weights timm:resnet18.a1_in1k", "data cifar10", or a cell that lacks more
    state: Literal["there", "fetched", "missing"]
    detail: str  # where it is, or what is wrong with its mend
    data: str = ""  # the data set that is missing, or may be


def fetch(cells: Sequence[Cell]) -> Iterator[Fetched]:
    """Download published weights and data sets that are not here; then check all that cells need."""
    experiments = [cell.experiment for cell in cells]
    lacking = set()
    for name in _weights_of(experiments):
        found = _fetch_weights(name)
        if found.state == "missing":
            lacking.add(name)
        yield found
    data: dict[str, Fetched] = {}
    for key, config in _data_of(experiments).items():
        data[key] = _fetch_data(config)
        yield data[key]
    different = {str(replace(cell.experiment.config, seed=0)): cell for cell in reversed(cells)}
    for cell in reversed(different.values()):
        config = cell.experiment.config
        fetched = data.get(str(config.data))
        has_data = fetched is None or fetched.state != "missing"
        if has_data and lacking.isdisjoint(_weights_of([cell.experiment])):
            try:
                cell.check()
            except (ValueError, OSError) as error:
                unread = config.data.name if fetched is None else ""
                yield Fetched(cell.name, "missing", str(error), unread)


def require_fetched(
    experiments: Iterable[Experiment], command: str, made_in: Path | None = None
) -> None:
    """Where this process is offline: everything that would be downloaded is here.

    Args:
        experiments: looked at only then.
        command: the command line that `--download-only` is to be added to.
        made_in: folder of the data that a study makes itself.

    Raises:
        ValueError: naming all that is missing, and where it was looked for.
    """
    if not is_offline():
        return
    experiments = list(experiments)
    missing = []
    for name in _weights_of(experiments):
        where, is_there = _find_weights(name)
        if not is_there:
            missing.append(f"weights {name}: looked for {where}")
    for config in _data_of(experiments).values():
        root = config.data.root and Path(config.data.root).expanduser()
        downloadable = root and root.parent != made_in and DATASETS[config.data.name].download
        if downloadable and not root.is_dir():
            missing.append(f"data {config.data.name}: looked for data.root={root}")
    if missing:
        raise ValueError(
            "offline, and not everything is here:\n  "
            + "\n  ".join(missing)
            + f"\nWhere there is a network: {command.replace(' --offline', '')} --download-only (what it "
            "brings must be seen, or copied, under the same paths here)"
        )


# Parts -------------------------------------------------------------------------------------------


def _weights_of(experiments: Iterable[Experiment]) -> list[str]:
    """Names of weights that a library downloads, each once."""
    named = (name for each in experiments for name in named_files(each.config))
    return list(dict.fromkeys(name for name in named if name.startswith(EXTERNAL)))


def _data_of(experiments: Iterable[Experiment]) -> dict[str, Any]:
    """Settings by those of the data: one of each set that has a row and is not synthetic."""
    configs = (each.config for each in experiments)
    return {
        str(config.data): config
        for config in configs
        if config.data.name in DATASETS and synthetic_marker(config.data.root) is None
    }


def _find_weights(name: str) -> tuple[str, bool]:
    from backbones.libraries import find_cached  # needs torch

    return find_cached(name)


def _fetch_weights(name: str) -> Fetched:
    from backbones.weights.load import read_weights

    what = f"weights {name}"
    try:
        was_there = _find_weights(name)[1]
        read_weights(name)
        return Fetched(what, "there" if was_there else "fetched", _find_weights(name)[0])
    except (ValueError, OSError) as error:
        return Fetched(what, "missing", str(error))


def _fetch_data(config: Any) -> Fetched:
    data, row = config.data, DATASETS[config.data.name]
    what = f"data {data.name}"
    reader = load_function(row.reader)

    def read() -> str | None:
        """What is wrong with the set, if anything."""
        try:
            for split in ("train", row.reported):
                reader(data, split)
        except (ValueError, OSError) as error:
            return str(error)
        return None

    wrong = read()
    if wrong is None:
        return Fetched(what, "there", str(data.root))
    if not row.download or not data.root:
        return Fetched(what, "missing", wrong, data.name)
    try:
        require_network(f"data {data.name}", f"data.root={data.root}")
        load_function(row.download)(data)
        wrong = read()
    except (ValueError, OSError, RuntimeError) as error:
        wrong = f"could not be downloaded from {row.source}: {error}"
        with suppress(OSError):
            Path(data.root).expanduser().rmdir()  # only if it is empty
    if wrong:
        return Fetched(what, "missing", wrong, data.name)
    return Fetched(what, "fetched", str(data.root))
