"""`sebench reproduce`: studies made of the paper's tables, and tables made of their runs."""

import json
from pathlib import Path

import pytest
import yaml

from backbones.config import flatten
from tests.written_runs import altered, published_run
from tools.experiments.experiment import load_experiment
from tools.experiments.record import write_record
from tools.experiments.study import load_study, plan
from tools.references import load_references
from tools.references.reproduce import Wish, find_targets, list_targets, study_of, training_of_row
from tools.report.reproduced import SMOKE, build_sheet, write_sheets


def planned(tmp_path, names, wish=None):
    path = tmp_path / "reproduce.yaml"
    path.write_text(yaml.safe_dump(study_of(find_targets(names), wish or Wish()), sort_keys=False))
    study = load_study(path)
    return study, plan(study, tmp_path)


def test_every_table_of_the_paper_from_2_to_16_and_figure_4_can_be_asked_for(sebench):
    listed = json.loads(sebench("reproduce", "--json")[1])
    wanted = {*(f"table-{number}" for number in range(2, 17)), "figure-4"}
    assert wanted <= {row["name"] for row in listed}
    assert all(row["to run"] for row in listed)


@pytest.mark.parametrize("scale", ["paper", "smoke"])
def test_every_row_of_our_networks_has_a_cell_of_its_network(tmp_path, scale):
    wish = Wish(scale)
    _, cells = planned(tmp_path, ["all"], wish)
    by_place = {cell.directory.relative_to(tmp_path): cell for cell in cells}
    for target in list_targets().values():
        for row in target.runnable:
            training = training_of_row(row, target.table, wish)
            trained = Path(training.entry) / training.directory(0).name
            backbone = by_place[trained].experiment.config.backbone
            assert backbone.name == row.backbone
            assert row.options.items() <= {
                "reduction": 16, "squeeze": "avg", "excitation": "sigmoid", "placement": "standard",
                "se_stages": [2, 3, 4, 5], **backbone.options,
            }.items()  # fmt: skip


def test_cells_of_the_paper_s_scale_are_trained_by_the_recipe_and_nothing_else(tmp_path):
    _, cells = planned(tmp_path, ["all"])
    for cell in cells:
        own = load_experiment(cell.experiment.task, cell.experiment.recipe)
        ours, theirs = flatten(cell.experiment.settings), flatten(own.settings)
        changed = {key for key in ours if ours[key] != theirs.get(key)}
        assert {key for key in changed if not key.startswith("backbone.")} <= {"augment.size"}
        assert ("augment.size" in changed) == cell.entry.endswith("-size=320")


def test_tables_share_the_runs_of_rows_that_are_trained_alike(tmp_path):
    names = [f"table-{number}" for number in range(10, 17)]
    rows = [row for target in find_targets(names) for row in target.runnable]
    assert (len(rows), len(planned(tmp_path, names)[1])) == (25, 17)


def test_detectors_wait_for_the_imagenet_training_of_their_backbone_unless_weights_are_given(
    tmp_path,
):
    _, cells = planned(tmp_path, ["table-7"])
    detectors = [cell for cell in cells if cell.experiment.task == "detection"]
    assert len(detectors) == 4
    for cell in detectors:
        assert cell.source.parent.name == "imagenet-paper"
        assert cell.source.name == cell.directory.name
    given = {row.backbone: f"{row.backbone}.pth" for row in find_targets(["7"])[0].runnable}
    _, cells = planned(tmp_path, ["table-7"], Wish(weights=given))
    assert [cell.experiment.config.backbone.weights for cell in cells] == list(given.values())


def test_senet154_is_trained_once_for_two_crops(tmp_path):
    _, cells = planned(tmp_path, ["table-8"])
    assert len(cells) == 1
    target = find_targets(["table-8"])[0]
    at_224, at_320 = (training_of_row(row, target.table, Wish()) for row in target.runnable)
    assert at_224.protocol is None
    assert at_320.protocol == "imagenet-320"
    assert at_224.directory(0) != at_320.directory(0)


def test_smoke_runs_are_marked_and_never_beside_the_paper_s_numbers(tmp_path):
    wish, targets = Wish("smoke"), find_targets(["table-3"])
    study, cells = planned(tmp_path, ["table-3"], wish)
    assert set(study.sample_data) == {"imagenet"}  # whose folder marks every record as synthetic
    for row in targets[0].runnable:
        run = published_run(targets[0].table, row)
        training = training_of_row(row, targets[0].table, wish)
        assert training.entry == "smoke-imagenet-mobile"
        directory = tmp_path / training.directory(0)
        assert directory in {cell.directory for cell in cells}
        directory.mkdir(parents=True)
        metrics = {
            "top1_error": {"value": 61.0, "unit": "percent", "higher_is_better": False, "n": 50_000}
        }
        write_record(altered(run, dataset={"synthetic": True}, metrics=metrics), directory)
    ((sheet, files),) = write_sheets(targets, wish, tmp_path)
    cells = [cell for line in sheet.lines for cell in line.cells if cell]
    assert sum(cell.measured == 61.0 for cell in cells) == 4
    assert all(cell.published is None and not cell.verdict for cell in cells)
    for path in files[:2]:
        assert SMOKE.split(":")[0] in path.read_text()
        assert "25.3" not in path.read_text()
    ablation = build_sheet(find_targets(["table-10"])[0], wish, tmp_path)
    assert "23.30" not in ablation.as_markdown()  # nor in a note


def test_a_table_has_the_paper_s_rows_and_columns_with_measured_beside_printed(tmp_path):
    target = find_targets(["table-2"])[0]
    table = load_references()["table-2"]
    for row in target.runnable[:2]:
        run = published_run(table, row)
        training = training_of_row(row, table, Wish())
        (tmp_path / training.directory(0)).mkdir(parents=True)
        write_record(run, tmp_path / training.directory(0))
    sheet = build_sheet(target, Wish(), tmp_path)
    assert [line.label for line in sheet.lines][:2] == ["ResNet-50", "ResNet-101"]
    groups = list(dict.fromkeys(column.group for column in sheet.columns))
    assert groups == ["original", "re-implementation", "SENet"]
    line = dict(
        zip([(c.group, c.metric) for c in sheet.columns], sheet.lines[0].cells, strict=True)
    )
    plain, se = line["re-implementation", "top1_error"], line["SENet", "top1_error"]
    assert (plain.published, se.published, se.published_gain) == (
        "24.80",
        "23.29",
        pytest.approx(1.51),
    )
    assert plain.measured is not None
    assert plain.verdict == "undecided"  # one run
    assert "SE-ResNet-101: 0 of 1 runs are recorded" in sheet.not_run


def test_a_word_that_is_no_table_names_near_ones_and_settings_must_be_known(sebench, tmp_path):
    code, _, told = sebench("reproduce", "tabel-12", "-o", tmp_path)
    assert code == 1
    assert "table-12" in told
    assert "train.epochs" in sebench("reproduce", "table-4", "train.epoch=1", "-o", tmp_path)[2]
    code, out, _ = sebench("reproduce", "table-4", "-o", tmp_path, "--dry-run")
    assert code == 1
    assert "missing for cifar-preact/resnet110" in out
    assert not list(tmp_path.iterdir())
    code, _, told = sebench("reproduce", "table-4", "-o", tmp_path)
    assert code == 1
    assert "nothing was run; give --data-root" in told
    assert not (tmp_path / "cifar-preact").exists()
