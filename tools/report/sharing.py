"""Numbers as others take them over: a line for a caption, and files for the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml

from tools.experiments.record import Record
from tools.experiments.tasks import TASKS

if TYPE_CHECKING:
    from tools.report.table import Table

# Data set and split -> its repository on the Hub, and the images that make it whole.
HUB_DATASETS = {
    ("imagenet", "val"): ("ILSVRC/imagenet-1k", 50_000),
    ("cifar10", "test"): ("uoft-cs/cifar10", 10_000),
    ("cifar100", "test"): ("uoft-cs/cifar100", 10_000),
    ("fashion_mnist", "test"): ("zalando-datasets/fashion_mnist", 10_000),
    ("coco_2017", "val2017"): ("detection-datasets/coco", 5_000),
}
HEAD = """\
# Copy into the folder .eval_results/ of the model's repository on the Hugging Face Hub
# (https://huggingface.co/docs/hub/eval-results). task_id is what the data set's eval.yaml calls it; where
# you publish the bundle of these runs, add its address to each entry: source: {url: ...}.
"""


def eval_results(table: Table) -> dict[str, str]:
    """Files for ``.eval_results/`` of each network's model, by name, from real and whole data sets.

    Percent of the task's class metric (top-1 accuracy, AP), the mean over seeds.
    Source: github.com/huggingface/hub-docs, eval_results.yaml and docs/hub/eval-results.md.
    """
    entries: dict[str, list[dict[str, Any]]] = {}
    for c in table.comparisons:
        for network, runs, side in (
            (c.plain, c.pair.plain, "plain"),
            (c.candidate, c.pair.candidate, "candidate"),
        ):
            data = runs[0].dataset
            hub, images = HUB_DATASETS.get((data.name, data.split), (None, 0))
            metric = TASKS[c.task].class_metric
            value = next((getattr(r.difference, side) for r in c.metrics if r.name == metric), None)
            if hub is None or value is None or c.synthetic or data.images != images:
                continue
            entry = {
                "dataset": {"id": hub, "task_id": "default"},
                "value": round(value, 4),
                "date": max(run.created for run in runs)[:10],
                "notes": protocol_line(runs),
            }
            listed = entries.setdefault(re.sub(r"[^\w.+-]+", "_", network)[:100], [])
            if entry not in listed:
                listed.append(entry)
    return {
        f"{name}.yaml": HEAD + yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, width=1000)
        for name, rows in entries.items()
    }


def protocol_line(runs: Sequence[Record]) -> str:
    """What a caption must say beside a number, of the runs it was made from; what differs, in turn.

    "imagenet val, n = 50,000, imagenet-256-224, recipe imagenet-paper (1a2b3c4d), seeds 0, 1, ..."
    """
    seeds = sorted({run.seed for run in runs})
    parts = [
        [f"{r.dataset.name} {r.dataset.split}" + " (synthetic)" * r.synthetic for r in runs],
        [f"n = {r.dataset.images:,}" for r in runs],
        [r.protocol.name for r in runs],
        [f"recipe {r.experiment.recipe} ({r.comparison_hash[:8]})" for r in runs],
        [f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"],
        [_made_with(r) for r in runs],
    ]
    return ", ".join(" / ".join(dict.fromkeys(map(str, part))) for part in parts)


def _made_with(run: Record) -> str:
    commit = f" commit {run.git.commit[:9]}" if run.git.commit else ""
    changed = " with changes" if run.git.dirty else ""
    torch = f", torch {run.versions['torch']}" if "torch" in run.versions else ""
    return f"sebench {run.versions.get('sebench', '?')}{commit}{changed}{torch}"
