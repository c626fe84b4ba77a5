"""Scoring a data set by a protocol: each image once, under any number of processes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from backbones import InputFormat, check_finite
from backbones.config import printable
from backbones.files import write_whole
from backbones.heartbeat import tell
from classification.config import DataSettings, EvaluateSettings
from classification.crop_cache import choose_cache
from classification.datasets import Batch, ImageArray, ImageFiles
from classification.distributed import Processes
from classification.loader import BadImages, evaluation_batches
from classification.metrics import best_classes, mean_softmax
from classification.protocols import Protocol
from classification.transforms import normalize

Ensemble = Sequence[tuple[nn.Module, InputFormat]]  # networks whose scores are averaged


@dataclass(frozen=True)
class Predictions:
    """Predictions per image, in dataset order.

    Attributes:
        indices: places in the data set, int64 (N,), each at most once.
        labels: int64 (N,).
        top: best classes, best first, int32 (N, min(5, C)).
        scores: their mean softmax, float32, of the same shape.
        probability: mean softmax of the image's own class, float32 (N,).
        brier: squared distance of all classes' mean softmax from what is there, float32 (N,), 0 to 2.
        loss: mean cross-entropy in nats, from the mean softmax; not finite where an output is not.
        skipped: ids of images that could not be read.
        seconds: from the first batch to the last, of all ensembles of the pass together.
    """

    indices: np.ndarray
    labels: np.ndarray
    top: np.ndarray
    scores: np.ndarray
    probability: np.ndarray
    brier: np.ndarray
    loss: float
    skipped: list[str]
    seconds: float


# Of some images: "indices" and "labels", and of what one ensemble says "top" and "scores" as above,
# "right", the score of the image's own class, and "squares", the sum of all classes' squared scores,
# both float64 (N,).
Columns = dict[str, np.ndarray]


@torch.inference_mode()
def predict(
    ensembles: Sequence[Ensemble],
    dataset: ImageArray | ImageFiles,
    protocol: Protocol,
    data: DataSettings,
    settings: EvaluateSettings,
    processes: Processes,
) -> list[Predictions]:
    """Score `dataset` in one pass with every ensemble: the mean over its networks and the views.

    Every process gets the whole result. Images seen and skipped add up to the set.

    Raises:
        ValueError: more unreadable images than `data.skip_bad_images`, or networks that want
            images resized in different ways.
    """
    interpolation = common_interpolation(form for networks in ensembles for _, form in networks)
    for networks in ensembles:
        for network, _ in networks:
            network.eval()
    started = time.perf_counter()
    bad = BadImages(data.skip_bad_images, dataset.root)
    mine: list[list[Columns]] = []  # batches of ensembles
    done = 0
    for batch in evaluation_batches(
        dataset,
        protocol,
        settings.batch_size,
        processes,
        data.workers,
        interpolation,
        choose_cache(settings, dataset, protocol, interpolation),
    ):
        bad.add(batch.bad)
        if len(batch.labels):
            mine.append(_score(ensembles, batch, processes.device))
        done += (len(batch.labels) + len(batch.bad)) * processes.count
        tell("evaluating", done, len(dataset))
    everyone = processes.gather((_join(mine) if mine else None, bad.names))
    for _, names in everyone:
        bad.add(names)
    parts = [part for part, _ in everyone if part is not None]
    if not parts:
        raise ValueError(f"{dataset.name} {dataset.split}: no image could be read")
    scored = _join(parts)
    places = scored[0]["indices"]
    assert len(np.unique(places)) == len(places), "an image was counted twice"
    assert len(places) + len(bad.names) == len(dataset), "an image was lost"
    seconds = time.perf_counter() - started
    return [_in_order(answers, sorted(bad.names), seconds) for answers in scored]


def common_interpolation(formats: Iterable[InputFormat]) -> str:
    """How the images are resized for networks that share a pass.

    Raises:
        ValueError: they want them resized in different ways.
    """
    wanted = sorted({input_format.interpolation for input_format in formats})
    if len(wanted) > 1:
        raise ValueError(
            f"networks whose images are resized in different ways ({', '.join(wanted)}) cannot "
            "share an ensemble or a pass; choose networks of one"
        )
    return wanted[0]


def refuse_non_finite(seen: Predictions, ids: Sequence[str], networks: Sequence[nn.Module]) -> None:
    """Raise a ValueError where an output was infinite or no number: nothing was measured then."""
    if np.isfinite(seen.loss):
        return
    for network in networks:
        check_finite(network.state_dict(), "the network")
    index = seen.indices[int(np.argmin(np.isfinite(seen.scores).all(axis=1)))]
    raise ValueError(
        f"the network's outputs for {ids[index]} are infinite or not a number, though its weights "
        "are finite: they overflow; were these weights trained for this input (data.mean, "
        "data.std)?"
    )


def _score(ensembles: Sequence[Ensemble], batch: Batch, device: torch.device) -> list[Columns]:
    images = batch.images.to(device, non_blocking=True)
    labels = batch.labels.to(device)
    answers = []
    for networks in ensembles:
        scores = torch.zeros((), dtype=torch.float64, device=device)
        for network, input_format in networks:
            scores = scores + mean_softmax(_logits(network, input_format, images)) / len(networks)
        top, best = best_classes(scores)
        columns = {
            "indices": batch.indices,
            "labels": batch.labels,
            "top": top.to(torch.int32),
            "scores": best.float(),
            "right": scores.gather(1, labels[:, None])[:, 0],
            "squares": scores.square().sum(dim=1),
        }
        answers.append({name: column.cpu().numpy() for name, column in columns.items()})
    return answers


def _logits(network: nn.Module, input_format: InputFormat, images: Tensor) -> Tensor:
    """Map uint8 images (N, V, 3, H, W) to logits (N, V, C).

    A view at a time: the memory of a forward pass is that of `batch_size` images.
    """
    views = (normalize(images[:, v], input_format) for v in range(images.shape[1]))
    logits = [network(x.contiguous(memory_format=torch.channels_last)) for x in views]
    return torch.stack(logits, dim=1)


def _join(parts: Sequence[Sequence[Columns]]) -> list[Columns]:
    """The images of all parts, for each ensemble."""
    return [
        {name: np.concatenate([part[name] for part in answers]) for name in answers[0]}
        for answers in zip(*parts, strict=True)
    ]


def _in_order(answers: Columns, skipped: list[str], seconds: float) -> Predictions:
    """Put images in the order of the set: so the loss does not depend on the processes either."""
    order = np.argsort(answers["indices"])
    own = answers["right"][order]
    brier = np.maximum(answers["squares"][order] - 2 * own + 1, 0.0)
    right = np.maximum(own, np.finfo(np.float64).tiny)
    return Predictions(
        indices=answers["indices"][order],
        labels=answers["labels"][order],
        top=answers["top"][order],
        scores=answers["scores"][order],
        probability=own.astype(np.float32),
        brier=brier.astype(np.float32),
        loss=float(-np.log(right).mean()),
        skipped=skipped,
        seconds=seconds,
    )


def write_samples(predictions: Predictions, ids: Sequence[str], path: Path) -> None:
    """Write one row per image seen to a Parquet file, whole or not at all.

    Columns: image (string), label (int32), top5 (list<int32>, best first), scores (list<float32>) of
    these, probability (float32) of the label, brier (float32) over all classes. Files of schema 1, which
    does not say so, lack the last two.
    """
    table = pa.table(
        {
            "image": pa.array(
                [printable(ids[i]) for i in predictions.indices.tolist()], pa.string()
            ),
            "label": pa.array(predictions.labels.astype(np.int32)),
            "top5": pa.array(predictions.top.tolist(), pa.list_(pa.int32())),
            "scores": pa.array(predictions.scores.tolist(), pa.list_(pa.float32())),
            "probability": pa.array(predictions.probability),
            "brier": pa.array(predictions.brier),
        }
    ).replace_schema_metadata({"schema": "2"})
    write_whole(path, lambda partial: pq.write_table(table, partial, compression="zstd"))
