"""Scoring a data set by a protocol: each image once, under any number of processes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from backbones import InputFormat
from classification.config import DataSettings, EvaluateSettings
from classification.crop_cache import choose_cache
from classification.datasets import ImageArray, ImageFiles
from classification.distributed import Processes
from classification.loader import BadImages, evaluation_batches
from classification.metrics import best_classes, mean_softmax
from classification.protocols import Protocol
from classification.transforms import normalize


@dataclass(frozen=True)
class Predictions:
    """What was seen, in the order of the set.

    Attributes:
        indices: places in the data set, int64 (N,), each at most once.
        labels: int64 (N,).
        top: best classes, best first, int32 (N, min(5, C)).
        scores: their mean softmax, float32, of the same shape.
        loss: mean cross-entropy in nats, from the mean softmax.
        skipped: ids of images that could not be read.
        seconds: from the first batch to the last, of all ensembles of the pass together.
    """

    indices: np.ndarray
    labels: np.ndarray
    top: np.ndarray
    scores: np.ndarray
    loss: float
    skipped: list[str]
    seconds: float


@torch.inference_mode()
def predict(
    ensembles: Sequence[Sequence[tuple[nn.Module, InputFormat]]],
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
    interpolations = {form.interpolation for networks in ensembles for _, form in networks}
    if len(interpolations) > 1:
        raise ValueError(f"networks for {sorted(interpolations)} resizing together: choose one")
    for networks in ensembles:
        for network, _ in networks:
            network.eval()
    device, started = processes.device, time.perf_counter()
    bad = BadImages(data.skip_bad_images, dataset.root)
    columns: list[list[np.ndarray]] = []  # indices, labels; top, scores, right of each ensemble
    interpolation = interpolations.pop()
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
        if not len(batch.labels):
            continue
        views = batch.images.shape[1]
        images = batch.images.to(device, non_blocking=True)
        columns.append([batch.indices.numpy(), batch.labels.numpy()])
        for networks in ensembles:
            score = 0
            for network, input_format in networks:
                # A view at a time: the memory of a forward pass is that of `batch_size` images.
                inputs = (normalize(images[:, v], input_format) for v in range(views))
                logits = [network(x.contiguous(memory_format=torch.channels_last)) for x in inputs]
                score = score + mean_softmax(torch.stack(logits, dim=1)) / len(networks)
            top, scores = best_classes(score)
            right = score.gather(1, batch.labels.to(device)[:, None])[:, 0]
            found = (top.to(torch.int32), scores.float(), right)
            columns[-1].extend(column.cpu().numpy() for column in found)
    mine = [np.concatenate(column) for column in zip(*columns, strict=True)]
    everyone = processes.gather((mine, bad.names))
    for _, names in everyone:
        bad.add(names)
    parts = [part for part, _ in everyone if part]
    if not parts:
        raise ValueError(f"{dataset.name} {dataset.split}: no image could be read")
    indices, labels, *rest = map(np.concatenate, zip(*parts, strict=True))
    order = np.argsort(indices)
    assert len(np.unique(indices)) == len(indices), "an image was counted twice"
    assert len(indices) + len(bad.names) == len(dataset), "an image was lost"
    seconds = time.perf_counter() - started
    predictions = []
    for top, scores, right in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        # In the order of the set, so that the sum does not depend on the number of processes.
        loss = float(-np.log(np.maximum(right[order], np.finfo(np.float64).tiny)).mean())
        predictions.append(
            Predictions(
                indices[order],
                labels[order],
                top[order],
                scores[order],
                loss,
                sorted(bad.names),
                seconds,
            )
        )
    return predictions


def write_samples(predictions: Predictions, ids: Sequence[str], path: Path) -> None:
    """Write one row per image seen to a Parquet file, whole or not at all.

    Columns: image (string), label (int32), top5 (list<int32>, best first), scores (list<float32>).
    """
    table = pa.table(
        {
            "image": pa.array([ids[i] for i in predictions.indices.tolist()], pa.string()),
            "label": pa.array(predictions.labels.astype(np.int32)),
            "top5": pa.array(predictions.top.tolist(), pa.list_(pa.int32())),
            "scores": pa.array(predictions.scores.tolist(), pa.list_(pa.float32())),
        }
    )
    partial = path.with_name(f"{path.name}.partial")
    pq.write_table(table, partial, compression="zstd")
    partial.replace(path)
