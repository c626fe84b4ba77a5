"""Settings of a classification experiment: frozen, typed, checked when made; imports no torch.

Scene recognition uses them too. A field marked `_FREE` cannot change the result (where data lie,
how many processes read them) and stays out of an experiment's identity.
"""

from dataclasses import dataclass, field
from difflib import get_close_matches

from backbones.zoo import BackboneSettings

_FREE = {"identity": False}

DATASETS = ("cifar10", "cifar100", "fashion_mnist", "imagenet", "folder", "places365")
# fmt: off
CORRUPTIONS = (  # ImageNet-C's fifteen and its four for validation, arXiv 1903.12261
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
    "jpeg_compression", "speckle_noise", "gaussian_blur", "spatter", "saturate",
)
# fmt: on


def check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise a ValueError that names the key, the value and the nearest of what was allowed."""
    if value not in allowed:
        near = get_close_matches(str(value), allowed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{key}={value!r}: choose from {', '.join(allowed)}{hint}")


def _check_range(key: str, value: float, low: float, high: float = float("inf")) -> None:
    if not low <= value <= high:
        bound = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
        raise ValueError(f"{key}={value}: must be {bound}")


@dataclass(frozen=True)
class DataSettings:
    """Which images, in which order, normalised how.

    Normalisation counts for networks trained from scratch; published weights bring their own.
    """

    name: str = "cifar10"  # one of DATASETS
    root: str | None = field(default=None, metadata=_FREE)  # folder of the set as published
    # imagenet: 'all' wants the 1000 classes; 'subset' allows missing ones and keeps the labels of
    # the 1000; 'folders' numbers whatever class folders there are.
    classes: str = "all"
    edition: str = "standard"  # places365: 'standard' (1.8 M images) or 'challenge' (8 M)
    size: str = "auto"  # places365: 'large', '256', or whichever folder is there
    holdout: float = 0.0  # fraction of train held out, of every class, for choosing by validation
    sampling: str = "uniform"  # 'class_aware': every class equally often (Relay BP, 1512.05830)
    mean: list[float] = field(default_factory=lambda: [123.675, 116.28, 103.53])  # RGB, 0..255
    std: list[float] = field(default_factory=lambda: [58.395, 57.12, 57.375])
    skip_bad_images: int = 0  # unreadable images tolerated; they are counted and reported
    workers: int = field(default=-1, metadata=_FREE)  # reading processes; -1: as the machine has

    def __post_init__(self) -> None:
        check_choice("data.name", self.name, DATASETS)
        check_choice("data.classes", self.classes, ("all", "subset", "folders"))
        check_choice("data.edition", self.edition, ("standard", "challenge"))
        check_choice("data.size", self.size, ("auto", "large", "256"))
        check_choice("data.sampling", self.sampling, ("uniform", "class_aware"))
        _check_range("data.holdout", self.holdout, 0, 0.9)
        _check_range("data.skip_bad_images", self.skip_bad_images, 0)
        _check_range("data.workers", self.workers, -1)
        for key, values in (("data.mean", self.mean), ("data.std", self.std)):
            if len(values) != 3:
                raise ValueError(f"{key}={values}: give three numbers, red, green, blue, in 0..255")
        if min(self.std) <= 0:
            raise ValueError(f"data.std={self.std}: must be above 0")


@dataclass(frozen=True)
class AugmentSettings:
    """What training does to an image, in this order: crop, flip, policy, (normalise), the rest."""

    crop: str = "resized"  # 'resized': scale and aspect [5]; 'padded': pad and crop; 'none'
    size: int = 224  # pixels a side of the crop; 0: the image's own size (sets held in memory)
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])  # of the image's area
    ratio: list[float] = field(default_factory=lambda: [0.75, 4 / 3])  # width to height
    padding: int = 4  # pixels on each side, for 'padded'
    padding_mode: str = "zeros"  # 'zeros' or 'reflect'
    flip: float = 0.5  # chance of a horizontal flip
    policy: str = "none"  # 'trivial_augment' or 'rand_augment' (torchvision), files only
    cutout: int = 0  # side in pixels of the square that is zeroed after normalising
    random_erasing: float = 0.0  # chance, timm
    mixup: float = 0.0  # alpha of the Beta distribution, timm
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        check_choice("augment.crop", self.crop, ("resized", "padded", "none"))
        check_choice("augment.padding_mode", self.padding_mode, ("zeros", "reflect"))
        check_choice("augment.policy", self.policy, ("none", "trivial_augment", "rand_augment"))
        for key in ("size", "padding", "cutout", "mixup", "cutmix"):
            _check_range(f"augment.{key}", getattr(self, key), 0)
        _check_range("augment.flip", self.flip, 0, 1)
        _check_range("augment.random_erasing", self.random_erasing, 0, 1)
        for key, pair in (("scale", self.scale), ("ratio", self.ratio)):
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                raise ValueError(f"augment.{key}={pair}: give two rising numbers above 0")


@dataclass(frozen=True)
class OptimizerSettings:
    name: str = "sgd"  # any name timm's factory knows
    lr: float = 0.1  # for the whole batch
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_norms: bool = True  # whether norms and biases decay too, as in the papers' code

    def __post_init__(self) -> None:
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"train.optimizer.lr={self.lr}: must be above 0")
        _check_range("train.optimizer.momentum", self.momentum, 0, 1)
        _check_range("train.optimizer.weight_decay", self.weight_decay, 0)


@dataclass(frozen=True)
class ScheduleSettings:
    """The learning rate over time. Every length here is in `unit`, which is also how often it moves."""

    name: str = "cosine"  # 'constant', 'step', 'multistep', 'cosine', 'plateau'
    unit: str = "epoch"  # 'epoch' or 'iteration'
    step_size: int = 30  # 'step': decay each so many
    milestones: list[int] = field(default_factory=list)  # 'multistep': decay at these
    decay_rate: float = 0.1
    min_lr: float = 0.0  # 'cosine', 'plateau'
    warmup: int = 0
    warmup_lr: float = 0.0
    warmup_shape: str = "linear"  # 'linear' from warmup_lr, or 'constant' at it
    patience: int = 5  # 'plateau': epochs without a lower held-out loss

    def __post_init__(self) -> None:
        names = ("constant", "step", "multistep", "cosine", "plateau")
        check_choice("train.schedule.name", self.name, names)
        check_choice("train.schedule.unit", self.unit, ("epoch", "iteration"))
        check_choice("train.schedule.warmup_shape", self.warmup_shape, ("linear", "constant"))
        _check_range("train.schedule.step_size", self.step_size, 1)
        _check_range("train.schedule.warmup", self.warmup, 0)
        if self.milestones != sorted(self.milestones):
            raise ValueError(f"train.schedule.milestones={self.milestones}: must rise")
        if self.name == "plateau" and (self.unit != "epoch" or self.warmup):
            raise ValueError("train.schedule: 'plateau' goes by epochs and has no warm-up")


@dataclass(frozen=True)
class TrainSettings:
    epochs: int = 100
    iterations: int | None = None  # optimiser steps; takes the place of epochs
    batch_size: int = 128  # images per optimiser step, over all processes
    accumulate: int = 1  # parts a process's share of the batch is computed in
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    label_smoothing: float = 0.0
    dropout: float = 0.0  # before the classifier
    ema_decay: float = 0.0  # 0: none; otherwise the averaged weights are the product
    clip_grad: float = 0.0  # largest norm of the gradient; 0: no limit
    precision: str = "float32"  # or autocast to 'bf16', 'fp16'
    channels_last: bool = True
    freeze_norms_epochs: int = 0  # batch statistics stay frozen for so many last epochs
    select: str = "last"  # 'best': the epoch of lowest error on data.holdout
    log_every: int = field(default=20, metadata=_FREE)  # steps
    checkpoint_every: float = field(default=10.0, metadata=_FREE)  # minutes
    tensorboard: bool = field(default=True, metadata=_FREE)

    def __post_init__(self) -> None:
        check_choice("train.precision", self.precision, ("float32", "bf16", "fp16"))
        check_choice("train.select", self.select, ("last", "best"))
        for key in ("epochs", "batch_size", "accumulate", "log_every"):
            _check_range(f"train.{key}", getattr(self, key), 1)
        if self.iterations is not None:
            _check_range("train.iterations", self.iterations, 1)
        for key in ("label_smoothing", "dropout", "ema_decay"):
            _check_range(f"train.{key}", getattr(self, key), 0, 0.999999)
        for key in ("clip_grad", "freeze_norms_epochs", "checkpoint_every"):
            _check_range(f"train.{key}", getattr(self, key), 0)


@dataclass(frozen=True)
class EvaluateSettings:
    protocol: str = "full-image"  # a name of classification.protocols.PROTOCOLS
    resize: int | None = None  # pixels; takes the place of the protocol's
    crop: int | None = None
    flip: bool = False  # scores averaged with those of the mirrored image
    images: str | None = None  # a file that lists the images to count, one id a line
    corruption: str | None = None  # one of CORRUPTIONS, done to the crop
    severity: int | None = None  # of the corruption, 1 to 5
    ensemble: list[str] = field(default_factory=list)  # further weights; scores are averaged
    # How the network is rewritten for speed, exact up to rounding: 'plain',
    # 'eager' (rewritten), 'compiled', or 'auto': eager on a CPU, plain elsewhere.
    inference: str = field(default="auto", metadata=_FREE)
    batch_size: int = field(default=128, metadata=_FREE)  # images per forward pass and process
    # Crops of image files, kept for later passes: 'auto' in the user's cache folder, for sets of
    # 1000 images or more; 'none'; or a FOLDER.
    cache: str = field(default="auto", metadata=_FREE)
    cache_gigabytes: float = field(default=32.0, metadata=_FREE)  # of all kept crops together
    every: int = field(default=1, metadata=_FREE)  # epochs between points of the curve; 0: none

    def __post_init__(self) -> None:
        check_choice("evaluate.inference", self.inference, ("auto", "plain", "eager", "compiled"))
        _check_range("evaluate.batch_size", self.batch_size, 1)
        _check_range("evaluate.every", self.every, 0)
        _check_range("evaluate.cache_gigabytes", self.cache_gigabytes, 0)
        if not self.cache:
            raise ValueError("evaluate.cache is empty: say auto, none or a folder")
        for key in ("resize", "crop"):
            if getattr(self, key) is not None:
                _check_range(f"evaluate.{key}", getattr(self, key), 1)
        if self.corruption is not None:
            check_choice("evaluate.corruption", self.corruption, CORRUPTIONS)
        if (self.corruption is None) != (self.severity is None):
            raise ValueError(
                f"evaluate.corruption={self.corruption}, evaluate.severity={self.severity}: "
                "a corruption and its severity, 1 to 5, go together"
            )
        if self.severity is not None:
            _check_range("evaluate.severity", self.severity, 1, 5)


@dataclass(frozen=True)
class ClassificationConfig:
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    seed: int = 0
    device: str = field(default="auto", metadata=_FREE)  # 'auto', 'cpu', 'cuda', 'cuda:1', ...

    def __post_init__(self) -> None:
        _check_range("seed", self.seed, 0, 2**32 - 1)
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
