"""Settings of detection: schedules by hand, Detectron2's keys, the recipes."""

import math
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg

from backbones import BackboneSettings, InputFormat
from backbones.config import flatten
from detection.config import (
    KEYS,
    Build,
    DetectionConfig,
    DetectorSettings,
    EvaluateSettings,
    InputSettings,
    Schedule,
    TrainSettings,
    resolve_schedule,
)
from detection.detector import build_cfg

RECIPES = sorted((Path(__file__).parent.parent / "detection" / "recipes").glob("*.yaml"))


def schedule(architecture="faster_rcnn", **train):
    detector = DetectorSettings(architecture=architecture)
    return resolve_schedule(DetectionConfig(detector=detector, train=TrainSettings(**train)))


def node(**changes):
    return build_cfg(Build(DetectionConfig(**changes), 80, InputFormat()))


def model_zoo_config(name):
    return str(resources.files("detectron2") / "model_zoo" / "configs" / name)


def config_of(recipe):
    parts = {
        "backbone": BackboneSettings,
        "detector": DetectorSettings,
        "input": InputSettings,
        "train": TrainSettings,
        "evaluate": EvaluateSettings,
        "data": type(DetectionConfig().data),
    }
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    return DetectionConfig(**{k: parts[k](**v) if k in parts else v for k, v in content.items()})


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        # Detectron's table for the 2x schedule: batch 16, 8, 4, 2.
        ({"schedule": "2x"}, Schedule(180_000, (120_000, 160_000), 0.02, 1000)),
        (
            {"schedule": "2x", "batch_size": 8},
            Schedule(360_000, (240_000, 320_000), 0.01, 2000),
        ),
        (
            {"schedule": "2x", "batch_size": 4},
            Schedule(720_000, (480_000, 640_000), 0.005, 4000),
        ),
        (
            {"schedule": "2x", "batch_size": 2},
            Schedule(1_440_000, (960_000, 1_280_000), 0.0025, 8000),
        ),
        ({"schedule": "1x"}, Schedule(90_000, (60_000, 80_000), 0.02, 1000)),
        ({"schedule": "3x"}, Schedule(270_000, (210_000, 250_000), 0.02, 1000)),
        ({"schedule": "1x", "batch_size": 64}, Schedule(22_500, (15_000, 20_000), 0.08, 250)),
        # A short run keeps the places of its steps, and a tenth for the warm-up.
        ({"schedule": "2x", "iterations": 900}, Schedule(900, (600, 800), 0.02, 90)),
        (
            {"batch_size": 8, "lr": 0.1, "iterations": 50, "steps": [40], "warmup_iterations": 9},
            Schedule(50, (40,), 0.1, 9),
        ),
    ],
)
def test_schedules_scale_linearly_with_the_batch(train, expected):
    assert schedule(**train) == expected


def test_steps_outside_the_run_are_refused_and_a_run_of_one_iteration_has_none():
    assert schedule(iterations=1).steps == ()
    with pytest.raises(ValueError, match=r"steps=\[9\]: must lie inside the 9 iterations"):
        schedule(iterations=9, steps=[9])


def test_retinanet_has_half_the_learning_rate():
    assert schedule("retinanet", schedule="1x").lr == 0.01


def test_settings_reach_detectron2():
    cfg = node(
        detector=DetectorSettings(norm="BN", freeze_at=1, fpn_channels=64),
        train=TrainSettings(schedule="2x", batch_size=8, clip_grad=5.0, flip=False),
        evaluate=EvaluateSettings(min_size=400, tta=True, tta_sizes=[300, 400]),
        detectron2={"MODEL.RPN.SMOOTH_L1_BETA": 0.1111, "SOLVER": {"GAMMA": 0.2}},
        seed=3,
    )
    assert (cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT) == ("BN", 1)
    assert cfg.MODEL.FPN.OUT_CHANNELS == 64
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (8, 0.01)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (360_000, (240_000, 320_000))
    assert cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE == 5.0
    assert cfg.INPUT.RANDOM_FLIP == "none"
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (400, 1333)
    assert cfg.TEST.AUG.MIN_SIZES == (300, 400)
    assert cfg.MODEL.RPN.SMOOTH_L1_BETA == 0.1111
    assert (cfg.SOLVER.GAMMA, cfg.SEED) == (0.2, 3)
    # RGB with ImageNet's mean and std, not Detectron2's BGR without std.
    assert (cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_STD) == ("RGB", [58.395, 57.12, 57.375])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"MODEL.RPN.SMOOTH_L1_BTA": 0.1}, "did you mean MODEL.RPN.SMOOTH_L1_BETA"),
        ({"MODEL.RPN.NMS_THRESH": "high"}, "wants a float, as in 0.7"),
        ({"MODEL.PROPOSAL_GENERATOR.NAME": "RRPN"}, "build Detectron2 from source"),
        ({"MODEL": {"ROI_BOX_HEAD": {"POOLER_TYPE": "ROIAlignRotated"}}}, "compiled operators"),
    ],
)
def test_keys_that_detectron2_lacks_or_cannot_run_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        node(detectron2=keys)


def test_every_key_that_our_settings_decide_is_refused_with_the_setting_that_does():
    """Whatever `build_cfg` changes of Detectron2's defaults and its base configs is ours."""
    plain = {}
    for architecture in ("faster_rcnn", "retinanet"):
        build = Build(
            DetectionConfig(
                detector=DetectorSettings(architecture=architecture, norm="BN", fpn_channels=64),
                train=TrainSettings(precision="bf16", clip_grad=3.0, batch_size=8, flip=False),
                evaluate=EvaluateSettings(tta=True, every=7, tta_sizes=[5000]),
                seed=5,
            ),
            7,
            InputFormat("BGR", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
            train_datasets=("mine",),
        )
        base = get_cfg()
        base.merge_from_file(model_zoo_config(build.architecture.base))
        plain = flatten(base)
        built = flatten(build_cfg(build))
        changed = {key for key in built if built[key] != plain.get(key)}
        assert len(changed) > 30
        for key in changed:
            with pytest.raises(ValueError, match=r"set [a-z_.-]+ instead"):
                DetectionConfig(detectron2={key: built[key]})
    with pytest.raises(ValueError, match=r"set train\.precision instead"):
        DetectionConfig(detectron2={"SOLVER": {"AMP": {"ENABLED": True}}})
    with pytest.raises(ValueError, match=r"set backbone\.options instead"):
        DetectionConfig(detectron2={"MODEL.SEBENCH.OPTIONS.reduction": 2})
    assert set(KEYS) - set(plain) == {
        "MODEL.SEBENCH.NAME",
        "MODEL.SEBENCH.OPTIONS",
        "MODEL.SEBENCH.WEIGHTS",
        "MODEL.SEBENCH.ALLOW_MISSING",
    }


@pytest.mark.parametrize("key", ["MODEL.MASK_ON", "DATALOADER.SAMPLER_TRAIN", "CUDNN_BENCHMARK"])
def test_keys_that_would_do_nothing_are_refused(key):
    with pytest.raises(ValueError, match=f"{key} would do nothing: "):
        DetectionConfig(detectron2={key: True})


def test_detectrons_biases_learn_twice_as_fast_and_do_not_decay():
    (recipe,) = [path for path in RECIPES if path.stem == "detectron-2x"]
    solver = build_cfg(Build(config_of(recipe), 80, InputFormat())).SOLVER
    assert (solver.BIAS_LR_FACTOR, solver.WEIGHT_DECAY_BIAS) == (2.0, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: schedule(iterations=60, warmup_iterations=500), "less than the 60 iterations"),
        (lambda: DetectorSettings(norm="FrozenBatchNorm"), "did you mean 'FrozenBN'"),
        (lambda: DetectorSettings(freeze_at=6), "detector.freeze_at=6: must be at most 5"),
        (lambda: InputSettings(channel_order="GBR"), "choose from RGB, BGR"),
        (lambda: TrainSettings(schedule="4x"), "choose from 1x, 2x, 3x"),
        (lambda: TrainSettings(lr=0.0), "train.lr=0.0: must be above 0"),
        (lambda: TrainSettings(steps=[3, 2]), "must rise"),
        (lambda: EvaluateSettings(evaluator="cocoapi"), "choose from hotcoco, pycocotools"),
        (lambda: DetectionConfig(detectron2={"SOLVER.MAX_ITER": 9}), "set train.iterations"),
        (lambda: DetectionConfig(seed=-1), "seed=-1"),
        (lambda: TrainSettings(min_size=[2**64]), "train.min_size=.*: must be at most 4294967295"),
        (
            lambda: DetectionConfig(detectron2={"MODEL.ANCHOR_GENERATOR.SIZES": [[math.inf]]}),
            "SIZES=inf: expected a finite number",
        ),
    ],
)
def test_wrong_settings_are_refused_when_they_are_made(change, message):
    with pytest.raises(ValueError, match=message):
        change()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_opens_with_its_source_and_becomes_a_detectron2_config(recipe):
    text = recipe.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "# Source:" in text
    assert f"--recipe {recipe.stem}" in text
    config = config_of(recipe)
    cfg = build_cfg(Build(config, 80, InputFormat()))
    assert resolve_schedule(config).iterations == cfg.SOLVER.MAX_ITER


def test_the_papers_recipe_is_the_papers_schedule():
    (recipe,) = [path for path in RECIPES if path.stem == "faster-rcnn-2x"]
    config = config_of(recipe)
    assert resolve_schedule(config) == Schedule(180_000, (120_000, 160_000), 0.02, 1000)
    eight = replace(config, train=replace(config.train, batch_size=8))
    assert resolve_schedule(eight).lr == 0.01
