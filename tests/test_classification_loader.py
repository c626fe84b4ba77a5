"""Order and augmentation depend on seed and position alone; every image is seen as often as said."""

import multiprocessing
import os
import signal
import time
from collections import Counter

import numpy as np
import pytest
import torch

from classification import datasets, images, loader
from classification.config import AugmentSettings, DataSettings
from classification.distributed import Processes
from classification.loader import BadImages, evaluation_batches, train_batches
from classification.order import SampleOrder
from classification.protocols import PROTOCOLS
from classification.readers import read_cifar, read_folder
from tools import sample_data

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "imagenet"
    sample_data.make_imagenet(root, classes=3, train_per_class=5, val_per_class=3, size=40)
    return read_folder(DataSettings(name="folder", root=str(root)), "train")


def test_an_epoch_shows_each_image_once_and_epochs_differ():
    order = SampleOrder(np.zeros(100), batch_size=10, seed=1)
    first, second = order.epoch(0)[0], order.epoch(1)[0]
    assert sorted(first) == list(range(100))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, SampleOrder(np.zeros(100), 10, 1).epoch(0)[0])
    assert not np.array_equal(first, SampleOrder(np.zeros(100), 10, 2).epoch(0)[0])


def test_processes_share_each_batch_without_overlap():
    order = SampleOrder(np.zeros(50), batch_size=8, seed=0)
    alone = list(order.parts(0, 9, Processes(0, 1, CPU), 1))
    shared = [list(order.parts(0, 9, Processes(rank, 2, CPU), 2)) for rank in range(2)]
    assert order.steps_per_epoch == 6
    for step in range(9):
        parts = [part for rank in shared for part in rank[2 * step : 2 * step + 2]]
        assert [pair for part in parts for pair in part] == alone[step]


def test_a_start_in_the_middle_continues_the_same_order():
    order = SampleOrder(np.arange(30) % 3, batch_size=4, seed=5, sampling="class_aware")
    whole = list(order.parts(0, 20, Processes(0, 1, CPU), 2))
    assert list(order.parts(11, 20, Processes(0, 1, CPU), 2)) == whole[22:]


def test_class_aware_sampling_shows_classes_equally_and_images_in_turn():
    labels = np.repeat([0, 1, 2], [90, 9, 3])
    order = SampleOrder(labels, batch_size=6, seed=0, sampling="class_aware")
    stream = np.concatenate([order.epoch(number)[0] for number in range(3)])
    assert len(stream) == 306
    assert np.bincount(labels[stream]).tolist() == [102, 102, 102]
    assert all(sorted(labels[stream[i : i + 3]]) == [0, 1, 2] for i in range(0, 306, 3))
    times = Counter(stream.tolist())
    for label in (0, 1, 2):
        # A list is reshuffled only when used up: no image runs ahead of another by more than one.
        counts = [times[i] for i in np.flatnonzero(labels == label)]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("policy", ["none", "trivial_augment"])
def test_augmentation_does_not_depend_on_the_number_of_workers(files, policy):
    def images(workers):
        data = DataSettings(workers=workers)
        parts = SampleOrder(files.labels, 5, 0).parts(0, 4, Processes(0, 1, CPU), 1)
        augment = AugmentSettings(size=16, policy=policy)
        batches = train_batches(files, parts, data, augment, "bilinear", CPU)
        return torch.cat([batch.images for batch in batches])

    state = torch.get_rng_state()
    alone = images(0)
    assert torch.equal(state, torch.get_rng_state())  # training's own draws are left alone
    assert torch.equal(alone, images(2))
    assert torch.equal(state, torch.get_rng_state())


def test_images_in_memory_are_augmented_alike_alone_and_through_the_file_path(tmp_path):
    root = sample_data.make_cifar10(tmp_path / "c", train_per_class=2, test_per_class=1)
    dataset = read_cifar(DataSettings(root=str(root)), "train")
    augment = AugmentSettings(crop="none", size=32, flip=0)
    resized = AugmentSettings(crop="resized", size=32, flip=0, scale=[1, 1], ratio=[1, 1])

    def images(augment):
        parts = SampleOrder(dataset.labels, 10, 0).parts(0, 2, Processes(0, 1, CPU), 1)
        return [
            b.images
            for b in train_batches(dataset, parts, DataSettings(), augment, "bilinear", CPU)
        ]

    assert torch.equal(torch.cat(images(augment)), torch.cat(images(resized)))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_evaluation_sees_each_image_once_under_any_number_of_processes(files, count):
    protocol = PROTOCOLS["imagenet-256-224"]
    seen = []
    for rank in range(count):
        processes = Processes(rank, count, CPU)
        for batch in evaluation_batches(files, protocol, 4, processes, 0, "bilinear"):
            assert batch.images.shape[1:] == (1, 3, 224, 224)
            assert batch.indices[0] % 4 == 0  # batches hold the same images for every count
            seen += batch.indices.tolist()
    assert sorted(seen) == list(range(15))


def test_an_unreadable_file_is_named_up_to_the_number_allowed():
    bad = BadImages(1, "root")
    bad.add(["a.jpg"])
    bad.add(["a.jpg"])
    with pytest.raises(ValueError, match=r"2 unreadable images under root: a\.jpg, b\.jpg"):
        bad.add(["b.jpg"])


# Reading processes -------------------------------------------------------------------------------


def read_all(files):
    """Places of all images, in the order they come in from two reading processes."""
    protocol, alone = PROTOCOLS["imagenet-256-224"], Processes(0, 1, CPU)
    batches = evaluation_batches(files, protocol, 4, alone, 2, "bilinear")
    return [index for batch in batches for index in batch.indices.tolist()]


def test_a_dead_reading_process_is_told_with_the_file_that_it_read(files, monkeypatch):
    def read_image(path):
        if path.endswith(files.ids[7]):
            os.kill(os.getpid(), signal.SIGKILL)
        return images.read_image(path)

    monkeypatch.setattr(datasets, "read_image", read_image)
    handler = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(ChildProcessError, match=rf"ended while it read \S+{files.ids[7]}, perhaps"):
        read_all(files)
    assert signal.getsignal(signal.SIGCHLD) is handler


def test_a_file_that_never_comes_is_named_after_a_while(files, monkeypatch):
    def read_image(path):
        if path.endswith(files.ids[7]):
            time.sleep(1000)
        return images.read_image(path)

    monkeypatch.setattr(datasets, "read_image", read_image)
    monkeypatch.setattr(loader, "_LOOK_EVERY", 0.5)
    monkeypatch.setattr(loader, "_PATIENCE", 1.5)
    with pytest.raises(TimeoutError, match=rf"no image was read for 2 s.*/{files.ids[7]}: is the"):
        read_all(files)
    assert multiprocessing.active_children() == []  # one that waited would be waited for at the end


def test_a_slow_disk_is_waited_for(files, monkeypatch):
    def read_image(path):
        time.sleep(0.4)
        return images.read_image(path)

    monkeypatch.setattr(datasets, "read_image", read_image)
    monkeypatch.setattr(loader, "_LOOK_EVERY", 0.3)
    monkeypatch.setattr(loader, "_PATIENCE", 0.9)
    assert read_all(files) == list(range(15))
