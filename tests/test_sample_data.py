"""Sample data: the real layouts, the same bytes for the same seed, whole or not at all."""

import gzip
import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools import sample_data

SMALL = {
    "cifar10": {"train_per_class": 5, "test_per_class": 2},
    "cifar100": {"train_per_class": 2, "test_per_class": 1},
    "fashion_mnist": {"train_per_class": 2, "test_per_class": 1},
    "imagenet": {"classes": 3, "train_per_class": 2, "val_per_class": 2},
    "places365": {"train_per_class": 1, "val_per_class": 1},
    "coco": {"train": 6, "val": 4},
}


def _digest(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", sample_data.MAKERS)
def test_a_seed_gives_the_same_bytes_and_another_seed_others(name, tmp_path):
    make, settings = sample_data.MAKERS[name], SMALL[name]
    first, again, other = (
        _digest(make(tmp_path / folder, seed=seed, **settings))
        for folder, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    assert first != other
    assert (tmp_path / "a" / "SYNTHETIC").is_file()


def test_cifar_files_are_pickles_of_python_2(tmp_path):
    root = sample_data.make_cifar10(tmp_path / "cifar", train_per_class=5, test_per_class=2)
    base = root / "cifar-10-batches-py"
    raw = (base / "data_batch_1").read_bytes()
    assert b"numpy.core.multiarray\n_reconstruct" in raw
    batch = pickle.loads(raw, encoding="latin1")
    assert batch["data"].shape == (10, 3072)
    assert batch["data"].dtype == np.uint8
    assert pickle.loads(raw, encoding="bytes")[b"labels"] == batch["labels"]
    labels = [
        pickle.loads((base / f"data_batch_{i}").read_bytes(), encoding="latin1")["labels"]
        for i in range(1, 6)
    ]
    assert np.bincount(np.concatenate(labels)).tolist() == [5] * 10
    meta = pickle.loads((base / "batches.meta").read_bytes(), encoding="latin1")
    assert meta["label_names"][8] == "ship"


def test_idx_files_carry_their_magic_and_sizes(tmp_path):
    root = sample_data.make_fashion_mnist(tmp_path / "f", train_per_class=3, test_per_class=1)
    data = gzip.decompress((root / "train-images-idx3-ubyte.gz").read_bytes())
    assert data[:4] == b"\0\0\x08\x03"
    assert np.frombuffer(data[4:16], ">i4").tolist() == [30, 28, 28]
    assert len(data) == 16 + 30 * 28 * 28


def test_flat_imagenet_numbers_its_classes_otherwise_than_sorted(tmp_path):
    from scipy.io import loadmat

    root = sample_data.make_imagenet(
        tmp_path / "i", classes=5, train_per_class=1, val_per_class=3, flat_val=True
    )
    devkit = root / "ILSVRC2012_devkit_t12" / "data"
    truth = [
        int(x) for x in (devkit / "ILSVRC2012_validation_ground_truth.txt").read_text().split()
    ]
    assert sorted(truth) == sorted([1, 2, 3, 4, 5] * 3)
    assert len(list((root / "val").glob("ILSVRC2012_val_*.JPEG"))) == 15
    synsets = loadmat(devkit / "meta.mat", squeeze_me=True)["synsets"]
    leaves = [row for row in synsets if int(row["num_children"]) == 0]
    numbers = {str(row["WNID"]): int(row["ILSVRC2012_ID"]) for row in leaves}
    wnids = sorted(path.name for path in (root / "train").iterdir())
    assert sorted(numbers) == wnids
    assert [numbers[wnid] for wnid in wnids] != [1, 2, 3, 4, 5]


def test_places365_lists_name_files_that_are_there(tmp_path):
    root = sample_data.make_places365(tmp_path / "p", train_per_class=2, val_per_class=1)
    categories = (root / "categories_places365.txt").read_text()
    assert not categories.endswith("\n")
    names = dict(line.rsplit(" ", 1) for line in categories.split("\n"))
    assert list(names) == sorted(names)
    for line in (root / "places365_train_standard.txt").read_text().splitlines():
        path, label = line.rsplit(" ", 1)
        assert names[path.rsplit("/", 1)[0]] == label
        assert (root / "data_large" / path[1:]).is_file()
    for line in (root / "places365_val.txt").read_text().splitlines():
        assert (root / "val_large" / line.rsplit(" ", 1)[0]).is_file()


@pytest.mark.parametrize(
    ("options", "folder", "listed"),
    [
        ({"small": True}, "data_256", "places365_train_standard.txt"),
        ({"torchvision_names": True}, "data_large_standard", "places365_train_standard.txt"),
        ({"edition": "challenge"}, "data_large", "places365_train_challenge.txt"),
    ],
)
def test_places365_comes_in_every_official_form(tmp_path, options, folder, listed):
    root = sample_data.make_places365(
        tmp_path / "p", classes=2, train_per_class=1, val_per_class=1, **options
    )
    assert (root / folder / "a" / "airfield" / "00000001.jpg").is_file()
    assert (root / listed).is_file()
    if options.get("small"):
        assert Image.open(root / "val_256" / "Places365_val_00000001.jpg").size == (256, 256)


@pytest.mark.parametrize("year", [2014, 2017])
def test_coco_boxes_hold_their_shapes_in_every_size(tmp_path, year):
    root = sample_data.make_coco(tmp_path / "c", train=60, val=4, year=year)
    content = json.loads((root / "annotations" / f"instances_train{year}.json").read_text())
    images = {image["id"]: image for image in content["images"]}
    assert len(images) == 60
    areas = []
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        x, y, width, height = annotation["bbox"]
        assert 0 <= x < x + width <= image["width"]
        assert 0 <= y < y + height <= image["height"]
        points = np.array(annotation["segmentation"][0]).reshape(-1, 2)
        assert points.min(axis=0) == pytest.approx([x, y])
        assert points.max(axis=0) == pytest.approx([x + width, y + height])
        areas.append(annotation["area"])
    areas = np.array(areas)
    assert (areas < 32**2).any()
    assert ((areas >= 32**2) & (areas < 96**2)).any()
    assert (areas >= 96**2).any()
    assert len({annotation["image_id"] for annotation in content["annotations"]}) < 60
    for image in content["images"]:
        size = Image.open(root / f"train{year}" / image["file_name"]).size
        assert size == (image["width"], image["height"])


def test_a_nearest_mean_of_hues_is_above_chance_and_far_from_perfect(tmp_path):
    """Learnable, but not by colour alone: otherwise every network would have an error of 0."""
    root = sample_data.make_cifar10(tmp_path / "c", train_per_class=40, test_per_class=20)

    def read(name: str) -> tuple[np.ndarray, np.ndarray]:
        path = root / "cifar-10-batches-py" / name
        batch = pickle.loads(path.read_bytes(), encoding="latin1")
        pixels = batch["data"].reshape(-1, 3, 32, 32)[:, :, 8:24, 8:24].astype(float)
        mean = pixels.mean(axis=(2, 3))
        return mean - mean.mean(axis=1, keepdims=True), np.array(batch["labels"])

    parts = [read(f"data_batch_{number}") for number in range(1, 6)]
    features, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    means = np.stack([features[labels == label].mean(axis=0) for label in range(10)])
    features, labels = read("test_batch")
    found = np.linalg.norm(features[:, None] - means, axis=2).argmin(axis=1)
    assert 0.2 < (found == labels).mean() < 0.8


def test_a_second_call_changes_nothing_and_other_settings_are_refused(tmp_path):
    root = sample_data.make_coco(tmp_path / "c", train=2, val=1)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    sample_data.make_coco(root, train=2, val=1)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with pytest.raises(ValueError, match="something else"):
        sample_data.make_coco(root, train=3, val=1)


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "photos.txt").write_text("mine")
    with pytest.raises(ValueError, match="choose another folder"):
        sample_data.make_cifar10(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photos.txt"]


def test_a_set_that_fails_halfway_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_data, "_save", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        sample_data.make_coco(tmp_path / "c", train=2, val=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: sample_data.make_imagenet(root, classes=21), "classes=21: choose from 2"),
        (lambda root: sample_data.make_coco(root, year=2016), "choose 2014 or 2017"),
        (lambda root: sample_data.make_coco(root, train=0), "train=0"),
        (lambda root: sample_data.make_places365(root, edition="small"), "edition 'small'"),
        (lambda root: sample_data.make_all(root, ["mnist"]), "unknown sample data 'mnist'"),
    ],
)
def test_what_cannot_be_made_is_refused_by_name(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "x")


def test_what_a_killed_call_left_is_cleaned_by_the_next(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f".cifar.{gone.pid}.partial" / "half").mkdir(parents=True)
    at_work = tmp_path / f".cifar.{os.getppid()}.partial"
    at_work.mkdir()
    before = os.umask(0o027)
    try:
        root = sample_data.make_cifar10(tmp_path / "cifar", 1, 1)
    finally:
        os.umask(before)
    assert {path.name for path in tmp_path.iterdir()} == {"cifar", at_work.name}
    assert root.stat().st_mode & 0o777 == 0o750
