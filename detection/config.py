"""Settings of a detection experiment, and the one place where they become a Detectron2 config.

Importing this module imports neither torch nor Detectron2; `build_cfg` does, when it is called.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import resources
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

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from backbones.zoo import InputFormat

DATASETS = ("coco_2017", "coco_2014", "custom")
NORMS = ("FrozenBN", "BN", "SyncBN", "GN")
Sizes = Annotated[list[Count], Len(1)]


@dataclass(frozen=True)
class Architecture:
    base: str  # Detectron2's config it starts from
    builder: str  # of the backbone that MODEL.SEBENCH.NAME names, in Detectron2's registry
    lr: float  # for 16 pictures an iteration


ARCHITECTURES = {
    "faster_rcnn": Architecture("Base-RCNN-FPN.yaml", "build_sebench_fpn_backbone", 0.02),
    "retinanet": Architecture("Base-RetinaNet.yaml", "build_retinanet_sebench_fpn_backbone", 0.01),
}
# For 16 pictures an iteration: iterations, and where the learning rate is divided by ten.
# Source: Detectron model zoo (1x, 2x), Detectron2 model zoo (1x, 3x). 2x is the paper's.
SCHEDULES = {
    "1x": (90_000, (60_000, 80_000)),
    "2x": (180_000, (120_000, 160_000)),
    "3x": (270_000, (210_000, 250_000)),
}
REFERENCE_BATCH_SIZE, REFERENCE_WARMUP = 16, 1000  # pictures an iteration, iterations


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
    batch_size: Count = setting(16, "images an iteration, over all processes", unit="images")
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
        for key in flatten(self.detectron2):
            if key in _OWNED:
                raise ValueError(f"detectron2.{key}: set {_OWNED[key]} instead")


@dataclass(frozen=True)
class Schedule:
    iterations: int
    steps: tuple[int, ...]  # iterations at which the learning rate is divided by ten
    lr: float
    warmup_iterations: int


def resolve_schedule(config: DetectionConfig) -> Schedule:
    """What `config.train` comes to for its batch size.

    The linear scaling rule: with k times the pictures an iteration, k times the learning rate and
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
    return Schedule(iterations, tuple(steps), train.lr or architecture.lr * scale, warmup)


def reader_processes(data: DataSettings) -> int:
    """Processes that read pictures for one training process."""
    return min(4, (os.cpu_count() or 1) - 1) if data.workers < 0 else data.workers


# Keys of Detectron2's config that the settings above own.
_OWNED = {
    "MODEL.DEVICE": "device",
    "MODEL.WEIGHTS": "backbone.weights",
    "MODEL.BACKBONE.NAME": "backbone.name and detector.architecture",
    "MODEL.BACKBONE.FREEZE_AT": "detector.freeze_at",
    "MODEL.RESNETS.NORM": "detector.norm",
    "MODEL.FPN.OUT_CHANNELS": "detector.fpn_channels",
    "MODEL.META_ARCHITECTURE": "detector.architecture",
    "MODEL.PIXEL_MEAN": "input.mean",
    "MODEL.PIXEL_STD": "input.std",
    "INPUT.FORMAT": "input.channel_order",
    "INPUT.MIN_SIZE_TRAIN": "train.min_size",
    "INPUT.MAX_SIZE_TRAIN": "train.max_size",
    "INPUT.MIN_SIZE_TEST": "evaluate.min_size",
    "INPUT.MAX_SIZE_TEST": "evaluate.max_size",
    "INPUT.RANDOM_FLIP": "train.flip",
    "DATASETS.TRAIN": "data.name",
    "DATASETS.TEST": "data.name",
    "DATALOADER.NUM_WORKERS": "data.workers",
    "SOLVER.MAX_ITER": "train.iterations",
    "SOLVER.STEPS": "train.steps",
    "SOLVER.BASE_LR": "train.lr",
    "SOLVER.IMS_PER_BATCH": "train.batch_size",
    "SOLVER.WARMUP_ITERS": "train.warmup_iterations",
    "SOLVER.WARMUP_FACTOR": "train.warmup_factor",
    "SOLVER.MOMENTUM": "train.momentum",
    "SOLVER.WEIGHT_DECAY": "train.weight_decay",
    "SOLVER.CHECKPOINT_PERIOD": "train.checkpoint_every",
    "TEST.EVAL_PERIOD": "evaluate.every",
    "TEST.AUG.ENABLED": "evaluate.tta",
    "TEST.AUG.MIN_SIZES": "evaluate.tta_sizes",
    "OUTPUT_DIR": "--output",
    "SEED": "seed",
}


def build_cfg(
    config: DetectionConfig,
    *,
    num_classes: int,
    input_format: InputFormat,
    device: str = "cpu",
    weights: str | None = None,
    train_datasets: Sequence[str] = (),
) -> CfgNode:
    """Detectron2's config node of `config`; the backbone it names is registered.

    Args:
        num_classes: categories of the data set.
        input_format: what the backbone's weights expect of the pixels.
        device: 'cpu', 'cuda', 'cuda:1', ...
        weights: what the backbone starts from; None where a whole detector is loaded afterwards.
        train_datasets: names in Detectron2's catalog.
    Raises:
        ValueError: `config.detectron2` holds an unknown key or a value of another type; or
            something asks for operators that this Detectron2 was installed without.
    """
    from detectron2.config import get_cfg

    from .backbone import add_sebench_config, register_backbones

    register_backbones()
    detector, train, evaluate = config.detector, config.train, config.evaluate
    architecture = ARCHITECTURES[detector.architecture]
    cfg = get_cfg()
    add_sebench_config(cfg)
    zoo = resources.files("detectron2") / "model_zoo" / "configs"
    cfg.merge_from_file(str(zoo / architecture.base))

    cfg.MODEL.DEVICE = device
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.NAME = architecture.builder
    cfg.MODEL.SEBENCH.NAME = config.backbone.name
    cfg.MODEL.SEBENCH.ALLOW_MISSING = list(config.backbone.allow_missing)
    cfg.MODEL.BACKBONE.FREEZE_AT = detector.freeze_at
    cfg.MODEL.RESNETS.NORM = detector.norm
    cfg.MODEL.FPN.OUT_CHANNELS = detector.fpn_channels
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = num_classes
    for option, value in config.backbone.options.items():
        cfg.MODEL.SEBENCH.OPTIONS[option] = value
    cfg.MODEL.SEBENCH.WEIGHTS = weights or ""

    cfg.INPUT.FORMAT = input_format.channel_order
    cfg.MODEL.PIXEL_MEAN = list(input_format.mean)
    cfg.MODEL.PIXEL_STD = list(input_format.std)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = tuple(train.min_size), train.max_size
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = evaluate.min_size, evaluate.max_size
    cfg.INPUT.RANDOM_FLIP = "horizontal" if train.flip else "none"
    cfg.DATASETS.TRAIN = tuple(train_datasets)
    cfg.DATALOADER.NUM_WORKERS = reader_processes(config.data)

    schedule = resolve_schedule(config)
    cfg.SOLVER.IMS_PER_BATCH = train.batch_size
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER = schedule.lr, schedule.iterations
    cfg.SOLVER.STEPS = schedule.steps
    cfg.SOLVER.WARMUP_ITERS = schedule.warmup_iterations
    cfg.SOLVER.WARMUP_FACTOR = train.warmup_factor
    cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY = train.momentum, train.weight_decay
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = train.clip_grad > 0
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = train.clip_grad or 1.0
    cfg.SOLVER.AMP.ENABLED = train.precision != "float32"
    cfg.SOLVER.CHECKPOINT_PERIOD = train.checkpoint_every
    cfg.TEST.EVAL_PERIOD = evaluate.every
    cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MIN_SIZES = evaluate.tta, tuple(evaluate.tta_sizes)
    cfg.TEST.AUG.MAX_SIZE = max(cfg.TEST.AUG.MAX_SIZE, max(evaluate.tta_sizes))
    cfg.SEED = config.seed

    known = flatten(cfg)
    for key, value in flatten(config.detectron2).items():
        if key not in known:
            near = get_close_matches(key, known, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"detectron2.{key}: Detectron2's config has no such key{hint}")
        try:
            cfg.merge_from_list([key, value])
        except ValueError as error:
            raise ValueError(
                f"detectron2.{key}={value!r}: Detectron2 wants a {type(known[key]).__name__}, "
                f"as in {known[key]!r}"
            ) from error
    _check_operators(cfg)
    cfg.freeze()
    return cfg


def _check_operators(cfg: CfgNode) -> None:
    """Refuse what only a compiled Detectron2 has; NMS and ROIAlign are torchvision's."""
    asked = [
        key
        for key, value in flatten(cfg).items()
        if (isinstance(value, str) and ("Rotated" in value or value in ("RRPN", "RROIHeads")))
        or (key == "MODEL.RESNETS.DEFORM_ON_PER_STAGE" and any(value))
    ]
    if not asked:
        return
    try:
        import detectron2._C  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"detectron2.{asked[0]}: rotated boxes and deformable convolutions need Detectron2's "
            "compiled operators, which this installation lacks; build Detectron2 from source"
        ) from error
