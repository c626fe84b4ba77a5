"""The published numbers: complete, sound, and never called comparable when they are not."""

import copy
import dataclasses
import json

import pytest
import yaml

from tools import references
from tools.experiments.record import METRICS, Metric, Record
from tools.experiments.run import TASKS, list_recipes, load_experiment

SETTINGS = load_experiment("classification", "imagenet-paper").settings


def run(
    backbone="se_resnet50",
    *,
    top1=23.3,
    recipe="imagenet-paper",
    action="train",
    settings=None,
    **changes,
):
    record = Record(
        created="2026-01-01T00:00:00+00:00",
        experiment={
            "task": "classification",
            "action": action,
            "recipe": recipe,
            "settings": json.loads(json.dumps(settings or SETTINGS)),
        },
        dataset={"name": "imagenet", "split": "val", "images": 50000, "synthetic": False},
        protocol={"name": "imagenet-256-224"},
        backbone={"name": backbone, "options": {}},
        weights={"sha256": "0" * 64},
        seed=0,
        metrics={"top1_error": Metric(top1, "percent", False, 50000)},
        per_class=[],
        cost={},
        timing={},
        selection="last epoch",
        files={},
        command="",
        git={},
        versions={},
        device={},
    )
    return dataclasses.replace(record, **changes)


def verdict(record, table="table-2", interval=(23.0, 23.6)):
    for found, published in references.references_of(record):
        if found.name == table and published.metric == "top1_error":
            return references.judge(record, found, published, interval)
    raise AssertionError(f"no reference in {table}")


def test_every_table_of_the_paper_is_there():
    tables = references.load_references()
    assert [f"table-{n}" for n in range(2, 17)] == [t for t in tables if t.startswith("table-")]
    assert {"released-weights", "footnote-2", "detectron-zoo"} < set(tables)


@pytest.mark.parametrize(
    ("table", "network", "metric", "value"),
    [
        ("table-2", "SE-ResNet-50", "top1_error", 23.29),
        ("table-3", "SE-MobileNet 1.0 224", "parameters", 4.7),
        ("table-5", "SE-ResNet-164", "top1_error", 21.31),
        ("table-6", "SE-ResNet-152", "top5_error", 11.01),
        ("table-7", "Faster R-CNN SE-ResNet-50", "AP", 40.4),
        ("table-8", "SENet-154 at 320", "top1_error", 17.28),
        ("table-10", "SE-ResNet-50, r = 16", "top1_error", 22.28),
        ("table-16", "NoSqueeze", "multiply_adds", 4.27),
    ],
)
def test_values_are_those_of_the_paper(table, network, metric, value):
    rows = {row.network: row for row in references.reference(table).rows}
    assert {r.metric: r.value for r in rows[network].references}[metric] == value


def test_the_gains_of_table_2_are_the_printed_ones():
    rows = {row.network: row.references[0].value for row in references.reference("table-2").rows}
    printed = {"ResNet-50": 1.51, "ResNet-101": 0.79, "ResNet-152": 0.85, "BN-Inception": 1.15}
    for network, gain in printed.items():
        assert rows[network] - rows[f"SE-{network}"] == pytest.approx(gain)


def test_every_value_has_unit_mark_and_protocol():
    for table in references.load_references().values():
        for row in table.rows:
            for value in row.references:
                assert value.mark in ("1", "2", "C")
                assert value.unit in ("percent", "million", "billion")
                assert value.protocol
                assert value.metric in METRICS or value.metric in ("parameters", "multiply_adds")


def test_the_traps_stand_beside_the_values():
    rows = {row.network: row for row in references.reference("table-5").rows}
    assert "15.20" in rows["Shake-Even 29 2x4x64d + Cutout"].references[0].notes[0]
    assert any("FPN" in note for note in references.reference("table-7").notes)
    for number in range(10, 17):
        assert any("23.30" in note for note in references.reference(f"table-{number}").notes)


@pytest.mark.parametrize("name", ["table-7", "Table 7", "7"])
def test_a_table_is_found_by_what_people_type(name):
    assert references.reference(name).name == "table-7"


def test_an_unknown_table_names_near_ones():
    with pytest.raises(ValueError, match="did you mean table-7"):
        references.reference("tabel-7")


def test_a_reference_inside_the_interval_is_reproduced_else_better_or_worse():
    assert verdict(run()).word == "reproduced"
    assert verdict(run(), interval=(22.0, 22.9)).word == "better"  # an error: lower is better
    assert verdict(run(), interval=(24.0, 24.9)).word == "worse"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"protocol": {"name": "imagenet-320"}}, "other protocol"),
        ({"dataset": {"name": "imagenet", "split": "val", "images": 100, "synthetic": False}}, "100"),
        ({"dataset": {"name": "imagenet", "split": "val", "images": 50000, "synthetic": True}}, "synth"),
        ({"recipe": "imagenet-modern"}, "other recipe"),
        ({"action": "evaluate"}, "unknown training"),
        ({"settings": {**SETTINGS, "train": {**SETTINGS["train"], "epochs": 2}}}, "train.epochs=2"),
    ],
)  # fmt: skip
def test_what_differs_is_not_comparable_and_says_why(changes, reason):
    found = verdict(run(**changes))
    assert found.word == "not comparable"
    assert reason in found.reason


def test_ablations_are_matched_by_their_options_and_not_by_table_2():
    record = run(backbone="se_resnet50")
    record.backbone["options"] = {"reduction": 4, "se_bias": False}
    tables = {t.name for t, _ in references.references_of(record)}
    assert tables == {"table-10"}


def test_released_weights_are_known_by_their_hash():
    record = run(
        "my_own_name",
        action="evaluate",
        weights={"sha256": "ce0d4300" + "0" * 56},
        metrics={"top1_accuracy": Metric(77.64, "percent", True, 50000)},
    )
    (table, published), *_ = references.references_of(record)
    assert table.name == "released-weights"
    assert references.judge(record, table, published, (77.2, 78.0)).word == "reproduced"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mark": "R"}, "mark"),
        ({"units": {"top1_error": "points"}}, "unit"),
        ({"surprise": 1}, "surprise"),
        ({"rows": [{"network": "A", "top1_error": 123.0}]}, "above 100"),
        ({"rows": [{"network": "A"}]}, "at least one value"),
        ({"rows": [{"network": "A", "AP": 3.0}]}, "no unit"),
    ],
)
def test_unsound_tables_are_refused(change, message):
    sound = {
        "title": "t", "table": "Table", "mark": "2", "task": "classification",
        "dataset": {"name": "imagenet", "split": "val", "images": 3}, "protocol": "p",
        "recipes": [], "units": {"top1_error": "percent"}, "notes": [],
        "rows": [{"network": "A", "top1_error": 12.0}],
    }  # fmt: skip
    references.parse_table("sound", copy.deepcopy(sound))
    with pytest.raises(ValueError, match=message):
        references.parse_table("broken", {**sound, **change})


def test_no_recalled_or_inferred_number_is_shipped():
    from importlib import resources

    for file in resources.files(references).iterdir():
        if file.name.endswith(".yaml"):
            assert yaml.safe_load(file.read_text("utf-8"))["mark"] in references.MARKS


def test_the_recipes_that_tables_name_are_there():
    for table in references.load_references().values():
        assert table.task in TASKS
        assert set(table.recipes) <= set(list_recipes(table.task)), table.name
