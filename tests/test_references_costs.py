"""What the paper's networks cost: our counts are counted anew, and the printed digits explained."""

import pytest
import torch

from backbones import build_network, cost, describe_backbone
from tools.references import load_references
from tools.references.costs import paper_costs

ROWS = {(row["table"], row["row"]): row for row in paper_costs()}
OURS = [(t.name, r) for t in load_references().values() for r in t.rows if r.ours]


def test_the_counts_of_rows_are_counted_anew():
    counted = {}
    for _, row in OURS:
        key = row.backbone, str(row.options)
        if key not in counted:
            with torch.device("meta"):
                network = build_network(row.backbone, 1000, **row.options)
            counted[key] = {
                "parameters": cost.count_parameters(network),
                "multiply_adds": cost.count_multiply_adds(network),
                "multiply_adds_with_gating": cost.count_multiply_adds(network, with_gating=True),
            }
        assert row.ours == counted[key], row.network


def test_rows_without_options_have_the_counts_of_the_table_of_networks():
    for row in ROWS.values():
        if not row["options"]:
            info = describe_backbone(row["backbone"])
            assert (row["parameters"], row["multiply_adds"]) == (
                info.parameters,
                info.multiply_adds,
            )


def test_each_printed_digit_says_which_rule_gives_it():
    met = {key: row["met_by"] for key, row in ROWS.items()}
    assert met[2, "ResNet-50"] == "both"
    assert met[2, "SE-ResNet-50"] == "first"  # 3.866 and 3.877 G, printed 3.87
    assert met[2, "SE-ResNet-101"] == "second"  # 7.584 and 7.602 G, printed 7.60
    assert met[2, "SE-ResNet-152"] == "neither"
    assert met[10, "SE-ResNet-50, r = 2"] is None


def test_the_comparison_notes_exactly_the_rows_that_leave_the_printed_digit():
    assert len(ROWS) == 36
    assert ROWS[2, "ResNet-50"]["note"] == ""
    assert ROWS[16, "NoSqueeze"]["note"] == ""  # 4.2745 G, printed 4.27
    off = ROWS[10, "SE-ResNet-50, r = 4"]
    assert off["note"].startswith("parameters: ours 35.62 M, printed 35.7 (")
    assert off["parameters_difference"] == pytest.approx(-0.233, abs=0.001)
    assert ROWS[2, "SE-ResNet-152"]["note"].startswith("multiply-adds: ours 11.30 G, printed 11.32")
    assert ROWS[3, "MobileNet 1.0 224"]["paper_multiply_adds"] == "569 M"


def test_the_costs_are_compared_without_torch(sebench):
    code, out, _ = sebench("list", "backbones", "--paper")
    assert code == 0
    assert "SE_3x3" in out
