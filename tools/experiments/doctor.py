"""What will fail, or is likely a mistake, in a study and on this machine, each with its mend.

The tasks' own checks say what is wrong with data, weights and settings; here is what they cannot see:
the recipe that a batch departs from, memory, disk, GPU and clock.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backbones import describe_backbone
from tools.experiments.experiment import list_recipes, load_experiment, recipe_cost
from tools.experiments.study import Cell, networks_of

_CLOCK = 60.0  # seconds by which the clocks of a machine and of its disk may differ
_OLDEST = 1_764_547_200  # 2025-12-01, seconds: no run is of before that
_CHECKPOINT = 2  # times the weights, with momentum; it is there while a run lasts


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    where: str  # "machine", or ENTRY/NETWORK of the study
    what: str
    mend: str
    fails: bool  # whether a run cannot work so; otherwise it is likely a mistake


def examine(cells: Sequence[Cell], output: Path, thorough: bool = False) -> list[Finding]:
    """Everything that is found, what fails first.

    Args:
        cells: of a study; none: the machine alone.
        output: folder that runs are to be written to; it need not be there yet.
        thorough: open every image of large sets, and compare train and val by their content.
    """
    found = [_finding("machine", text) for text in _examine_machine(output)]
    found += [_finding("machine", text, fails=True) for text in _examine_disk(cells, output)]
    networks = networks_of(cells)
    data: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        data.setdefault((cell.entry, str(cell.experiment.config.data)), cell)
    for name, (cell, *_) in networks.items():
        found += _examine_cell(name, cell)
    for cell in data.values() if thorough else ():
        with suppress(ValueError, OSError):  # the check has said it
            texts = cell.experiment.entry_points().inspect(cell.experiment.config)
            found += [_finding(cell.entry, text) for text in texts]
    return sorted(_merged(found, list(networks)), key=lambda finding: not finding.fails)


def _finding(where: str, text: str, fails: bool = False) -> Finding:
    """Messages of this suite end with their mend, after a semicolon or a colon."""
    what, semicolon, mend = text.rpartition("; ")
    if not semicolon:
        what, _, mend = text.rpartition(": ")
    return Finding(where, what or text, mend, fails)


def _merged(found: Sequence[Finding], networks: Sequence[str]) -> list[Finding]:
    """What holds for every network of an entry is said once, of the entry."""
    places: dict[Finding, list[str]] = {}
    for finding in found:
        entry = finding.where.partition("/")[0]
        places.setdefault(replace(finding, where=entry), []).append(finding.where)
    merged = []
    for finding, where in places.items():
        whole = [name for name in networks if name.startswith(f"{finding.where}/")]
        if set(where) >= set(whole) and len(whole) != 1:
            merged.append(finding)
        else:
            merged += [replace(finding, where=name) for name in dict.fromkeys(where)]
    return merged


# The machine --------------------------------------------------------------------------------------


def _examine_machine(output: Path) -> Iterator[str]:
    """Clock, GPU and driver."""
    import torch

    with tempfile.NamedTemporaryFile(dir=_existing(output)) as file:
        skew = os.stat(file.name).st_mtime - time.time()
    if abs(skew) > _CLOCK or time.time() < _OLDEST:
        yield (
            f"the clock says {time.strftime('%Y-%m-%d %H:%M')}, {abs(skew):.0f} s from that of the "
            "disk; set it (timedatectl set-ntp true): records are ordered by their time"
        )
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    if driver and not torch.cuda.is_available():
        yield (
            f"there is an NVIDIA driver, but torch {torch.__version__} sees no GPU; install a torch "
            "whose CUDA this driver knows (nvidia-smi prints it), or unset CUDA_VISIBLE_DEVICES"
        )
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        if free < total / 2:
            yield (
                f"GPU {index} has {free / 1e9:.1f} of {total / 1e9:.1f} GB free; end what else runs "
                "there (nvidia-smi), or choose another by CUDA_VISIBLE_DEVICES"
            )


def _examine_disk(cells: Sequence[Cell], output: Path) -> Iterator[str]:
    folder = _existing(output)
    if not os.access(folder, os.W_OK):
        yield f"{folder} cannot be written to; choose another --output"
    waiting = [cell for cell in cells if cell.status() != "recorded"]
    names = [cell.experiment.config.backbone.name for cell in waiting]
    weights = [4 * describe_backbone(name).parameters for name in names]
    needed = sum(weights) + _CHECKPOINT * max(weights, default=0)
    free = shutil.disk_usage(folder).free
    if needed > free:
        yield (
            f"{len(waiting)} runs to come keep about {needed / 1e9:.1f} GB, {folder} has "
            f"{free / 1e9:.1f} GB free; choose another --output, or run parts of the study by --only"
        )


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.is_dir())


# A network of a study -----------------------------------------------------------------------------


def _examine_cell(name: str, cell: Cell) -> list[Finding]:
    try:
        summary = cell.check()
    except (ValueError, OSError) as error:
        return [_finding(name, str(error), fails=True)]
    experiment = cell.experiment
    doubts = [*summary.get("warnings", ()), *_memory(experiment.config)]
    if recipe := list_recipes(experiment.task).get(experiment.recipe):
        shipped = load_experiment(experiment.task, experiment.recipe).config
        if shipped.data.name == experiment.config.data.name:
            doubts += _count(summary["dataset"], recipe_cost(recipe)["images"])
        doubts += _scaling(experiment.config.train, shipped.train)
    return [_finding(name, text) for text in doubts]


def _count(dataset: dict[str, Any], images: int | None) -> Iterator[str]:
    """Images of training against those the recipe was written for."""
    seen = (dataset.get("train_images") or 0) + (dataset.get("held_out_images") or 0)
    if images and seen and seen != images and not dataset.get("synthetic"):
        yield (
            f"{seen:,} images of training, the recipe is for {images:,}; complete "
            f"{dataset.get('root')}: if these are all there should be, no published number is "
            "comparable, and schedules counted in iterations pass over them more or less often"
        )


def _scaling(ours: Any, theirs: Any) -> Iterator[str]:
    """The linear scaling rule (arXiv 1706.02677): k times the batch, k times the learning rate."""
    rates = [getattr(getattr(train, "optimizer", train), "lr", None) for train in (ours, theirs)]
    key = "train.optimizer.lr" if hasattr(ours, "optimizer") else "train.lr"
    if None in rates or ours.batch_size == theirs.batch_size:
        return
    wanted = rates[1] * ours.batch_size / theirs.batch_size
    if abs(rates[0] / wanted - 1) > 0.01:
        yield (
            f"train.batch_size={ours.batch_size} with {key}={rates[0]:g}; the recipe has "
            f"{theirs.batch_size} with {rates[1]:g}; set {key}={wanted:.4g} (linear scaling)"
            + (", or keep the batch by train.accumulate" if hasattr(ours, "accumulate") else "")
        )


def _memory(config: Any) -> Iterator[str]:
    """About what training needs, from the shapes of the network's outputs, against what there is."""
    import torch

    from backbones.device import choose_device

    size = getattr(getattr(config, "augment", None), "size", 0)
    if not size:
        return  # images of many sizes: `sebench plan` measures it
    device = choose_device(config.device)
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fixed, an_image = _bytes(config, size)
    batch = config.train.batch_size
    images = batch // config.train.accumulate
    needed = fixed + images * an_image
    if needed <= there:
        return
    parts = (n for n in range(1, batch // 2 + 1) if batch % n == 0)
    fitting = next((n for n in parts if fixed + batch // n * an_image <= there), None)
    mend = "use smaller images or several processes"
    if fitting:
        mend = f"set train.accumulate={fitting}, or share the batch among processes (torchrun)"
    yield (  # the run itself takes smaller parts when memory is short
        f"a batch of {images} images takes about {needed / 1e9:.0f} GB, this {device.type} has "
        f"{there / 1e9:.0f} GB; {mend}"
    )


def _bytes(config: Any, size: int) -> tuple[int, int]:
    """Of weights, gradients and momentum; and of what one image's pass keeps for the way back."""
    import torch

    from backbones import build_backbone

    kept = 0

    def note(_module: Any, _inputs: Any, output: Any) -> None:
        nonlocal kept
        kept += output.numel() if isinstance(output, torch.Tensor) else 0

    with torch.device("meta"):
        network = build_backbone(config.backbone.name, **config.backbone.options).train()
        for module in network.modules():
            if not any(module.children()):
                module.register_forward_hook(note)
        with torch.no_grad():
            network(torch.empty(2, 3, size, size))
    width = 4 if config.train.precision == "float32" else 2
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return 3 * 4 * parameters, width * kept // 2
