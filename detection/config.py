"""Settings of a detection experiment, and which keys of Detectron2's config they are.

Imports neither torch nor Detectron2; `detector.build_cfg` makes Detectron2's config from it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le, Len

from backbones.config import (
    BackboneSettings,
    Count,
    NonNegative,
    PixelStatistics,
    Positive,
    Settings,
    WholeNumber,
    Workers,
    flatten,
    setting,
)
from backbones.tracker import TrackerName

if TYPE_CHECKING:
    from backbones import InputFormat

DATASETS = ("coco_2017", "coco_2014", "custom")
NORMS = ("FrozenBN", "BN", "SyncBN", "GN")
Sizes = Annotated[list[Count], Len(1)]


@dataclass(frozen=True)
class Architecture:
    """A detector of Detectron2."""

    base: str  # Detectron2's config it starts from
    meta: str  # Detectron2's name of it
    builder: str  # of the backbone that MODEL.SEBENCH.NAME names, in Detectron2's registry
    lr: float  # for 16 images an iteration


ARCHITECTURES = {
    "faster_rcnn": Architecture(
        "Base-RCNN-FPN.yaml", "GeneralizedRCNN", "build_sebench_fpn_backbone", 0.02
    ),
    "retinanet": Architecture(
        "Base-RetinaNet.yaml", "RetinaNet", "build_retinanet_sebench_fpn_backbone", 0.01
    ),
}
# For 16 images an iteration: iterations, and where the learning rate is divided by ten.
# Source: Detectron model zoo (1x, 2x), Detectron2 model zoo (1x, 3x). 2x is the paper's.
SCHEDULES = {
    "1x": (90_000, (60_000, 80_000)),
    "2x": (180_000, (120_000, 160_000)),
    "3x": (270_000, (210_000, 250_000)),
}
REFERENCE_BATCH_SIZE, REFERENCE_WARMUP = 16, 1000  # images an iteration, iterations


@dataclass(frozen=True)
class DetectorSettings(Settings):
    """What stands on the backbone: Detectron2's own parts, always with a feature pyramid."""

    group: ClassVar[str] = "detector."
    architecture: Literal["faster_rcnn", "retinanet"] = setting(
        "faster_rcnn", "Detectron2's meta-architecture"
    )
    fpn_channels: Count = setting(256, "channels of the feature pyramid")
    freeze_at: Annotated[int, Ge(0), Le(5)] = setting(
        2, "stages that stay as they are: 0 none, 1 the stem, 2 stem and res2, ... 5 all"
    )
    norm: Literal["FrozenBN", "BN", "SyncBN", "GN"] = setting(
        "FrozenBN", "of the backbone's other stages"
    )


@dataclass(frozen=True)
class InputSettings(Settings):
    """What the pixels look like. None follows the weights; anything else must agree with them."""

    group: ClassVar[str] = "input."
    channel_order: Literal["RGB", "BGR"] | None = setting(None, "order of the channels")
    mean: PixelStatistics | None = setting(None, "in channel_order", unit="0..255")
    std: PixelStatistics | None = setting(None, "in channel_order", unit="0..255")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"input.std={self.std}: must be above 0")


@dataclass(frozen=True)
class DataSettings(Settings):
    """Which images and boxes. Custom sets are named by their COCO files and image folders."""

    group: ClassVar[str] = "data."
    name: Literal["coco_2017", "coco_2014", "custom"] = setting("coco_2017", "the data set")
    root: str | None = setting(
        None,
        "the folder that holds `coco/`, or is it; none: $DETECTRON2_DATASETS, or ./datasets",
        identity=False,
    )
    train_annotations: str | None = setting(None, "custom: COCO file of the training images")
    train_images: str | None = setting(None, "custom: folder of the training images")
    val_annotations: str | None = setting(None, "custom: COCO file of the reported images")
    val_images: str | None = setting(None, "custom: folder of the reported images")
    accept_bad_boxes: WholeNumber = setting(
        0, "boxes without area or outside the image tolerated, per file", unit="boxes"
    )
    skip_bad_images: WholeNumber = setting(
        0,
        "unreadable training images tolerated; they are left out and counted",
        unit="images",
    )
    workers: Workers = setting(
        -1, "reading processes; -1: as the machine has", unit="processes", identity=False
    )


@dataclass(frozen=True)
class TrainSettings(Settings):
    """SGD by iterations. What is none follows `schedule`, scaled linearly with the batch size."""

    group: ClassVar[str] = "train."
    schedule: Literal["1x", "2x", "3x"] = setting("1x", "Detectron's schedules")
    smallest_part: ClassVar[int] = 1  # image of a batch that is taken in parts
    batch_size: Count = setting(16, "images an iteration, over all processes", unit="images")
    accumulate: Count = setting(
        1,
        "parts of a process's batch that the backbone takes one after the other, for the gradient "
        "of the whole",
        came_later=True,
    )
    iterations: Count | None = setting(
        None, "optimizer steps; learning-rate steps keep their places in proportion", unit="steps"
    )
    steps: list[int] | None = setting(
        None, "where the learning rate is divided by ten", unit="iterations"
    )
    lr: Positive | None = setting(None, "learning rate")
    warmup_iterations: WholeNumber | None = setting(None, "of the warm-up", unit="iterations")
    warmup_factor: NonNegative = setting(0.001, "of the learning rate, at iteration 0")
    momentum: NonNegative = setting(0.9, "momentum")
    weight_decay: NonNegative = setting(1e-4, "weight decay")
    clip_grad: NonNegative = setting(0.0, "largest norm of a parameter's gradient; 0: no limit")
    min_size: Sizes = setting(
        [640, 672, 704, 736, 768, 800], "shorter side, one of them at random", unit="pixels"
    )
    max_size: Count = setting(1333, "longer side at most", unit="pixels")
    flip: bool = setting(True, "whether half of the images are mirrored, left to right")
    precision: Literal["float32", "bf16", "fp16"] = setting(
        "float32", "'float32', or autocast to another (CUDA)"
    )
    log_every: Count = setting(20, "between log lines", unit="iterations", identity=False)
    checkpoint_every: Count = setting(
        2500, "between checkpoints", unit="iterations", identity=False
    )
    tensorboard: bool = setting(True, "whether TensorBoard files are written", identity=False)
    tracker: TrackerName | None = setting(
        None, "which other tracker gets the points of the curve", identity=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"train.steps={self.steps}: must rise")


@dataclass(frozen=True)
class EvaluateSettings(Settings):
    """How images are resized, and which evaluator counts."""

    group: ClassVar[str] = "evaluate."
    evaluator: Literal["hotcoco", "pycocotools"] = setting(
        "hotcoco", "they are equal to the bit", identity=False
    )
    inference: Literal["auto", "plain", "eager", "compiled"] = setting(
        "auto",
        "how the backbone computes, equal up to rounding: 'plain', 'eager' (rewritten), 'compiled' "
        "(recompiles for every image size: use with fixed sizes), 'auto': eager on a CPU, else plain",
        identity=False,
    )
    min_size: Count = setting(800, "shorter side", unit="pixels")
    max_size: Count = setting(1333, "longer side at most", unit="pixels")
    tta: bool = setting(
        False, "Detectron2's test-time augmentation: the sizes of tta_sizes, each mirrored too"
    )
    tta_sizes: Sizes = setting(
        [400, 500, 600, 700, 800, 900, 1000, 1100, 1200], "shorter sides", unit="pixels"
    )
    every: WholeNumber = setting(
        0, "iterations between points of the curve; 0: none", unit="iterations", identity=False
    )


@dataclass(frozen=True)
class DetectionConfig(Settings):
    """All settings of a detection experiment."""

    backbone: BackboneSettings = field(default_factory=lambda: BackboneSettings("se_resnet50"))
    detector: DetectorSettings = field(default_factory=DetectorSettings)
    input: InputSettings = field(default_factory=InputSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    detectron2: dict[str, Any] = setting(
        {}, "any other key of Detectron2's config, e.g. {MODEL.RPN.SMOOTH_L1_BETA: 0.1111}"
    )
    seed: Annotated[int, Ge(0), Le(2**31 - 1)] = setting(0, "of everything that is random")
    device: str = setting("auto", "'auto', 'cpu', 'cuda', 'cuda:1', ...", identity=False)
    processes: Count = setting(
        1, "one a GPU, started by Detectron2's launch", unit="processes", identity=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_keys(flatten(self.detectron2))


@dataclass(frozen=True)
class Schedule:
    """What the settings of training come to."""

    iterations: int
    steps: tuple[int, ...]  # iterations at which the learning rate is divided by ten
    lr: float
    warmup_iterations: int


def resolve_schedule(config: DetectionConfig) -> Schedule:
    """What `config.train` comes to for its batch size.

    The linear scaling rule: with k times the images an iteration, k times the learning rate and
    1/k of the iterations, steps and warm-up. Warm-up takes a tenth of a short run at most. Values
    given there are taken as they are. Source: Detectron model zoo; arXiv 1706.02677.
    """
    train, architecture = config.train, ARCHITECTURES[config.detector.architecture]
    base_iterations, base_steps = SCHEDULES[train.schedule]
    scale = train.batch_size / REFERENCE_BATCH_SIZE
    iterations = train.iterations or round(base_iterations / scale)
    if train.steps is None:
        places = {round(step * iterations / base_iterations) for step in base_steps}
        steps = sorted(place for place in places if 0 < place < iterations)
    else:
        steps = train.steps
        if steps and not 0 < steps[0] <= steps[-1] < iterations:
            raise ValueError(f"train.steps={steps}: must lie inside the {iterations} iterations")
    warmup = train.warmup_iterations
    if warmup is None:
        warmup = min(round(REFERENCE_WARMUP / scale), iterations // 10)
    elif warmup >= iterations:
        raise ValueError(
            f"train.warmup_iterations={warmup}: must be less than the {iterations} iterations, or "
            "the learning rate never gets to its height"
        )
    return Schedule(iterations, tuple(steps), train.lr or architecture.lr * scale, warmup)


def reader_processes(data: DataSettings) -> int:
    """Processes that read images for one training process."""
    return min(4, (os.cpu_count() or 1) - 1) if data.workers < 0 else data.workers


@dataclass(frozen=True)
class Build:
    """What a config of Detectron2 is made from: the settings, and what data and weights decide."""

    config: DetectionConfig
    num_classes: int  # categories of the data set
    input_format: InputFormat  # what the backbone's weights expect of the pixels
    device: str = "cpu"  # 'cpu', 'cuda', 'cuda:1', ...
    weights: str | None = None  # the backbone's; None where a whole detector is loaded afterwards
    train_datasets: tuple[str, ...] = ()  # names in Detectron2's catalog

    @property
    def architecture(self) -> Architecture:
        """The row of ARCHITECTURES."""
        return ARCHITECTURES[self.config.detector.architecture]

    @property
    def schedule(self) -> Schedule:
        """See `resolve_schedule`."""
        return resolve_schedule(self.config)


# Every key of Detectron2's config that our settings own: which setting that is, and its value.
# fmt: off
KEYS: dict[str, tuple[str, Callable[[Build], Any]]] = {
    "MODEL.DEVICE": ("device", lambda b: b.device),
    "MODEL.WEIGHTS": ("backbone.weights", lambda b: ""),
    "MODEL.META_ARCHITECTURE": ("detector.architecture", lambda b: b.architecture.meta),
    "MODEL.BACKBONE.NAME": ("backbone.name", lambda b: b.architecture.builder),
    "MODEL.BACKBONE.FREEZE_AT": ("detector.freeze_at", lambda b: b.config.detector.freeze_at),
    "MODEL.SEBENCH.NAME": ("backbone.name", lambda b: b.config.backbone.name),
    "MODEL.SEBENCH.OPTIONS": ("backbone.options", lambda b: b.config.backbone.options),
    "MODEL.SEBENCH.WEIGHTS": ("backbone.weights", lambda b: b.weights or ""),
    "MODEL.SEBENCH.ALLOW_MISSING": (
        "backbone.allow_missing", lambda b: list(b.config.backbone.allow_missing)),
    "MODEL.RESNETS.NORM": ("detector.norm", lambda b: b.config.detector.norm),
    "MODEL.FPN.OUT_CHANNELS": ("detector.fpn_channels", lambda b: b.config.detector.fpn_channels),
    "MODEL.ROI_HEADS.NUM_CLASSES": ("data.name", lambda b: b.num_classes),
    "MODEL.RETINANET.NUM_CLASSES": ("data.name", lambda b: b.num_classes),
    "MODEL.PIXEL_MEAN": ("input.mean", lambda b: list(b.input_format.mean)),
    "MODEL.PIXEL_STD": ("input.std", lambda b: list(b.input_format.std)),
    "INPUT.FORMAT": ("input.channel_order", lambda b: b.input_format.channel_order),
    "INPUT.MIN_SIZE_TRAIN": ("train.min_size", lambda b: tuple(b.config.train.min_size)),
    "INPUT.MAX_SIZE_TRAIN": ("train.max_size", lambda b: b.config.train.max_size),
    "INPUT.MIN_SIZE_TEST": ("evaluate.min_size", lambda b: b.config.evaluate.min_size),
    "INPUT.MAX_SIZE_TEST": ("evaluate.max_size", lambda b: b.config.evaluate.max_size),
    "INPUT.RANDOM_FLIP": ("train.flip", lambda b: "horizontal" if b.config.train.flip else "none"),
    "DATASETS.TRAIN": ("data.name", lambda b: b.train_datasets),
    "DATASETS.TEST": ("data.name", lambda b: ()),
    "DATALOADER.NUM_WORKERS": ("data.workers", lambda b: reader_processes(b.config.data)),
    "SOLVER.IMS_PER_BATCH": ("train.batch_size", lambda b: b.config.train.batch_size),
    "SOLVER.MAX_ITER": ("train.iterations", lambda b: b.schedule.iterations),
    "SOLVER.STEPS": ("train.steps", lambda b: b.schedule.steps),
    "SOLVER.BASE_LR": ("train.lr", lambda b: b.schedule.lr),
    "SOLVER.WARMUP_ITERS": ("train.warmup_iterations", lambda b: b.schedule.warmup_iterations),
    "SOLVER.WARMUP_FACTOR": ("train.warmup_factor", lambda b: b.config.train.warmup_factor),
    "SOLVER.MOMENTUM": ("train.momentum", lambda b: b.config.train.momentum),
    "SOLVER.WEIGHT_DECAY": ("train.weight_decay", lambda b: b.config.train.weight_decay),
    "SOLVER.CLIP_GRADIENTS.ENABLED": ("train.clip_grad", lambda b: b.config.train.clip_grad > 0),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("train.clip_grad", lambda b: "norm"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": (
        "train.clip_grad", lambda b: b.config.train.clip_grad or 1.0),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": ("train.clip_grad", lambda b: 2.0),
    "SOLVER.AMP.ENABLED": ("train.precision", lambda b: b.config.train.precision != "float32"),
    "SOLVER.CHECKPOINT_PERIOD": (
        "train.checkpoint_every", lambda b: b.config.train.checkpoint_every),
    "TEST.EVAL_PERIOD": ("evaluate.every", lambda b: b.config.evaluate.every),
    "TEST.AUG.ENABLED": ("evaluate.tta", lambda b: b.config.evaluate.tta),
    "TEST.AUG.MIN_SIZES": ("evaluate.tta_sizes", lambda b: tuple(b.config.evaluate.tta_sizes)),
    "TEST.AUG.MAX_SIZE": (
        "evaluate.tta_sizes", lambda b: max(4000, *b.config.evaluate.tta_sizes)),
    "TEST.AUG.FLIP": ("evaluate.tta", lambda b: True),
    "SEED": ("seed", lambda b: b.config.seed),
    "OUTPUT_DIR": ("--output", lambda b: "./output"),  # nothing is written there
}
# fmt: on
# Keys that would do nothing here, or need what this suite does not read, and why.
_NETWORK = "the network is backbone.name with backbone.options"
_UNUSED = {
    "MODEL.MASK_ON": "this suite trains and scores boxes alone",
    "MODEL.KEYPOINT_ON": "this suite trains and scores boxes alone",
    "MODEL.LOAD_PROPOSALS": "proposals are the detector's own",
    "DATASETS.PROPOSAL_FILES_TRAIN": "proposals are the detector's own",
    "DATASETS.PROPOSAL_FILES_TEST": "proposals are the detector's own",
    "DATALOADER.SAMPLER_TRAIN": "images are drawn by seed and place in the stream",
    "DATALOADER.REPEAT_THRESHOLD": "images are drawn by seed and place in the stream",
    "SOLVER.REFERENCE_WORLD_SIZE": "train.schedule scales with train.batch_size",
    "TEST.EXPECTED_RESULTS": "nothing compares with them",
    "TEST.PRECISE_BN.ENABLED": "statistics of norms are those of training",
    "TEST.PRECISE_BN.NUM_ITER": "statistics of norms are those of training",
    "CUDNN_BENCHMARK": "it stays off",
    "MODEL.RESNETS.DEPTH": _NETWORK,
    "MODEL.RESNETS.NUM_GROUPS": _NETWORK,
    "MODEL.RESNETS.WIDTH_PER_GROUP": _NETWORK,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": _NETWORK,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": _NETWORK,
    "MODEL.RESNETS.STRIDE_IN_1X1": _NETWORK,
}


def _check_keys(keys: Iterable[str]) -> None:
    """Refuse keys of Detectron2 that a setting owns, or that would change nothing."""
    for key in keys:
        owned = "MODEL.SEBENCH.OPTIONS" if key.startswith("MODEL.SEBENCH.OPTIONS") else key
        if owned in KEYS:
            raise ValueError(f"detectron2.{key}: set {KEYS[owned][0]} instead")
        if key in _UNUSED:
            raise ValueError(f"detectron2.{key} would do nothing: {_UNUSED[key]}; leave it out")
