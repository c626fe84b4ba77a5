"""What a report says of costs: measured side by side or not at all, at equal depth or at equal cost."""

import dataclasses

import pytest
from test_report_outcomes import outside_methods, report, write_twins
from written_runs import record, write_classifier

from tools.experiments.measured import SUFFIX, Conditions, Measured, Ratio, Side, write_measured
from tools.experiments.record import Network

WIDER = {"widths": [17, 34, 68]}


def write_resized(root, parameters, multiply_adds=50_000_000):
    """A wider plain network's run among those of `write_twins`."""
    costs = dataclasses.asdict(record().cost)
    costs |= {"parameters": parameters, "multiply_adds": multiply_adds}
    write_classifier(
        root / "wider", "resnet20", accuracy=0.72, created="2026-01-01T00:00:00+00:00",
        dataset={"name": "cifar10"}, cost=costs,
        backbone={"options": WIDER},
        experiment=dataclasses.replace(record().experiment, hash="w", comparison_hash="cifar10"),
    )  # fmt: skip


def write_costs(path, plain, candidate, latency):
    on = Conditions("cpu", "a <b>processor", 1, "wall", [3, 32, 32], 16, "auto", 10)
    measured = Measured(
        "2026-01-02T00:00:00+00:00", Side(candidate, 300_000, 40_720_000, 2.0, 900.0, 9_000_000),
        Side(plain, 270_000, 40_700_000, 2.0 * latency, 990.0, 8_000_000),
        Ratio(latency, latency - 0.01, latency + 0.01, 40), Ratio(1.1, 1.08, 1.12, 40), Ratio(0.9),
        Ratio(None, reason="no NVML"), on,
    )  # fmt: skip
    write_measured(measured, path)


def test_latencies_of_single_runs_stand_in_no_comparison(tmp_path):
    write_twins(tmp_path / "runs", accuracies=(0.65, 0.75))
    files, content = report(tmp_path)
    (found,) = content["comparisons"]
    assert set(found["costs"]) == {"parameters", "multiply_adds", "peak_memory_bytes"}
    assert found["measured"] is None
    page = files["report.html"]
    assert "sebench measure &#39;resnet20&#39; &#39;se_resnet20&#39; -o RUNS" in page
    assert "2.10" not in outside_methods(page)  # ms of the candidate's own run
    assert content["runs"][0]["cost"]["latency"]["median_ms"] is not None


def test_costs_measured_side_by_side_are_the_pair_s_whichever_came_first(tmp_path):
    write_twins(tmp_path / "runs", accuracies=(0.65, 0.75))
    path = tmp_path / "runs" / f"resnet20{SUFFIX}"
    write_costs(path, Network("resnet20", {}), Network("se_resnet20", {}), 0.8)
    (tmp_path / "runs" / f"broken{SUFFIX}").write_text(path.read_text()[:90])
    files, content = report(tmp_path)
    (found,) = content["comparisons"]
    assert found["measured"]["second"]["network"]["name"] == "se_resnet20"
    assert found["measured"]["latency"]["value"] == pytest.approx(1 / 0.8)
    assert "broken" in content["skipped"][0]
    for name in ("report.html", "report.md"):
        assert "+25.0\u00a0% [+23.5, +26.6]" in files[name], name
    assert "energy – (no NVML)" in files["report.html"]
    assert "<b>processor" not in files["report.html"]
    assert "latency_ratio,latency_ratio_low" in files["differences.csv"].splitlines()[0]


def test_better_is_said_at_equal_depth_and_at_equal_cost_by_the_plain_side(tmp_path):
    write_twins(tmp_path / "runs", accuracies=(0.65, 0.80))
    write_resized(tmp_path / "runs", 301_000)
    files, content = report(tmp_path)
    first, second = content["comparisons"]
    assert {first["at"], second["at"]} == {"equal depth", "equal cost (parameters)"}
    assert content["headline"] == (
        "These weights of se_resnet20 are better than those of resnet20 at equal depth on the one"
        " benchmark. These weights of se_resnet20 are better than those of resnet20"
        " (widths=[17, 34, 68]) at equal cost on the one benchmark."
    )
    sentences = " ".join(found["sentence"] for found in content["comparisons"])
    assert "points, better at equal depth" in sentences
    assert "points, better at equal cost (parameters)" in sentences
    assert all(run["paired"] for run in content["runs"])
    assert "at equal cost (parameters)" in files["report.html"]


def test_a_wider_network_of_no_equal_cost_is_in_no_pair_unless_its_latency_was_measured(tmp_path):
    write_twins(tmp_path / "runs", accuracies=(0.65, 0.80))
    write_resized(tmp_path / "runs", 290_000)
    _, content = report(tmp_path)
    assert [pair["at"] for pair in content["comparisons"]] == ["equal depth"]
    (left,) = [run for run in content["runs"] if not run["paired"]]
    assert left["why_not_paired"] == (
        "no cost equals that of se_resnet20: parameters -3.3 %, multiply-adds +22.8 %,"
        " latency not measured side by side"
    )
    path = tmp_path / "runs" / f"wider{SUFFIX}"
    write_costs(path, Network("resnet20", WIDER), Network("se_resnet20", {}), 1.004)
    found = report(tmp_path)[1]["comparisons"]
    assert {pair["at"] for pair in found} == {"equal depth", "equal cost (latency)"}
