"""A classifier of mmpretrain on a backbone of this suite, trained and evaluated by mmengine's Runner.

Skipped without mmpretrain, which this suite does not install:

    pip install --no-deps mmpretrain==1.2.0 model-index mat4py einops ordered-set 'importlib_metadata<8'
"""

from typing import ClassVar

import pytest
import torch
from torch.utils.data import Dataset

pytest.importorskip("mmpretrain")

from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import DATASETS
from mmpretrain.structures import DataSample

import backbones.openmmlab  # noqa: F401 - registers the backbones
from backbones.squeeze_excite import SEBlock


@DATASETS.register_module()
class TintedNoise(Dataset):
    """Images (3, 64, 64), uint8, that are brighter in the channel of their class."""

    metainfo: ClassVar[dict] = {}

    def __init__(self, images, seed):
        draw = torch.Generator().manual_seed(seed)
        self._labels = torch.randint(0, 3, (images,), generator=draw)
        self._images = torch.rand(images, 3, 64, 64, generator=draw) * 150
        self._images[torch.arange(images), self._labels] += 100

    def __len__(self):
        return len(self._labels)

    def __getitem__(self, index):
        sample = DataSample().set_gt_label(int(self._labels[index]))
        return {"inputs": self._images[index].to(torch.uint8), "data_samples": sample}


def loader(images, seed, shuffle):
    return {
        "batch_size": 8,
        "num_workers": 0,
        "dataset": {"type": "TintedNoise", "images": images, "seed": seed},
        "sampler": {"type": "DefaultSampler", "shuffle": shuffle},
    }


def test_mmengines_runner_trains_and_evaluates_a_classifier_of_mmpretrain(tmp_path):
    settings = Config(
        {
            "model": {
                "type": "ImageClassifier",
                "backbone": {"type": "sebench.SEResNet", "depth": 18, "out_indices": (3,)},
                "neck": {"type": "GlobalAveragePooling"},
                "head": {"type": "LinearClsHead", "num_classes": 3, "in_channels": 512},
                "data_preprocessor": {
                    "type": "ClsDataPreprocessor",
                    "mean": [123.675, 116.28, 103.53],
                    "std": [58.395, 57.12, 57.375],
                },
            },
            "work_dir": str(tmp_path),
            "train_dataloader": loader(48, 0, True),
            "val_dataloader": loader(24, 1, False),
            "val_evaluator": {"type": "Accuracy", "topk": (1,)},
            "val_cfg": {},
            "train_cfg": {"by_epoch": True, "max_epochs": 2, "val_interval": 2},
            "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9}},
            "default_scope": "mmpretrain",
            "randomness": {"seed": 0},
            "log_level": "ERROR",
        }
    )
    runner = Runner.from_cfg(settings)
    runner.train()
    assert type(runner.model) is ImageClassifier
    assert sum(isinstance(module, SEBlock) for module in runner.model.modules()) == 8
    (accuracy,) = runner.message_hub.get_scalar("val/accuracy/top1").data[0]
    assert accuracy > 60
