"""Settings of a detection experiment, and the one place where they become a Detectron2 config.

Importing this module imports neither torch nor Detectron2; `build_cfg` does, when it is called.
A field marked `_FREE` cannot change the result and stays out of an experiment's identity.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import resources
from typing import TYPE_CHECKING, Any

from backbones.zoo import BackboneSettings

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from backbones.features import InputFormat

_FREE = {"identity": False}

DATASETS = ("coco_2017", "coco_2014", "custom")
NORMS = ("FrozenBN", "BN", "SyncBN", "GN")


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


def _check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = get_close_matches(str(value), allowed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{key}={value!r}: choose from {', '.join(allowed)}{hint}")


def _check_least(settings: object, prefix: str, least: float, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not least <= value < float("inf"):
            raise ValueError(f"{prefix}{name}={value}: must be at least {least}")


@dataclass(frozen=True)
class DetectorSettings:
    """What stands on the backbone: Detectron2's own parts, always with a feature pyramid."""

    architecture: str = "faster_rcnn"  # or 'retinanet'
    fpn_channels: int = 256
    freeze_at: int = 2  # stages that stay as they are: 0 none, 1 the stem, 2 stem and res2, ...
    norm: str = "FrozenBN"  # of the backbone's other stages: one of NORMS

    def __post_init__(self) -> None:
        _check_choice("detector.architecture", self.architecture, tuple(ARCHITECTURES))
        _check_choice("detector.norm", self.norm, NORMS)
        _check_least(self, "detector.", 1, "fpn_channels")
        if self.freeze_at not in range(6):
            raise ValueError(f"detector.freeze_at={self.freeze_at}: choose 0 (none) to 5 (all)")


@dataclass(frozen=True)
class InputSettings:
    """What the pixels look like. None follows the weights; anything else must agree with them."""

    channel_order: str | None = None  # 'RGB' or 'BGR'
    mean: list[float] | None = None  # 0..255, in channel_order
    std: list[float] | None = None

    def __post_init__(self) -> None:
        if self.channel_order is not None:
            _check_choice("input.channel_order", self.channel_order, ("RGB", "BGR"))
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and (len(values) != 3 or (key == "std" and min(values) <= 0)):
                raise ValueError(f"input.{key}={values}: give three numbers for pixels of 0..255")


@dataclass(frozen=True)
class DataSettings:
    """Which pictures and boxes. Custom sets are named by their COCO files and image folders."""

    name: str = "coco_2017"  # one of DATASETS
    # The folder that holds `coco/`, or is it. None: $DETECTRON2_DATASETS, or ./datasets.
    root: str | None = field(default=None, metadata=_FREE)
    train_annotations: str | None = None
    train_images: str | None = None
    val_annotations: str | None = None
    val_images: str | None = None
    accept_bad_boxes: int = 0  # boxes without area or outside the picture tolerated, per file
    skip_bad_images: int = 0  # unreadable training images tolerated; they are left out and counted
    workers: int = field(default=-1, metadata=_FREE)  # reading processes; -1: as the machine has

    def __post_init__(self) -> None:
        _check_choice("data.name", self.name, DATASETS)
        _check_least(self, "data.", 0, "accept_bad_boxes", "skip_bad_images")
        _check_least(self, "data.", -1, "workers")


@dataclass(frozen=True)
class TrainSettings:
    """SGD by iterations. What is None follows `schedule`, scaled linearly with the batch size."""

    schedule: str = "1x"  # a name of SCHEDULES
    batch_size: int = 16  # pictures an iteration, over all processes
    iterations: int | None = None  # steps keep their places in proportion
    steps: list[int] | None = None  # iterations at which the learning rate is divided by ten
    lr: float | None = None
    warmup_iterations: int | None = None
    warmup_factor: float = 0.001  # of the learning rate, at iteration 0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip_grad: float = 0.0  # largest norm of a parameter's gradient; 0: no limit
    min_size: list[int] = field(default_factory=lambda: [640, 672, 704, 736, 768, 800])  # pixels
    max_size: int = 1333  # pixels of the longer side
    flip: bool = True  # half of the pictures, left to right
    precision: str = "float32"  # or autocast to 'bf16', 'fp16' (CUDA)
    log_every: int = field(default=20, metadata=_FREE)  # iterations
    checkpoint_every: int = field(default=2500, metadata=_FREE)  # iterations
    tensorboard: bool = field(default=True, metadata=_FREE)

    def __post_init__(self) -> None:
        _check_choice("train.schedule", self.schedule, tuple(SCHEDULES))
        _check_choice("train.precision", self.precision, ("float32", "bf16", "fp16"))
        _check_least(self, "train.", 1, "batch_size", "iterations", "log_every", "checkpoint_every")
        _check_least(self, "train.", 1, "max_size")
        _check_least(self, "train.", 0, "warmup_iterations", "warmup_factor", "clip_grad")
        _check_least(self, "train.", 0, "momentum", "weight_decay")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise ValueError(f"train.lr={self.lr}: must be above 0")
        if not self.min_size or min(self.min_size) < 1:
            raise ValueError(f"train.min_size={self.min_size}: give pixels of the shorter side")
        if self.steps is not None and list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"train.steps={self.steps}: must rise")


@dataclass(frozen=True)
class EvaluateSettings:
    evaluator: str = field(default="hotcoco", metadata=_FREE)  # or 'pycocotools': equal to the bit
    # How the backbone computes, equal up to rounding: 'plain', 'eager' (rewritten), 'compiled'
    # (for each size of picture anew: for sets of one size), 'auto': eager on a CPU, else plain.
    inference: str = field(default="auto", metadata=_FREE)
    min_size: int = 800  # pixels of the shorter side
    max_size: int = 1333
    tta: bool = False  # Detectron2's test-time augmentation: sizes below, each mirrored too
    tta_sizes: list[int] = field(
        default_factory=lambda: [400, 500, 600, 700, 800, 900, 1000, 1100, 1200]
    )
    every: int = field(default=0, metadata=_FREE)  # iterations between points of the curve; 0: none

    def __post_init__(self) -> None:
        _check_choice("evaluate.evaluator", self.evaluator, ("hotcoco", "pycocotools"))
        _check_choice("evaluate.inference", self.inference, ("auto", "plain", "eager", "compiled"))
        _check_least(self, "evaluate.", 1, "min_size", "max_size")
        _check_least(self, "evaluate.", 0, "every")
        if not self.tta_sizes or min(self.tta_sizes) < 1:
            raise ValueError(f"evaluate.tta_sizes={self.tta_sizes}: give pixels")


@dataclass(frozen=True)
class DetectionConfig:
    backbone: BackboneSettings = field(default_factory=lambda: BackboneSettings("se_resnet50"))
    detector: DetectorSettings = field(default_factory=DetectorSettings)
    input: InputSettings = field(default_factory=InputSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    # Any other key of Detectron2's config, nested or dotted: {'MODEL.RPN.SMOOTH_L1_BETA': 0.1111}
    detectron2: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = field(default="auto", metadata=_FREE)  # 'auto', 'cpu', 'cuda', 'cuda:1', ...
    processes: int = field(default=1, metadata=_FREE)  # one a GPU, started by Detectron2's launch

    def __post_init__(self) -> None:
        _check_least(self, "", 1, "processes")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed={self.seed}: must be from 0 to {2**31 - 1}")
        for key, _ in flatten(self.detectron2):
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

    known = dict(flatten(cfg))
    for key, value in flatten(config.detectron2):
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


def flatten(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested mapping by their dotted names."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_operators(cfg: CfgNode) -> None:
    """Refuse what only a compiled Detectron2 has; NMS and ROIAlign are torchvision's."""
    asked = [
        key
        for key, value in flatten(cfg)
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
