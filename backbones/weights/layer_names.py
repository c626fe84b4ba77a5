"""What each format of weights calls the layers of a residual network.

A table maps our names to theirs. `res.` stands for every block of `res2` to `res5`, where `{stage}`
counts from 2, `{layer}` from 1, `{block}` from 0 and `{nth}` from 1; `{i}` is 1, 2 and 3.
"""

from collections.abc import Iterator, Mapping

_BLOCK = "layer{layer}.{block}."
_STEM = {"stem.conv1": "conv1", "stem.norm1": "bn1"}
_BLOCKS = {
    "res.conv{i}": _BLOCK + "conv{i}",
    "res.norm{i}": _BLOCK + "bn{i}",
    "res.shortcut.conv": _BLOCK + "downsample.0",
    "res.shortcut.norm": _BLOCK + "downsample.1",
}
_GATE = {"res.se.fc{i}": _BLOCK + "se.fc{i}"}
TORCHVISION = {**_STEM, **_BLOCKS, **_GATE, "head.fc": "fc"}
TIMM_DEEP = {
    **{"stem.conv1": "conv1.0", "stem.conv2": "conv1.3", "stem.conv3": "conv1.6"},
    **{"stem.norm1": "conv1.1", "stem.norm2": "conv1.4", "stem.norm3": "bn1"},
    **_BLOCKS,
    **_GATE,
    "head.fc": "fc",
}
TIMM_LEGACY = {
    "stem.conv{i}": "layer0.conv{i}",
    "stem.norm{i}": "layer0.bn{i}",
    **_BLOCKS,
    "res.se.fc{i}": _BLOCK + "se_module.fc{i}",
    "head.fc": "last_linear",
}
MOSKOMULE = {
    **_STEM,
    **_BLOCKS,
    "res.se.fc1": _BLOCK + "se.fc.0",
    "res.se.fc2": _BLOCK + "se.fc.2",
    "head.fc": "fc",
}
MMPRETRAIN = {
    **{ours: f"backbone.{theirs}" for ours, theirs in {**_STEM, **_BLOCKS}.items()},
    "res.se.fc{i}": f"backbone.{_BLOCK}se_layer.conv{{i}}.conv",
    "head.fc": "head.fc",
}
DETECTRON2 = {
    "stem.conv{i}": "stem.conv{i}",
    "stem.norm{i}": "stem.conv{i}.norm",
    "res.conv{i}": "res{stage}.{block}.conv{i}",
    "res.norm{i}": "res{stage}.{block}.conv{i}.norm",
    "res.shortcut.conv": "res{stage}.{block}.shortcut",
    "res.shortcut.norm": "res{stage}.{block}.shortcut.norm",
    "res.se.fc{i}": "res{stage}.{block}.se.fc{i}",  # our own names: Detectron2 has no SE
    "head.fc": "linear",
}


def _with_norms(convolutions: Mapping[str, str], ending: str) -> dict[str, str]:
    """Add the norm of each convolution: its name with an ending."""
    norms = {ours.replace("conv", "norm"): name + ending for ours, name in convolutions.items()}
    return {**convolutions, **norms}


_CAFFE = "conv{stage}_{nth}_"  # the authors' models
_CAFFE_BLOCKS = {
    "res.conv1": _CAFFE + "1x1_reduce",
    "res.conv2": _CAFFE + "3x3",
    "res.conv3": _CAFFE + "1x1_increase",
    "res.shortcut.conv": _CAFFE + "1x1_proj",
}
_CAFFE_REST = {
    "res.se.fc1": _CAFFE + "1x1_down",
    "res.se.fc2": _CAFFE + "1x1_up",
    "head.fc": "classifier",
}
CAFFE = {**_with_norms({"stem.conv1": "conv1/7x7_s2", **_CAFFE_BLOCKS}, "/bn"), **_CAFFE_REST}
_CAFFE_STEM = {f"stem.conv{i}": f"conv1_{i}/3x3{'_s2' if i == 1 else ''}" for i in (1, 2, 3)}
CAFFE_DEEP = {**_with_norms({**_CAFFE_STEM, **_CAFFE_BLOCKS}, "/bn"), **_CAFFE_REST}

_MSRA = "res{stage}_{block}_branch"  # as Detectron's model zoo has them
_MSRA_BLOCKS = {f"res.conv{i}": f"{_MSRA}2{letter}" for i, letter in enumerate("abc", start=1)}
MSRA = {
    **{"stem.conv1": "conv1", "stem.norm1": "res_conv1_bn", "head.fc": "fc1000"},
    **_with_norms({**_MSRA_BLOCKS, "res.shortcut.conv": _MSRA + "1"}, "_bn"),
}


def expand(table: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (our name, their name) of every layer that a residual network may have."""
    for ours, theirs in table.items():
        for i in (1, 2, 3) if "{i}" in ours else (1,):
            if not ours.startswith("res."):
                prefix = "" if ours == "head.fc" else "backbone."
                yield prefix + ours.format(i=i), theirs.format(i=i)
                continue
            for stage in range(2, 6):
                for block in range(36):
                    place = {"stage": stage, "layer": stage - 1, "block": block, "nth": block + 1}
                    name = ours.removeprefix("res.").format(i=i)
                    yield f"backbone.res{stage}.{block}.{name}", theirs.format(i=i, **place)
