"""Entry points: check, train and evaluate an experiment, and return its plain result."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from backbones.device import choose_device, peak_memory
from backbones.files import CURVE, SAMPLES, WEIGHTS, lock_directory
from backbones.inference import prepare_for_inference
from backbones.zoo import EXTERNAL
from classification.check import (
    check_compiler,
    check_evaluation_images,
    check_train_images,
    check_training,
)
from classification.config import ClassificationConfig
from classification.datasets import ImageArray
from classification.distributed import Processes, join_processes
from classification.engine import Trainer
from classification.evaluate import (
    Predictions,
    common_interpolation,
    predict,
    refuse_non_finite,
    write_samples,
)
from classification.metrics import TopK, chance_level
from classification.protocols import Protocol, choose_protocol
from classification.splits import READERS, Readers, Split, Splits, load_splits

logger = logging.getLogger(__name__)


def check(
    config: ClassificationConfig, training: bool = True, readers: Readers = READERS
) -> dict[str, Any]:
    """Find what is wrong with an experiment before anything is computed.

    Args:
        training: whether it is to be trained; otherwise only what evaluation needs is looked for.
    Returns:
        The data set as in the result, the protocol, parameters, the steps of training, and
        warnings: what is likely a mistake.
    Raises:
        ValueError: naming the setting or file, what was allowed and the mend.
    """
    choose_device(config.device)
    check_compiler(config.evaluate.inference)
    splits = load_splits(config, training, readers)
    name, protocol = _protocol(config, splits.reported)
    reported = splits.reported
    if training:
        steps, doubts = check_training(config, _train_split(splits), processes=1)
        members = [_load_initial(config, reported)]
        _check_training_images(config, splits, protocol, members[0], processes=1)
    else:
        members = _load_ensemble(config, reported)
        for member in members:
            shapes = _on_meta(config, member.backbone, reported, training=False)
            check_evaluation_images(shapes, reported, protocol, member.input_format.interpolation)
    summary = {
        "dataset": splits.describe([]),
        "protocol": _describe_protocol(name, protocol, config, reported, members),
        "parameters": sum(count_parameters(member.network) for member in members),
    }
    if training:
        summary["steps_per_epoch"] = steps
        summary["steps"] = config.train.iterations or steps * config.train.epochs
        summary["warnings"] = [*splits.doubts, *doubts]
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
    with join_processes(config.device) as processes, _hold([directory], processes):
        splits = load_splits(config, True, readers)
        reported = splits.reported
        _, protocol = _protocol(config, reported)
        _, doubts = check_training(config, _train_split(splits), processes.count)
        for doubt in (*splits.doubts, *doubts) if processes.is_first else ():
            logger.warning(doubt)
        torch.manual_seed(config.seed)
        initial = _load_initial(config, reported)

        def score(dataset: Split, network: nn.Module) -> Predictions:
            networks = [(network, initial.input_format)]
            data, settings = config.data, config.evaluate
            (seen,) = predict([networks], dataset, protocol, data, settings, processes)
            return seen

        watched = splits.held_out or reported
        trainer = Trainer(
            initial.network,
            _train_split(splits),
            config,
            initial.input_format,
            processes,
            directory,
            validate=lambda network: score(watched, network),
        )
        if resume:
            trainer.resume()
        trainer.fit()
        network, selection = trainer.final_network, _select(trainer, config, splits)
        processes.copy_from_first(network)
        prepared = prepare_for_inference(network, config.evaluate.inference)
        seen = score(reported, prepared)
        refuse_non_finite(seen, reported.ids, [network])
        if not processes.is_first:
            return None
        sha256 = save_weights(
            network,
            directory / WEIGHTS,
            backbone=initial.backbone,
            num_classes=len(reported.class_names),
            input_format=initial.input_format,
            classes=reported.class_names,
        )
        final = replace(initial, network=network, prepared=prepared)
        result = _result(config, directory, splits, seen, [final], processes)
        images = config.train.batch_size * trainer.step
        result |= {
            "steps": trainer.step,
            "selection": selection,
            "curve": CURVE,
            "weights": {
                "path": WEIGHTS,
                "sha256": sha256,
                "format": "sebench",
                "initial": initial.loaded and initial.loaded.describe(),
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
    directories = [directory for _, directory in runs]
    with join_processes(config.device) as processes, _hold(directories, processes):
        splits = load_splits(config, False, readers)
        reported = splits.reported
        _, protocol = _protocol(config, reported)
        ensembles = []
        for each, _ in runs:
            members = _load_ensemble(each, reported)
            ensembles.append([member.prepared_for(each, processes) for member in members])
        # Networks that want images resized in different ways cannot share a pass.
        passes: dict[str, list[int]] = {}
        for index, members in enumerate(ensembles):
            passes.setdefault(members[0].input_format.interpolation, []).append(index)
        seen: dict[int, Predictions] = {}
        for indices in passes.values():
            networks = [[(m.prepared, m.input_format) for m in ensembles[i]] for i in indices]
            found = predict(networks, reported, protocol, config.data, config.evaluate, processes)
            seen |= dict(zip(indices, found, strict=True))
        results = []
        for index, (each, directory) in enumerate(runs):
            members = ensembles[index]
            refuse_non_finite(seen[index], reported.ids, [member.network for member in members])
            if not processes.is_first:
                continue
            result = _result(each, directory, splits, seen[index], members, processes)
            together = passes[members[0].input_format.interpolation]
            result["timing"]["networks_in_pass"] = sum(len(ensembles[i]) for i in together)
            results.append(result | _given_weights(members))
        return results if processes.is_first else None


# Parts of the three -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Member:
    """A network with its input, alone or one of an ensemble."""

    backbone: BackboneSettings
    network: Network
    input_format: InputFormat
    loaded: LoadedWeights | None  # of a file, where it comes from one
    prepared: nn.Module | None = None  # rewritten for inference

    def prepared_for(self, config: ClassificationConfig, processes: Processes) -> _Member:
        """The same on the device, ready to compute."""
        self.network.to(processes.device, memory_format=torch.channels_last)
        prepared = prepare_for_inference(self.network, config.evaluate.inference)
        return replace(self, prepared=prepared)


@contextmanager
def _hold(directories: Sequence[Path], processes: Processes) -> Iterator[None]:
    """Make the directories and keep other runs out of them."""
    with ExitStack() as stack:
        for directory in directories if processes.is_first else ():
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_directory(directory, reenter=True))
        yield


def _train_split(splits: Splits) -> Split:
    assert splits.train is not None
    return splits.train


def _protocol(config: ClassificationConfig, reported: Split) -> tuple[str, Protocol]:
    name, protocol = choose_protocol(config.evaluate)
    if protocol.crop is None and not isinstance(reported, ImageArray):
        raise ValueError(
            f"evaluate.protocol={name}: {reported.name} has images of many sizes; choose one that "
            "crops, e.g. imagenet-256-224"
        )
    return name, protocol


def _describe_protocol(
    name: str,
    protocol: Protocol,
    config: ClassificationConfig,
    reported: Split,
    members: Sequence[_Member],
) -> dict[str, Any]:
    """The protocol for the record; what differs from the plain one shows in its name."""
    if config.evaluate.images is not None:
        name += f"+images{len(reported)}-{reported.sha256()[:8]}"
    others = [member.loaded.sha256 for member in members[1:] if member.loaded is not None]
    if others:
        digest = hashlib.sha256(" ".join(others).encode()).hexdigest()
        name += f"+ensemble{len(members)}-{digest[:8]}"
    return protocol.describe(name)


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


def _on_meta(
    config: ClassificationConfig, backbone: BackboneSettings, reported: Split, training: bool
) -> Network:
    with torch.device("meta"):
        return _build(config, backbone, reported, training)


def _check_training_images(
    config: ClassificationConfig,
    splits: Splits,
    protocol: Protocol,
    initial: _Member,
    processes: int,
) -> None:
    shapes = _on_meta(config, initial.backbone, splits.reported, training=True)
    interpolation = initial.input_format.interpolation
    check_train_images(shapes, config, _train_split(splits), interpolation, processes)
    check_evaluation_images(shapes, splits.reported, protocol, interpolation)


def _load_initial(config: ClassificationConfig, reported: Split) -> _Member:
    """The network that is trained, with the weights it starts from, if any."""
    backbone = _fitted(config.backbone)
    network = _build(config, backbone, reported, training=True)
    if not backbone.weights:
        return _Member(backbone, network, _recipe_format(config), None)
    loaded = _load(network, backbone, reported, replace_head=True)
    return _Member(backbone, network, loaded.input_format or _recipe_format(config), loaded)


def _load_ensemble(config: ClassificationConfig, reported: Split) -> list[_Member]:
    """The networks that are evaluated: of `backbone.weights` and `evaluate.ensemble`."""
    if not config.backbone.weights:
        raise ValueError("backbone.weights is not set: evaluation needs weights, a FILE")
    members = []
    for path in (config.backbone.weights, *config.evaluate.ensemble):
        settings = replace(config.backbone, weights=path)
        if members:
            settings = _network_of(path, settings)
        backbone = _fitted(settings)
        network = _build(config, backbone, reported, training=False)
        loaded = _load(network, backbone, reported, replace_head=False)
        input_format = loaded.input_format or _recipe_format(config)
        members.append(_Member(backbone, network, input_format, loaded))
    common_interpolation(member.input_format for member in members)
    return members


def _network_of(path: str, settings: BackboneSettings) -> BackboneSettings:
    """The network that a further file of an ensemble holds, where the file tells."""
    if path.startswith(EXTERNAL):
        return settings if settings.name == path else replace(settings, name=path, options={})
    found = read_weights(path, settings.name).backbone
    if found is None or found.name == settings.name:
        return settings
    return replace(settings, name=found.name, options=found.options)


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


def _recipe_format(config: ClassificationConfig) -> InputFormat:
    return InputFormat(mean=tuple(config.data.mean), std=tuple(config.data.std))


def _select(trainer: Trainer, config: ClassificationConfig, splits: Splits) -> str:
    """Put the chosen weights into the final network, and say by which rule they were chosen."""
    if config.train.select == "best":
        if trainer.best is None:
            raise ValueError("no epoch gave finite outputs on the held-out images: none is best")
        trainer.final_network.load_state_dict(trainer.best["network"])
        count = len(splits.held_out or ())
        return f"best epoch, {trainer.best['epoch']}, on {count} images held out of train"
    if trainer.schedule.is_over:
        return f"last epoch, {trainer.step // trainer.steps_per_epoch}, after the last plateau"
    return "last epoch"


def _given_weights(members: Sequence[_Member]) -> dict[str, Any]:
    loaded = [member.loaded for member in members if member.loaded is not None]
    return {
        "steps": None,
        "selection": "weights as given",
        "curve": None,
        "weights": {
            **loaded[0].describe(),
            "initial": None,
            "ensemble": [{"path": other.path, "sha256": other.sha256} for other in loaded[1:]],
        },
    }


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
    counts = TopK(len(reported.class_names))
    counts.update(seen.labels, seen.top)
    metrics, missing = counts.compute()
    side = protocol.crop or reported.images.shape[-1]
    size = (3, side, side)
    networks = [member.network for member in members]
    prepared = [member.prepared or member.network for member in members]
    return {
        "metrics": metrics,
        "missing": missing,
        "chance": chance_level(len(reported.class_names)),
        "dataset": splits.describe(seen.skipped),
        "protocol": _describe_protocol(name, protocol, config, reported, members),
        "per_class": counts.compute_per_class(reported.class_names),
        "samples": SAMPLES,
        "detections": None,
        "input_format": asdict(members[0].input_format),
        "timing": {
            "train_seconds": None,
            "evaluate_seconds": seen.seconds,
            "train_images_per_second": None,
            "evaluate_images_per_second": len(seen.labels) / seen.seconds,
            "peak_memory_bytes": peak_memory(processes.device),
        },
        "cost": {
            "parameters": sum(map(count_parameters, networks)),
            "multiply_adds": sum(count_multiply_adds(network, size) for network in networks),
            "input_size": list(size),
            "latency": describe_latency(prepared, size),
        },
    }
