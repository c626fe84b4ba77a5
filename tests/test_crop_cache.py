"""Kept crops are the pixels of a first pass, or they are not served at all."""

import errno
import logging
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbones import BackboneSettings, InputFormat, build_network, save_weights
from classification import crop_cache, images, run
from classification.config import ClassificationConfig, DataSettings, EvaluateSettings
from classification.crop_cache import choose_cache, evict
from classification.distributed import Processes
from classification.loader import evaluation_batches
from classification.protocols import choose_protocol
from classification.readers import read_folder
from tools import sample_data

SETTINGS = EvaluateSettings("imagenet-256-224", resize=40, crop=33)  # 33 x 33 x 3: no whole words


@pytest.fixture
def photos(tmp_path):
    root = sample_data.make_imagenet(tmp_path / "i", 3, train_per_class=1, val_per_class=3, size=40)
    return read_folder(DataSettings(name="folder", root=str(root)), "val")


@pytest.fixture
def settings(tmp_path):
    return replace(SETTINGS, cache=str(tmp_path / "cache"))


def crops(dataset, settings, processes=None, interpolation="bilinear", size=4):
    """All views of `dataset`, in order, through whatever cache `settings` ask for."""
    _, protocol = choose_protocol(settings)
    cache = choose_cache(settings, dataset, protocol, interpolation)
    processes = processes or Processes(0, 1, torch.device("cpu"))
    batches = list(evaluation_batches(dataset, protocol, size, processes, 0, interpolation, cache))
    indices = torch.cat([batch.indices for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    assert torch.equal(labels, torch.from_numpy(dataset.labels)[indices])
    return torch.cat([batch.images for batch in batches])[indices.argsort()]


def files(settings):
    return sorted(os.listdir(settings.cache)) if os.path.isdir(settings.cache) else []


@pytest.fixture
def decoded(monkeypatch):
    """The names of the image files decoded since."""
    names = []

    def read_image(path):
        names.append(path)
        return images.read_image(path)

    monkeypatch.setattr("classification.datasets.read_image", read_image)
    return names


@pytest.mark.parametrize("protocol", ["imagenet-256-224", "imagenet-256-224-ten-crop"])
def test_later_passes_decode_nothing_and_serve_the_same_pixels(photos, settings, decoded, protocol):
    settings = replace(settings, protocol=protocol)
    fresh = crops(photos, replace(settings, cache="none"))
    first = crops(photos, settings)
    assert len(decoded) == 2 * len(photos)
    decoded.clear()
    again = crops(photos, settings, size=2)
    assert decoded == []
    assert torch.equal(first, fresh)
    assert torch.equal(again, fresh)
    assert [name[-6:] for name in files(settings)] == [".crops"]


def test_other_protocols_and_interpolations_have_other_files(photos, settings):
    changes = [{}, {"flip": True}, {"crop": 32}, {"resize": 41}]
    for number, change in enumerate(changes, start=1):
        changed = replace(settings, **change)
        for _ in range(2):
            plain = crops(photos, replace(changed, cache="none"))
            assert torch.equal(crops(photos, changed), plain)
        assert len(files(settings)) == number
    crops(photos, settings, interpolation="bicubic")
    assert len(files(settings)) == len(changes) + 1


def test_a_changed_file_is_never_served_even_with_its_old_size_and_time(photos, settings):
    crops(photos, settings)
    path = photos.folder / photos.ids[4]
    before = path.stat()
    content = bytearray(path.read_bytes())
    with Image.open(path) as image:
        turned = Image.fromarray(255 - np.array(image.convert("RGB")))
    turned.save(path, "JPEG", quality=40)
    changed = path.read_bytes()
    assert len(changed) <= len(content)
    path.write_bytes(changed + bytes(len(content) - len(changed)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert torch.equal(crops(photos, settings), crops(photos, replace(settings, cache="none")))
    assert len(files(settings)) == 2


def test_a_new_version_of_the_code_has_another_file(photos, settings, monkeypatch, tmp_path):
    crops(photos, settings)
    edited = tmp_path / "images.py"
    edited.write_text("# edited")
    monkeypatch.setattr(crop_cache.images, "__file__", str(edited))
    crops(photos, settings)
    assert len(files(settings)) == 2


@pytest.mark.parametrize("damage", ["flip", "zero", "swap", "cut", "empty"])
def test_a_damaged_file_is_found_out_and_built_anew(photos, settings, damage, caplog, decoded):
    fresh = crops(photos, settings)
    path = Path(settings.cache) / files(settings)[0]
    content = bytearray(path.read_bytes())
    row = 3328  # 33 * 33 * 3 bytes, up to a multiple of 64
    start = len(content) - 4 * row
    if damage == "flip":
        content[start + 7] ^= 0x80
    elif damage == "zero":
        content[start : start + 512] = bytes(512)
    elif damage == "swap":
        rows = content[start : start + row], content[start + row : start + 2 * row]
        content[start : start + 2 * row] = rows[1] + rows[0]
    elif damage == "cut":
        del content[-1:]
    else:
        content.clear()
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(crops(photos, settings), fresh)
    assert "damaged" in caplog.text
    assert torch.equal(crops(photos, settings), fresh)
    decoded.clear()
    assert torch.equal(crops(photos, settings), fresh)
    assert decoded == []


def test_several_processes_build_one_file_together(photos, settings, decoded):
    fresh = crops(photos, replace(settings, cache="none"))
    cpu = torch.device("cpu")
    _, protocol = choose_protocol(settings)

    def batches(rank):
        cache = choose_cache(settings, photos, protocol, "bilinear")
        return evaluation_batches(
            photos, protocol, 2, Processes(rank, 2, cpu), 0, "bilinear", cache
        )

    both = [batches(0), batches(1)]
    next(both[0]), next(both[1])  # neither has all, and nothing is served yet
    assert [name.rpartition(".")[2] for name in files(settings)] == ["partial"]
    for rest in both:
        list(rest)
    assert [name.rpartition(".")[2] for name in files(settings)] == ["crops"]
    decoded.clear()
    assert torch.equal(crops(photos, settings), fresh)
    assert torch.equal(
        torch.cat([b.images for rank in (0, 1) for b in batches(rank)])[:2], fresh[:2]
    )
    assert decoded == []


def test_an_interrupted_pass_leaves_nothing_to_be_served(photos, settings, decoded):
    _, protocol = choose_protocol(settings)
    cache = choose_cache(settings, photos, protocol, "bilinear")
    alone = Processes(0, 1, torch.device("cpu"))
    started = evaluation_batches(photos, protocol, 4, alone, 0, "bilinear", cache)
    next(started)
    started.close()
    decoded.clear()
    fresh = crops(photos, settings)
    assert len(decoded) == len(photos)
    assert torch.equal(crops(photos, settings), fresh)


def test_a_set_with_an_unreadable_image_is_not_kept(photos, settings):
    (photos.folder / photos.ids[5]).write_bytes(b"no image")
    _, protocol = choose_protocol(settings)
    for _ in range(2):
        cache = choose_cache(settings, photos, protocol, "bilinear")
        alone = Processes(0, 1, torch.device("cpu"))
        batches = list(evaluation_batches(photos, protocol, 4, alone, 0, "bilinear", cache))
        assert [name for batch in batches for name in batch.bad] == [photos.ids[5]]
        assert files(settings) == []


def test_an_image_changed_during_the_pass_leaves_no_file(photos, settings):
    _, protocol = choose_protocol(settings)
    cache = choose_cache(settings, photos, protocol, "bilinear")
    alone = Processes(0, 1, torch.device("cpu"))
    for _ in evaluation_batches(photos, protocol, 4, alone, 0, "bilinear", cache):
        os.utime(photos.folder / photos.ids[0])
    assert files(settings) == []


def test_what_was_used_longest_ago_makes_room(tmp_path):
    for age, name in enumerate(["new.crops", "old.crops", "older.crops", "dead.partial"]):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (0, time.time() - 10_000 * (age + 1)))
    (tmp_path / "live.partial").write_bytes(bytes(100))
    (tmp_path / "not-ours").write_bytes(bytes(100))
    evict(tmp_path, 300, keep=tmp_path / "next.partial")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"new.crops", "old.crops", "live.partial", "not-ours"}
    evict(tmp_path, 0, keep=tmp_path / "next.partial")
    assert {path.name for path in tmp_path.iterdir()} == {"live.partial", "not-ours"}


def test_the_limit_is_kept(photos, settings, caplog):
    with caplog.at_level(logging.INFO):
        crops(photos, replace(settings, cache_gigabytes=1e-6))
    assert "cache_gigabytes" in caplog.text
    assert files(settings) == []
    room = replace(settings, cache_gigabytes=5e-5)  # for one of the two
    crops(photos, room)
    first = files(settings)
    crops(photos, replace(room, flip=True, crop=20))
    assert len(files(settings)) == 1
    assert files(settings) != first


def test_a_folder_that_cannot_be_written_is_no_error(photos, settings, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    assert crops(photos, settings).shape == (9, 1, 3, 33, 33)


def test_small_sets_are_kept_only_where_asked_for(photos, settings, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    crops(photos, SETTINGS)
    assert not (tmp_path / "home").exists()
    monkeypatch.setattr(crop_cache, "SMALL", 9)
    crops(photos, SETTINGS)
    assert len(list((tmp_path / "home" / "sebench" / "crops").glob("*.crops"))) == 1


def test_evaluation_from_kept_crops_gives_the_same_samples(photos, settings, tmp_path, decoded):
    torch.manual_seed(0)
    backbone = BackboneSettings("se_resnet_tiny", weights=str(tmp_path / "w.safetensors"))
    network = build_network("se_resnet_tiny", 3)
    save_weights(
        network, backbone.weights, backbone=backbone, num_classes=3, input_format=InputFormat()
    )
    data = DataSettings(name="folder", root=str(photos.root), workers=0)
    rows = []
    for name in ("first", "second"):
        config = ClassificationConfig(backbone, data, evaluate=settings, device="cpu")
        result = run.evaluate(config, tmp_path / name)
        rows.append((result.metrics, (tmp_path / name / "samples.parquet").read_bytes()))
    assert len(decoded) == len(photos)
    assert rows[0] == rows[1]


def test_a_full_disk_ends_the_keeping_and_not_the_pass(photos, settings, monkeypatch, caplog):
    fresh = crops(photos, replace(settings, cache="none"))
    pwrite, written = os.pwrite, []

    def until_full(file, content, place):
        written.append(place)
        if len(written) > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(file, content, place)

    monkeypatch.setattr(crop_cache.os, "pwrite", until_full)
    with caplog.at_level(logging.INFO):
        assert torch.equal(crops(photos, settings), fresh)
    assert "No space left" in caplog.text
    assert files(settings) == []


def test_two_runs_at_once_build_one_file_and_both_are_right(photos, settings, decoded):
    fresh = crops(photos, replace(settings, cache="none"))
    _, protocol = choose_protocol(settings)
    alone = Processes(0, 1, torch.device("cpu"))
    passes = []
    for _ in range(2):
        cache = choose_cache(settings, photos, protocol, "bilinear")
        passes.append(evaluation_batches(photos, protocol, 4, alone, 0, "bilinear", cache))
    for pair in zip(*passes, strict=True):
        first, second = (batch.images for batch in pair)
        assert torch.equal(first, second)
    assert [name.rpartition(".")[2] for name in files(settings)] == ["crops"]
    decoded.clear()
    assert torch.equal(crops(photos, settings), fresh)
    assert decoded == []
