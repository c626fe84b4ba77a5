"""The networks there are: one literal table, readable without torch.

A row of `PAIRS` declares a plain network and its SE twin. Their parameters and multiply-adds are
golden integers (a test recounts them, by the rules stated in `cost`), so that listing them needs
no torch.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Pair:
    """A plain network and its SE twin: the same builder, with and without attention."""

    plain: str
    se: str
    family: str
    builder: str  # "module:Class" of this package
    arguments: dict[str, Any]
    parameters: tuple[int, int]  # plain, SE
    multiply_adds: tuple[int, int]
    multiply_adds_with_gating: tuple[int, int]  # by the second rule of `cost`
    options: tuple[str, ...] = ()  # arguments a user may change
    se_defaults: dict[str, Any] = field(default_factory=dict)
    input_size: int = 224
    classes: int = 1000
    detection: str | None = None


_SMALL = "made for 32x32 images: its last stage has stride 4, not 32"
_UNPADDED = "unpadded convolutions: a map is smaller than the input over its stride"
# Options that give another network of the family, and not another form of the same.
SIZES = ("layers", "widths")
_WIDTHS = (64, 128, 256, 512)
_BASIC = ("stem_pool", *SIZES)
_BOTTLENECK = ("stride_in_1x1", *_BASIC)

# fmt: off
PAIRS = (
    Pair("resnet18", "se_resnet18", "ResNet", "resnet:ResNet",
         {"layers": (2, 2, 2, 2), "widths": _WIDTHS, "bottleneck": False},
         (11_689_512, 11_778_592), (1_814_825_984, 1_814_913_024),
         (1_814_851_072, 1_816_443_392), _BASIC),
    Pair("resnet34", "se_resnet34", "ResNet", "resnet:ResNet",
         {"layers": (3, 4, 6, 3), "widths": _WIDTHS, "bottleneck": False},
         (21_797_672, 21_958_868), (3_665_141_248, 3_665_298_432),
         (3_665_166_336, 3_668_083_200), _BASIC),
    Pair("resnet50", "se_resnet50", "ResNet", "resnet:ResNet",
         {"layers": (3, 4, 6, 3), "widths": _WIDTHS},
         (25_557_032, 28_088_024), (3_863_492_608, 3_866_007_552),
         (3_863_592_960, 3_877_146_624), _BOTTLENECK),
    Pair("resnet101", "se_resnet101", "ResNet", "resnet:ResNet",
         {"layers": (3, 4, 23, 3), "widths": _WIDTHS},
         (44_549_160, 49_326_872), (7_579_125_760, 7_583_868_928),
         (7_579_226_112, 7_601_831_936), _BOTTLENECK),
    Pair("resnet152", "se_resnet152", "ResNet", "resnet:ResNet",
         {"layers": (3, 8, 36, 3), "widths": _WIDTHS},
         (60_192_808, 66_821_848), (11_295_561_728, 11_302_139_904),
         (11_295_662_080, 11_328_532_480), _BOTTLENECK),
    # ResNeXt strides in its 3x3 convolutions: see the docstring of `resnet.ResNet`.
    Pair("resnext50_32x4d", "se_resnext50_32x4d", "ResNeXt", "resnet:ResNet",
         {"layers": (3, 4, 6, 3), "widths": _WIDTHS, "groups": 32, "group_width": 4,
          "stride_in_1x1": False},
         (25_028_904, 27_559_896), (4_235_999_232, 4_238_514_176),
         (4_236_099_584, 4_249_653_248), _BOTTLENECK),
    Pair("resnext101_32x4d", "se_resnext101_32x4d", "ResNeXt", "resnet:ResNet",
         {"layers": (3, 4, 23, 3), "widths": _WIDTHS, "groups": 32, "group_width": 4,
          "stride_in_1x1": False},
         (44_177_704, 48_955_416), (7_978_928_128, 7_983_671_296),
         (7_979_028_480, 8_001_634_304), _BOTTLENECK),
    # pytorchcv prints 20,745.78 M for senet154; its rule also counts activations and pools.
    Pair("senet154_plain", "senet154", "SENet", "resnet:ResNet",
         {"layers": (3, 8, 36, 3), "widths": _WIDTHS, "groups": 64, "group_width": 4,
          "stride_in_1x1": False, "deep_stem": True, "halve_first": True, "projection_kernel": 3},
         (108_459_944, 115_088_984), (20_694_931_456, 20_701_509_632),
         (20_695_031_808, 20_727_902_208), _BASIC),
    Pair("vgg16_bn", "se_vgg16_bn", "VGG", "vgg:VGG16", {},
         (138_365_992, 138_596_784), (15_470_264_320, 15_470_490_624),
         (15_470_264_320, 15_497_585_664)),
    Pair("bn_inception", "se_bn_inception", "Inception", "inception:Inception",
         {"version": "bn"},
         (11_285_224, 11_931_622), (2_032_600_064, 2_033_239_424),
         (2_032_650_240, 2_035_651_008)),
    Pair("inception_v3", "se_inception_v3", "Inception", "inception:Inception",
         {"version": "v3"},
         (23_834_568, 25_496_188), (5_713_216_096, 5_714_867_040),
         (5_713_347_168, 5_719_944_160),
         input_size=299, detection=_UNPADDED),
    Pair("inception_resnet_v2", "se_inception_resnet_v2", "Inception-ResNet",
         "inception:InceptionResNet", {"layers": (10, 20, 10)},
         (55_843_464, 64_387_444), (13_167_333_856, 13_175_829_216),
         (13_167_432_160, 13_199_007_200), ("layers",),
         input_size=299, detection=_UNPADDED),
    Pair("mobilenet", "se_mobilenet", "MobileNet", "mobilenet:MobileNet", {},
         (4_231_976, 4_718_044), (568_740_352, 569_220_096),
         (568_790_528, 574_689_280)),
    Pair("shufflenet", "se_shufflenet", "ShuffleNet", "shufflenet:ShuffleNet", {},
         (1_865_728, 2_441_923), (138_824_832, 139_393_632),
         (138_871_872, 142_168_992)),
    # For tests and the demo; not published anywhere.
    Pair("resnet_tiny", "se_resnet_tiny", "ResNet", "resnet:ResNet",
         {"layers": (1, 1, 1, 1), "bottleneck": False, "widths": (24, 48, 96, 128),
          "stem_width": 24},
         (576_288, 583_741), (25_976_576, 25_983_696),
         (25_977_728, 26_035_536), _BASIC, {"reduction": 8}, input_size=96),
    Pair("resnet20", "se_resnet20", "pre-activation ResNet", "cifar_resnet:CifarResNet",
         {"layers": (3, 3, 3), "widths": (16, 32, 64)},
         (269_722, 272_095), (40_637_056, 40_639_072),
         (40_641_152, 40_815_200), SIZES,
         input_size=32, classes=10, detection=_SMALL),
    Pair("resnet56", "se_resnet56", "pre-activation ResNet", "cifar_resnet:CifarResNet",
         {"layers": (9, 9, 9), "widths": (16, 32, 64)},
         (853_018, 860_137), (125_743_744, 125_749_792),
         (125_747_840, 126_269_984), SIZES,
         input_size=32, classes=10, detection=_SMALL),
    Pair("resnet110", "se_resnet110", "pre-activation ResNet", "cifar_resnet:CifarResNet",
         {"layers": (18, 18, 18), "widths": (16, 32, 64)},
         (1_727_962, 1_742_200), (253_403_776, 253_415_872),
         (253_407_872, 254_452_160), SIZES,
         input_size=32, classes=10, detection=_SMALL),
    Pair("resnet164", "se_resnet164", "pre-activation ResNet", "cifar_resnet:CifarResNet",
         {"layers": (18, 18, 18), "widths": (16, 32, 64), "bottleneck": True,
          "project": True},
         (1_703_258, 1_905_362), (246_565_376, 246_758_912),
         (246_581_760, 250_904_064), SIZES,
         input_size=32, classes=10, detection=_SMALL),
    Pair("wrn_16_8", "se_wrn_16_8", "Wide ResNet", "cifar_resnet:CifarResNet",
         {"layers": (2, 2, 2), "widths": (128, 256, 512), "project": True},
         (10_961_370, 11_049_290), (1_548_604_416, 1_548_690_432),
         (1_548_637_184, 1_549_640_704), SIZES,
         input_size=32, classes=10, detection=_SMALL),
    Pair("shake_shake_26_2x96d", "se_shake_shake_26_2x96d", "Shake-Shake",
         "shake_shake:ShakeShake", {"layers": (4, 4, 4), "width": 96, "mode": "shake_shake"},
         (26_192_922, 26_292_546), (3_778_268_928, 3_778_365_696),
         (3_778_293_504, 3_779_766_528), ("layers",),
         input_size=32, classes=10, detection=_SMALL),
    Pair("shake_even_29_2x4x64d", "se_shake_even_29_2x4x64d", "Shake-Shake",
         "shake_shake:ShakeShake",
         {"layers": (3, 3, 3), "width": 64, "mode": "shake_even", "cardinality": 4},
         (34_529_700, 35_051_508), (5_390_110_720, 5_390_626_816),
         (5_390_176_256, 5_393_444_864), ("layers",),
         input_size=32, classes=100, detection=_SMALL),
)
# fmt: on
