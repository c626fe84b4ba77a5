"""`sebench doctor`: what will fail is found before compute, each with its mend."""

import json
import os
import shutil

import pytest
import yaml

from backbones import duplicates
from backbones.files import SYNTHETIC
from classification import splits
from detection.check import describe_shared_images
from detection.coco import load_coco
from detection.config import DataSettings
from tools.sample_data import make_cifar10, make_coco, make_imagenet

SHORT = {"train": {"batch_size": 4, "iterations": 2, "optimizer": {"lr": 0.0032}}}


@pytest.fixture
def doctor(sebench, tmp_path):
    """Examine a study of one entry; returns exit code and findings."""

    def run(*options, **entry):
        study = {"twins": False, "experiments": [{"task": "classification", **entry}]}
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
        code, out, _ = sebench(
            "doctor", tmp_path / "study.yaml", "-o", tmp_path / "runs", "--json", *options
        )
        return code, json.loads(out)

    return run


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    return make_cifar10(tmp_path_factory.mktemp("doctor") / "cifar10", 5, 2)


def test_a_machine_alone_can_be_examined(sebench, tmp_path):
    code, out, _ = sebench("doctor", "-o", tmp_path)
    assert code == 0
    assert out.startswith("this machine: well") or "doubt" in out


def test_a_sound_study_has_no_findings_of_its_own(doctor, cifar):
    code, found = doctor(
        recipe="cifar-short", backbones=["resnet20"], data_root=str(cifar),
        settings={"train": {"batch_size": 4, "epochs": 30, "optimizer": {"lr": 0.00625},
                            "schedule": {"warmup": 9}}},
    )  # fmt: skip
    assert code == 0
    assert not [finding for finding in found if finding["where"] != "machine"]


def test_frozen_norms_from_scratch_fail_and_the_mend_is_named(doctor, tmp_path):
    make_coco(tmp_path / "coco", train=4, val=2, size=96)
    code, found = doctor(
        task="detection", recipe="faster-rcnn-2x", backbones=["resnet50"],
        data_root=str(tmp_path / "coco"),
    )  # fmt: skip
    assert code == 1
    (finding,) = [finding for finding in found if finding["fails"]]
    assert finding["where"] == "faster-rcnn-2x/resnet50"
    assert "FrozenBN" in finding["what"]
    assert finding["mend"].startswith("give backbone.weights=FILE")


def test_a_batch_that_leaves_its_recipe_s_rate_behind_is_in_doubt(doctor, cifar):
    settings = {"train": SHORT["train"] | {"optimizer": {"lr": 0.1}, "schedule": {"warmup": 0}}}
    code, found = doctor(
        recipe="cifar-preact", backbones=["resnet20", "se_resnet20"], data_root=str(cifar),
        settings=settings,
    )  # fmt: skip
    assert code == 0
    mends = [finding["mend"] for finding in found]
    assert sum(mend.startswith("set train.optimizer.lr=0.003125 (linear") for mend in mends) == 1
    assert "cifar-preact" in [finding["where"] for finding in found]  # of both networks, said once


def test_fewer_images_than_the_recipe_is_for_are_told(doctor, cifar, tmp_path):
    shutil.copytree(cifar, tmp_path / "part")
    (tmp_path / "part" / SYNTHETIC).unlink()  # as if they were real
    _, found = doctor(
        recipe="cifar-short", backbones=["resnet20"], data_root=str(tmp_path / "part"),
        settings={"train": {"batch_size": 4, "schedule": {"warmup": 0}}},
    )  # fmt: skip
    assert "50 images of training, the recipe is for 50,000" in [each["what"] for each in found]


def test_a_batch_larger_than_the_memory_is_told_with_the_parts_that_fit(doctor, cifar, monkeypatch):
    real = os.sysconf
    small = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 5000}  # 20 MB
    monkeypatch.setattr(os, "sysconf", lambda name: small.get(name) or real(name))
    settings = {"train": {"batch_size": 32, "schedule": {"warmup": 0}}}
    _, found = doctor(
        recipe="cifar-short", backbones=["resnet20"], data_root=str(cifar), settings=settings
    )
    (finding,) = [finding for finding in found if "a batch of 32 images" in finding["what"]]
    assert "train.accumulate=" in finding["mend"]


def test_thorough_finds_in_large_sets_what_is_damaged_and_what_is_both_trained_on_and_reported(
    doctor, tmp_path, monkeypatch
):
    root = make_imagenet(
        tmp_path / "photos", classes=2, train_per_class=4, val_per_class=2, size=48
    )
    train, val = (sorted((root / split).rglob("*.JPEG")) for split in ("train", "val"))
    shutil.copy(train[0], val[0])
    train[3].write_bytes(train[3].read_bytes()[:400])
    monkeypatch.setattr(splits, "INSPECTED_UP_FRONT", 0)  # as if they were many
    monkeypatch.setattr(duplicates, "COMPARED_UP_FRONT", 0)
    entry = {
        "recipe": "imagenet-paper", "backbones": ["resnet_tiny"], "data_root": str(root),
        "settings": {**SHORT, "data": {"classes": "folders"}, "augment": {"size": 64}},
    }  # fmt: skip

    def told(findings):
        return " ".join(finding["what"] for finding in findings)

    quick = told(doctor(**entry)[1])
    assert "trained on, by their content" not in quick
    thorough = told(doctor("--thorough", **entry)[1])
    assert (
        "1 of the 4 val images of imagenet are among those trained on, by their content" in thorough
    )
    assert "1 of the 8 train images of imagenet cannot be read" in thorough


def test_detection_tells_when_images_are_both_trained_on_and_reported(tmp_path):
    root = make_coco(tmp_path / "coco", train=4, val=2, size=96)
    assert describe_shared_images(load_coco(DataSettings(name="coco_2017", root=str(root)))) == []
    shutil.copytree(root / "train2017", tmp_path / "copy")
    truth = str(root / "annotations" / "instances_train2017.json")

    def told(folder):
        data = DataSettings(
            name="custom", train_annotations=truth, train_images=str(root / "train2017"),
            val_annotations=truth, val_images=str(folder),
        )  # fmt: skip
        return describe_shared_images(load_coco(data))[0]

    assert told(root / "train2017").startswith("4 of the 4 images of")
    assert "by their path" in told(root / "train2017")
    assert "by their content" in told(tmp_path / "copy")
