"""The page of the backbones says what there is."""

import re
from pathlib import Path

import pytest
import torch

import backbones
from backbones import build_backbone, registry, slot
from backbones.squeeze_excite import EXCITATIONS, SQUEEZES
from backbones.weights.formats import FORMATS

README = (Path(backbones.__file__).parent / "README.md").read_text(encoding="utf-8")


def table_row(first):
    (row,) = re.findall(rf"^\| `{first}`.*$", README, re.MULTILINE)
    return row


def test_every_format_of_weights_is_listed():
    listed = re.findall(r"^\| ((?:`[\w-]+`(?:, )?)+) \|.*\|.*\|.*\|$", README, re.MULTILINE)
    names = {name for cell in listed for name in re.findall(r"`([\w-]+)`", cell)}
    assert names >= {weight_format.name for weight_format in FORMATS}


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("attention", slot.ATTENTIONS),
        ("placement", slot.PLACEMENTS),
        ("squeeze", SQUEEZES),
        ("excitation", EXCITATIONS),
    ],
)
def test_every_value_of_an_option_is_listed(option, values):
    row = table_row(option)
    assert all(f"`{value}`" in row for value in values)


def test_the_network_of_ones_own_is_built(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setitem(slot.ATTENTIONS, "my_gate", None)  # gone again after the test
    del slot.ATTENTIONS["my_gate"]
    (code,) = re.findall(r"```python\n(from torch import nn\n.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    maps = build_backbone("my_se_net")(torch.zeros(1, 3, 64, 64))
    assert maps["res5"].shape == (1, 512, 2, 2)
    build_backbone("se_resnet_tiny", attention="my_gate", kernel=5)
