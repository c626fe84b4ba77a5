"""The suite's backbones and its SE block for OpenMMLab configs, in the scope `sebench`.

    custom_imports = dict(imports=["backbones.openmmlab"])
    model = dict(backbone=dict(type="sebench.SEResNet", depth=50, weights="weights.safetensors"))

Importing this module registers them, as OpenMMLab's `custom_imports` expects; nothing else of the
suite imports it. It needs mmengine; mmcv only for configs that use the SE block as a plugin.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from mmengine.registry import MODELS as ROOT
from mmengine.registry import Registry
from torch import Tensor, nn

from backbones.build import build_backbone
from backbones.config import BackboneSettings
from backbones.squeeze_excite import SEBlock
from backbones.weights.load import fit_backbone, load_weights, read_weights

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
MODELS = Registry("model", parent=ROOT, scope="sebench", locations=["backbones.openmmlab"])


@MODELS.register_module(name="Backbone")
class OpenMMLabBackbone(BaseModule):
    """Any backbone of this suite as OpenMMLab's detectors and classifiers call it.

    The network itself is `stages`, the module that Detectron2 and the classifier here use too: the
    same input and weights give the same maps to the bit.

    Args:
        name: as `sebench list backbones` has it, or `timm:NAME`, `torchvision:NAME`.
        out_indices: stages that are returned; 0 is res2, 3 is res5.
        frozen_stages: -1 none, 0 the stem, 1 the stem and res2, ...; SE layers and norms too.
        norm_eval: whether all batch norms keep their statistics in training.
        weights: a file in any format that `weights.read_weights` knows. It decides how the network
            strides and pools; `preprocessor_settings` says what the pixels must be.
        options: of the network, e.g. reduction=8.

    Raises:
        ValueError: an unknown name or option, or weights that do not fit.
    """

    def __init__(
        self,
        name: str,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        weights: str | None = None,
        init_cfg: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(init_cfg)
        settings = fit_backbone(BackboneSettings(name, options, weights))
        self.stages = build_backbone(name, **settings.options)
        if weights:
            load_weights(self.stages, weights)
        self.names = [stage for stage in self.stages.feature_specs if stage != "stem"]
        if not set(out_indices) <= set(range(len(self.names))):
            allowed = ", ".join(map(str, range(len(self.names))))
            raise ValueError(f"out_indices {list(out_indices)}: choose from {allowed}")
        if not -1 <= frozen_stages <= len(self.names):
            raise ValueError(f"frozen_stages {frozen_stages}: choose from -1 to {len(self.names)}")
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.train()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images (N, 3, H, W) to the maps of `out_indices`."""
        features = self.stages(x)
        return tuple(features[self.names[index]] for index in self.out_indices)

    def init_weights(self) -> None:
        """Keep the weights: they were drawn, or loaded, when the network was built."""

    def train(self, mode: bool = True) -> "OpenMMLabBackbone":
        """Set training mode, but for frozen stages and, with `norm_eval`, all batch norms."""
        super().train(mode)
        for stage in list(self.stages.feature_specs)[: self.frozen_stages + 1]:
            for module in self.stages.stage_modules(stage):
                module.eval().requires_grad_(False)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BATCH_NORMS):
                    module.eval()
        return self


def _register(name: str, network: str, depth: int) -> None:
    def build(depth: int = depth, **settings: Any) -> OpenMMLabBackbone:
        return OpenMMLabBackbone(network.format(depth), **settings)

    MODELS.register_module(name=name, module=build)


# Type in a config, what the suite calls its networks of a depth, and the depth where none is told.
_register("ResNet", "resnet{}", 50)
_register("SEResNet", "se_resnet{}", 50)
_register("ResNeXt", "resnext{}_32x4d", 50)
_register("SEResNeXt", "se_resnext{}_32x4d", 50)
_register("SENet", "senet{}", 154)


@MODELS.register_module(name="SEBlock")
class SEPlugin(SEBlock):
    """The SE block as a plugin of mmcv, for other networks' blocks.

        plugins=[dict(cfg=dict(type="sebench.SEBlock", reduction=16), position="after_conv3")]

    After the third convolution and its norm is where the paper has it (Fig. 3).
    """

    _abbr_ = "se"

    def __init__(self, in_channels: int, **options: Any) -> None:
        super().__init__(in_channels, **options)


def preprocessor_settings(weights: str) -> dict[str, Any]:
    """Return what a config's `data_preprocessor` needs for some weights: mean, std, bgr_to_rgb.

    OpenMMLab reads images as BGR.

    Raises:
        ValueError: the file does not tell.
    """
    known = read_weights(weights).input_format
    if known is None:
        raise ValueError(f"{weights} does not tell its channel order, mean and std")
    return {
        "mean": list(known.mean),
        "std": list(known.std),
        "bgr_to_rgb": known.channel_order == "RGB",
    }
