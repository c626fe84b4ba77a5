"""What the paper's networks cost: our counts beside the printed ones.

Our counts are whole numbers of the table of networks, or of a row (``ours``) where its options
leave that; a test counts them anew, so that the comparison needs no torch.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from backbones import describe_backbone
from tools.references.tables import Row, load_references

_UNITS = {"million": ("M", 6), "billion": ("G", 9)}
_MET = {(True, True): "both", (True, False): "first", (False, True): "second"}


def paper_costs() -> list[dict[str, Any]]:
    """Compare every row of the paper's tables that prints a cost.

    Returns:
        For each row `table`, `row`, `backbone`, `options`; `parameters`, `multiply_adds` and, by
        the second rule of `backbones.cost`, `multiply_adds_with_gating` (ours, whole numbers);
        `paper_parameters` and `paper_multiply_adds` (as printed, with unit, or None); for each of
        ours a `..._difference` (over the paper's minus 1, in percent, or None); `met_by`, which
        rules give the printed multiply-adds: "both", "first", "second", "neither" or None; and
        `note`, which says where and why parameters or the first rule leave what the paper printed,
        else "".
    """
    return [
        _compare(int(table.name.removeprefix("table-")), row)
        for table in load_references().values()
        if table.name.startswith("table-")
        for row in table.rows
        if row.backbone is not None and any(r.unit in _UNITS for r in row.references)
    ]


def _compare(table: int, row: Row) -> dict[str, Any]:
    info = describe_backbone(str(row.backbone))
    printed = {r.metric: r for r in row.references if r.unit in _UNITS}
    compared: dict[str, Any] = {
        "table": table,
        "row": row.network,
        "backbone": row.backbone,
        "options": dict(row.options),
    }
    leaving, met = [], {}
    for count in ("parameters", "multiply_adds", "multiply_adds_with_gating"):
        quantity = count.removesuffix("_with_gating")
        ours = row.ours.get(count, getattr(info, count))
        paper = printed.get(quantity)
        compared[count] = ours
        compared.setdefault(f"paper_{quantity}", None)
        compared[f"{count}_difference"] = None
        if paper is None:
            continue
        letter, places = _UNITS[paper.unit]
        compared[f"paper_{quantity}"] = f"{paper.printed} {letter}"
        exact, digits = Decimal(ours).scaleb(-places), Decimal(paper.printed)
        compared[f"{count}_difference"] = float(100 * (exact / digits - 1))
        met[count] = exact.quantize(digits, ROUND_HALF_UP) == digits
        if not met[count] and count == quantity:
            words = quantity.replace("_", "-")
            leaving.append(f"{words}: ours {exact:.4g} {letter}, printed {paper.printed}")
    assert bool(leaving) == bool(row.reason), row
    compared["met_by"] = None
    if "multiply_adds" in met:
        rules = met["multiply_adds"], met["multiply_adds_with_gating"]
        compared["met_by"] = _MET.get(rules, "neither")
    compared["note"] = f"{'; '.join(leaving)} ({row.reason})" if leaving else ""
    return compared
