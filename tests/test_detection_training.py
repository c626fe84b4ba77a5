"""Training, stopping, going on and evaluating a real, tiny Faster R-CNN on drawn shapes."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.modeling import build_model
from PIL import Image
from pydantic import TypeAdapter
from safetensors.torch import load_file

import backbones.weights.load
from backbones import BackboneSettings, InputFormat, build_network, save_weights
from backbones.checkpoint import load_checkpoint
from backbones.monitor import Monitor
from backbones.result import Result
from backbones.weights.files import read_tensors, save_state
from detection import load_detector, run, score_results
from detection.coco import load_coco
from detection.config import (
    Build,
    DataSettings,
    DetectionConfig,
    DetectorSettings,
    EvaluateSettings,
    InputSettings,
    TrainSettings,
)
from detection.detector import build_cfg, save_detector
from detection.evaluate import detect
from detection.train import seeded_batches
from tests.processes import in_processes
from tools import sample_data

RECIPE = Path(__file__).parent.parent / "detection" / "recipes" / "tiny.yaml"
ITERATIONS = 6


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "coco"
    return sample_data.make_coco(folder, train=10, val=7, size=64)


@pytest.fixture(scope="module")
def config(coco):
    """The tiny recipe, tinier."""
    return DetectionConfig(
        backbone=BackboneSettings("se_resnet_tiny"),
        detector=DetectorSettings(norm="BN", freeze_at=0, fpn_channels=32),
        data=DataSettings(root=str(coco), workers=0),
        train=TrainSettings(
            batch_size=2,
            iterations=ITERATIONS,
            lr=0.01,
            warmup_iterations=2,
            min_size=[64, 80],
            log_every=2,
            checkpoint_every=3,
            tensorboard=False,
        ),
        evaluate=EvaluateSettings(min_size=64, max_size=96),
        detectron2=yaml.safe_load(RECIPE.read_text())["detectron2"],
        device="cpu",
    )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    changed = replace(config, evaluate=replace(config.evaluate, every=4))
    return directory, run.train(changed, directory)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_what_a_record_needs(trained, coco):
    directory, result = trained
    assert TypeAdapter(Result).validate_json(TypeAdapter(Result).dump_json(result)) == result
    assert set(result.missing) <= set(result.metrics)
    assert result.dataset.images == 7
    assert result.dataset.train_images == 10
    assert result.dataset.synthetic
    assert [row.name for row in result.per_class] == ["circle", "square", "triangle"]
    assert result.selection == "last iteration"
    assert result.cost.input_size == [3, 64, 96]
    assert (result.chance, result.steps) == (0.0, ITERATIONS)
    scored = score_results(
        directory / result.detections,
        coco / "annotations" / "instances_val2017.json",
        "pycocotools",
    )
    assert scored["metrics"] == result.metrics


def test_the_curve_has_means_rates_and_validation_points(trained):
    directory, _ = trained
    rows = lines(directory / "curve.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6]
    # 10 pictures, one of them without boxes and left out
    assert rows[0]["epoch"] == pytest.approx(2 * 2 / 10, rel=0.2)
    (point,) = [row for row in rows if "val_AP" in row]
    assert point["step"] == 4
    assert all(row["images_per_second"] for row in rows[1:] if "loss" in row)


def test_the_saved_detector_evaluates_to_the_same_numbers(trained, config, tmp_path):
    directory, result = trained
    weights = str(directory / "weights.safetensors")
    # Norm and frozen stages are training's affair: the file knows them.
    again = replace(
        config,
        backbone=replace(config.backbone, weights=weights),
        detector=replace(config.detector, norm="FrozenBN", freeze_at=2),
    )
    found = run.evaluate(again, tmp_path)
    assert found.metrics == result.metrics
    assert found.weights.sha256 == result.weights.sha256
    assert found.curve is None
    assert found.steps is None
    detector, origin = load_detector(weights, device="cpu")
    assert detector.class_names == ["circle", "square", "triangle"]
    assert origin.format == "sebench-detector"
    with pytest.raises(ValueError, match=r"backbone.name is 'se_resnet_tiny' there and 'resnet_t"):
        run.evaluate(
            replace(again, backbone=BackboneSettings("resnet_tiny", {}, weights)), tmp_path
        )


def train_until_killed(config, directory, step_killed, monkeypatch):
    class Killed(Exception):
        pass

    note = Monitor.note

    def kill(monitor, step, *values):
        if step == step_killed:
            raise Killed
        note(monitor, step, *values)

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "note", kill)
        with pytest.raises(Killed):
            run.train(config, directory)


def test_a_killed_run_goes_on_to_the_same_weights_and_curve(trained, config, tmp_path, monkeypatch):
    directory, _ = trained
    train_until_killed(config, tmp_path, 5, monkeypatch)
    assert not (tmp_path / "weights.safetensors").exists()
    # Other reading processes change nothing.
    run.train(replace(config, data=replace(config.data, workers=1)), tmp_path, resume=True)
    expected = load_file(directory / "weights.safetensors")
    found = load_file(tmp_path / "weights.safetensors")
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    steps = [row["step"] for row in lines(tmp_path / "curve.jsonl")]
    assert steps == sorted(set(steps))
    assert steps[-1] == ITERATIONS


def test_a_damaged_checkpoint_is_refused(trained, config, tmp_path):
    content = (trained[0] / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is damaged or no checkpoint"):
        run.train(config, tmp_path, resume=True)


def test_a_checkpoint_of_another_network_is_refused(trained, config, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes((trained[0] / "checkpoint.pt").read_bytes())
    plain = replace(config, backbone=BackboneSettings("resnet_tiny"))
    with pytest.raises(ValueError, match="is of another model"):
        run.train(plain, tmp_path, resume=True)


def test_a_loss_that_is_not_finite_stops_with_iteration_and_learning_rate(config, tmp_path):
    wild = replace(config.train, lr=1e12, warmup_iterations=0)
    with pytest.raises(ValueError, match=r"not finite at iteration \d+, learning rate 1e\+12"):
        run.train(replace(config, train=wild), tmp_path)


def test_weights_that_are_no_numbers_are_not_scored_and_not_saved(trained, config, tmp_path):
    path = tmp_path / "weights.safetensors"
    held = read_tensors(trained[0] / "weights.safetensors")
    tensors, metadata = held.tensors, held.metadata
    tensors["backbone.bottom_up.stages.stem.norm1.running_var"][3] = float("nan")
    save_state(path, tensors, metadata)
    spoiled = replace(config, backbone=replace(config.backbone, weights=str(path)))
    for action in (
        lambda: run.check(spoiled, training=False),
        lambda: run.evaluate(spoiled, tmp_path),
    ):
        with pytest.raises(ValueError, match=r"running_var holds 1 of 24 values .* not a number"):
            action()
    detector, _ = load_detector(trained[0] / "weights.safetensors", device="cpu")
    detector.model.roi_heads.box_predictor.cls_score.bias.data[0] = float("inf")
    with pytest.raises(ValueError, match=r"the trained detector: roi_heads.* infinite"):
        save_detector(detector, tmp_path / "new.safetensors", config, None)
    assert not (tmp_path / "new.safetensors").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("class_names", "circle"),
        ("class_names", ["circle"]),
        ("class_names", [1, 2, 3]),
        ("category_ids", [1, 3, "7"]),
        ("category_ids", None),
        ("input_format", {"channel_order": 3}),
        ("input_format", {"channel_order": "XYZ"}),
        ("input_format", {"mean": [1]}),
        ("input_format", {"std": [0, 1, 1]}),
        ("input_format", []),
        ("detector", "se_resnet50"),
        ("detector", {"backbone": {"name": ["x"]}, "detector": {}, "detectron2": {}}),
        ("detector", {"backbone": {"name": "se_resnet_tiny"}, "detector": {"depth": 3}}),
        ("detector", {"backbone": {"name": "se_resnet_tiny"}, "detectron2": {"SEED": 1}}),
        ("initial", 7),
        ("initial", {"path": "a.pth"}),
    ],
)
def test_metadata_of_other_types_are_refused(trained, tmp_path, key, value):
    path = tmp_path / "weights.safetensors"
    held = read_tensors(trained[0] / "weights.safetensors")
    tensors, metadata = held.tensors, held.metadata
    save_state(path, tensors, {**metadata, key: value})
    with pytest.raises(ValueError, match=r"weights\.safetensors: its metadata are damaged"):
        load_detector(path, device="cpu")


def test_a_detector_starts_from_classification_weights_in_their_input_format(
    config, tmp_path, monkeypatch
):
    path = tmp_path / "classifier.safetensors"
    network = build_network("se_resnet_tiny", num_classes=4)
    bgr = InputFormat("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
    settings = BackboneSettings("se_resnet_tiny")
    save_weights(network, path, backbone=settings, num_classes=4, input_format=bgr)
    config = replace(
        config,
        backbone=replace(settings, weights=str(path)),
        train=replace(config.train, iterations=1, warmup_iterations=0),
        detector=replace(config.detector, norm="FrozenBN", freeze_at=5),
    )
    for module in network.backbone.modules():
        if hasattr(module, "running_mean"):
            torch.nn.init.normal_(module.running_mean)
    save_weights(network, path, backbone=settings, num_classes=4, input_format=bgr)
    opened = []

    def counted(path):
        opened.append(str(path))
        return read_tensors(path)

    read_tensors = backbones.weights.load.read_tensors
    monkeypatch.setattr("backbones.weights.load.read_tensors", counted)
    result = run.train(config, tmp_path / "run")
    assert opened == [str(path)]
    assert result.input_format["channel_order"] == "BGR"
    assert result.weights.initial.format == "sebench"
    detector, _ = load_detector(tmp_path / "run" / "weights.safetensors", device="cpu")
    assert detector.cfg.INPUT.FORMAT == "BGR"
    kept = detector.model.backbone.bottom_up.stages.state_dict()
    assert torch.equal(kept["res2.0.se.fc1.weight"], network.backbone.res2[0].se.fc1.weight)
    wrong = replace(config, input=InputSettings(channel_order="RGB"))
    with pytest.raises(ValueError, match=r"feeds RGB .*was trained on BGR"):
        run.check(wrong)
    with pytest.raises(ValueError, match="holds no detector"):
        run.evaluate(config, tmp_path / "other")


def test_retinanet_trains_detects_and_goes_on_with_its_number_of_anchors(
    config, tmp_path, monkeypatch
):
    small = replace(
        config,
        detector=replace(config.detector, architecture="retinanet"),
        train=replace(config.train, iterations=3, warmup_iterations=0, checkpoint_every=1),
        detectron2={},
    )
    assert run.train(small, tmp_path / "whole").metrics["AP"] is not None
    train_until_killed(small, tmp_path / "killed", 2, monkeypatch)
    run.train(small, tmp_path / "killed", resume=True)
    whole, killed = (
        load_checkpoint(tmp_path / name / "checkpoint.pt", "detection", {"normalizers": list})
        for name in ("whole", "killed")
    )
    assert whole["normalizers"] == killed["normalizers"] != [100]  # what a new one begins with
    for name, tensor in whole["model"].items():
        # Its loss is compiled while it runs, which rounds otherwise after some calls.
        torch.testing.assert_close(tensor, killed["model"][name], rtol=1e-4, atol=1e-8)


def test_the_rewritten_backbone_finds_the_same_boxes(trained, config, coco):
    frozen = replace(config, detector=DetectorSettings(fpn_channels=32, freeze_at=3))
    torch.manual_seed(0)
    cfg = build_cfg(Build(frozen, 3, InputFormat()))
    detector, _ = load_detector(trained[0] / "weights.safetensors", config, "cpu")
    part = load_coco(frozen.data, ("val",)).val
    for model in (detector.model, build_model(cfg)):  # batch norms, and frozen ones
        plain, eager = (
            detect(
                replace(detector, model=model), part, replace(config.evaluate, inference=mode)
            ).results
            for mode in ("plain", "eager")
        )
        assert len(plain) == len(eager) > 0
        for one, other in ((plain.box, eager.box), (plain.score, eager.score)):
            assert np.allclose(one, other, rtol=1e-3, atol=1e-2)


def test_test_time_augmentation_is_detectron2s(trained, config, tmp_path):
    settings = replace(config.evaluate, tta=True, tta_sizes=[48, 64])
    weights = str(trained[0] / "weights.safetensors")
    augmented = replace(
        config, evaluate=settings, backbone=replace(config.backbone, weights=weights)
    )
    result = run.evaluate(augmented, tmp_path)
    assert result.protocol.name == "coco-bbox-tta"
    plain, augmented = (
        (folder / "detections.json").read_text() for folder in (trained[0], tmp_path)
    )
    assert plain != augmented


def test_the_stream_of_pictures_is_the_same_from_any_start_and_shared_by_processes():
    wide = [bool(i % 3) for i in range(11)]

    def batches(start, rank, count, size=2, take=40):
        stream = seeded_batches(wide, size, 7, start, rank, count)
        return [next(stream) for _ in range(take)]

    whole = batches(0, 0, 1)
    assert batches(25, 0, 1, take=15) == whole[25:]
    assert all(len({wide[index] for _, index in batch}) == 1 for batch in whole)
    first = sorted(pair for batch in batches(0, 0, 1, take=200) for pair in batch)[:110]
    # Ten epochs: each picture ten times.
    assert np.bincount([index for _, index in first]).tolist() == [10] * 11
    for both, *shares in zip(whole, batches(0, 0, 2), batches(0, 1, 2), strict=True):
        assert both == [pair for share in shares for pair in share]


def test_training_in_two_processes_gives_the_weights_of_one(config, tmp_path):
    # What depends on the other images of a process is left out: batch statistics, boxes drawn at
    # random, numbers of boxes, padding.
    network = build_network("se_resnet_tiny", 3)
    network(torch.randn(8, 3, 64, 64))  # statistics of its norms, which stay
    path, settings = tmp_path / "pretrained.safetensors", config.backbone
    save_weights(network, path, backbone=settings, num_classes=3, input_format=InputFormat())
    settings = replace(
        config,
        backbone=replace(config.backbone, weights=str(path)),
        detector=replace(config.detector, norm="FrozenBN"),
        train=replace(config.train, batch_size=4, min_size=[64], max_size=64),
        evaluate=replace(config.evaluate, every=3),
        detectron2={
            **config.detectron2,
            "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 100_000,
            "MODEL.RPN.POST_NMS_TOPK_TRAIN": 4,
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
            "MODEL.ROI_HEADS.POSITIVE_FRACTION": 1.0,
            "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": False,
        },
    )
    two = in_processes(run.train, 2, settings, tmp_path / "two", method="spawn")
    one = run.train(settings, tmp_path / "one")
    ours, theirs = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    curves = [lines(tmp_path / name / "curve.jsonl") for name in ("one", "two")]
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in curves]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert two["dataset"] == asdict(one.dataset)
    assert two["metrics"] == pytest.approx(one.metrics, abs=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"detector": DetectorSettings()},
            "from scratch: frozen norms without statistics do nothing",
        ),
        ({"detector": DetectorSettings(norm="BN", freeze_at=2)}, "frozen stages stay random"),
        ({"processes": 3}, "batch_size=2 does not divide among 3"),
        ({"backbone": BackboneSettings("se_resnet20")}, "cannot serve detection: made for 32x32"),
        ({"backbone": BackboneSettings("se_resnet_tin")}, "did you mean"),
        ({"backbone": BackboneSettings("se_resnet_tiny", {"reducton": 2})}, "did you mean"),
        ({"backbone": BackboneSettings("resnet_tiny", {}, "none.pth")}, "none.pth"),
        ({"device": "cuda:99"}, "cuda:99: this machine has"),
        ({"device": "tpu"}, "choose auto, cpu, cuda"),
        ({"data": DataSettings(root="nowhere")}, "no folder nowhere"),
        (
            {"train": TrainSettings(batch_size=1, iterations=6, min_size=[32])},
            "may be a single pixel",
        ),
        ({"detectron2": {"MODEL.RPM": 1}}, "unknown key of Detectron2 .MODEL.RPM.; did you mean"),
        (
            {"detector": DetectorSettings(norm="GN", freeze_at=0, fpn_channels=32)},
            "multiples of 32",
        ),
    ],
)
def test_what_is_wrong_is_said_before_any_compute(config, change, message):
    with pytest.raises(ValueError, match=message):
        run.check(replace(config, **change))


def test_precision_and_augmentation_that_cannot_be_had_are_refused(config):
    half = replace(config, train=replace(config.train, precision="fp16"))
    with pytest.raises(ValueError, match="precision=fp16: needs a CUDA device"):
        run.check(half)
    retinanet = replace(
        config,
        detector=replace(config.detector, architecture="retinanet"),
        evaluate=EvaluateSettings(tta=True),
    )
    with pytest.raises(ValueError, match="not for retinanet"):
        run.check(retinanet)


def test_an_image_that_resizing_would_leave_nothing_of_is_refused(config, coco, tmp_path):
    shutil.copytree(coco, tmp_path / "coco")
    annotations = tmp_path / "coco" / "annotations" / "instances_train2017.json"
    content = json.loads(annotations.read_text())
    row = content["images"][0]
    row.update(width=4000, height=2)
    content["annotations"] = [b for b in content["annotations"] if b["image_id"] != row["id"]]
    annotations.write_text(json.dumps(content))
    Image.new("RGB", (4000, 2)).save(tmp_path / "coco" / "train2017" / row["file_name"])
    data = DataSettings(root=str(tmp_path / "coco"))
    train = replace(config.train, max_size=900)
    with pytest.raises(ValueError, match=r"4000 x 2 pixels, of which train\.max_size=900 leaves"):
        run.check(replace(config, data=data, train=train))
    run.check(replace(config, data=data, train=replace(train, max_size=1000)))


def test_odd_files_and_images_that_the_check_accepts_train_to_the_end(config, coco, tmp_path):
    root = tmp_path / "coco"
    shutil.copytree(coco, root)
    for split in ("train", "val"):
        path = root / "annotations" / f"instances_{split}2017.json"
        content = json.loads(path.read_text())
        content |= {"info": {"year": "2017"}, "licenses": None}
        for place, row in enumerate(content["categories"]):
            row["name"] = place
        for place, row in enumerate(content["annotations"]):
            row |= {"id": place, "image_id": float(row["image_id"]), "segmentation": [1, 2]}
            row |= {"area": None, "iscrowd": place % 5 == 0}
        content["annotations"][1]["bbox"][2:] = [0, 0]
        path.write_text(json.dumps(content), encoding="utf-8-sig")
        for place, row in enumerate(content["images"][:5]):
            file = root / f"{split}2017" / row["file_name"]
            with Image.open(file) as image:
                exif = image.getexif()
                exif[274] = 6 if place == 4 else 1
                turned = image.transpose(Image.Transpose.ROTATE_90) if place == 4 else image
                mode = ("L", "P", "CMYK", "RGBA", "RGB")[place]
                kind = "PNG" if mode in ("P", "RGBA") else "JPEG"
                turned.convert(mode).save(file, kind, exif=exif)
    data = DataSettings(root=str(root), accept_bad_boxes=1)
    odd = replace(config, data=data, train=replace(config.train, iterations=5, warmup_iterations=0))
    run.check(odd)
    result = run.train(odd, tmp_path / "run")
    assert result.metrics["AP"] is not None
    assert result.dataset.class_names == ["0", "1", "2"]


def test_check_sums_up_data_and_schedule(config):
    summary = run.check(config)
    assert summary["dataset"]["class_names"] == ["circle", "square", "triangle"]
    assert summary["schedule"]["iterations"] == ITERATIONS
