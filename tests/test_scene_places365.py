"""Places365 in every layout of its archives, labels by name, and a network trained on it."""

import os
import shutil
import unicodedata
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
from scene.places365 import OFFICIAL, read_categories, read_places365
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


def test_a_missing_list_is_named(copy):
    with pytest.raises(ValueError, match=r"challenge not found: looked for .*train_challenge\.txt"):
        read_places365(settings(copy, edition="challenge"), "train")
    (copy / "places365_val.txt").unlink()
    with pytest.raises(ValueError, match=r"val list .* not found: looked for .*places365_val\.txt"):
        read_places365(settings(copy), "val")


def test_without_a_category_file_the_official_classes_count(copy):
    (copy / "categories_places365.txt").unlink()
    with pytest.raises(ValueError, match=r"airport_terminal|is labelled 1"):
        read_places365(settings(copy), "train")  # the synthetic labels are others
    official = read_categories(OFFICIAL)
    assert (len(official), official[0], official[364]) == (365, "airfield", "zen_garden")
    for name in ("places365_train_standard.txt", "places365_val.txt"):
        lines = (copy / name).read_text().splitlines()
        relabelled = [
            f"{path} {official.index(path[3:].rpartition('/')[0]) if '/' in path else 364}"
            for path, _ in (line.split(" ") for line in lines)
        ]
        (copy / name).write_text("\n".join(relabelled))
    train = read_places365(settings(copy), "train")
    assert train.class_names == official
    for image_id, label in zip(train.ids, train.labels, strict=True):
        assert image_id[2:].rpartition("/")[0] == official[label]
    assert set(read_places365(settings(copy), "val").labels) == {364}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a.jpg twelve", "line 13: .*wanted '<file> <label 0..11>'"),
        ("a.jpg 12", "line 13: .*wanted '<file> <label 0..11>'"),
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


NAMES = ["a.jpg", "b c.jpg", "caf\u00e9.jpg", "d/e.jpg", "line\u2028.jpg"]


@pytest.fixture
def listed(tmp_path):
    """Writes the val list, and gives the ids that are read by it."""
    for number, name in enumerate(NAMES):
        path = tmp_path / "val_large" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(number))

    def read(content):
        (tmp_path / "places365_val.txt").write_bytes(content)
        return list(read_places365(settings(tmp_path), "val").ids)

    return read


LINES = "".join(f"{name} {label}\n" for label, name in enumerate(NAMES))


@pytest.mark.parametrize(
    "content",
    [
        LINES.encode(),
        LINES.encode("utf-8-sig"),
        LINES.encode("utf-16"),  # with its mark
        LINES.replace("\n", "\r\n").encode(),
        LINES.replace("d/e", "d\\e").encode(),  # Windows
        LINES.replace("a.jpg", "./a.jpg").encode(),
        unicodedata.normalize("NFD", LINES).encode(),  # as macOS writes names
        LINES.replace(" ", "\t").replace("b\t", "b ").encode() + b"\n\n",
    ],
)
def test_a_list_is_read_in_every_encoding_and_form_that_people_have(listed, content):
    assert listed(content) == NAMES


def test_names_that_are_not_utf8_are_read(tmp_path, listed):
    name = b"caf\xe9.jpg"  # Latin-1
    with open(bytes(tmp_path) + b"/val_large/" + name, "wb") as file:
        file.write(b"1")
    (image_id,) = listed(name + b" 3\n")
    assert os.fsencode(image_id) == name
    assert (tmp_path / "val_large" / image_id).read_bytes() == b"1"
    assert read_places365(settings(tmp_path), "val").sha256()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "lists nothing"),
        (b"a.jpg 0\nb c.jpg 1\na.jpg 2\n", r"lists files twice: a\.jpg"),
        (unicodedata.normalize("NFD", LINES).encode() + "caf\u00e9.jpg 2".encode(), "twice"),
        (b"C:\\a.jpg 0", "leads out of"),
        (b"d/../a.jpg 0", "leads out of"),
        (b"a.jpg\0 0", "zero bytes"),
        (b"\xff\xfea", "not UTF-16-LE"),
        (b"a.jpg " + b"9" * 5000, "wanted '<file> <label"),
        ("a.jpg \u00b2".encode(), "wanted '<file> <label"),
        (b"a.jpg\x1b[31m 400", r"'a\.jpg\\x1b\[31m 400', wanted"),
    ],
)
def test_what_is_no_list_is_refused_in_clean_text(listed, content, said):
    with pytest.raises(ValueError, match=said) as error:
        listed(content)
    assert str(error.value).isprintable()


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
    assert result.dataset.name == "places365"
    assert result.dataset.images == 12
    assert result.protocol.settings["resize_mode"] == "warp"
    assert Counter(row.images for row in result.per_class) == {1: 12}
    assert result.per_class[1].name == "apartment_building/outdoor"
    assert run.check(config)["steps"] == 4


def test_data_of_another_task_is_refused_with_what_scene_knows(places):
    with pytest.raises(ValueError, match=r"data\.name='cifar10': choose from places365"):
        run.check(ClassificationConfig(data=DataSettings(name="cifar10", root=str(places))))
