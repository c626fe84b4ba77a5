"""The published numbers: complete, sound, and never called comparable when they are not."""

import copy
import dataclasses
import functools
import json
from decimal import Decimal

import pytest
import yaml
from written_runs import altered, evaluation_of, published_run

from tools import references
from tools.experiments.experiment import list_recipes, load_experiment
from tools.experiments.record import METRICS, Metric, write_record
from tools.experiments.tasks import TASKS
from tools.references.verdicts import MAY_DIFFER
from tools.report.pairs import Pair
from tools.report.published import effects_beside
from tools.statistics import Bounds, Difference

TABLES = references.load_references()
ROWS = [
    (table, row)
    for table in TABLES.values()
    for row in table.rows
    if row.backbone is not None and table.initial != "released"
]
NAMED = [f"{table.name}, {row.network}" for table, row in ROWS]
# One row for each recipe and what the row adds to it: the others are compared alike.
DISTINCT = list(
    {(t.task, r.recipes, str(r.settings), t.may_differ): (t, r) for t, r in ROWS}.values()
)


def row_of(table, network):
    return TABLES[table], next(row for row in TABLES[table].rows if row.network == network)


def verdicts_of(record, table, row, training=None):
    """What is said of three seeds that measured the same beside every value of a row."""
    return [
        references.judge([record] * 3, published, 0.3, [training] * 3)
        for published in references.references_of(record, training)
        if published.table.name == table.name and published.row == row
    ]


def assert_reproduced(record, table, row, training=None):
    verdicts = verdicts_of(record, table, row, training)
    assert verdicts, "nothing was found to compare with"
    assert {v.word for v in verdicts} == {"reproduced"}, verdicts[0].reason


def assert_not_comparable(record, table, row, reason, training=None):
    verdicts = verdicts_of(record, table, row, training)
    assert {v.word for v in verdicts} <= {"not comparable"}
    assert all(reason in v.reason for v in verdicts), verdicts[0].reason


def with_settings(record, changes):
    settings = copy.deepcopy(record.experiment.settings)
    for key, value in changes.items():
        *groups, last = key.split(".") if not key.startswith("detectron2.") else key.split(".", 1)
        part = settings
        for group in groups:
            part = part[group]
        part[last] = value
    return altered(record, experiment={"settings": settings})


def with_data(record, **changes):
    return altered(record, dataset=changes)


def leaves(part, prefix=""):
    for key, value in part.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def another(value):
    """Another value than this one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return [7] if isinstance(value, list) else f"not {value}"


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


def test_a_published_number_is_reproduced_by_evidence_only():
    table, row = row_of("table-2", "SE-ResNet-50")
    run = published_run(table, row)
    published = next(
        p for p in references.references_of(run)
        if p.row == row and p.reference.metric == "top1_error"
    )  # fmt: skip

    def word(*errors):
        runs = [
            dataclasses.replace(
                run, metrics={**run.metrics, "top1_error": Metric(e, "percent", False, 50_000)}
            )
            for e in errors
        ]
        return references.judge(runs, published, 0.3)

    assert word(23.30, 23.25, 23.32).word == "reproduced"
    assert word(24.30, 24.25, 24.32).word == "not reproduced"
    assert word(22.9, 23.6).word == "undecided"
    assert word(23.29).word == "undecided"
    assert "noise of training" in word(23.29).reason


def test_released_weights_are_held_to_rounding_and_decoder():
    _, row = row_of("released-weights", "legacy_seresnet50 (timm)")
    weights = {"path": "timm:legacy_seresnet50.in1k", "sha256": "9" * 64}
    run = published_run(*row_of("table-2", "SE-ResNet-50"))

    def judged(accuracy):
        metrics = {"top1_accuracy": Metric(accuracy, "percent", True, 50_000)}
        changes = {"protocol": "imagenet-256-224", "weights": weights, "metrics": metrics}
        found = evaluation_of(run, **changes)
        (published,) = (p for p in references.references_of(found) if p.row == row)
        return references.judge([found], published, 0.3)

    assert judged(77.65 + 0.09).word == "reproduced"
    assert judged(77.65 - 0.30).word == "not reproduced"
    assert "differs by -0.30" in judged(77.65 - 0.30).reason


def test_effects_of_twins_are_judged_beside_their_levels():
    sides = [
        published_run(*row_of("table-2", network)) for network in ("ResNet-50", "SE-ResNet-50")
    ]
    pair = Pair((sides[0],) * 3, (sides[1],) * 3)

    def judged(effect, noise, pair=pair):
        found = Difference(
            24.8, 24.8 + effect, effect, effect - noise, effect + noise, 0.01, seeds=3,
            degrees_of_freedom=4.0, on_these_images=Bounds(effect - noise, effect + noise, 0.01),
            seed_sd=noise / 3, churn_sd=noise / 3,
        )  # fmt: skip
        rows = effects_beside(pair, {"top1_error": found}, {}, None)
        return next(row for row in rows if row.metric == "top1_error" and row.where == "Table 2")

    def judged_at(found, run_sd):
        rows = effects_beside(pair, {"top1_error": found}, {}, None, run_sd)
        return next(row for row in rows if row.metric == "top1_error" and row.where == "Table 2")

    same = judged(-1.5, 0.05)
    assert same.published == pytest.approx(23.29 - 24.80)
    assert same.printed == "-1.51"
    assert same.published_network == "SE-ResNet-50 minus ResNet-50"
    assert same.verdict == "reproduced"
    assert judged(-1.3, 0.6).verdict == "undecided"
    assert judged(0.0, 0.05).verdict == "not reproduced"
    one = Difference(24.8, 23.3, -1.5, -1.7, -1.3, 0.01, seeds=1)
    assert judged_at(one, None).verdict == "undecided"
    assert judged_at(one, 0.03).verdict == "reproduced"
    assert judged_at(dataclasses.replace(one, difference=0.0), 0.2).verdict == "not reproduced"
    assert judged_at(one, 0.03).reason.endswith("one seed, 0.03 points over seeds stated")
    changed = dataclasses.replace(pair, plain=(with_settings(sides[0], {"train.epochs": 2}),) * 3)
    assert judged(-1.5, 0.05, changed).verdict == "not comparable"


@pytest.mark.parametrize(("table", "row"), ROWS, ids=NAMED)
def test_a_run_as_published_is_compared_with_its_row(table, row):
    run = published_run(table, row)
    assert_reproduced(run, table, row)
    assert_reproduced(evaluation_of(run), table, row, training=run)


@pytest.mark.parametrize(("table", "row"), DISTINCT, ids=lambda x: getattr(x, "name", ""))
def test_every_setting_that_changes_a_result_is_compared(table, row):
    run = published_run(table, row)
    identity = load_experiment(table.task, row.recipes[0]).identity()
    matters = {key for key, _ in leaves(identity)}
    compared = 0
    for key, value in leaves(run.experiment.settings):
        free = key not in matters or key in MAY_DIFFER or key in table.may_differ
        if key.startswith(("backbone.", "evaluate.")):
            continue  # the network, the initial weights and the protocol: below
        changed = with_settings(run, {key: another(value)})
        if free:
            assert_reproduced(changed, table, row)
        else:
            assert_not_comparable(changed, table, row, f"{key}=")
            compared += 1
    assert compared > 15


@functools.cache
def settings_of(task, recipe):
    return load_experiment(task, recipe).settings


@pytest.mark.parametrize(("table", "row"), DISTINCT, ids=lambda x: getattr(x, "name", ""))
def test_a_recipe_of_another_row_is_not_comparable(table, row):
    run = published_run(table, row)
    for recipe in list_recipes(table.task):
        if recipe in row.recipes:
            continue
        settings = json.loads(json.dumps(settings_of(table.task, recipe)))
        if settings["data"]["name"] != table.dataset["name"]:
            continue  # its runs are of other data, whatever the recipe
        changed = altered(run, experiment={"recipe": recipe, "settings": settings})
        assert_not_comparable(changed, table, row, "other recipe")


def test_a_recipe_goes_by_its_settings_and_not_by_its_name():
    table, row = row_of("table-2", "SE-ResNet-50")
    run = published_run(table, row)
    copied = altered(run, experiment={"recipe": "my/copy.yaml"})
    assert_reproduced(copied, table, row)
    changed = with_settings(copied, {"train.epochs": 90})
    assert_not_comparable(changed, table, row, "other recipe: my/copy.yaml")


def test_a_run_of_an_earlier_version_that_lacks_a_setting_has_its_default():
    table, row = row_of("table-2", "SE-ResNet-50")
    run = published_run(table, row)
    del run.experiment.settings["data"]["sampling"]  # uniform, in the recipe too
    assert_reproduced(run, table, row)
    del run.experiment.settings["train"]["batch_size"]  # 1024 in the recipe, 128 by default
    assert_not_comparable(run, table, row, "train.batch_size=128")


@pytest.mark.parametrize(
    ("table", "network", "change", "reason"),
    [
        ("table-2", "SE-ResNet-50", {"name": "folder"}, "other data: folder"),
        ("table-2", "SE-ResNet-50", {"split": "train"}, "other data: imagenet train"),
        ("table-2", "SE-ResNet-50", {"images": 49_999}, "49999 of 50000"),
        ("table-2", "SE-ResNet-50", {"train_images": 1_281_166}, "1281166 images of training"),
        ("table-2", "SE-ResNet-50", {"train_images": None}, "does not say"),
        ("table-2", "SE-ResNet-50", {"synthetic": True}, "synthetic"),
        ("table-4", "SE-ResNet-110", {"name": "cifar100"}, "other data"),
        ("table-6", "SE-ResNet-152", {"train_images": 1_803_460}, "1803460 images of training"),
        ("table-7", "Faster R-CNN SE-ResNet-50", {"name": "custom"}, "other data"),
        ("table-7", "Faster R-CNN SE-ResNet-50", {"split": "valminusminival2014"}, "other data"),
        ("table-7", "Faster R-CNN SE-ResNet-50", {"skipped_train_images": 3}, "3 images"),
        ("table-7", "Faster R-CNN SE-ResNet-50", {"bad_boxes": 11}, "11 boxes"),
        ("table-10", "SE-ResNet-50, r = 16", {"held_out_images": None}, "images of training"),
    ],
)
def test_other_images_are_not_comparable(table, network, change, reason):
    table, row = row_of(table, network)
    assert_not_comparable(with_data(published_run(table, row), **change), table, row, reason)


@pytest.mark.parametrize(
    ("table", "network", "changes"),
    [
        ("table-6", "SE-ResNet-152", {"data.edition": "standard"}),
        ("table-6", "SE-ResNet-152", {"data.size": "large"}),
        ("table-6", "SE-ResNet-152", {"data.size": "auto"}),
        ("table-6", "SE-ResNet-152", {"data.sampling": "uniform"}),
        ("table-2", "SE-ResNet-50", {"data.sampling": "class_aware"}),
        ("table-2", "SE-ResNet-50", {"data.classes": "folders"}),
        ("table-2", "SE-ResNet-50", {"data.holdout": 0.1}),
        ("table-7", "Faster R-CNN SE-ResNet-50", {"data.train_annotations": "a.json"}),
        ("table-7", "Faster R-CNN SE-ResNet-50", {"detectron2.MODEL.RPN.NMS_THRESH": 0.9}),
        ("table-7", "Faster R-CNN SE-ResNet-50", {"detector.architecture": "retinanet"}),
        ("table-7", "Faster R-CNN SE-ResNet-50", {"backbone.allow_missing": ["res5.*"]}),
    ],
)
def test_the_settings_of_data_and_detector_are_compared(table, network, changes):
    table, row = row_of(table, network)
    changed = with_settings(published_run(table, row), changes)
    assert_not_comparable(changed, table, row, next(iter(changes)))


def test_training_from_other_weights_is_not_comparable():
    table, row = row_of("table-2", "SE-ResNet-50")
    run = published_run(table, row)
    tuned = {"initial": {"path": "mine.pth", "sha256": "1" * 64, "missing": []}}
    changed = altered(run, weights=tuned)
    assert_not_comparable(changed, table, row, "started from mine.pth, published from scratch")
    changed = with_settings(run, {"backbone.weights": "mine.pth"})  # a record without `initial`
    assert_not_comparable(changed, table, row, "started from mine.pth")

    table, row = row_of("table-7", "Faster R-CNN SE-ResNet-50")
    run = published_run(table, row)
    for initial, reason in (
        (None, "trained from scratch"),
        ({"path": "mine.pth", "sha256": "1" * 64, "missing": []}, "unknown training: mine.pth"),
        ({"path": "timm:resnet50.fb_swsl_ig1b_ft_y", "sha256": "1" * 64, "missing": []}, "unknown"),
        ({"path": "r.pth", "sha256": "ce0d4300" + "0" * 56, "missing": ["res5.0"]}, "1 tensors"),
    ):
        changed = altered(run, weights={"initial": initial})
        assert_not_comparable(changed, table, row, reason)


def test_a_detector_may_start_from_any_known_imagenet_classifier(tmp_path):
    table, row = row_of("table-7", "Faster R-CNN SE-ResNet-50")
    run = published_run(table, row)
    classifier = published_run(*row_of("table-2", "SE-ResNet-50"))
    write_record(classifier, tmp_path)
    own = str(tmp_path / "weights.safetensors")
    for path, sha256 in (("timm:legacy_seresnet50.in1k", "2" * 64), (own, "a" * 64)):
        initial = {"path": path, "sha256": sha256, "missing": []}
        changed = altered(run, weights={"initial": initial})
        assert_reproduced(changed, table, row)


def test_the_daily_faster_rcnn_2x_is_compared_with_table_7():
    table, row = row_of("table-7", "Faster R-CNN SE-ResNet-50")
    run = published_run(table, dataclasses.replace(row, recipes=("faster-rcnn-2x",)))
    assert run.experiment.recipe == "faster-rcnn-2x"
    assert_reproduced(run, table, row)


def test_senet_154_is_compared_at_224_at_320_and_trained_at_320():
    small = row_of("table-8", "SENet-154 at 224")
    large = row_of("table-8", "SENet-154 at 320")
    trained = row_of("table-9", "SENet-154 trained at 320")
    run = published_run(*small)
    assert_reproduced(run, *small)
    for protocol in ("imagenet-320", "imagenet-320+resize352"):  # the resize is not stated
        changed = altered(
            run,
            protocol={"name": protocol},
            metrics={"top1_error": Metric(17.28, "percent", False, 50_000)},
        )
        assert_reproduced(changed, *large)
        assert_reproduced(evaluation_of(changed), *large, training=run)
        assert_not_comparable(changed, *small, "other protocol")
        assert_not_comparable(changed, *trained, "augment.size=224, in the recipe 320")
    assert_reproduced(published_run(*trained), *trained)


@pytest.mark.parametrize(
    "change", ["+flip", "+resize288", "+crop192", "+fog3", "+ensemble2", "-ten-crop"]
)
@pytest.mark.parametrize(("table", "row"), DISTINCT, ids=lambda x: getattr(x, "name", ""))
def test_another_protocol_is_not_comparable(table, row, change):
    run = published_run(table, row)
    protocol = f"{run.protocol.name}{change}"
    changed = altered(run, protocol={"name": protocol})
    if change == "+resize288" and "evaluate.resize" in table.may_differ:
        assert_reproduced(changed, table, row)
    else:
        assert_not_comparable(changed, table, row, "other protocol")


def test_a_protocol_that_says_what_it_is_anyway_is_the_same():
    table, row = row_of("table-2", "SE-ResNet-50")
    run = published_run(table, row)
    same = altered(run, protocol={"name": "imagenet-256-224+resize256+crop224"})
    assert_reproduced(same, table, row)


def test_an_ensemble_is_not_comparable():
    table, row = row_of("table-2", "SE-ResNet-50")
    run = published_run(table, row)
    found = evaluation_of(run)
    found = altered(found, weights={"ensemble": [{"path": "b", "sha256": "c"}]})
    assert_not_comparable(found, table, row, "ensemble of 2", training=run)


def test_an_evaluation_is_judged_by_the_run_that_trained_its_weights(tmp_path):
    table, row = row_of("table-2", "SE-ResNet-50")
    run = published_run(table, row)
    found = evaluation_of(run)
    assert_not_comparable(found, table, row, "unknown training")
    assert references.training_of(found, {"a" * 64: run}) is run
    write_record(run, tmp_path)
    beside = evaluation_of(run)
    beside = altered(beside, weights={"path": str(tmp_path / "weights.safetensors")})
    assert references.training_of(beside, {}) == run
    beside = altered(beside, weights={"sha256": "b" * 64})  # the file was replaced since
    assert references.training_of(beside, {}) is None
    short = with_settings(run, {"train.epochs": 2})
    assert_not_comparable(found, table, row, "train.epochs=2", training=short)


def test_a_detector_evaluated_with_other_keys_of_detectron2_is_not_comparable():
    table, row = row_of("table-7", "Faster R-CNN SE-ResNet-50")
    run = published_run(table, row)
    found = evaluation_of(run)
    key = "detectron2.MODEL.ROI_HEADS.NMS_THRESH_TEST"
    changed = with_settings(found, {key: 0.9})
    assert_not_comparable(changed, table, row, key, training=run)


def test_ablations_are_matched_by_their_options_and_not_by_table_2():
    table, row = row_of("table-10", "SE-ResNet-50, r = 4")
    found = references.references_of(published_run(table, row))
    assert {p.table.name for p in found} == {"table-10"}


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({}, True),
        ({"reduction": 16, "squeeze": "avg", "attention": "se"}, True),  # defaults, said
        ({"stride_in_1x1": True, "stem_pool": "padded"}, True),
        ({"stride_in_1x1": False}, False),
        ({"attention": "eca"}, False),
        ({"se_stages": [5, 4, 3, 2]}, True),
        ({"se_stages": [4, 5]}, False),
    ],
)
def test_a_network_is_the_published_one_by_all_its_options(options, same):
    table, row = row_of("table-2", "SE-ResNet-50")
    run = published_run(table, row)
    run = altered(run, backbone={"options": options})
    assert bool(verdicts_of(run, table, row)) == same


def test_released_weights_are_known_by_their_hash_or_their_name():
    table, row = row_of("released-weights", "legacy_seresnet50 (timm)")
    metrics = {"top1_accuracy": Metric(77.64, "percent", True, 50_000)}
    run = published_run(*row_of("table-2", "SE-ResNet-50"))
    protocol = "imagenet-256-224+resize256+crop224"  # as `weights remeasure` evaluates them
    for weights in (
        {"path": "mine.pth", "sha256": "ce0d4300" + "0" * 56},
        {"path": "timm:legacy_seresnet50.in1k", "sha256": "9" * 64},
    ):
        found = evaluation_of(run, protocol=protocol, weights=weights, metrics=metrics)
        assert_reproduced(found, table, row)
        trained = altered(found, experiment=run.experiment)
        assert_not_comparable(trained, table, row, "other training")


@pytest.mark.parametrize("name", [t.name for t in TABLES.values() if t.initial == "released"])
def test_released_weights_are_compared_under_the_protocol_of_their_row(name):
    run = published_run(*row_of("table-2", "SE-ResNet-50"))
    for row in TABLES[name].rows:
        if row.download is None:
            continue
        (published, *_) = row.references
        found = evaluation_of(
            run,
            protocol=published.protocol,
            weights={"path": row.download, "sha256": "9" * 64},
            metrics={published.metric: Metric(published.value, "percent", True, 50_000)},
        )
        assert_reproduced(found, TABLES[name], row)
        other = altered(found, protocol={"name": "imagenet-320"})
        assert_not_comparable(other, TABLES[name], row, "other protocol")


def test_numbers_keep_the_digits_they_were_printed_with(sebench):
    _, out, _ = sebench("reference", "table-10")
    assert "6.00" in out
    assert "22.29" in out
    _, row = row_of("table-2", "ResNet-50 (original)")
    assert [r.printed for r in row.references] == ["24.7", "7.8"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mark": "R"}, "mark"),
        ({"units": {"top1_error": "points"}}, "unit"),
        ({"surprise": 1}, "surprise"),
        ({"initial": "somewhere"}, "initial"),
        ({"rows": [{"network": "A", "top1_error": "12.0"}]}, "not a number"),
        ({"rows": [{"network": "A", "top1_error": 123}]}, "above 100"),
        ({"rows": [{"network": "A"}]}, "at least one value"),
        ({"rows": [{"network": "A", "AP": 3}]}, "no unit"),
    ],
)
def test_unsound_tables_are_refused(change, message):
    sound = {
        "title": "t", "table": "Table", "mark": "2", "task": "classification",
        "dataset": {"name": "imagenet", "split": "val", "images": 3, "train_images": 9},
        "protocol": "p", "recipes": [], "initial": "scratch", "may_differ": [], "units": {"top1_error": "percent"}, "notes": [],
        "rows": [{"network": "A", "top1_error": Decimal("12.0")}],
    }  # fmt: skip
    references.parse_table("sound", copy.deepcopy(sound))
    with pytest.raises(ValueError, match=message):
        references.parse_table("broken", {**sound, **change})


def test_no_recalled_or_inferred_number_is_shipped():
    from importlib import resources

    for file in resources.files(references).iterdir():
        if file.name.endswith(".yaml"):
            assert yaml.safe_load(file.read_text("utf-8"))["mark"] in references.MARKS


def test_the_recipes_and_settings_that_rows_name_are_there():
    for table, row in DISTINCT:
        assert table.task in TASKS
        assert set(row.recipes) <= set(list_recipes(table.task)), table.name
        assert set(table.may_differ) <= {
            key for key, _ in leaves(settings_of(table.task, row.recipes[0]))
        }
