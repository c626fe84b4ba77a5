"""Settings of a classification experiment, scene recognition included. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le, Len

from backbones.config import (
    BackboneSettings,
    Count,
    Fraction,
    NonNegative,
    PixelStatistics,
    Positive,
    Settings,
    WholeNumber,
    Workers,
    check_choice,
    setting,
)
from backbones.tracker import TrackerName
from classification.catalog import DATASETS

# fmt: off
CORRUPTIONS = (  # ImageNet-C's fifteen and its four for validation, arXiv 1903.12261
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
    "jpeg_compression", "speckle_noise", "gaussian_blur", "spatter", "saturate",
)
# fmt: on
BelowOne = Annotated[float, Ge(0), Le(0.999999)]
Range = Annotated[list[float], Len(2, 2)]  # rising, above 0


@dataclass(frozen=True)
class DataSettings(Settings):
    """Which images, in which order, normalised how.

    Normalisation counts for networks trained from scratch; published weights bring their own.
    """

    group: ClassVar[str] = "data."
    name: str = setting("cifar10", "the data set: see `sebench list datasets`")
    root: str | None = setting(None, "folder of the set as it was published", identity=False)
    classes: Literal["all", "subset", "folders"] = setting(
        "all",
        "imagenet: 'all' wants the 1000 classes, 'subset' allows missing ones and keeps the labels "
        "of the 1000, 'folders' numbers the class folders that exist",
    )
    edition: Literal["standard", "challenge"] = setting(
        "standard", "places365: 'standard' (1.8 M training images) or 'challenge' (8 M)"
    )
    size: Literal["auto", "large", "256"] = setting(
        "auto", "places365: 'large', '256', or whichever folder exists"
    )
    holdout: Annotated[float, Ge(0), Le(0.9)] = setting(
        0.0, "fraction of every class of train that is held out, for choosing by validation"
    )
    sampling: Literal["uniform", "class_aware"] = setting(
        "uniform", "'class_aware': every class equally often (Relay BP, arXiv 1512.05830)"
    )
    mean: PixelStatistics = setting(
        [123.675, 116.28, 103.53], "subtracted from red, green, blue", unit="0..255"
    )
    std: PixelStatistics = setting(
        [58.395, 57.12, 57.375], "red, green, blue are divided by it", unit="0..255"
    )
    skip_bad_images: WholeNumber = setting(
        0, "unreadable images tolerated; they are counted and reported", unit="images"
    )
    workers: Workers = setting(
        -1, "reading processes; -1: as the machine has", unit="processes", identity=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("data.name", self.name, DATASETS)
        if min(self.std) <= 0:
            raise ValueError(f"data.std={self.std}: must be above 0")


@dataclass(frozen=True)
class AugmentSettings(Settings):
    """What training does to an image, in this order: crop, flip, policy, (normalise), the rest."""

    group: ClassVar[str] = "augment."
    crop: Literal["resized", "padded", "none"] = setting(
        "resized", "'resized': random scale and aspect ratio; 'padded': pad, then crop"
    )
    size: WholeNumber = setting(
        224, "side of the crop; 0: the image's own size (sets held in memory)", unit="pixels"
    )
    scale: Range = setting([0.08, 1.0], "'resized': area of the crop", unit="of the image's area")
    ratio: Range = setting([0.75, 4 / 3], "'resized': aspect ratio", unit="width to height")
    padding: WholeNumber = setting(4, "'padded': on each side", unit="pixels")
    padding_mode: Literal["zeros", "reflect"] = setting("zeros", "'padded': what is padded with")
    flip: Fraction = setting(0.5, "chance of a horizontal flip")
    policy: Literal["none", "trivial_augment", "rand_augment"] = setting(
        "none", "torchvision's policies, for sets read from files"
    )
    cutout: WholeNumber = setting(
        0, "side of the square that is zeroed after normalising", unit="pixels"
    )
    random_erasing: Fraction = setting(0.0, "chance of timm's random erasing")
    mixup: NonNegative = setting(0.0, "alpha of timm's mixup; 0: none")
    cutmix: NonNegative = setting(0.0, "alpha of timm's CutMix; 0: none")

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, pair in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < pair[0] <= pair[1]:
                raise ValueError(f"augment.{key}={pair}: give two rising numbers above 0")


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """What timm's optimizer factory is given."""

    group: ClassVar[str] = "train.optimizer."
    name: str = setting("sgd", "any name timm's optimizer factory knows")
    lr: Positive = setting(0.1, "learning rate of the whole batch")
    momentum: Fraction = setting(0.9, "momentum")
    nesterov: bool = setting(False, "whether the momentum is Nesterov's")
    weight_decay: NonNegative = setting(1e-4, "weight decay")
    decay_norms: bool = setting(True, "whether norms and biases decay too, as in the papers' code")


@dataclass(frozen=True)
class ScheduleSettings(Settings):
    """The learning rate over time. Lengths are in `unit`; the rate is updated once per `unit`."""

    group: ClassVar[str] = "train.schedule."
    name: Literal["constant", "step", "multistep", "cosine", "plateau"] = setting(
        "cosine", "how the learning rate falls"
    )
    unit: Literal["epoch", "iteration"] = setting("epoch", "what lengths count")
    step_size: Count = setting(30, "'step': decay every so many", unit="units")
    milestones: list[int] = setting([], "'multistep': decay at these", unit="units")
    decay_rate: float = setting(0.1, "factor of each decay")
    min_lr: float = setting(0.0, "'cosine', 'plateau': lowest learning rate")
    warmup: WholeNumber = setting(0, "length of the warm-up", unit="units")
    warmup_lr: float = setting(0.0, "learning rate the warm-up starts from")
    warmup_shape: Literal["linear", "constant"] = setting(
        "linear", "'linear' from warmup_lr, or 'constant' at it"
    )
    patience: int = setting(5, "'plateau': epochs without a lower held-out loss", unit="epochs")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.milestones != sorted(self.milestones):
            raise ValueError(f"train.schedule.milestones={self.milestones}: must rise")
        if self.name == "plateau" and (self.unit != "epoch" or self.warmup):
            raise ValueError("train.schedule: 'plateau' goes by epochs and has no warm-up")


@dataclass(frozen=True)
class TrainSettings(Settings):
    """How long, with which batches, and what is kept."""

    group: ClassVar[str] = "train."
    epochs: Count = setting(100, "passes over the training images", unit="epochs")
    iterations: Count | None = setting(
        None, "optimizer steps; takes the place of epochs", unit="steps"
    )
    smallest_part: ClassVar[int] = 2  # images of a micro-batch: batch norms need more than one
    batch_size: Count = setting(128, "images per optimizer step, over all processes", unit="images")
    accumulate: Count = setting(1, "gradient-accumulation micro-batches per process and step")
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    label_smoothing: BelowOne = setting(0.0, "label smoothing")
    dropout: BelowOne = setting(0.0, "before the classifier")
    ema_decay: BelowOne = setting(
        0.0, "decay of the weights' moving average, which is evaluated and saved; 0: none"
    )
    clip_grad: NonNegative = setting(0.0, "largest norm of the gradient; 0: no limit")
    precision: Literal["float32", "bf16", "fp16"] = setting(
        "float32", "'float32', or autocast to another"
    )
    channels_last: bool = setting(True, "memory format of images and weights")
    synced_norm: bool = setting(
        False,
        "whether batch norms take statistics over the images of all processes, as one process does",
        came_later=True,
    )
    freeze_norms_epochs: WholeNumber = setting(
        0, "batch statistics stay frozen for so many last epochs", unit="epochs"
    )
    select: Literal["last", "best"] = setting(
        "last", "which epoch is reported; 'best': that of lowest error on data.holdout"
    )
    log_every: Count = setting(20, "between log lines", unit="steps", identity=False)
    checkpoint_every: NonNegative = setting(
        10.0, "between checkpoints", unit="minutes", identity=False
    )
    tensorboard: bool = setting(True, "whether TensorBoard files are written", identity=False)
    tracker: TrackerName | None = setting(
        None, "which other tracker gets the points of the curve", identity=False
    )


@dataclass(frozen=True)
class EvaluateSettings(Settings):
    """How an image becomes views, and views become a score."""

    group: ClassVar[str] = "evaluate."
    protocol: str = setting("full-image", "how an image becomes views: `sebench list protocols`")
    resize: Count | None = setting(
        None, "shorter side before the crop; takes the place of the protocol's", unit="pixels"
    )
    crop: Count | None = setting(
        None, "side of the crop; takes the place of the protocol's", unit="pixels"
    )
    flip: bool = setting(False, "scores are averaged with those of the mirrored image")
    images: str | None = setting(
        None, "a file that lists the images to count, one id a line", names_files=True
    )
    corruption: str | None = setting(
        None, f"done to the crop (ImageNet-C); one of {', '.join(CORRUPTIONS)}"
    )
    severity: Annotated[int, Ge(1), Le(5)] | None = setting(None, "of the corruption")
    ensemble: list[str] = setting(
        [], "further files of weights; scores are averaged", names_files=True
    )
    inference: Literal["auto", "plain", "eager", "compiled"] = setting(
        "auto",
        "how the network is rewritten for speed, exact up to rounding: 'plain' not at all, 'eager', "
        "'compiled', 'auto': eager on a CPU, plain elsewhere",
        identity=False,
    )
    batch_size: Count = setting(
        128, "images per forward pass and process", unit="images", identity=False
    )
    cache: str = setting(
        "auto",
        "crops of image files kept for later passes: 'auto' in the user's cache folder, for sets "
        "of 1000 images or more; 'none'; or a folder",
        identity=False,
    )
    cache_gigabytes: NonNegative = setting(
        32.0, "of all kept crops together", unit="gigabytes", identity=False
    )
    every: WholeNumber = setting(
        1, "epochs between points of the curve; 0: none", unit="epochs", identity=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cache:
            raise ValueError("evaluate.cache is empty: say auto, none or a folder")
        if self.corruption is not None:
            check_choice("evaluate.corruption", self.corruption, CORRUPTIONS)
        if (self.corruption is None) != (self.severity is None):
            raise ValueError(
                f"evaluate.corruption={self.corruption}, evaluate.severity={self.severity}: "
                "a corruption and its severity, 1 to 5, go together"
            )


@dataclass(frozen=True)
class ClassificationConfig(Settings):
    """All settings of an experiment of classification or scene recognition."""

    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = setting(0, "of everything that is random")
    device: str = setting("auto", "'auto', 'cpu', 'cuda', 'cuda:1', ...", identity=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        held_out = self.data.holdout > 0
        if self.train.select == "best" and not held_out:
            raise ValueError(
                "train.select=best: choosing an epoch needs images that are not reported; "
                "set data.holdout, e.g. data.holdout=0.1"
            )
        if self.train.schedule.name == "plateau" and not held_out:
            raise ValueError(
                "train.schedule.name=plateau: a plateau is looked for on held-out images, never on "
                "the reported split; set data.holdout, e.g. data.holdout=0.02"
            )
