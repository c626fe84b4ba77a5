"""What a task's entry point returns, typed: a record holds the same parts. Imports no torch.

Every class is a frozen dataclass of plain values, so that it is equal to what JSON gives back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Le

from backbones.config import Count, NonNegative, WholeNumber

Percent = Annotated[float, Ge(0), Le(100)]
PlainValue = str | int | float | bool | list[Any] | dict[str, Any] | None


@dataclass(frozen=True)
class Dataset:
    """The set that was evaluated, and how many images trained."""

    name: str  # e.g. "imagenet", "coco_2017"
    split: str  # e.g. "val"
    images: Count  # that were evaluated; unreadable ones that were tolerated are not among them
    classes: Count
    class_names: list[str]
    synthetic: bool  # the numbers say nothing of the world
    root: str | None  # folder it was read from
    sha256: str | None  # of what decides the numbers: image names and labels, or the annotations
    annotations: str | None = None  # COCO file, for detection
    # Of what was evaluated alone: image names and labels, in order, or the annotation file.
    reported_sha256: str | None = None
    images_in_set: Count | None = None  # with the skipped ones
    skipped_images: list[str] = field(default_factory=list)  # unreadable, of the evaluated split
    train_images: Count | None = None  # None: nothing was trained
    held_out_images: Count | None = None  # of train, for choosing an epoch
    skipped_train_images: WholeNumber | None = None  # unreadable
    bad_boxes: WholeNumber | None = None  # without area or outside the image, tolerated


@dataclass(frozen=True)
class Protocol:
    """How an image became a score. Equal protocols have equal names and settings."""

    name: str  # e.g. "imagenet-256-224"
    settings: dict[str, PlainValue] = field(default_factory=dict)  # e.g. resize, crop, flip


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights, and what of it was loaded."""

    path: str
    sha256: str | None
    format: str | None = None  # e.g. "timm"; see `backbones.weights.formats`
    tensors: WholeNumber | None = None  # loaded
    missing: list[str] = field(default_factory=list)  # tensors of the network that it lacks
    unexpected: list[str] = field(default_factory=list)  # tensors of the file that were not used


@dataclass(frozen=True)
class Weights(WeightsFile):
    """What was evaluated, and what training started from."""

    initial: WeightsFile | None = None  # None: random, or nothing was trained
    ensemble: list[WeightsFile] = field(default_factory=list)  # whose scores were averaged in


@dataclass(frozen=True)
class ClassScore:
    """One class: the task's metric for classes (top-1 accuracy, or AP)."""

    name: str
    images: WholeNumber  # of it, or that hold it
    value: Percent | None  # None: unavailable, see reason
    reason: str | None = None


@dataclass(frozen=True)
class Latency:
    """Of one image alone, in milliseconds."""

    median_ms: NonNegative | None  # None: unavailable, see reason
    fastest_ms: NonNegative | None = None
    slowest_ms: NonNegative | None = None
    repeats: Count | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Cost:
    """What the network costs, by the rules that `backbones.cost` states."""

    parameters: WholeNumber
    multiply_adds: WholeNumber  # of one view
    input_size: list[int]  # [channels, height, width] of that view
    latency: Latency
    scope: str | None = None  # what of a larger network each number is about


@dataclass(frozen=True)
class Timing:
    """How long it took, and the most memory it used."""

    evaluate_seconds: NonNegative | None = None
    evaluate_images_per_second: NonNegative | None = None
    train_seconds: NonNegative | None = None
    train_images_per_second: NonNegative | None = None
    peak_memory_bytes: WholeNumber | None = None
    networks_in_pass: Count = 1  # evaluated together; the evaluation's time is of all of them


@dataclass(frozen=True)
class Result:
    """What training or evaluation came to.

    Attributes:
        metrics: name -> value; None where it is unavailable, with the reason in `missing`.
        chance: the headline metric of guessing, e.g. 99.9 % top-1 error for 1000 classes.
        steps: optimizer steps that were trained; None: nothing was trained.
        selection: the rule by which the weights were chosen, e.g. "last epoch".
        samples, detections, curve: names of files in the run directory.
    """

    metrics: dict[str, float | None]
    per_class: list[ClassScore]
    dataset: Dataset
    protocol: Protocol
    weights: Weights
    cost: Cost
    timing: Timing
    selection: str
    input_format: dict[str, PlainValue]  # channel order, mean, std, ...; see `InputFormat`
    missing: dict[str, str] = field(default_factory=dict)
    chance: Percent | None = None
    steps: WholeNumber | None = None
    samples: str | None = None
    detections: str | None = None
    curve: str | None = None
