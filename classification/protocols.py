"""Evaluation protocols by name: how an image becomes the views whose scores are averaged."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from backbones.config import check_choice
from backbones.result import Protocol as ProtocolInfo
from classification.config import ClassificationConfig, EvaluateSettings
from classification.corruptions import SMALLEST, Corruption, choose_corruption


@dataclass(frozen=True)
class Protocol:
    """Scores of an image are the mean, over its views, of the softmax of the logits.

    Attributes:
        resize: pixels; one entry per scale. Empty where `resize_mode` is 'none'.
        resize_mode: 'shorter' side to `resize`, 'warp' to a square of it, or 'none'.
        crop: pixels a side; None for the whole image.
        crops: 'full', 'center', or 'ten': four corners and centre, and their mirror images.
        flip: every view is scored mirrored too.
        corruption: done to the crop, before it is mirrored.
        version: raised whenever the numbers that a protocol gives could change.
        source: where it is stated, or that it is our choice.
    """

    resize: tuple[int, ...] = ()
    resize_mode: str = "shorter"
    crop: int | None = 224
    crops: str = "center"
    flip: bool = False
    version: int = 1
    source: str = ""
    corruption: Corruption | None = None

    def describe(self, name: str) -> ProtocolInfo:
        """The protocol as plain values, for the record."""
        plain = {**asdict(self), "resize": list(self.resize), "views": self.views}
        if self.corruption is None:
            del plain["corruption"]
        return ProtocolInfo(name, plain)

    @property
    def views(self) -> int:
        """How many views an image has."""
        crops = {"full": 1, "center": 1, "ten": 10}[self.crops]
        return max(1, len(self.resize)) * crops * (2 if self.flip else 1)


PROTOCOLS: Mapping[str, Protocol] = {
    "full-image": Protocol(
        (), "none", None, "full", source="CIFAR: the whole 32x32 image, no further views"
    ),
    "imagenet-256-224": Protocol((256,), source="1709.01507v4, section 5.1"),
    "imagenet-352-299": Protocol(
        (352,), crop=299, source="1709.01507v4, section 5.1, for Inception-ResNet-v2"
    ),
    "imagenet-320": Protocol(
        (366,),
        crop=320,
        source="1709.01507v4, Table 8: crop 320; the resize is not given there, 320/0.875 is ours",
    ),
    "imagenet-256-224-ten-crop": Protocol((256,), crops="ten", source="AlexNet's ten crops"),
    "imagenet-multi-scale": Protocol(
        (224, 256, 288, 320, 352),
        crops="ten",
        source="1709.01507v4, section 5.4 names multi-scale, multi-crop fusion; scales are ours",
    ),
    "places365-warp256": Protocol(
        (256,), "warp", source="Places2-CNNs [72]: warped to 256x256, centre crop 224"
    ),
    "places365-warp256-ten-crop": Protocol((256,), "warp", crops="ten", source="[72], ten crops"),
    "places365-resize256": Protocol(
        (256,), source="CSAILVision/places365, train_placesCNN.py: shorter side 256"
    ),
    "places365-resize256-ten-crop": Protocol((256,), crops="ten", source="the same, ten crops"),
}


def describe_protocol(config: ClassificationConfig) -> ProtocolInfo:
    """The protocol of an experiment, for its record; an evaluation adds lists and ensembles to its name.

    Raises:
        ValueError: as `choose_protocol`.
    """
    name, protocol = choose_protocol(config.evaluate)
    return protocol.describe(name)


def choose_protocol(settings: EvaluateSettings) -> tuple[str, Protocol]:
    """The protocol that `settings` ask for, with its name; changes to it show in the name.

    Raises:
        ValueError: the name is unknown, a change does not apply to it, or needs a package that is not installed.
    """
    check_choice("evaluate.protocol", settings.protocol, tuple(PROTOCOLS))
    name, protocol = settings.protocol, PROTOCOLS[settings.protocol]
    for key in ("resize", "crop"):
        value: int | None = getattr(settings, key)
        if value is None:
            continue
        if protocol.crops == "full":
            raise ValueError(f"evaluate.{key}={value}: {name} shows the image as it is")
        if key == "resize":
            protocol = replace(protocol, resize=(value,))
        else:
            protocol = replace(protocol, crop=value)
        name += f"+{key}{value}"
    if protocol.crop is not None and protocol.crop > min(protocol.resize):
        raise ValueError(
            f"evaluate.crop={protocol.crop} is larger than evaluate.resize={min(protocol.resize)}"
        )
    if settings.corruption is not None and settings.severity is not None:
        what = f"evaluate.corruption={settings.corruption}"
        if protocol.crops != "center":
            raise ValueError(f"{what}: ImageNet-C is of single crops, which {name} is not")
        if protocol.crop is None or protocol.crop < SMALLEST:
            raise ValueError(f"{what} needs crops of {SMALLEST} pixels, not {protocol.crop}")
        corruption = choose_corruption(settings.corruption, settings.severity)
        protocol = replace(protocol, corruption=corruption)
        name += f"+{settings.corruption}{settings.severity}"
    if settings.flip and protocol.crops == "ten":
        raise ValueError(f"evaluate.flip=true: {name} holds the mirror images already")
    if settings.flip:
        protocol, name = replace(protocol, flip=True), f"{name}+flip"
    return name, protocol
