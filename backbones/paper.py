"""The cost of the paper's networks, ours beside the paper's.

Source: Hu et al., Squeeze-and-Excitation Networks, arXiv 1709.01507 v4. Our counts are golden
integers (a test counts them anew, by the rule stated in `cost`), so that the table needs no torch.
"""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from backbones.registry import describe_backbone

# Why our count leaves what the paper prints, where it does.
_SE_EXTRAS = (
    "ours counts SE's fully connected layers; what the paper adds for its pooling and scaling"
    " follows no rule that gives all its rows, see the second count"
)
_ROUNDED_UP = "the paper's column is up to 0.1 M above Eq. 5, which our count equals"
_UNKNOWN = "one unit of the last printed digit; the cause is unknown"
_SHUFFLENET = "1.866 M is cut to 1.8, not rounded; the cause of 140 M is unknown"
_SE_SHUFFLENET = f"the plain network's gap; and {_SE_EXTRAS}"
_OTHER_IRV2 = "the paper does not describe its variant; ours is the released network, timm's too"


@dataclass(frozen=True)
class PaperRow:
    table: int
    row: str  # as the paper calls it
    backbone: str
    options: dict[str, Any]
    parameters: int  # ours
    multiply_adds: int  # ours
    paper_parameters: str | None = None  # as printed, in millions
    paper_multiply_adds: str | None = None  # as printed
    unit: str = "G"  # of the printed multiply-adds: G or M
    reason: str = ""  # for leaving the printed digit
    with_gating: int | None = None  # ours by the second rule of `cost`; None: it follows

    def multiply_adds_with_gating(self) -> int:
        """Return the second count. Reduction and biases of SE change what is pooled and scaled not."""
        if self.with_gating is not None:
            return self.with_gating
        info = describe_backbone(self.backbone)
        return self.multiply_adds + info.multiply_adds_with_gating - info.multiply_adds


def _ablation(table: int, row: str, options: dict[str, Any] | None, *rest: Any) -> PaperRow:
    """A row about (SE-)ResNet-50; the ablations have no biases in SE (section 6)."""
    if options is None:
        return PaperRow(table, row, "resnet50", {}, *rest)
    return PaperRow(table, row, "se_resnet50", {"se_bias": False, **options}, *rest)


# fmt: off
ROWS = (
    PaperRow(2, "ResNet-50", "resnet50", {}, 25_557_032, 3_863_492_608, None, "3.86"),
    PaperRow(2, "SE-ResNet-50", "se_resnet50", {}, 28_088_024, 3_866_007_552, None, "3.87"),
    PaperRow(2, "ResNet-101", "resnet101", {}, 44_549_160, 7_579_125_760, None, "7.58"),
    PaperRow(2, "SE-ResNet-101", "se_resnet101", {},
             49_326_872, 7_583_868_928, None, "7.60", "G", _SE_EXTRAS),
    PaperRow(2, "ResNet-152", "resnet152", {}, 60_192_808, 11_295_561_728, None, "11.30"),
    PaperRow(2, "SE-ResNet-152", "se_resnet152", {},
             66_821_848, 11_302_139_904, None, "11.32", "G", _SE_EXTRAS),
    PaperRow(2, "ResNeXt-50 (32x4d)", "resnext50_32x4d", {},
             25_028_904, 4_235_999_232, None, "4.24"),
    PaperRow(2, "SE-ResNeXt-50 (32x4d)", "se_resnext50_32x4d", {},
             27_559_896, 4_238_514_176, None, "4.25", "G", _SE_EXTRAS),
    PaperRow(2, "ResNeXt-101 (32x4d)", "resnext101_32x4d", {},
             44_177_704, 7_978_928_128, None, "7.99", "G", _UNKNOWN),
    PaperRow(2, "SE-ResNeXt-101 (32x4d)", "se_resnext101_32x4d", {},
             48_955_416, 7_983_671_296, None, "8.00", "G", _SE_EXTRAS),
    PaperRow(2, "VGG-16", "vgg16_bn", {}, 138_365_992, 15_470_264_320, None, "15.47"),
    PaperRow(2, "SE-VGG-16", "se_vgg16_bn", {},
             138_596_784, 15_470_490_624, None, "15.48", "G", _SE_EXTRAS),
    PaperRow(2, "BN-Inception", "bn_inception", {}, 11_285_224, 2_032_600_064, None, "2.03"),
    PaperRow(2, "SE-BN-Inception", "se_bn_inception", {},
             11_931_622, 2_033_239_424, None, "2.04", "G", _SE_EXTRAS),
    PaperRow(2, "Inception-ResNet-v2", "inception_resnet_v2", {},
             55_843_464, 13_167_333_856, None, "11.75", "G", _OTHER_IRV2),
    PaperRow(2, "SE-Inception-ResNet-v2", "se_inception_resnet_v2", {},
             64_387_444, 13_175_829_216, None, "11.76", "G", _OTHER_IRV2),
    PaperRow(3, "MobileNet", "mobilenet", {}, 4_231_976, 568_740_352, "4.2", "569", "M"),
    PaperRow(3, "SE-MobileNet", "se_mobilenet", {},
             4_718_044, 569_220_096, "4.7", "572", "M", _SE_EXTRAS),
    PaperRow(3, "ShuffleNet", "shufflenet", {},
             1_865_728, 138_824_832, "1.8", "140", "M", _SHUFFLENET),
    PaperRow(3, "SE-ShuffleNet", "se_shufflenet", {},
             2_441_923, 139_393_632, "2.4", "142", "M", _SE_SHUFFLENET),
    _ablation(10, "SE, r = 2", {"reduction": 2}, 45_676_584, 3_883_612_160, "45.7"),
    _ablation(10, "SE, r = 4", {"reduction": 4},
              35_616_808, 3_873_552_384, "35.7", None, "G", _ROUNDED_UP),
    _ablation(10, "SE, r = 8", {"reduction": 8},
              30_586_920, 3_868_522_496, "30.7", None, "G", _ROUNDED_UP),
    _ablation(10, "SE, r = 16", {}, 28_071_976, 3_866_007_552, "28.1"),
    _ablation(10, "SE, r = 32", {"reduction": 32},
              26_814_504, 3_864_750_080, "26.9", None, "G", _ROUNDED_UP),
    _ablation(10, "original", None, 25_557_032, 3_863_492_608, "25.6"),
    _ablation(13, "ResNet-50", None, 25_557_032, 3_863_492_608, "25.6", "3.86"),
    _ablation(13, "SE_Stage_2", {"se_stages": [2]},
              25_581_608, 3_863_517_184, "25.6", "3.86", "G", "", 3_868_434_432),
    _ablation(13, "SE_Stage_3", {"se_stages": [3]},
              25_688_104, 3_863_623_680, "25.7", "3.86", "G", "", 3_866_935_296),
    _ablation(13, "SE_Stage_4", {"se_stages": [4]},
              26_343_464, 3_864_279_040, "26.4", "3.86", "G", _ROUNDED_UP, 3_866_787_840),
    _ablation(13, "SE_All", {}, 28_071_976, 3_866_007_552, "28.1", "3.87"),
    _ablation(15, "SE", {}, 28_071_976, 3_866_007_552, "28.1", "3.87"),
    _ablation(15, "SE_3x3", {"placement": "3x3"},
              25_714_216, 3_863_649_792, "25.8", "3.86", "G", _ROUNDED_UP, 3_866_509_824),
    _ablation(16, "ResNet-50", None, 25_557_032, 3_863_492_608, "25.6", "3.86"),
    _ablation(16, "NoSqueeze", {"squeeze": "none"},
              28_071_976, 4_274_534_400, "28.1", "4.27", "G", "", 4_280_154_112),
    _ablation(16, "SE", {}, 28_071_976, 3_866_007_552, "28.1", "3.87"),
)
# fmt: on


def paper_comparison() -> list[dict[str, Any]]:
    """Return one row per row of Tables 2, 3, 10, 13, 15 and 16 that prints a cost.

    Each has `table`, `row`, `backbone`, `options`; `parameters`, `multiply_adds` and, by the second
    rule of `cost`, `multiply_adds_with_gating` (ours, whole numbers); `paper_parameters` and
    `paper_multiply_adds` (as printed, with unit, or None); for each of ours a `..._difference` (over
    the paper's minus 1, in percent, or None); `met_by`, which rules give the printed multiply-adds:
    "both", "first", "second", "neither" or None; and `note`, which says where and why parameters or
    the first rule leave what the paper printed, else "".
    """
    return [_compare(row) for row in ROWS]


def _compare(row: PaperRow) -> dict[str, Any]:
    units = {
        "parameters": "M",
        "multiply_adds": row.unit,
        "multiply_adds_with_gating": row.unit,
    }
    compared: dict[str, Any] = {
        "table": row.table,
        "row": row.row,
        "backbone": row.backbone,
        "options": dict(row.options),
    }
    exceeding, met = [], {}
    for quantity, unit in units.items():
        ours = getattr(row, quantity)
        ours = ours() if callable(ours) else ours
        what = quantity.removesuffix("_with_gating")
        printed = getattr(row, f"paper_{what}")
        compared[quantity] = ours
        compared.setdefault(f"paper_{what}", printed and f"{printed} {unit}")
        compared[f"{quantity}_difference"] = None
        if printed is None:
            continue
        exact = Decimal(ours).scaleb(-6 if unit == "M" else -9)
        compared[f"{quantity}_difference"] = float(100 * (exact / Decimal(printed) - 1))
        met[quantity] = exact.quantize(Decimal(printed), ROUND_HALF_UP) == Decimal(printed)
        if not met[quantity] and quantity == what:
            words = quantity.replace("_", "-")
            exceeding.append(f"{words}: ours {exact:.4g} {unit}, printed {printed}")
    assert bool(exceeding) == bool(row.reason), row
    compared["met_by"] = None
    if row.paper_multiply_adds is not None:
        rules = met["multiply_adds"], met["multiply_adds_with_gating"]
        words = {(True, True): "both", (True, False): "first", (False, True): "second"}
        compared["met_by"] = words.get(rules, "neither")
    compared["note"] = f"{'; '.join(exceeding)} ({row.reason})" if exceeding else ""
    return compared
