"""Bundles: what they hold, that they report as their runs do, and that no tampering passes."""

import dataclasses
import functools
import json
import shutil
import stat
import struct
import zipfile

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import yaml
from written_runs import altered, write_classifier, write_coco, write_detector

from backbones import BackboneSettings, files
from detection.annotations import read_annotations
from tools.experiments import archive
from tools.experiments.experiment import recompute_hashes
from tools.experiments.plan import Lock
from tools.experiments.record import load_records, read_record, write_record
from tools.experiments.run import describe_settings_network
from tools.experiments.settings import build_settings
from tools.experiments.status import PlannedCell
from tools.experiments.study import Needs
from tools.experiments.tasks import TASKS, load_function, settings_class
from tools.proof.bundle import manifest_text, write_bundle
from tools.proof.verify import verify_bundle
from tools.report import document, write_report
from tools.report.planned import read_plans
from tools.report.table import build_table
from tools.statistics import load_predictions


def sealed(folder, **changes):
    """Make a written run whole: hashes of its settings and data, and settings.yaml."""
    run = altered(read_record(folder / "record.json"), **changes)
    settings = json.loads(json.dumps(run.experiment.settings))
    settings["seed"] = run.seed
    settings["backbone"] |= {"name": run.backbone.name, "options": {}}
    setup = {"settings": settings, "contents": {}}
    task, action = run.task, run.experiment.action
    setup["hash"], setup["comparison_hash"] = recompute_hashes(task, action, settings, {})
    if run.task == "detection":
        digest = read_annotations(run.dataset.annotations).sha256
    else:
        rows = parquet.read_table(folder / "samples.parquet")
        digest = files.sha256_of_list(rows["image"].to_pylist(), rows["label"].to_numpy())
    dataset = {"reported_sha256": digest, "classes": len(run.dataset.class_names)}
    backbone = describe_settings_network(BackboneSettings(run.backbone.name))
    config = build_settings(settings_class(TASKS[run.task]), [("", settings)])
    protocol = dataclasses.asdict(load_function(TASKS[run.task].protocol)(config))
    run = altered(run, protocol=protocol)
    run = altered(run, experiment=setup, dataset=dataset, backbone=backbone)
    write_record(run, folder)
    told = {key: getattr(run.experiment, key) for key in ("task", "action", "recipe")}
    told |= {"experiment": setup["hash"], "comparison_hash": setup["comparison_hash"]}
    (folder / "settings.yaml").write_text(yaml.safe_dump({**told, "config": settings}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A study of classifiers, and one of detectors."""
    root = tmp_path_factory.mktemp("study")
    studies = [root / "runs" / name for name in ("classifiers", "detectors")]
    classifiers, detectors = (study / "c" for study in studies)
    made = []
    for seed in (0, 1):
        for network, accuracy in (("resnet20", 0.62), ("se_resnet20", 0.74)):
            folder = classifiers / f"{network}-{seed}"
            made.append(write_classifier(folder, network, seed=seed, accuracy=accuracy))
    annotations = write_coco(root / "coco")
    for network, shift in (("resnet_tiny", 1.0), ("se_resnet_tiny", 5.0)):
        made.append(write_detector(detectors / network, network, annotations, shift=shift))
    for study in studies:
        records = [
            read_record(folder / "record.json") for folder in made if study in folder.parents
        ]
        cells = [
            PlannedCell(
                number,
                f"c/{run.directory.name}",
                run.task,
                run.backbone.name,
                run.seed,
                None,
                Needs(),
            )
            for number, run in enumerate(records)
        ]
        (study / "cells.json").write_text(json.dumps([dataclasses.asdict(cell) for cell in cells]))
    locked = Lock("2026-01-01", {f"c/{folder.name}": "" for folder in made[:4]}, [], {})
    (studies[0] / "plan.json").write_text(json.dumps(dataclasses.asdict(locked)))
    for folder in made:
        samples = read_record(folder / "record.json").files.samples
        digest = files.sha256(folder / (samples or "detections.json"))  # of weights; there are none
        study, plans = folder.parents[1], {"plan": files.sha256(folder.parents[1] / "cells.json")}
        if (study / "plan.json").is_file():
            plans["locked_plan"] = files.sha256(study / "plan.json")
        sealed(folder, weights={"sha256": digest}, **plans)
    return root / "runs"


@pytest.fixture(scope="module")
def bundle(runs):
    return write_bundle([runs], runs.parent / "study.zip").path


@pytest.fixture(scope="module")
def bundles(runs):
    """One of the classifiers and one of the detectors alone, which take less time."""
    names = ("classifiers", "detectors")
    return [write_bundle([runs / name], runs.parent / f"{name}.zip").path for name in names]


def test_a_bundle_reports_byte_for_byte_as_its_runs_do(runs, bundle, tmp_path):
    (tmp_path / "made").mkdir()
    write_report([runs], tmp_path / "made" / "from-runs")
    for path in write_report([bundle], tmp_path / "made" / "from-bundle"):
        assert path.read_bytes() == (tmp_path / "made" / "from-runs" / path.name).read_bytes()


def test_the_same_runs_give_the_same_bytes_and_the_untouched_bundle_is_sound(
    runs, bundle, sebench, tmp_path
):
    code, out, _ = sebench("bundle", runs, "-o", tmp_path / "again.zip", "--json")
    assert code == 0
    assert (tmp_path / "again.zip").read_bytes() == bundle.read_bytes()
    made = json.loads(out)
    code, out, _ = sebench("verify", bundle, "--sha256", made["sha256"], "--json")
    found = json.loads(out)
    assert (code, found["findings"]) == (0, [])
    assert any("6 runs, computed anew" in text for text in found["checked"])


def test_a_bundle_of_bundles_is_sound(runs, bundle, tmp_path):
    again = write_bundle([bundle], tmp_path / "joined.zip")
    assert again.runs == 6
    assert again.path.read_bytes() == bundle.read_bytes()


# Tampering ---------------------------------------------------------------------------------------


def record_of(run="se_resnet20-0"):
    def edit(change):
        @functools.wraps(change)
        def tamper(folder):
            path = folder / "runs" / "c" / run / "record.json"
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content, indent=1) + "\n")

        return tamper

    return edit


def rows_of(*runs):
    def edit(change):
        @functools.wraps(change)
        def tamper(folder):
            for run in runs:
                path = folder / "runs" / "c" / run / "samples.parquet"
                table = parquet.read_table(path)
                parquet.write_table(
                    pa.Table.from_pylist(change(table.to_pylist()), table.schema), path
                )

        return tamper

    return edit


CLASSIFIERS = [f"{network}-{seed}" for network in ("resnet20", "se_resnet20") for seed in (0, 1)]


@record_of()
def metric_changed(record):
    record["metrics"]["top1_error"]["value"] -= 1


@record_of()
def both_top1_metrics_changed(record):
    record["metrics"]["top1_error"]["value"] -= 1
    record["metrics"]["top1_accuracy"]["value"] += 1


@record_of("se_resnet_tiny")
def ap_changed(record):
    record["metrics"]["AP"]["value"] += 0.5


@record_of()
def class_changed(record):
    record["per_class"][2]["value"] = 99.0


@record_of()
def direction_changed(record):
    record["metrics"]["top1_error"]["higher_is_better"] = True


@record_of()
def settings_key_changed(record):
    record["experiment"]["settings"]["train"]["epochs"] = 300


def settings_key_changed_everywhere(folder):
    record_of()(lambda record: record["experiment"]["settings"]["train"].update(epochs=300))(folder)
    path = folder / "runs" / "c" / "se_resnet20-0" / "settings.yaml"
    content = yaml.safe_load(path.read_text())
    content["config"]["train"]["epochs"] = 300
    path.write_text(yaml.safe_dump(content))


@record_of()
def seed_changed(record):
    record["seed"] = 7


@record_of()
def network_changed(record):
    record["backbone"]["name"] = "se_resnet56"


@record_of()
def protocol_changed(record):
    record["protocol"]["name"] = "imagenet-256-224-ten-crop"


@record_of("se_resnet_tiny")
def protocol_setting_changed(record):
    record["protocol"]["settings"]["tta"] = True


@record_of()
def data_renamed(record):
    record["dataset"]["name"] = "imagenet"


@record_of("resnet20-0")
def plain_called_se(record):
    record["backbone"]["is_se"] = True


def weights_swapped(folder):
    other = read_record(folder / "runs" / "c" / "resnet20-0" / "record.json").weights.sha256
    record_of()(lambda record: record["weights"].update(sha256=other))(folder)


@rows_of("se_resnet20-0")
def row_edited(rows):
    wrong = next(row for row in rows if row["top5"][0] != row["label"])
    wrong["top5"] = [wrong["label"]] + [k for k in range(4) if k != wrong["label"]]
    return rows


@rows_of("se_resnet20-0")
def label_edited(rows):
    rows[3]["label"] = (rows[3]["label"] + 1) % 4
    return rows


@rows_of("se_resnet20-0")
def row_duplicated(rows):
    return [rows[0], rows[0], *rows[2:]]


@rows_of("se_resnet20-0")
def row_removed(rows):
    return rows[:-1]


@rows_of("se_resnet20-0")
def image_list_reordered(rows):
    return [rows[1], rows[0], *rows[2:]]


@rows_of(*CLASSIFIERS)
def every_image_list_reordered(rows):
    return rows[::-1]


def detections_of(run):
    def edit(change):
        @functools.wraps(change)
        def tamper(folder):
            path = folder / "runs" / "c" / run / "detections.parquet"
            table = parquet.read_table(path)
            parquet.write_table(pa.Table.from_pylist(change(table.to_pylist()), table.schema), path)

        return tamper

    return edit


@detections_of("se_resnet_tiny")
def detection_added(found):
    return [*found, found[0] | {"x": 0, "y": 0, "width": 5, "height": 5, "score": 0.999}]


@detections_of("se_resnet_tiny")
def detection_moved(found):
    return [found[0] | {"x": found[0]["x"] + 30}, *found[1:]]


def annotation_file_edited(folder):
    (path,) = folder.glob("annotations/*/*")
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][1:]
    path.write_text(json.dumps(content))


def another_annotation_file(folder):
    """As above, and its hash put everywhere."""
    annotation_file_edited(folder)
    (path,) = folder.glob("annotations/*/*")
    digest = files.sha256(path)
    path.parent.rename(path.parent.with_name(digest))
    for run in ("resnet_tiny", "se_resnet_tiny"):
        record_of(run)(lambda record: record["dataset"].update(reported_sha256=digest))(folder)


def seed_dropped(folder):
    for network in ("resnet20", "se_resnet20"):
        shutil.rmtree(folder / "runs" / "c" / f"{network}-1")


def seed_dropped_and_plan_edited(folder):
    seed_dropped(folder)
    path = folder / "runs" / "cells.json"
    path.write_text(json.dumps([cell for cell in json.loads(path.read_text()) if not cell["seed"]]))
    path = folder / "runs" / "plan.json"
    plan = json.loads(path.read_text())
    kept = {name: known for name, known in plan["cells"].items() if name.endswith("-0")}
    path.write_text(json.dumps({**plan, "cells": kept}))


def seed_dropped_and_cells_edited(folder):
    plan = (folder / "runs" / "plan.json").read_bytes()
    seed_dropped_and_plan_edited(folder)
    (folder / "runs" / "plan.json").write_bytes(plan)


def plan_edited(folder):
    path = folder / "runs" / "plan.json"
    path.write_text(path.read_text().replace("2026-01-01", "2025-01-01"))


def seed_and_plan_dropped(folder):
    seed_dropped(folder)
    for name in ("cells.json", "plan.json"):
        (folder / "runs" / name).unlink()


def ended_before_its_rule_let_it(folder):
    """With a plan that ends where every comparison is equivalent, which none is."""
    path = folder / "runs" / "plan.json"
    looks = {"looks": [2, 3], "stop": "equivalent"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "looks": looks}))


def rows_taken_away(folder):
    (folder / "runs" / "c" / "se_resnet20-0" / "samples.parquet").unlink()


def record_removed(folder):
    shutil.rmtree(folder / "runs" / "c" / "se_resnet20-1")


def curve_edited(folder):
    path = folder / "runs" / "c" / "se_resnet20-1" / "curve.jsonl"
    path.write_text(path.read_text().replace('"loss": 2.0', '"loss": 1.0'))


def report_number_edited(folder):
    path = folder / "report.json"
    content = json.loads(path.read_text())
    content["comparisons"][0]["metrics"][0]["difference"]["difference"] -= 1
    path.write_text(json.dumps(content))


def report_sentence_edited(folder):
    path = folder / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"headline": "SE is better."}))


def extra_file(folder):
    (folder / "runs" / "c" / "se_resnet20-1" / "detections.parquet").write_text("[]")


def manifest_edited(folder):
    path = folder / "bundle.json"
    path.write_text(path.read_text().replace('"bytes"', '"size"'))


def annotations_elsewhere(folder):
    for run in ("resnet_tiny", "se_resnet_tiny"):
        record_of(run)(
            lambda record: record["dataset"].update(
                reported_sha256="../../../../../../../../../..", annotations="/etc/passwd"
            )
        )(folder)


SEMANTIC = {
    metric_changed: "top1_error is recorded as",
    both_top1_metrics_changed: "top1_accuracy is recorded as",
    ap_changed: "AP is recorded as",
    class_changed: "class 'cat' is recorded as 99.0",
    direction_changed: "another unit or direction",
    settings_key_changed: "its settings give the experiment",
    settings_key_changed_everywhere: "its settings give the experiment",
    seed_changed: "its seed is 7",
    network_changed: "backbone.name is",
    protocol_changed: "its protocol is imagenet-256-224-ten-crop",
    protocol_setting_changed: "protocol.tta is true",
    data_renamed: "its data are imagenet",
    plain_called_se: "backbone.is_se is true",
    weights_swapped: "its weights are those of c/resnet20-0",
    row_edited: "top1_error is recorded as",
    label_edited: "are not those of the data",
    row_duplicated: "an image stands in the rows twice",
    row_removed: "399 rows, expected 400",
    image_list_reordered: "are not those of the data",
    every_image_list_reordered: "are not those of the data",
    detection_added: "AP is recorded as",
    detection_moved: "AP is recorded as",
    annotation_file_edited: "is not the one that is recorded",
    another_annotation_file: "AP is recorded as",
    annotations_elsewhere: "no annotation file /etc/passwd",
    seed_dropped: "c/se_resnet20-1 is planned and not recorded",
    seed_dropped_and_plan_edited: "is not the plan of any run",
    seed_dropped_and_cells_edited: "is not the plan of any run",
    plan_edited: "names a fixed plan that is not here",
    ended_before_its_rule_let_it: "ended before 3 seeds, and not every comparison is equivalent",
    seed_and_plan_dropped: "its plan is not here",
    rows_taken_away: "has no samples file",
}
BY_HASH = {
    record_removed: "is listed and not in the bundle",
    curve_edited: "was changed after",
    report_number_edited: "says",
    report_sentence_edited: "says 'SE is better.'",
    extra_file: "is not listed",
    manifest_edited: "bundle.json",
}


DETECTION = (
    ap_changed, detection_added, detection_moved, annotation_file_edited, another_annotation_file,
    annotations_elsewhere, protocol_setting_changed,
)  # fmt: skip


def tampered(bundle, change, output, reseal=False):
    """The bundle with something changed; ``reseal``: with report and hashes made anew."""
    with archive.unpacked(bundle) as folder:
        change(folder)
        members = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
        if reseal:
            told = archive.read_manifest(folder)
            records, warnings = load_records([folder / archive.RUNS])
            records = [archive.with_annotations(record, folder) for record in records]
            plans = read_plans(folder.glob("runs/cells.json"))
            table = build_table(records, warnings, plans=plans)
            members["report.json"] = document.as_json(table).encode()
            del members["bundle.json"]
            archive.write_archive(
                output, members, lambda made: manifest_text(dataclasses.replace(told, files=made))
            )
        else:
            archive.write_archive(output, members)
    return output


def findings_of(path):
    return [f"{finding.where}: {finding.what}" for finding in verify_bundle(path).findings]


@pytest.mark.parametrize("change", [*SEMANTIC, *BY_HASH], ids=lambda change: change.__name__)
def test_a_changed_bundle_is_found(bundles, tmp_path, change):
    bundle = bundles[change in DETECTION]
    found = findings_of(tampered(bundle, change, tmp_path / "changed.zip"))
    assert any((SEMANTIC | BY_HASH)[change] in text for text in found), found


@pytest.mark.parametrize("change", SEMANTIC, ids=lambda change: change.__name__)
def test_a_forger_who_makes_report_and_hashes_anew_is_found_by_the_numbers(
    bundles, tmp_path, change
):
    bundle = bundles[change in DETECTION]
    found = findings_of(tampered(bundle, change, tmp_path / "changed.zip", reseal=True))
    assert any(SEMANTIC[change] in text for text in found), found
    assert not any("was changed after" in text or "says" in text for text in found)


# A stranger's zip --------------------------------------------------------------------------------


def written_by_hand(path, name="runs/a/record.json", content=b"{}", **fields):
    info = zipfile.ZipInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    with zipfile.ZipFile(path, "a") as zipped:
        zipped.writestr(info, content, zipfile.ZIP_DEFLATED)


def patched(path, offset, value):
    """Change two bytes of the entry of the first file in the list at the end."""
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\1\2") + offset
    content[place : place + 2] = struct.pack("<H", value)
    path.write_bytes(content)


def lies_about_its_size(path):
    written_by_hand(path, content=b" " * 5_000_000)
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\1\2")
    content[place + 24 : place + 28] = struct.pack("<L", 10)
    path.write_bytes(content)


def a_name_twice(path):
    written_by_hand(path)
    with pytest.warns(UserWarning, match="Duplicate"):
        written_by_hand(path)


def a_bomb(path):
    written_by_hand(path, content=b" " * (8 << 20))


def as_long_a_list_as_can_be(path):
    written_by_hand(path)
    content = path.read_bytes()
    path.write_bytes(content[:-14] + struct.pack("<2H", 65000, 65000) + content[-10:])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *(
            (functools.partial(written_by_hand, name=name), "is no file of a bundle")
            for name in (
                *(
                    "../record.json",
                    "/tmp/record.json",
                    "runs/../../record.json",
                    "C:\\record.json",
                ),
                *("runs/a\\..\\b/record.json", "runs//record.json", "runs/record.json", "evil.py"),
                *("runs/a/checkpoint.pt", "annotations/a/b.json", "runs/a\n/record.json"),
            )
        ),
        (a_bomb, "far more than it has"),
        (lies_about_its_size, "not a sound bundle"),
        (a_name_twice, "in the bundle twice"),
        (as_long_a_list_as_can_be, "more than 60000 files"),
        (
            functools.partial(written_by_hand, external_attr=(stat.S_IFLNK | 0o777) << 16),
            "not a plain file",
        ),
        (lambda path: (written_by_hand(path), patched(path, 8, 1)), "encrypted"),
        (lambda path: (written_by_hand(path), patched(path, 10, 14)), "packed in a way"),
        (lambda path: path.write_bytes(b"PK\3\4 no zip"), "no zip"),
        (lambda path: path.write_bytes(b""), "no zip"),
        (written_by_hand, "no bundle.json"),
    ],
)
def test_a_hostile_zip_is_refused_and_nothing_is_written_outside(
    tmp_path, make, message, sebench, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "unpacked"))
    (tmp_path / "unpacked").mkdir()
    path = tmp_path / "x.zip"
    make(path)
    code, out, _ = sebench("verify", path)
    assert code == 1
    assert message in out
    code, _, err = sebench("report", path, "-o", tmp_path / "report")
    assert code == 1
    assert "Traceback" not in err
    assert sorted(found.name for found in tmp_path.iterdir()) == ["unpacked", "x.zip"]
    assert not list((tmp_path / "unpacked").iterdir())


def test_a_small_file_of_rows_that_reads_as_gigabytes_is_refused(tmp_path):
    names = pa.DictionaryArray.from_arrays(pa.array([0] * 250_000, pa.int32()), ["x" * 20_000])
    columns = {"image": names, "label": [0] * 250_000, "top5": [[0, 1]] * 250_000}
    parquet.write_table(pa.table(columns), tmp_path / "samples.parquet")
    assert (tmp_path / "samples.parquet").stat().st_size < 1_000_000
    with pytest.raises(ValueError, match="more than images have"):
        load_predictions(tmp_path / "samples.parquet")


def test_weights_that_lie_beside_are_compared_with_their_records(runs, bundle, tmp_path):
    folder = tmp_path / "runs" / "classifiers" / "c" / "resnet20-0"
    folder.mkdir(parents=True)
    shutil.copy(
        runs / "classifiers" / "c" / "resnet20-0" / "samples.parquet",
        folder / "weights.safetensors",
    )
    found = verify_bundle(bundle, weights=tmp_path / "runs")
    assert not found.findings
    assert "weights of 1 of 6 runs" in found.checked
    (folder / "weights.safetensors").write_bytes(b"others")
    (finding,) = verify_bundle(bundle, weights=tmp_path / "runs").findings
    assert finding.what == "its weights there are not those of its record"


def test_what_cannot_be_shown_is_not_bundled(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    (tmp_path / "runs" / "classifiers" / "c" / "resnet20-0" / "samples.parquet").unlink()
    with pytest.raises(ValueError, match=r"samples.parquet is gone: without it"):
        write_bundle([tmp_path / "runs"], tmp_path / "study.zip")
    assert not (tmp_path / "study.zip").exists()
    with pytest.raises(ValueError, match=r"a bundle's name ends in \.zip"):
        write_bundle([runs], tmp_path / "study.tar")
