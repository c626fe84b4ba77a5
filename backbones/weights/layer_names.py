"""What each format of weights calls the layers of a residual network."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerNames:
    """What a format calls the layers of a residual network.

    `{stage}` counts from 2, `{layer}` from 1, `{block}` from 0 and `{nth}` from 1. Where a position
    has several layers, there is one name for each.
    """

    stem: tuple[str, ...]  # convolutions
    stem_norms: tuple[str, ...]
    convs: tuple[str, ...]  # of a block
    norms: tuple[str, ...]
    shortcut: tuple[str, str]  # convolution and norm
    gate: tuple[str, ...]  # the two matrices of SE
    head: str

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield (our name, their name) of every layer that a residual network may have."""
        for i, (conv, norm) in enumerate(zip(self.stem, self.stem_norms, strict=True), start=1):
            yield f"backbone.stem.conv{i}", conv
            yield f"backbone.stem.norm{i}", norm
        for stage in range(2, 6):
            for block in range(36):
                place = {"stage": stage, "layer": stage - 1, "block": block, "nth": block + 1}
                ours = f"backbone.res{stage}.{block}"
                for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), start=1):
                    yield f"{ours}.conv{i}", conv.format(**place)
                    yield f"{ours}.norm{i}", norm.format(**place)
                yield f"{ours}.shortcut.conv", self.shortcut[0].format(**place)
                yield f"{ours}.shortcut.norm", self.shortcut[1].format(**place)
                for i, gate in enumerate(self.gate, start=1):
                    yield f"{ours}.se.fc{i}", gate.format(**place)
        yield "head.fc", self.head


def torchvision_names(
    prefix: str = "",
    gates: tuple[str, ...] = ("se.fc1", "se.fc2"),
    head: str = "fc",
    legacy: bool = False,
    deep: bool = False,
) -> LayerNames:
    """Return the names of those who call stages layer1 .. layer4, as torchvision does."""
    block = prefix + "layer{layer}.{block}."
    stem: tuple[str, ...] = (prefix + "conv1",)
    stem_norms: tuple[str, ...] = (prefix + "bn1",)
    if legacy:
        stem = tuple(f"layer0.conv{i}" for i in (1, 2, 3))
        stem_norms = tuple(f"layer0.bn{i}" for i in (1, 2, 3))
    elif deep:
        stem, stem_norms = ("conv1.0", "conv1.3", "conv1.6"), ("conv1.1", "conv1.4", "bn1")
    return LayerNames(
        stem=stem,
        stem_norms=stem_norms,
        convs=tuple(f"{block}conv{i}" for i in (1, 2, 3)),
        norms=tuple(f"{block}bn{i}" for i in (1, 2, 3)),
        shortcut=(f"{block}downsample.0", f"{block}downsample.1"),
        gate=tuple(block + gate for gate in gates),
        head=head,
    )


def caffe_names(deep: bool) -> LayerNames:
    """Those of the authors' Caffe models; ``deep``: three convolutions in the stem."""
    stem = ("conv1_1/3x3_s2", "conv1_2/3x3", "conv1_3/3x3") if deep else ("conv1/7x7_s2",)
    block = "conv{stage}_{nth}_"
    convs = tuple(block + name for name in ("1x1_reduce", "3x3", "1x1_increase"))
    return LayerNames(
        stem=stem,
        stem_norms=tuple(f"{name}/bn" for name in stem),
        convs=convs,
        norms=tuple(f"{name}/bn" for name in convs),
        shortcut=(f"{block}1x1_proj", f"{block}1x1_proj/bn"),
        gate=(f"{block}1x1_down", f"{block}1x1_up"),
        head="classifier",
    )


def detectron2_names() -> LayerNames:
    """Those of Detectron2's own ResNets."""
    block = "res{stage}.{block}."
    return LayerNames(
        stem=tuple(f"stem.conv{i}" for i in (1, 2, 3)),
        stem_norms=tuple(f"stem.conv{i}.norm" for i in (1, 2, 3)),
        convs=tuple(f"{block}conv{i}" for i in (1, 2, 3)),
        norms=tuple(f"{block}conv{i}.norm" for i in (1, 2, 3)),
        shortcut=(f"{block}shortcut", f"{block}shortcut.norm"),
        gate=(f"{block}se.fc1", f"{block}se.fc2"),  # our own names: Detectron2 has no SE
        head="linear",
    )


def msra_names() -> LayerNames:
    """Those of MSRA's ResNets, as Detectron's model zoo has them."""
    block = "res{stage}_{block}_branch"
    convs = tuple(f"{block}2{letter}" for letter in "abc")
    return LayerNames(
        stem=("conv1",),
        stem_norms=("res_conv1_bn",),
        convs=convs,
        norms=tuple(f"{name}_bn" for name in convs),
        shortcut=(f"{block}1", f"{block}1_bn"),
        gate=(),
        head="fc1000",
    )
