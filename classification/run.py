"""The door: check, train and evaluate an experiment, and return its plain result."""

import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backbones import (
    BackboneSettings,
    InputFormat,
    LoadedWeights,
    Network,
    build_network,
    count_multiply_adds,
    count_parameters,
    describe_latency,
    fit_backbone,
    load_user_module,
    load_weights,
    read_weights,
    save_weights,
)
from backbones.inference import prepare_for_inference
from classification.config import ClassificationConfig
from classification.datasets import ImageArray
from classification.distributed import Processes, choose_device, join_processes
from classification.engine import Trainer
from classification.evaluate import Predictions, predict, write_samples
from classification.metrics import per_class_accuracy, top_k_metrics
from classification.monitor import CURVE
from classification.protocols import Protocol, choose_protocol
from classification.splits import READERS, Readers, Split, Splits, check_batches, load_splits

WEIGHTS = "weights.safetensors"
SAMPLES = "samples.parquet"


def check(
    config: ClassificationConfig, training: bool = True, readers: Readers = READERS
) -> dict[str, Any]:
    """Find what is wrong with an experiment before anything is computed.

    Args:
        training: whether it is to be trained; otherwise only what evaluation needs is looked for.
    Returns:
        The data set as in the result, the protocol, parameters, and the steps of training.
    Raises:
        ValueError: naming the setting or file, what was allowed and the mend.
    """
    choose_device(config.device)
    splits = load_splits(config, training, readers)
    name, protocol = _protocol(config, splits.reported)
    # Weights need a real network to be tried on; without them its shape is enough.
    weights = config.backbone.weights
    backbone = _fitted(config.backbone)
    with torch.device("cpu" if weights else "meta"):
        network = _build(config, backbone, splits.reported, training)
    if weights:
        _load(network, backbone, splits.reported, replace_head=training)
    elif not training:
        raise ValueError("backbone.weights is not set: evaluation needs weights, a FILE")
    summary = {
        "dataset": splits.describe([]),
        "protocol": protocol.describe(name),
        "parameters": count_parameters(network),
    }
    if training:
        steps = check_batches(config, splits.train, processes=1)
        summary["steps_per_epoch"] = steps
        summary["steps"] = config.train.iterations or steps * config.train.epochs
    return summary


def train(
    config: ClassificationConfig,
    directory: Path,
    resume: bool = False,
    readers: Readers = READERS,
) -> dict[str, Any] | None:
    """Train, keep the weights in `directory`, and evaluate them.

    Args:
        resume: go on from the checkpoint in `directory`, where there is one.
    Returns:
        The result on rank 0, None on other ranks.
    Raises:
        ValueError: as `check`; also a loss that is not finite, and a checkpoint that does not fit.
        KeyboardInterrupt: stopped by a signal, with the checkpoint saved.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with join_processes(config.device) as processes:
        splits = load_splits(config, True, readers)
        _, protocol = _protocol(config, splits.reported)
        check_batches(config, splits.train, processes.count)
        torch.manual_seed(config.seed)
        backbone = _fitted(config.backbone)
        network = _build(config, backbone, splits.reported, training=True)
        input_format, initial = _recipe_format(config), None
        if backbone.weights:
            loaded = _load(network, backbone, splits.reported, replace_head=True)
            input_format = loaded.input_format or input_format
            initial = loaded.describe()

        def score(dataset: Split, product: nn.Module) -> Predictions:
            networks = [(product, input_format)]
            data, settings = config.data, config.evaluate
            (seen,) = predict([networks], dataset, protocol, data, settings, processes)
            return seen

        def keep(product: nn.Module) -> None:
            if processes.is_first:
                save_weights(
                    product,
                    directory / WEIGHTS,
                    backbone=backbone,
                    num_classes=len(splits.reported.class_names),
                    input_format=input_format,
                    classes=splits.reported.class_names,
                )

        watched = splits.held_out or splits.reported
        trainer = Trainer(
            network,
            splits.train,
            config,
            input_format,
            processes,
            directory,
            validate=lambda product: score(watched, product),
            keep=keep,
        )
        if resume:
            trainer.resume()
        trainer.fit()
        product, selection = trainer.product, "last epoch"
        if config.train.select == "best":
            if processes.is_first:
                load_weights(product, directory / WEIGHTS)
            count = len(splits.held_out)
            selection = f"best epoch, {trainer.best['epoch']}, on {count} images held out of train"
        else:
            keep(product)
        processes.copy_from_first(product)
        prepared = prepare_for_inference(product, config.evaluate.inference)
        seen = score(splits.reported, prepared)
        if not processes.is_first:
            return None
        members = [_Member(product, prepared, input_format)]
        result = _result(config, directory, splits, seen, members, processes)
        images = config.train.batch_size * trainer.total_steps
        saved = read_weights(directory / WEIGHTS)
        result |= {
            "selection": selection,
            "curve": CURVE,
            "weights": {
                "path": WEIGHTS,
                "sha256": saved.sha256,
                "format": saved.format,
                "initial": initial,
            },
        }
        result["timing"]["train_seconds"] = trainer.seconds
        result["timing"]["train_images_per_second"] = images / trainer.seconds
        return result


def evaluate(
    config: ClassificationConfig, directory: Path, readers: Readers = READERS
) -> dict[str, Any] | None:
    """Evaluate `config.backbone.weights`, averaged with `config.evaluate.ensemble`, if any.

    Returns:
        The result on rank 0, None on other ranks.
    Raises:
        ValueError: as `check`.
    """
    results = evaluate_together([(config, directory)], readers)
    return results and results[0]


def evaluate_together(
    runs: Sequence[tuple[ClassificationConfig, Path]], readers: Readers = READERS
) -> list[dict[str, Any]] | None:
    """Do what `evaluate` does for several runs, reading every image once.

    Args:
        runs: configs and their directories; they differ in network, weights and seed alone.
    Returns:
        The results on rank 0, None on other ranks.
    Raises:
        ValueError: as `check`, for any of the runs before anything is computed.
    """
    config = runs[0][0]
    if not all(each.backbone.weights for each, _ in runs):
        raise ValueError("backbone.weights is not set: evaluation needs weights, a FILE")
    for _, directory in runs:
        directory.mkdir(parents=True, exist_ok=True)
    with join_processes(config.device) as processes:
        splits = load_splits(config, False, readers)
        _, protocol = _protocol(config, splits.reported)
        ensembles = [_load_ensemble(each, splits.reported, processes) for each, _ in runs]
        # Networks that want images resized in different ways cannot share a pass.
        passes: dict[str, list[int]] = {}
        for index, members in enumerate(ensembles):
            passes.setdefault(members[0].input_format.interpolation, []).append(index)
        seen = {}
        for indices in passes.values():
            networks = [[(m.prepared, m.input_format) for m in ensembles[i]] for i in indices]
            found = predict(
                networks, splits.reported, protocol, config.data, config.evaluate, processes
            )
            seen |= dict(zip(indices, found, strict=True))
        if not processes.is_first:
            return None
        results = []
        for index, (each, directory) in enumerate(runs):
            first, *others = members = ensembles[index]
            result = _result(each, directory, splits, seen[index], members, processes)
            together = passes[first.input_format.interpolation]
            result["timing"]["networks_in_pass"] = sum(len(ensembles[i]) for i in together)
            results.append(
                result
                | {
                    "selection": "weights as given",
                    "curve": None,
                    "weights": {
                        **first.loaded.describe(),
                        "initial": None,
                        "ensemble": [
                            {"path": other.loaded.path, "sha256": other.loaded.sha256}
                            for other in others
                        ],
                    },
                }
            )
        return results


# Parts of the three -------------------------------------------------------------------------------


def _protocol(config: ClassificationConfig, reported: Split) -> tuple[str, Protocol]:
    name, protocol = choose_protocol(config.evaluate)
    if protocol.crop is None and not isinstance(reported, ImageArray):
        raise ValueError(
            f"evaluate.protocol={name}: {reported.name} has images of many sizes; choose one that "
            "crops, e.g. imagenet-256-224"
        )
    return name, protocol


def _fitted(backbone: BackboneSettings) -> BackboneSettings:
    """Complete the network's options by what its weights demand."""
    for path in backbone.imports:
        load_user_module(path)
    return fit_backbone(backbone)


def _build(
    config: ClassificationConfig, backbone: BackboneSettings, reported: Split, training: bool
) -> Network:
    dropout = config.train.dropout if training else 0.0
    return build_network(backbone.name, len(reported.class_names), dropout, **backbone.options)


def _load(
    network: Network, backbone: BackboneSettings, reported: Split, replace_head: bool
) -> LoadedWeights:
    """Load weights, and refuse a classifier whose classes are known to be others."""
    path, patterns = backbone.weights, backbone.allow_missing
    weights = read_weights(path, backbone.name)
    classes = weights.classes
    if not replace_head and classes is not None and classes != list(reported.class_names):
        pairs = zip(classes, reported.class_names, strict=False)
        other = next((f": {a!r} for {b!r}" for a, b in pairs if a != b), "")
        raise ValueError(
            f"{path} was trained for {len(classes)} other classes than the "
            f"{len(reported.class_names)} of {reported.name}{other}"
        )
    return load_weights(network, weights, replace_head=replace_head, allow_missing=patterns)


@dataclass(frozen=True)
class _Member:
    """One network of an ensemble, as it is and as it computes."""

    network: nn.Module
    prepared: nn.Module
    input_format: InputFormat
    loaded: LoadedWeights | None = None  # of a file, where it comes from one


def _load_ensemble(
    config: ClassificationConfig, reported: Split, processes: Processes
) -> list[_Member]:
    members = []
    for path in (config.backbone.weights, *config.evaluate.ensemble):
        backbone = _fitted(replace(config.backbone, weights=path))
        network = _build(config, backbone, reported, training=False)
        loaded = _load(network, backbone, reported, replace_head=False)
        network.to(processes.device, memory_format=torch.channels_last)
        prepared = prepare_for_inference(network, config.evaluate.inference)
        input_format = loaded.input_format or _recipe_format(config)
        members.append(_Member(network, prepared, input_format, loaded))
    return members


def _recipe_format(config: ClassificationConfig) -> InputFormat:
    return InputFormat(mean=tuple(config.data.mean), std=tuple(config.data.std))


def _result(
    config: ClassificationConfig,
    directory: Path,
    splits: Splits,
    seen: Predictions,
    members: Sequence[_Member],
    processes: Processes,
) -> dict[str, Any]:
    """What training and evaluation have in common; writes the per-image file.

    The cost is that of one view by all `members` of the ensemble.
    """
    name, protocol = choose_protocol(config.evaluate)
    reported = splits.reported
    write_samples(seen, reported.ids, directory / SAMPLES)
    metrics, missing = top_k_metrics(seen.labels, seen.top, len(reported.class_names))
    side = protocol.crop or reported.images.shape[-1]
    size = (3, side, side)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if processes.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(processes.device)
    return {
        "metrics": metrics,
        "missing": missing,
        "dataset": splits.describe(seen.skipped),
        "protocol": protocol.describe(name),
        "per_class": per_class_accuracy(seen.labels, seen.top, reported.class_names),
        "samples": SAMPLES,
        "detections": None,
        "input_format": asdict(members[0].input_format),
        "timing": {
            "train_seconds": None,
            "evaluate_seconds": seen.seconds,
            "train_images_per_second": None,
            "evaluate_images_per_second": len(seen.labels) / seen.seconds,
            "peak_memory_bytes": peak,
        },
        "cost": {
            "parameters": sum(count_parameters(member.network) for member in members),
            "multiply_adds": sum(count_multiply_adds(member.network, size) for member in members),
            "input_size": list(size),
            "latency": describe_latency([member.prepared for member in members], size),
        },
    }
