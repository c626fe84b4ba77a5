"""Readers on files written in the published layouts, and what they refuse."""

import gzip
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from classification.config import DataSettings
from classification.datasets import (
    Names,
    find_bad_images,
    read_cifar,
    read_fashion_mnist,
    read_folder,
    read_idx,
    select_listed,
    split_holdout,
)
from classification.imagenet import read_imagenet
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
    with pytest.raises(ValueError, match=rf"cifar10 not found: looked for {tmp_path}/none"):
        read_cifar(settings("cifar10", tmp_path / "none"), "train")
    with pytest.raises(ValueError, match=r"data\.root"):
        read_cifar(DataSettings(name="cifar10"), "train")


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


def test_packed_names_read_like_a_list():
    words = ["a", "", "b/ü", "last"]
    packed = Names(words)
    assert list(packed) == words
    assert (len(packed), packed[0], packed[-1]) == (4, "a", "last")
    assert list(Names([])) == []


def test_the_hash_of_a_set_changes_with_a_label_and_a_pixel(cifar10):
    test = read_cifar(settings("cifar10", cifar10), "test")
    before = test.sha256()
    test.labels[0] = (test.labels[0] + 1) % 10
    changed = test.sha256()
    test.images[0, 0, 0, 0] ^= 1
    assert len({before, changed, test.sha256()}) == 3
