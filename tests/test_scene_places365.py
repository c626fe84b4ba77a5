"""Places365 in every layout of its archives, labels by name, and a network trained on it."""

import shutil
from collections import Counter

import pytest

from backbones import BackboneSettings
from classification.config import (
    AugmentSettings,
    ClassificationConfig,
    DataSettings,
    EvaluateSettings,
    OptimizerSettings,
    ScheduleSettings,
    TrainSettings,
)
from scene import run
from scene.places365 import read_categories, read_places365
from tools import sample_data

SIZES = {"train_per_class": 2, "val_per_class": 1, "size": 40}


def settings(root, **more):
    return DataSettings(name="places365", root=str(root), **more)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return sample_data.make_places365(tmp_path_factory.mktemp("data") / "places", **SIZES)


@pytest.fixture
def copy(tmp_path, places):
    return shutil.copytree(places, tmp_path / "copy")


def expect_whole(dataset, images):
    assert len(dataset) == images
    assert dataset.class_names[1] == "apartment_building/outdoor"
    assert all((dataset.folder / image_id).is_file() for image_id in dataset.ids)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("torchvision_names", [True, False])
@pytest.mark.parametrize("edition", ["standard", "challenge"])
def test_folders_of_the_archives_and_of_torchvision_are_found(
    tmp_path, small, torchvision_names, edition
):
    more = {"small": small, "torchvision_names": torchvision_names, "edition": edition}
    sizes = SIZES | {"classes": 3, "train_per_class": 1}
    root = sample_data.make_places365(tmp_path / "places", **sizes, **more)
    train = read_places365(settings(root, edition=edition), "train")
    expect_whole(train, 3)
    expect_whole(read_places365(settings(root), "val"), 3)
    other = "large" if small else "256"
    with pytest.raises(ValueError, match=rf"looked for data_{other}_{edition} or data_{other} in"):
        read_places365(settings(root, edition=edition, size=other), "train")


def test_labels_go_by_the_category_file_whatever_its_order(copy):
    file = copy / "categories_places365.txt"
    names = [line.split()[0] for line in file.read_text().splitlines()]
    turned = names[::-1]
    file.write_text("\n".join(f"{name} {label}" for label, name in enumerate(turned)))
    listed = copy / "places365_train_standard.txt"
    lines = [line.split()[0] for line in listed.read_text().splitlines()]
    labels = {name: label for label, name in enumerate(turned)}
    listed.write_text("".join(f"{line} {labels[line.rpartition('/')[0]]}\n" for line in lines))
    train = read_places365(settings(copy), "train")
    for image_id, label in zip(train.ids, train.labels, strict=True):
        assert image_id[2:].rpartition("/")[0] == train.class_names[label]


def test_a_label_that_disagrees_with_its_folder_is_refused(copy):
    listed = copy / "places365_train_standard.txt"
    listed.write_text(
        listed.read_text().replace("/a/airfield/00000001.jpg 0", "/a/airfield/00000001.jpg 3")
    )
    with pytest.raises(ValueError, match=r"/a/airfield/00000001\.jpg is labelled 3, .*'beach'"):
        read_places365(settings(copy), "train")


def test_list_entries_without_a_file_are_counted_and_named(copy):
    shutil.rmtree(copy / "data_large" / "b" / "beach")
    (copy / "data_large" / "c" / "canyon" / "00000002.jpg").unlink()
    with pytest.raises(ValueError, match=r"lists 3 files that are not in .*b/beach/00000001\.jpg"):
        read_places365(settings(copy), "train")


def test_a_missing_list_or_category_file_is_named(copy):
    with pytest.raises(ValueError, match=r"challenge not found: looked for .*train_challenge\.txt"):
        read_places365(settings(copy, edition="challenge"), "train")
    (copy / "categories_places365.txt").unlink()
    with pytest.raises(ValueError, match=r"looked for .*categories_places365\.txt"):
        read_places365(settings(copy), "val")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a.jpg twelve", "wanted '<file> <label>'"),
        ("a.jpg 12", "label 12, but .* has 12 classes"),
        ("../../a.jpg 1", "leads out of"),
        ("Places365_val_00000001.jpg 1", "twice"),
    ],
)
def test_a_bad_line_of_a_list_is_refused(copy, line, said):
    listed = copy / "places365_val.txt"
    listed.write_text(f"{listed.read_text()}{line}\n")
    with pytest.raises(ValueError, match=said):
        read_places365(settings(copy), "val")


def test_a_category_file_with_a_gap_is_refused(tmp_path):
    file = tmp_path / "categories.txt"
    file.write_text("/a/airfield 0\n/b/beach 2")
    with pytest.raises(ValueError, match="not 0 to 1"):
        read_categories(file)


@pytest.mark.parametrize("joint", ["-", "_"])
def test_easyformat_is_read_by_name_even_where_sorting_folders_would_permute(
    tmp_path, places, joint
):
    root = tmp_path / "places365_standard"
    classes = read_categories(places / "categories_places365.txt")
    for split in ("train", "val"):
        for name in classes:
            folder = root / split / name.replace("/", joint)
            shutil.copytree(places / "data_large" / name[0] / name, folder)
    shutil.copy(places / "categories_places365.txt", root)
    val = read_places365(settings(root), "val")
    expect_whole(val, 24)
    for image_id, label in zip(val.ids, val.labels, strict=True):
        assert image_id.split("/")[0] == classes[label].replace("/", joint)
    folders = [name.replace("/", joint) for name in classes]
    assert (sorted(folders) == folders) == (joint == "-")
    shutil.rmtree(root / "val" / folders[4])
    with pytest.raises(ValueError, match=f"class folders {folders[4]} missing"):
        read_places365(settings(root), "val")


def test_a_network_trains_on_places_with_class_aware_sampling(tmp_path, places):
    config = ClassificationConfig(
        backbone=BackboneSettings("se_resnet_tiny"),
        data=settings(places, sampling="class_aware", workers=0),
        augment=AugmentSettings(size=32),
        train=TrainSettings(
            epochs=2,
            batch_size=12,
            optimizer=OptimizerSettings(lr=0.01),
            schedule=ScheduleSettings(unit="iteration"),
            tensorboard=False,
        ),
        evaluate=EvaluateSettings(protocol="places365-warp256", resize=36, crop=32),
        device="cpu",
    )
    result = run.train(config, tmp_path / "run")
    assert result["dataset"]["name"] == "places365"
    assert result["dataset"]["images"] == 12
    assert result["protocol"]["resize_mode"] == "warp"
    assert Counter(row["images"] for row in result["per_class"]) == {1: 12}
    assert result["per_class"][1]["class"] == "apartment_building/outdoor"
    assert run.check(config)["steps"] == 4


def test_data_of_another_task_is_refused_with_what_scene_knows(places):
    with pytest.raises(ValueError, match=r"data\.name='cifar10': choose from places365"):
        run.check(ClassificationConfig(data=DataSettings(name="cifar10", root=str(places))))
