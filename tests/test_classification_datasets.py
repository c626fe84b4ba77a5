"""Readers on files written in the published layouts, and what they refuse."""

import csv
import gzip
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from classification.catalog import DATASETS, DatasetRow, readers_of
from classification.config import ClassificationConfig, DataSettings
from classification.datasets import Names
from classification.protocols import PROTOCOLS
from classification.readers import (
    read_cifar,
    read_fashion_mnist,
    read_folder,
    read_idx,
    read_imagenet,
)
from classification.splits import (
    READERS,
    find_bad_images,
    load_splits,
    select_listed,
    split_holdout,
)
from tools import sample_data


def settings(name, root, **more):
    return DataSettings(name=name, root=str(root), **more)


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "cifar10"
    return sample_data.make_cifar10(root, train_per_class=6, test_per_class=2)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "imagenet"
    return sample_data.make_imagenet(root, classes=4, train_per_class=3, val_per_class=2, size=40)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "flat"
    sizes = {"classes": 4, "train_per_class": 1, "val_per_class": 2, "size": 40}
    return sample_data.make_imagenet(root, **sizes, flat_val=True)


# CIFAR -------------------------------------------------------------------------------------------


def test_a_cifar_row_is_red_then_green_then_blue(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    row = np.arange(3072, dtype=np.uint32).astype(np.uint8)[None]
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (folder / name).write_bytes(pickle.dumps({"data": row, "labels": [3]}, protocol=2))
    names = {"label_names": [str(i) for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))
    train = read_cifar(settings("cifar10", tmp_path), "train")
    assert len(train) == 5
    image = train.images[0]
    assert image.shape == (3, 32, 32)
    assert image[0, 0, :3].tolist() == [0, 1, 2]
    assert image[1, 0, 0] == 1024 % 256
    assert image[2, 31, 31] == 3071 % 256
    assert train.labels.tolist() == [3] * 5


def test_cifar10_is_read_from_python2_pickles(cifar10):
    train = read_cifar(settings("cifar10", cifar10), "train")
    test = read_cifar(settings("cifar10", cifar10), "test")
    assert (len(train), len(test)) == (60, 20)
    assert np.bincount(train.labels).tolist() == [6] * 10
    assert test.class_names[0] == "airplane"
    assert test.images.dtype == torch.uint8
    assert test.synthetic
    assert len(set(test.ids)) == 20


def test_cifar100_takes_the_fine_labels(tmp_path):
    root = sample_data.make_cifar100(tmp_path / "c", train_per_class=1, test_per_class=1)
    train = read_cifar(settings("cifar100", root), "train")
    assert sorted(train.labels.tolist()) == list(range(100))
    assert train.class_names[7] == "fine_07"


class Hostile:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path, cifar10):
    root = shutil.copytree(cifar10, tmp_path / "copy")
    mark = tmp_path / "executed"
    content = pickle.dumps({"data": Hostile(mark), "labels": []}, protocol=2)
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match="test_batch"):
        read_cifar(settings("cifar10", root), "test")
    assert not mark.exists()


def test_a_missing_batch_is_named_with_where_it_was_looked_for(tmp_path, cifar10):
    root = shutil.copytree(cifar10, tmp_path / "copy")
    (root / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(ValueError, match=r"looked for .*data_batch_4.*holds .*data_batch_1"):
        read_cifar(settings("cifar10", root), "train")


def test_a_missing_root_says_what_was_looked_for_and_where(tmp_path):
    with pytest.raises(
        ValueError,
        match=rf"data.root={tmp_path}/none, the folder of cifar10, not found: looked for",
    ):
        read_cifar(settings("cifar10", tmp_path / "none"), "train")
    with pytest.raises(ValueError, match=r"data\.root"):
        read_cifar(DataSettings(name="cifar10"), "train")


def write_cifar(root, key=str, **changes):
    """CIFAR-10 with an image in each part, and keys of this type."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    batch = {"data": np.zeros((1, 3072), np.uint8), "labels": [3]}
    names = {"label_names": [str(i) for i in range(10)]}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]:
        content = (names if name == "batches.meta" else batch) | changes
        content = {key(k): value for k, value in content.items()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=4))
    return settings("cifar10", root)


def test_keys_and_class_names_may_be_bytes(tmp_path):
    data = write_cifar(tmp_path, str.encode, label_names=[b"a"] * 3 + [b"cat"])
    assert read_cifar(data, "test").class_names[3] == "cat"


@pytest.mark.parametrize(
    "change",
    [
        {"data": [[0] * 3072]},
        {"data": np.zeros((1, 3072), np.float32)},
        {"data": np.zeros((1, 32, 32, 3), np.uint8)},
        {"data": None},
        {"labels": ["cat"]},
        {"labels": [3, 3]},
        {"labels": [[3]]},
        {"labels": [3.5]},
        {"labels": [True]},
        {"labels": 3},
        {"labels": None},
        {"labels": [2**70]},
        {"labels": [10]},
        {"labels": [-1]},
        {"label_names": []},
        {"label_names": None},
        {"label_names": [1, 2, 3, 4]},
        {"label_names": "abcdefghij"},
    ],
    ids=str,
)
def test_what_is_not_cifar_is_refused_by_name(tmp_path, change):
    data = write_cifar(tmp_path, **change)
    with pytest.raises(ValueError, match=str(tmp_path)):
        read_cifar(data, "test")
    for content in ([1, 2], {"data": 1}, 7, None):
        (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=f"{tmp_path}.*"):
            read_cifar(data, "test")


# Fashion-MNIST -----------------------------------------------------------------------------------


def write_idx(path, array, shape=None):
    shape = shape or array.shape
    head = bytes((0, 0, 8, len(shape))) + np.array(shape, ">i4").tobytes()
    path.write_bytes(head + array.tobytes())


@pytest.mark.parametrize("compress", [True, False])
def test_fashion_mnist_is_read_gzipped_or_not(tmp_path, compress):
    sizes = {"train_per_class": 2, "test_per_class": 1, "compress": compress}
    root = sample_data.make_fashion_mnist(tmp_path / "f", **sizes)
    test = read_fashion_mnist(settings("fashion_mnist", root), "test")
    assert test.images.shape == (10, 3, 28, 28)
    assert torch.equal(test.images[:, 0], test.images[:, 2])
    assert test.class_names[9] == "Ankle boot"


def test_idx_values_keep_their_places(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / "a", array)
    assert np.array_equal(read_idx(tmp_path / "a"), array)
    (tmp_path / "b.gz").write_bytes(gzip.compress((tmp_path / "a").read_bytes()))
    assert np.array_equal(read_idx(tmp_path / "b"), array)


def test_an_idx_file_that_is_shorter_than_its_header_says_is_refused(tmp_path):
    write_idx(tmp_path / "a", np.zeros((2, 3), np.uint8), shape=(3, 3))
    with pytest.raises(ValueError, match=r"\(3, 3\), the file holds 6"):
        read_idx(tmp_path / "a")
    (tmp_path / "c").write_bytes(b"PK\x03\x04 not idx")
    with pytest.raises(ValueError, match="not an idx file"):
        read_idx(tmp_path / "c")


@pytest.mark.parametrize("damage", ["deflate", "cut", "more", "bomb", "text"])
def test_a_damaged_or_exploding_gzip_file_is_refused(tmp_path, damage):
    write_idx(tmp_path / "a", np.zeros((5, 7), np.uint8))
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").unlink()
    zipped = bytearray(gzip.compress(content))
    if damage == "deflate":
        zipped[10] ^= 0x07  # zlib.error: invalid block type
    elif damage == "cut":
        del zipped[-12:]
    elif damage == "more":
        zipped = gzip.compress(content + b"1")
    elif damage == "bomb":
        zipped = gzip.compress(content + bytes(10**8))
    else:
        zipped = b"<html>404</html>"
    (tmp_path / "a.gz").write_bytes(zipped)
    with pytest.raises(ValueError, match=r"a\.gz"):
        read_idx(tmp_path / "a")


def test_an_idx_file_that_announces_more_than_memory_is_refused_before_it_is_taken(tmp_path):
    write_idx(tmp_path / "a", np.zeros(9, np.uint8), shape=(2**31 - 1, 2**31 - 1, 2**31 - 1))
    with pytest.raises(ValueError, match="more than can be held"):
        read_idx(tmp_path / "a")


# Folders and ImageNet ----------------------------------------------------------------------------


def test_folder_takes_its_classes_from_train_in_sorted_order(imagenet):
    val = read_folder(settings("folder", imagenet), "val")
    assert list(val.class_names) == sorted(val.class_names)
    assert [image_id.split("/")[0] for image_id in val.ids] == [
        val.class_names[label] for label in val.labels
    ]


def test_a_class_that_train_lacks_is_refused_with_a_near_match(tmp_path, imagenet):
    root = shutil.copytree(imagenet, tmp_path / "copy")
    (root / "val" / "n01443537").rename(root / "val" / "n01443538")
    with pytest.raises(ValueError, match=r"n01443538.*did you mean 'n01443537'"):
        read_folder(settings("folder", root), "val")


def test_missing_imagenet_classes_are_refused_and_the_ways_out_named(imagenet):
    with pytest.raises(ValueError, match=r"996 of 1000 classes missing.*classes=subset"):
        read_imagenet(settings("imagenet", imagenet), "val")


def test_a_subset_keeps_the_labels_of_the_thousand(tmp_path):
    folder = tmp_path / "val" / "n15075141"  # toilet tissue, the last of the thousand
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "a.JPEG")
    val = read_imagenet(settings("imagenet", tmp_path, classes="subset"), "val")
    assert val.labels.tolist() == [999]
    assert len(val.class_names) == 1000
    val = read_imagenet(settings("imagenet", tmp_path, classes="folders"), "val")
    assert (val.labels.tolist(), list(val.class_names)) == ([0], ["n15075141"])


def test_a_folder_that_is_no_wnid_is_named(tmp_path):
    (tmp_path / "val" / "goldfish").mkdir(parents=True)
    with pytest.raises(ValueError, match="goldfish"):
        read_imagenet(settings("imagenet", tmp_path, classes="subset"), "val")


def test_a_class_of_train_that_val_lacks_is_named(tmp_path, imagenet):
    root = shutil.copytree(imagenet, tmp_path / "copy")
    gone = sorted((root / "val").iterdir())[0]
    shutil.rmtree(gone)
    with pytest.raises(ValueError, match=f"1 of the .* missing .{gone.name}"):
        read_imagenet(settings("imagenet", root, classes="folders"), "val")


def test_a_flat_val_takes_its_labels_from_the_devkit(flat):
    from scipy.io import loadmat

    val = read_imagenet(settings("imagenet", flat, classes="folders"), "val")
    assert len(val) == 8
    data = flat / "ILSVRC2012_devkit_t12" / "data"
    synsets = loadmat(data / "meta.mat", squeeze_me=True)["synsets"]
    wnid = {int(row["ILSVRC2012_ID"]): row["WNID"] for row in synsets}
    truth = (data / "ILSVRC2012_validation_ground_truth.txt").read_text().split()
    assert [val.class_names[label] for label in val.labels] == [wnid[int(n)] for n in truth]


def test_ground_truth_of_another_length_is_refused(tmp_path, flat):
    root = shutil.copytree(flat, tmp_path / "copy")
    (root / "val" / "ILSVRC2012_val_00000003.JPEG").unlink()
    with pytest.raises(ValueError, match=r"holds 7 images, .* labels 8"):
        read_imagenet(settings("imagenet", root, classes="folders"), "val")


def test_a_flat_val_is_read_by_a_list_and_missing_entries_are_named(tmp_path, flat):
    root = shutil.copytree(flat, tmp_path / "copy")
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 9)]
    (root / "meta").mkdir()
    listed = root / "meta" / "val.txt"
    listed.write_text("".join(f"{name} {i % 4}\n" for i, name in enumerate(names)))
    val = read_imagenet(settings("imagenet", root, classes="folders"), "val")
    assert val.labels.tolist() == [0, 1, 2, 3] * 2
    (root / "val" / names[5]).unlink()
    with pytest.raises(ValueError, match=rf"lists 1 files that are not in .*{names[5]}"):
        read_imagenet(settings("imagenet", root, classes="folders"), "val")
    listed.write_text("one.JPEG zero\n")
    with pytest.raises(ValueError, match="line 1"):
        read_imagenet(settings("imagenet", root, classes="folders"), "val")


def images(*paths):
    """Files of images, all different."""
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 20, 0, 90)).save(path, "PNG")


def test_class_folders_of_whole_numbers_go_by_value_with_a_word(tmp_path, caplog):
    images(*(tmp_path / split / str(n) / "a.png" for split in ("train", "val") for n in range(12)))
    val = read_folder(settings("folder", tmp_path), "val")
    assert list(val.class_names) == [str(n) for n in range(12)]
    assert [image_id.split("/")[0] for image_id in val.ids] == list(val.class_names)
    assert "ordered by the value" in caplog.text
    images(tmp_path / "train" / "x1" / "a.png")
    assert list(read_folder(settings("folder", tmp_path), "val").class_names)[:3] == [
        "0",
        "1",
        "10",
    ]


def test_images_one_folder_deeper_are_read_and_other_files_counted(tmp_path, caplog):
    one = tmp_path / "val" / "one"
    images(one / "b.png", one / "deep" / "er" / "a.JPG", one / "c.TIFF", one / ".hidden.png")
    (one / "note.txt").write_text("no image")
    (one / "photo.heic").write_bytes(b"1")
    (one / "circle").symlink_to(one)
    val = read_folder(settings("folder", tmp_path), "val")
    assert list(val.ids) == ["one/b.png", "one/c.TIFF", "one/deep/er/a.JPG"]
    assert "2 files are no images by their names" in caplog.text
    assert "1 of .heic" in caplog.text
    for path in one.glob("**/*.*"):
        if path.suffix in (".png", ".JPG", ".TIFF"):
            path.unlink()
    with pytest.raises(ValueError, match=r"one holds no image, only files of .*\.heic"):
        read_folder(settings("folder", tmp_path), "val")


def test_a_folder_set_with_test_but_no_val_reports_test(tmp_path):
    images(*(tmp_path / s / c / "a.png" for s in ("train", "test") for c in ("cat", "dog")))
    test = read_folder(settings("folder", tmp_path), "val")
    assert (test.split, len(test)) == ("test", 2)
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(ValueError, match="val or valid or validation or test"):
        read_folder(settings("folder", tmp_path), "val")


def test_an_archive_that_was_not_unpacked_is_pointed_at(tmp_path):
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"unpack ILSVRC2012_img_val\.tar there first"):
        read_imagenet(settings("imagenet", tmp_path), "val")


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_tiny_imagenet_is_read_in_its_own_layout(tmp_path, name):
    wnids = ["n01443537", "n01629819"]
    for wnid in wnids:
        images(tmp_path / "train" / wnid / "images" / f"{wnid}_0.JPEG")
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text("0 0 9 9")
    images(*(tmp_path / "val" / "images" / f"val_{n}.JPEG" for n in range(3)))
    lines = [f"val_{n}.JPEG\t{wnids[n % 2]}\t0\t32\t44\t62\n" for n in range(3)]
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    data = settings(name, tmp_path, classes="folders")
    train, val = (load_reader(name)(data, split) for split in ("train", "val"))
    assert train.ids[0] == "n01443537/images/n01443537_0.JPEG"
    assert (list(val.ids), val.labels.tolist()) == (
        [f"images/val_{n}.JPEG" for n in range(3)],
        [0, 1, 0],
    )
    assert list(train.class_names) == list(val.class_names) == wnids
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn00000000\n")
    with pytest.raises(ValueError, match="'n00000000' are no classes"):
        load_reader(name)(data, "val")


def load_reader(name):
    return {"folder": read_folder, "imagenet": read_imagenet}[name]


@pytest.mark.parametrize("root", ["", "ILSVRC/Data/CLS-LOC"])
def test_imagenet_is_read_as_kaggle_unpacks_it(tmp_path, root):
    place = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    names = [f"ILSVRC2012_val_{n:08d}" for n in (1, 2, 3)]
    images(*(place / "val" / f"{name}.JPEG" for name in names))
    wnids = ["n15075141", "n01440764", "n01443537"]
    with open(tmp_path / "LOC_val_solution.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ImageId", "PredictionString"])
        rows.writerows(
            [n, f"{w} 85 1 499 272 {w} 1 2 3 4 "] for n, w in zip(names, wnids, strict=True)
        )
    val = read_imagenet(settings("imagenet", tmp_path / root), "val")
    assert (list(val.ids), val.labels.tolist()) == ([f"{n}.JPEG" for n in names], [999, 0, 1])
    (place / "val" / f"{names[1]}.JPEG").unlink()
    with pytest.raises(ValueError, match=f"1 files that are not in .*{names[1]}"):
        read_imagenet(settings("imagenet", tmp_path / root), "val")


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0", b"PK\x03\x04", None])
def test_a_damaged_devkit_is_refused_by_name(tmp_path, flat, content):
    root = shutil.copytree(flat, tmp_path / "copy")
    meta = root / "ILSVRC2012_devkit_t12" / "data" / "meta.mat"
    whole = meta.read_bytes()
    meta.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ValueError, match=r"meta\.mat: not the devkit's, or damaged"):
        read_imagenet(settings("imagenet", root, classes="folders"), "val")
    meta.write_bytes(whole)
    truth = meta.with_name("ILSVRC2012_validation_ground_truth.txt")
    truth.write_text(truth.read_text().replace("1", "one", 1))
    with pytest.raises(ValueError, match=r"truth\.txt: 'one' is no class number"):
        read_imagenet(settings("imagenet", root, classes="folders"), "val")


# Bad files, parts, names -------------------------------------------------------------------------


def test_truncated_empty_and_non_image_files_are_found_and_whole_ones_pass(tmp_path, imagenet):
    root = shutil.copytree(imagenet, tmp_path / "copy")
    folder = root / "val" / "n01440764"
    whole, other = sorted(folder.iterdir())
    content = whole.read_bytes()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    (folder / "trailing.jpg").write_bytes(content + bytes(10_000))  # odd, but decodes
    Image.open(other).save(folder / "whole.png")
    (folder / "truncated.png").write_bytes((folder / "whole.png").read_bytes()[:-50])
    bad = find_bad_images(read_folder(settings("folder", root), "val"))
    names = ["empty.jpg", "text.jpg", "truncated.jpg", "truncated.png"]
    assert bad == [f"n01440764/{name}" for name in names]


def test_holding_out_takes_the_same_share_of_every_class_whatever_the_seed():
    labels = np.repeat([0, 1, 2], [10, 100, 3])
    kept, held = split_holdout(labels, 0.1)
    assert np.bincount(labels[held]).tolist() == [1, 10, 1]
    assert sorted([*kept, *held]) == list(range(113))
    assert np.array_equal(held, split_holdout(labels, 0.1)[1])


def test_a_listed_subset_counts_just_its_images(tmp_path, imagenet):
    val = read_folder(settings("folder", imagenet), "val")
    listed = tmp_path / "kept.txt"
    stem = val.ids[3].rsplit("/")[-1].removesuffix(".JPEG")
    listed.write_text(f"{stem}\n{val.ids[0]}\n")
    chosen = select_listed(val, listed)
    assert list(chosen.ids) == [val.ids[0], val.ids[3]]
    assert chosen.labels.tolist() == [val.labels[0], val.labels[3]]
    listed.write_text("nowhere.JPEG\n")
    with pytest.raises(ValueError, match=r"nowhere\.JPEG"):
        select_listed(val, listed)
    listed.write_text(f"{val.ids[0]}\n{val.ids[0]}\n")
    with pytest.raises(ValueError, match="twice"):
        select_listed(val, listed)


def test_a_name_of_several_images_is_no_name_for_one(tmp_path):
    images(*(tmp_path / "val" / c / "a.png" for c in ("cat", "dog")))
    val = read_folder(settings("folder", tmp_path), "val")
    listed = tmp_path / "kept.txt"
    listed.write_text("a.png\n")
    with pytest.raises(ValueError, match=r"a\.png is the name of several images"):
        select_listed(val, listed)
    listed.write_bytes("dog\\a.png\r\n".encode("utf-16"))
    assert list(select_listed(val, listed).ids) == ["dog/a.png"]


def splits_of(root, **more):
    return load_splits(ClassificationConfig(data=settings("folder", root, **more)), READERS, True)


@pytest.mark.parametrize("how", ["content", "path", "none"])
def test_images_that_are_both_trained_on_and_reported_are_told(tmp_path, how):
    images(*(tmp_path / "train" / c / "a.png" for c in ("cat", "dog")))
    if how == "path":
        (tmp_path / "val").symlink_to(tmp_path / "train")
    else:
        images(tmp_path / "x", tmp_path / "y", tmp_path / "val" / "dog" / "b.png")
    if how == "content":
        shutil.copy(tmp_path / "train" / "cat" / "a.png", tmp_path / "val" / "dog" / "c.png")
    doubts = splits_of(tmp_path).doubts
    count = {"content": "1 of the 2", "path": "2 of the 2", "none": ""}[how]
    said = f"{count} val images of folder are among those trained on, by their {how}"
    assert [doubt.startswith(said) for doubt in doubts] == [True] * (how != "none")


def test_arrays_that_are_both_trained_on_and_reported_are_told(tmp_path):
    data = write_cifar(tmp_path)  # the same image everywhere
    (doubt,) = load_splits(ClassificationConfig(data=data), READERS, True).doubts
    assert doubt.startswith("1 of the 1 test images of cifar10 are among those trained on")


def test_damage_that_neither_head_nor_tail_shows_is_found_before_training(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for split in ("train", "val"):
        (tmp_path / split / "one").mkdir(parents=True)
        Image.fromarray(noise).save(tmp_path / split / "one" / f"{split}.png")
        Image.fromarray(noise // 2).save(tmp_path / split / "one" / f"{split}.jpg")
    path = tmp_path / "train" / "one" / "train.png"
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"1 unreadable images .*: one/train\.png"):
        splits_of(tmp_path)
    assert len(splits_of(tmp_path, skip_bad_images=1).train) == 2


def test_names_that_are_not_utf8_or_hold_line_ends_are_read(tmp_path):
    images(tmp_path / "val" / "one" / "new\nline.png")
    path = bytes(tmp_path) + b"/val/one/caf\xe9.png"
    os.rename(bytes(tmp_path) + b"/val/one/new\nline.png", path)
    images(tmp_path / "val" / "one" / "new\nline.png")
    val = read_folder(settings("folder", tmp_path), "val")
    assert [os.fsencode(name) for name in val.ids] == [b"one/caf\xe9.png", b"one/new\nline.png"]
    assert find_bad_images(val) == []
    assert val.sha256()


def test_a_row_and_its_reader_make_a_data_set(tmp_path, monkeypatch):
    (tmp_path / "toy_reader.py").write_text(
        "from classification.readers import read_folder\n"
        "def read_toy(settings, split):\n"
        "    return read_folder(settings, split)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    row = DatasetRow("classification", "toy_reader:read_toy", "test", "train/, test/")
    monkeypatch.setitem(DATASETS, "toy", row)
    images(*(tmp_path / "data" / s / "one" / f"{n}.png" for s in ("train", "test") for n in (1, 2)))
    config = ClassificationConfig(data=settings("toy", tmp_path / "data"))
    splits = load_splits(config, readers_of("classification"), True)
    assert (splits.reported.name, splits.reported.split, len(splits.train)) == ("toy", "test", 2)


def test_the_rooms_readmes_name_every_data_set_and_protocol():
    for name, row in DATASETS.items():
        text = (Path(__file__).parents[1] / row.task / "README.md").read_text(encoding="utf-8")
        assert name in text.lower()
    text = (Path(__file__).parents[1] / "classification" / "README.md").read_text(encoding="utf-8")
    assert [n for n in PROTOCOLS if n.removesuffix("-ten-crop") not in text] == []


def test_packed_names_read_like_a_list():
    words = ["a", "", "b/ü", "new\nline", os.fsdecode(b"\xe9"), "last"]
    packed = Names(words)
    assert list(packed) == words
    assert (len(packed), packed[0], packed[-1]) == (6, "a", "last")
    assert list(Names([])) == []


def test_the_hash_of_a_set_changes_with_a_label_and_a_pixel(cifar10):
    test = read_cifar(settings("cifar10", cifar10), "test")
    before = test.sha256()
    test.labels[0] = (test.labels[0] + 1) % 10
    changed = test.sha256()
    test.images[0, 0, 0, 0] ^= 1
    assert len({before, changed, test.sha256()}) == 3
