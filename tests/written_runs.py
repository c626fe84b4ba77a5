"""Run directories as the suite writes them, without training: for the tests of the report."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from PIL import Image
from pydantic import TypeAdapter

from tools.experiments.experiment import load_experiment
from tools.experiments.record import METRICS, Metric, Record, to_plain, write_record

_RECORD = TypeAdapter(Record)  # takes longer to make than to use
CLASSES = ["ant", "bee", "cat", "dog"]
SETTINGS = {
    "classification": load_experiment("classification", "cifar-preact").settings,
    "scene": load_experiment("scene", "places365-short").settings,
    "detection": load_experiment("detection", "tiny").settings,
}


def record(task="classification", network="se_resnet20", *, seed=0, **changes):
    """A record of a twin; ``changes`` replace whole fields of it."""
    is_se = network.startswith("se_")
    twin = {"name": network[3:], "options": {}} if is_se else None
    detection = task == "detection"
    values = {
        "created": f"2026-01-0{seed + 1}T00:00:00+00:00",
        "experiment": {
            "hash": f"{task}-{network}-{seed}", "comparison_hash": f"{task}-condition", "task": task,
            "action": "train", "recipe": "tiny" if detection else "cifar-preact",
            "settings": SETTINGS[task],
        },
        "dataset": {
            "name": "coco_2017" if detection else "cifar10",
            "split": "val2017" if detection else "test", "images": 8 if detection else 400,
            "classes": 4, "class_names": CLASSES, "synthetic": False, "root": "/nowhere",
            "annotations": None, "sha256": "d" * 64,
        },
        "protocol": {
            "name": "coco-bbox-800-1333" if detection else "full-image", "settings": {},
        },
        "backbone": {
            "name": network, "options": {}, "family": "ResNet", "is_se": is_se, "twin": twin,
        },
        "weights": {"path": "weights.safetensors", "sha256": "a" * 64},
        "seed": seed,
        "metrics": {},
        "per_class": [],
        "cost": {
            "parameters": 300_000 if is_se else 270_000, "multiply_adds": 40_700_000 + 20_000 * is_se,
            "input_size": [3, 32, 32],
            "latency": {"median_ms": 2.0 + 0.1 * is_se},
        },
        "timing": {"train_seconds": 60.0, "evaluate_images_per_second": 900.0 - 60 * is_se},
        "selection": "last epoch",
        "files": {"samples": None, "detections": None, "curve": None},
        "command": "sebench train ...",
        "git": {"commit": "c" * 40, "dirty": False},
        "versions": {"python": "3.11"},
        "device": {"type": "cpu", "name": "a processor", "threads": 2, "processes": 1},
    }  # fmt: skip
    return altered(_RECORD.validate_python(values), **changes)


def altered(run, **changes):
    """The record with other parts; a mapping changes the keys of a part that it names."""
    content = to_plain(run)
    for name, value in changes.items():
        if dataclasses.is_dataclass(value):
            value = dataclasses.asdict(value)
        if dataclasses.is_dataclass(getattr(run, name)):
            value = {**content[name], **value}
        content[name] = value
    plain = json.loads(json.dumps(content, default=dataclasses.asdict))
    return dataclasses.replace(_RECORD.validate_python(plain), directory=run.directory)


def published_run(table, row, **settings):
    """A record that is in everything as the network of a row was published.

    ``settings`` are further ones by their dotted names, with ``__`` for the point.
    """
    overrides = [f"{key}={json.dumps(value)}" for key, value in row.settings.items()]
    overrides += [f"{key.replace('__', '.')}={json.dumps(v)}" for key, v in settings.items()]
    experiment = load_experiment(
        table.task,
        row.recipes[0],
        overrides,
        settings={"backbone": {"name": row.backbone, "options": dict(row.options)}},
    )
    images, split = table.dataset["images"], table.dataset["split"]
    coco, held_out = table.task == "detection", round(
        table.dataset["train_images"] * getattr(experiment.config.data, "holdout", 0.0)
    )  # fmt: skip
    initial = {"path": "se_resnet50.pth", "sha256": "ce0d4300" + "0" * 56, "missing": []}
    return record(
        table.task,
        row.backbone,
        experiment={
            "hash": experiment.hash, "comparison_hash": experiment.comparison_hash, "task": table.task,
            "action": "train", "recipe": experiment.recipe,
            "settings": json.loads(json.dumps(experiment.settings)),
        },
        dataset={
            "name": "coco_2017" if coco else table.dataset["name"],
            "split": "val2017" if coco else split,
            "images": images,
            "train_images": table.dataset["train_images"] - held_out,
            "held_out_images": held_out or None,
            "classes": 1000,
        },
        protocol={"name": row.references[0].protocol},
        backbone={
            "name": row.backbone, "options": dict(row.options), "family": "", "is_se": True,
            "twin": None,
        },
        weights={
            "path": "weights.safetensors", "sha256": "a" * 64,
            "initial": initial if table.initial == "imagenet" else None,
        },
        metrics={
            r.metric: Metric(r.value, "percent", METRICS[r.metric].higher_is_better, images)
            for r in row.references if r.metric in METRICS
        },
    )  # fmt: skip


def evaluation_of(run, *, protocol=None, **changes):
    """What `evaluate` records of the weights that ``run`` trained."""
    settings = {k: v for k, v in run.experiment.settings.items() if k not in ("train", "augment")}
    values = {
        "experiment": {"action": "evaluate", "hash": "e", "settings": settings},
        "dataset": {"train_images": None, "held_out_images": None},
        "protocol": {"name": protocol or run.protocol.name},
        "weights": {"initial": None, "ensemble": []},
        "selection": "weights as given",
    }
    return altered(run, **(values | changes))


def write_classifier(directory, network, *, seed=0, accuracy=0.7, names=CLASSES, **changes):
    """A classifier's run: per-image rows, a curve and a record that agree."""
    directory.mkdir(parents=True)
    shared = np.random.default_rng(1)
    labels, hard = shared.integers(0, 4, 400), shared.random(400)
    luck = np.random.default_rng([seed, len(network)])
    right = hard + luck.normal(0, 0.05, 400) < accuracy
    first = np.where(right, labels, (labels + 1 + luck.integers(0, 3, 400)) % 4)
    rows = {
        "image": [f"test/{index:05d}" for index in range(400)],
        "label": pa.array(labels, pa.int32()),
        "top5": [[int(c)] + [k for k in range(4) if k != c] for c in first],
        "scores": [[0.7, 0.1, 0.1, 0.1]] * 400,
    }
    parquet.write_table(pa.table(rows), directory / "samples.parquet")
    curve = [
        {"step": step, "epoch": step / 10, "loss": 2.0 / (1 + step)} for step in range(0, 40, 4)
    ] + [{"step": 40, "epoch": 4.0, "val_top1_error": 100 * float(1 - right.mean())}]
    text = "\n".join(map(json.dumps, curve)) + '\n{"step": 44, "lo'  # killed while it wrote
    (directory / "curve.jsonl").write_text(text)
    top1 = 100 * float(right.mean())
    data = changes.pop("dataset", {})
    made = record(
        network=network,
        seed=seed,
        metrics={
            "top1_error": Metric(100 - top1, "percent", False, 400),
            "top5_error": Metric(None, "percent", False, 400, "only 4 classes"),
            "top1_accuracy": Metric(top1, "percent", True, 400),
        },
        per_class=[
            {
                "name": name,
                "images": int(np.sum(labels == k)),
                "value": 100 * float(right[labels == k].mean()),
            }
            for k, name in enumerate(names)
        ],
        files={"samples": "samples.parquet", "detections": None, "curve": "curve.jsonl"},
        dataset={**data, "class_names": list(names)},
        **changes,
    )
    write_record(made, directory)
    return directory


def write_detector(directory, network, annotations, *, shift, seed=0, **changes):
    """A detector's run on `write_coco`'s set, its boxes off by about ``shift`` pixels."""
    from detection.annotations import read_annotations, read_results
    from detection.scoring import score

    directory.mkdir(parents=True)
    content = json.loads(annotations.read_text())
    rng = np.random.default_rng([seed, len(network)])
    found = [
        {
            "image_id": box["image_id"],
            "category_id": box["category_id"],
            "bbox": [float(v) for v in np.add(box["bbox"], rng.normal(0, shift, 4))],
            "score": float(rng.uniform(0.5, 1)),
        }
        for box in content["annotations"]
    ]
    (directory / "detections.json").write_text(json.dumps(found))
    truth = read_annotations(annotations)
    results = read_results(directory / "detections.json", truth)
    scores = score(truth, results)
    dataset = {
        "annotations": str(annotations),
        "reported_sha256": truth.sha256,
        "synthetic": True,
        "class_names": [entry["name"] for entry in content["categories"]],
    }
    made = record(
        "detection",
        network,
        seed=seed,
        metrics={
            name: Metric(value, "percent", True, 8, None if value is not None else "no such box")
            for name, value in scores.metrics.items()
        },
        per_class=[{"name": row.name, "images": 8, "value": row.value} for row in scores.per_class],
        files={"samples": None, "detections": "detections.json", "curve": None},
        dataset=dataset,
        **changes,
    )
    write_record(made, directory)
    return directory


def write_coco(root: Path, names=("cup", "fork")) -> Path:
    """Eight pictures of 96 pixels with two boxes each; returns the annotation file."""
    rng = np.random.default_rng(0)
    (root / "val2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    content = {
        "images": [],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(names)],
        "annotations": [],
    }
    for image in range(1, 9):
        file = f"{image:012d}.jpg"
        Image.fromarray(rng.integers(0, 255, (96, 96, 3), np.uint8)).save(root / "val2017" / file)
        content["images"].append({"id": image, "file_name": file, "width": 96, "height": 96})
        for category in (1, 2):
            box = [*rng.uniform(0, 40, 2).tolist(), 40.0, 36.0]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": 1440.0,
                    "iscrowd": 0,
                }
            )
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(content))
    return path


def write_suite(root: Path) -> Path:
    """Two seeds of a classifier whose SE twin is better, and a detector whose SE twin is worse."""
    runs = root / "runs"
    for seed in range(3):
        write_classifier(runs / f"plain-{seed}", "resnet20", seed=seed, accuracy=0.62)
        write_classifier(runs / f"se-{seed}", "se_resnet20", seed=seed, accuracy=0.74)
    annotations = write_coco(root / "coco")
    write_detector(runs / "detector-plain", "resnet_tiny", annotations, shift=1.0)
    write_detector(runs / "detector-se", "se_resnet_tiny", annotations, shift=5.0)
    return runs
