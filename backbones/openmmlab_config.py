"""An OpenMMLab config, to start from, that takes its backbone from this suite.

from mmengine import Config
from mmengine.registry import MODELS
config = Config.fromfile("backbones/openmmlab_config.py")  # or a copy of this file
backbone = MODELS.build(config.model.backbone)  # in mmdet the detector builds it
"""

custom_imports = {"imports": ["backbones.openmmlab"]}

model = {
    "data_preprocessor": {
        "type": "ImgDataPreprocessor",
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "bgr_to_rgb": True,
        "pad_size_divisor": 32,
    },
    "backbone": {
        "type": "sebench.SEResNet",
        "depth": 50,
        "out_indices": (0, 1, 2, 3),
        "frozen_stages": 1,
        "norm_eval": True,
        "weights": None,  # a file in any format that `sebench weights inspect` knows
    },
}
