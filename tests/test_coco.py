"""COCO's layouts, sets of one's own, and what is wrong with them, said before any compute."""

import json
import shutil

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MapDataset, MetadataCatalog
from PIL import Image
from torch.utils.data import DataLoader

from detection.annotations import read_annotations
from detection.coco import load_coco, register_dataset
from detection.config import DataSettings
from detection.detector import ImageMapper
from tools import sample_data


@pytest.fixture(scope="module")
def coco_2017(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco17") / "coco"
    return sample_data.make_coco(folder, train=12, val=5, size=64)


@pytest.fixture(scope="module")
def coco_2014(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco14") / "coco"
    return sample_data.make_coco(folder, train=6, val=4, size=64, year=2014)


@pytest.fixture
def spoiled(coco_2017, tmp_path):
    """A copy of the set, and a function that edits one of its annotation files."""
    root = tmp_path / "coco"
    shutil.copytree(coco_2017, root)

    def edit(change, file="instances_val2017.json"):
        path = root / "annotations" / file
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return DataSettings(root=str(root))

    return root, edit


def test_2017_is_read_under_a_root_that_holds_coco_or_is_it(coco_2017, monkeypatch):
    found = load_coco(DataSettings(root=str(coco_2017.parent)))
    again = load_coco(DataSettings(root=str(coco_2017)))
    assert (again.root, again.sha256()) == (found.root, found.sha256())
    assert (found.train[0].image_count, found.val.image_count) == (12, 5)
    assert (found.train[0].annotations.split, found.val.annotations.split) == (
        "train2017",
        "val2017",
    )
    assert found.class_names == ["circle", "square", "triangle"]
    assert found.category_ids == [1, 3, 7]
    assert found.synthetic
    monkeypatch.setenv("DETECTRON2_DATASETS", str(coco_2017.parent))
    assert load_coco(DataSettings()).sha256() == found.sha256()


def test_2014_trains_on_train_and_valminusminival_and_is_scored_on_minival(coco_2014):
    data = DataSettings(name="coco_2014", root=str(coco_2014))
    found = load_coco(data)
    assert [part.annotations.split for part in found.train] == ["train2014", "valminusminival2014"]
    assert [part.image_count for part in found.train] == [6, 2]
    assert (found.val.annotations.split, found.val.image_count) == ("minival2014", 4)
    assert load_coco(data, ("val",)).train == ()
    names = [register_dataset(part) for part in (*found.train, found.val)]
    assert [len(DatasetCatalog.get(name)) for name in names] == [6, 2, 4]


def test_detectrons_own_folder_names_are_known(coco_2014, tmp_path):
    root = tmp_path / "coco"
    shutil.copytree(coco_2014, root)
    for name in ("train2014", "val2014"):
        (root / name).rename(root / f"coco_{name}")
    assert load_coco(DataSettings(name="coco_2014", root=str(root))).val.image_count == 4


def test_a_set_of_ones_own_is_two_paths_a_split(coco_2017):
    def paths(split):
        return {
            f"{split}_annotations": f"{coco_2017}/annotations/instances_{split}2017.json",
            f"{split}_images": f"{coco_2017}/{split}2017",
        }

    found = load_coco(DataSettings(name="custom", **paths("train"), **paths("val")))
    assert found.val.image_count == 5
    assert found.synthetic
    only_val = DataSettings(name="custom", **paths("val"))
    only = load_coco(only_val, ("val",))
    assert only.val.annotations.sha256 == found.val.annotations.sha256
    with pytest.raises(ValueError, match=r"data.train_annotations is missing; give the COCO file"):
        load_coco(only_val)


def test_detectron2_reads_what_is_registered_with_classes_from_zero(coco_2017):
    part = load_coco(DataSettings(root=str(coco_2017))).train[0]
    register_dataset(part)
    name = register_dataset(part)
    records = DatasetCatalog.get(name)
    boxes = [box for record in records for box in record["annotations"]]
    assert len(records) == 12
    assert len(boxes) == len(part.annotations.box)
    assert {box["category_id"] for box in boxes} <= {0, 1, 2}
    assert MetadataCatalog.get(name).thing_classes[2] == "triangle"


def test_boxes_train_whatever_their_polygons_are(spoiled):
    _, edit = spoiled
    plain = load_coco(edit(lambda content: None)).train[0].records()

    polygons = [[1, 2], [[1, 2]], "x", None, {}] * 99

    def shorten(content):
        for row, polygon in zip(content["annotations"], polygons, strict=False):
            row["segmentation"] = polygon

    data = edit(shorten, "instances_train2017.json")
    assert load_coco(data).train[0].records() == plain


def test_a_set_of_crowds_alone_is_refused_before_training(spoiled):
    _, edit = spoiled

    def crowd(content):
        for row in content["annotations"]:
            row["iscrowd"] = 1

    data = edit(crowd, "instances_train2017.json")
    with pytest.raises(ValueError, match="every box is a crowd"):
        load_coco(data)
    assert load_coco(data, ("val",)).train == ()


def test_a_missing_root_says_what_was_looked_for_and_where(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*nowhere \(looked for .*train2017.json"):
        load_coco(DataSettings(root=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match=r"no annotation file .*instances_train2017.json: coco_"):
        load_coco(DataSettings(root=str(tmp_path)))


def test_a_missing_image_folder_or_picture_is_named(spoiled):
    root, _ = spoiled
    first = next((root / "val2017").iterdir())
    first.unlink()
    with pytest.raises(ValueError, match=rf"lacks 1 of 5 images \({first.name}\)"):
        load_coco(DataSettings(root=str(root)))
    shutil.rmtree(root / "val2017")
    with pytest.raises(ValueError, match=r"no image folder .*val2017"):
        load_coco(DataSettings(root=str(root)))


def first_annotation(**values):
    return lambda content: content["annotations"][0].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first_annotation(category_id=2), r"1 annotations whose category_id does not exist .* 2\)"),
        (first_annotation(image_id=99_999), "whose image_id does not exist .*99999"),
        (first_annotation(bbox=[1, 2, 3]), r"a box is \[x, y, width, height\]"),
        (first_annotation(bbox=[1, 2, float("nan"), 4]), "NaN and Infinity are no JSON"),
        (lambda c: c["annotations"][0].pop("bbox"), r"annotations\[0\] has no 'bbox'"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "two annotations have the id"),
        (lambda c: c["images"].append(c["images"][0]), "two images have the id"),
        (lambda c: c.pop("annotations"), "holds no list 'annotations'"),
        (lambda c: c["images"][0].update(width=999), "999 x .*an evaluation leaves no image out"),
        (lambda c: c["images"][0].update(file_name="../a.jpg"), "leads out of the image folder"),
        (lambda c: c["images"][0].update(file_name="/a.jpg"), "leads out of the image folder"),
        (
            lambda c: c["images"][0].update(file_name="a\0.jpg"),
            r"a.*00.jpg' leads out of the image",
        ),
        (lambda c: c["categories"][0].update(name="disc"), "disagree about the categories"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(spoiled, change, message):
    _, edit = spoiled
    with pytest.raises(ValueError, match=message):
        load_coco(edit(change))


@pytest.mark.parametrize("box", [[5, 5, 0, 9], [5, 5, 9, -1], [60, 5, 20, 9], [-8, 5, 10, 9]])
def test_boxes_without_area_or_outside_are_refused_or_counted(spoiled, box):
    root, edit = spoiled
    data = edit(first_annotation(bbox=box), "instances_train2017.json")
    with pytest.raises(ValueError, match=r"1 boxes have no area or lie .*data.accept_bad_boxes=1"):
        load_coco(data)
    accepted = load_coco(DataSettings(root=str(root), accept_bad_boxes=1))
    assert [part.bad_boxes for part in (*accepted.train, accepted.val)] == [1, 0]


def test_a_box_that_ends_with_its_picture_is_fine(spoiled):
    _, edit = spoiled

    def whole_picture(content):
        row = content["annotations"][0]
        picture = next(i for i in content["images"] if i["id"] == row["image_id"])
        row["bbox"] = [0, 0, picture["width"], picture["height"] + 0.5]

    load_coco(edit(whole_picture))


def test_damaged_pictures_are_named_and_left_out_of_training_only(spoiled):
    root, _ = spoiled
    cut, text = sorted((root / "train2017").iterdir())[:2]
    cut.write_bytes(cut.read_bytes()[:-300])
    text.write_text("not an image")
    with pytest.raises(ValueError, match=r"2 damaged images .*truncated.*not an image"):
        load_coco(DataSettings(root=str(root), skip_bad_images=1))
    part = load_coco(DataSettings(root=str(root), skip_bad_images=2)).train[0]
    assert {part.annotations.file_names[place] for place in part.bad_images} == {
        cut.name,
        text.name,
    }
    assert len(DatasetCatalog.get(register_dataset(part))) == part.image_count == 10
    next((root / "val2017").iterdir()).write_bytes(b"")
    with pytest.raises(ValueError, match="an evaluation leaves no image out"):
        load_coco(DataSettings(root=str(root), skip_bad_images=9))


def test_an_image_that_breaks_off_in_its_middle_is_named(spoiled, monkeypatch):
    root, _ = spoiled
    path = next(iter(sorted((root / "train2017").iterdir())))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2] = b"\xff\xc4"  # a table where pixels are expected
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"damaged images \\({path.name}: broken data stream"):
        load_coco(DataSettings(root=str(root)))
    monkeypatch.setattr("detection.coco.DECODED_UP_FRONT", 0)  # as in a set of COCO's size
    part = load_coco(DataSettings(root=str(root))).train[0]
    record = next(
        r for r in DatasetCatalog.get(register_dataset(part)) if path.name in r["file_name"]
    )
    images = MapDataset([record], ImageMapper(get_cfg(), is_train=False))
    loader = DataLoader(images, batch_size=None, num_workers=1)
    with pytest.raises(ValueError, match=f"^{path}: broken data stream .*; mend the image"):
        next(iter(loader))


def test_postscript_that_says_it_is_a_jpeg_is_never_run(spoiled):
    root, _ = spoiled
    path = next(iter(sorted((root / "train2017").iterdir())))
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match=f"{path.name}: not an image"):
        load_coco(DataSettings(root=str(root)))


def test_an_image_of_sixteen_bits_is_not_clipped_to_white(spoiled):
    root, _ = spoiled
    path = next(iter(sorted((root / "val2017").iterdir())))
    with Image.open(path) as image:
        size = image.size
    Image.fromarray(np.full(size[::-1], 40_000, np.uint16)).save(path, "PNG")
    with pytest.raises(ValueError, match=r"mode I;16: Detectron2 would clip it to white"):
        load_coco(DataSettings(root=str(root)))


def test_a_turned_photograph_has_the_size_it_is_seen_in(spoiled):
    root, _ = spoiled
    path = next(iter(sorted((root / "val2017").iterdir())))
    with Image.open(path) as image:
        exif = image.getexif()
        exif[274] = 6  # a quarter turn
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    assert load_coco(DataSettings(root=str(root))).val.image_count == 5


def test_a_turned_photograph_annotated_as_stored_is_not_called_damaged(spoiled):
    root, edit = spoiled
    path = next(iter(sorted((root / "val2017").iterdir())))
    with Image.open(path) as image:
        exif = image.getexif()
        exif[274] = 8
        image.crop((0, 0, 64, 48)).save(path, exif=exif)

    def annotate(content):
        row = next(row for row in content["images"] if row["file_name"] == path.name)
        row.update(width=64, height=48)
        content["annotations"] = [b for b in content["annotations"] if b["image_id"] != row["id"]]

    with pytest.raises(ValueError, match="seen as 48 x 64 pixels by its EXIF orientation, annot"):
        load_coco(edit(annotate))


def test_what_is_no_coco_file_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_annotations(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="Expected 'object', got 'array'"):
        read_annotations(path)
