"""Entry points: check, train and evaluate an experiment, and return its typed result."""

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
    count_multiply_adds,
    count_parameters,
    measure_latency,
    save_weights,
)
from backbones.device import choose_device, peak_memory
from backbones.files import CURVE, SAMPLES, WEIGHTS, lock_directory
from backbones.result import Cost, Result, Timing, Weights
from backbones.result import Protocol as ProtocolInfo
from classification.catalog import Readers
from classification.check import (
    check_compiler,
    check_evaluation_images,
    check_train_images,
    check_training,
)
from classification.config import ClassificationConfig
from classification.datasets import ImageArray, ImageFiles
from classification.distributed import Processes, join_processes
from classification.engine import Trainer
from classification.evaluate import Ensemble, Predictions, predict, refuse_non_finite, write_samples
from classification.metrics import TopK, chance_level
from classification.networks import Member, load_ensemble, load_initial, on_meta, try_initial
from classification.protocols import Protocol, choose_protocol
from classification.splits import (
    READERS,
    Split,
    Splits,
    describe_shared_images,
    find_bad_images,
    load_splits,
)

logger = logging.getLogger(__name__)


def check(
    config: ClassificationConfig, training: bool = True, readers: Readers = READERS
) -> dict[str, Any]:
    """Find what is wrong with an experiment before anything is computed.

    Args:
        config: the experiment.
        readers: data set -> its reader and reported split.
        training: whether it is to be trained; otherwise only what evaluation needs is looked for.

    Returns:
        The data set as in the result, the protocol, parameters, the steps of training, and
        warnings: what is likely a mistake.

    Raises:
        ValueError: naming the setting or file, what was allowed and the mend.
    """
    choose_device(config.device)
    check_compiler(config.evaluate.inference)
    task = _Task.of(config, readers, training)
    train, reported = task.splits.train, task.splits.reported
    if train is None:
        members = load_ensemble(config, reported)
        return task.check([on_meta(config, each, reported, training=False) for each in members])
    steps, doubts = check_training(config, train, processes=1)
    member = try_initial(config, reported)
    check_train_images(
        member.network, config, train, member.input_format.interpolation, processes=1
    )
    return task.check([member]) | {
        "steps_per_epoch": steps,
        "steps": config.train.iterations or steps * config.train.epochs,
        "warnings": [*task.splits.doubts, *doubts],
    }


def inspect(config: ClassificationConfig, readers: Readers = READERS) -> list[str]:
    """Look at every file of large sets, which `check` leaves out; a line for each thing found.

    Raises:
        ValueError: as `check`, of the data.
    """
    splits = load_splits(config, readers, training=True)
    assert splits.train is not None
    found = describe_shared_images(splits.train, splits.reported, thorough=True)
    for split in (splits.train, splits.held_out, splits.reported):
        if isinstance(split, ImageFiles) and (bad := find_bad_images(split)):
            found.append(
                f"{len(bad)} of the {len(split)} {split.split} images of {split.name} cannot be read "
                f"({bad[0]}, ...); fetch them again, or leave them out by data.skip_bad_images={len(bad)}"
            )
    return found


def train(
    config: ClassificationConfig,
    directory: Path,
    resume: bool = False,
    readers: Readers = READERS,
) -> Result | None:
    """Train, keep the weights in `directory`, and evaluate them.

    Args:
        config: the experiment.
        directory: where the run's files go; made if it is not there.
        readers: data set -> its reader and reported split.
        resume: go on from the checkpoint in `directory`, where there is one.

    Returns:
        The result on rank 0, None on other ranks.

    Raises:
        ValueError: as `check`; also a loss that is not finite, and a checkpoint that does not fit.
        KeyboardInterrupt: stopped by a signal, with the checkpoint saved.
    """
    with join_processes(config.device) as processes, _hold([directory], processes):
        task = _Task.of(config, readers, training=True)
        splits = task.splits
        assert splits.train is not None
        _, doubts = check_training(config, splits.train, processes.count)
        for doubt in (*splits.doubts, *doubts) if processes.is_first else ():
            logger.warning(doubt)
        torch.manual_seed(config.seed)
        initial = load_initial(config, splits.reported)
        trainer = task.train(initial, directory, resume, processes)
        selection = _select(trainer, config, splits)
        final = replace(initial, network=trainer.final_network)
        processes.copy_from_first(final.network)
        weights = _keep(final, initial, task, directory) if processes.is_first else None
        final = final.prepared_for(config, processes.device)
        (seen,) = task.score([[final]], processes)
        if weights is None:
            return None
        result = task.result(seen, [final], weights, directory, processes, trainer.timing)
        return replace(result, selection=selection, steps=trainer.step, curve=CURVE)


def evaluate(
    config: ClassificationConfig, directory: Path, readers: Readers = READERS
) -> Result | None:
    """Evaluate `config.backbone.weights`, averaged with `config.evaluate.ensemble`, if any.

    Returns:
        The result on rank 0, None on other ranks.

    Raises:
        ValueError: as `check`.
    """
    results = evaluate_together([(config, directory)], readers)
    return results[0] if results else None


def evaluate_together(
    runs: Sequence[tuple[ClassificationConfig, Path]], readers: Readers = READERS
) -> list[Result] | None:
    """Do what `evaluate` does for several runs, reading every image once.

    Args:
        runs: configs and their directories; they differ in network, weights and seed alone.
        readers: data set -> its reader and reported split.

    Returns:
        The results on rank 0, None on other ranks.

    Raises:
        ValueError: as `check`, for any of the runs before anything is computed.
    """
    config = runs[0][0]
    directories = [directory for _, directory in runs]
    with join_processes(config.device) as processes, _hold(directories, processes):
        task = _Task.of(config, readers, training=False)
        ensembles = []
        for each, _ in runs:
            members = load_ensemble(each, task.splits.reported)
            ensembles.append([member.prepared_for(each, processes.device) for member in members])
        # Networks that want images resized in different ways cannot share a pass.
        passes: dict[str, list[int]] = {}
        for index, members in enumerate(ensembles):
            passes.setdefault(members[0].input_format.interpolation, []).append(index)
        results: dict[int, Result] = {}
        for indices in passes.values():
            together = [ensembles[index] for index in indices]
            scored = task.score(together, processes)
            if not processes.is_first:
                continue
            for index, seen in zip(indices, scored, strict=True):
                members, directory = ensembles[index], directories[index]
                result = task.result(seen, members, _given(members), directory, processes, Timing())
                timing = replace(result.timing, networks_in_pass=sum(map(len, together)))
                results[index] = replace(result, timing=timing)
        return [results[index] for index in range(len(runs))] if processes.is_first else None


# Parts of the three -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """What is reported, and how networks are scored on it."""

    config: ClassificationConfig
    splits: Splits
    name: str  # of the protocol, with its changes
    protocol: Protocol

    @classmethod
    def of(cls, config: ClassificationConfig, readers: Readers, training: bool) -> _Task:
        """Read the images and choose the protocol."""
        splits = load_splits(config, readers, training)
        name, protocol = choose_protocol(config.evaluate)
        if protocol.crop is None and not isinstance(splits.reported, ImageArray):
            raise ValueError(
                f"evaluate.protocol={name}: {splits.reported.name} has images of many sizes; choose "
                "one that crops, e.g. imagenet-256-224"
            )
        return cls(config, splits, name, protocol)

    def check(self, members: Sequence[Member]) -> dict[str, Any]:
        """Find what is wrong with networks that have shapes alone, and describe the rest."""
        for member in members:
            interpolation = member.input_format.interpolation
            reported = self.splits.reported
            check_evaluation_images(member.network, reported, self.protocol, interpolation)
        protocol = self.describe_protocol(members)
        return {
            "dataset": asdict(self.splits.describe([])),
            "protocol": {"name": protocol.name, **protocol.settings},
            "parameters": sum(count_parameters(member.network) for member in members),
        }

    def train(
        self, initial: Member, directory: Path, resume: bool, processes: Processes
    ) -> Trainer:
        """Train to the end; epochs are scored on what is held out, or else on the reported images."""
        splits, form = self.splits, initial.input_format
        assert splits.train is not None
        watched = splits.held_out or splits.reported

        def validate(network: nn.Module) -> Predictions:
            return self.predict([[(network, form)]], watched, processes)[0]

        network, config = initial.network, self.config
        trainer = Trainer(network, splits.train, config, form, processes, directory, validate)
        if processes.agree(resume)[0]:
            trainer.resume()
        trainer.fit()
        return trainer

    def predict(
        self, ensembles: Sequence[Ensemble], images: Split, processes: Processes
    ) -> list[Predictions]:
        """Predictions of each ensemble for `images`, in one pass."""
        data, settings = self.config.data, self.config.evaluate
        return predict(ensembles, images, self.protocol, data, settings, processes)

    def score(
        self, ensembles: Sequence[Sequence[Member]], processes: Processes
    ) -> list[Predictions]:
        """Predictions of each ensemble for the reported images, in one pass.

        Raises:
            ValueError: an output is no number.
        """
        reported = self.splits.reported
        networks = [[(m.prepared, m.input_format) for m in members] for members in ensembles]
        found = self.predict(networks, reported, processes)
        for members, seen in zip(ensembles, found, strict=True):
            refuse_non_finite(seen, reported.ids, [member.network for member in members])
        return found

    def describe_protocol(self, members: Sequence[Member]) -> ProtocolInfo:
        """The protocol for the record; what differs from the plain one shows in its name."""
        name, reported = self.name, self.splits.reported
        if self.config.evaluate.images is not None:
            name += f"+images{len(reported)}-{reported.sha256()[:8]}"
        others = [str(member.weights.sha256) for member in members[1:] if member.weights]
        if others:
            digest = hashlib.sha256(" ".join(others).encode()).hexdigest()
            name += f"+ensemble{len(members)}-{digest[:8]}"
        return self.protocol.describe(name)

    def result(
        self,
        seen: Predictions,
        members: Sequence[Member],
        weights: Weights,
        directory: Path,
        processes: Processes,
        training: Timing,
    ) -> Result:
        """The result of an evaluation; writes the per-image file.

        The cost is that of one view by all `members` of the ensemble.
        """
        reported = self.splits.reported
        write_samples(seen, reported.ids, directory / SAMPLES)
        counts = TopK(len(reported.class_names))
        counts.update(seen.labels, seen.top)
        metrics, missing = counts.compute()
        return Result(
            metrics=metrics,
            missing=missing,
            chance=chance_level(len(reported.class_names)),
            per_class=counts.compute_per_class(reported.class_names),
            dataset=self.splits.describe(seen.skipped),
            protocol=self.describe_protocol(members),
            weights=weights,
            cost=self._cost(members),
            timing=replace(
                training,
                evaluate_seconds=seen.seconds,
                evaluate_images_per_second=len(seen.labels) / seen.seconds,
                peak_memory_bytes=peak_memory(processes.device),
            ),
            selection="weights as given",
            input_format=members[0].input_format.describe(),
            samples=SAMPLES,
        )

    def _cost(self, members: Sequence[Member]) -> Cost:
        side = self.protocol.crop
        if side is None:
            assert isinstance(self.splits.reported, ImageArray)  # the only one shown as it is
            side = self.splits.reported.images.shape[-1]
        size = (3, side, side)
        networks = [member.network for member in members]
        return Cost(
            parameters=sum(map(count_parameters, networks)),
            multiply_adds=sum(count_multiply_adds(network, size) for network in networks),
            input_size=list(size),
            latency=measure_latency([member.prepared for member in members], size),
        )


@contextmanager
def _hold(directories: Sequence[Path], processes: Processes) -> Iterator[None]:
    """Make the directories and keep other runs out of them."""
    with ExitStack() as stack:
        for directory in directories if processes.is_first else ():
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_directory(directory, reenter=True))
        yield


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


def _given(members: Sequence[Member]) -> Weights:
    """The files that were evaluated."""
    first, *others = [member.weights for member in members if member.weights is not None]
    return Weights(**asdict(first), ensemble=others)


def _keep(final: Member, initial: Member, task: _Task, directory: Path) -> Weights:
    """Write the weights that were evaluated."""
    classes = task.splits.reported.class_names
    sha256 = save_weights(
        final.network,
        directory / WEIGHTS,
        backbone=final.backbone,
        num_classes=len(classes),
        input_format=final.input_format,
        classes=classes,
    )
    return Weights(WEIGHTS, sha256, "sebench", initial=initial.weights)
