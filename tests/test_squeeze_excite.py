"""The SE block against Eq. 2 to 4 worked by hand, against timm's module, and its ablations."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers.squeeze_excite import SEModule

from backbones.squeeze_excite import EXCITATIONS, SEBlock, hidden_units


def test_a_worked_example_of_equations_2_to_4():
    block = SEBlock(channels=2, reduction=2, se_bias=False).double()
    block.fc1.weight.data = torch.tensor([[1.0, -2.0]]).double()  # W1, 1 x 2
    block.fc2.weight.data = torch.tensor([[2.0], [-1.0]]).double()  # W2, 2 x 1
    x = torch.tensor([[[[4.0, 8.0]], [[1.0, 3.0]]]]).double()  # (1, 2, 1, 2)
    # z = (6, 2); W1 z = 6 - 4 = 2; relu 2; W2 2 = (4, -2)
    s = torch.sigmoid(torch.tensor([4.0, -2.0]).double())
    expected = torch.tensor([[[[4.0, 8.0]], [[1.0, 3.0]]]]).double() * s[None, :, None, None]
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-15)
    assert s[0].item() == pytest.approx(0.98201379, abs=1e-8)  # 1 / (1 + e^-4)


def test_zero_logits_halve_the_features():
    block = SEBlock(channels=32)
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(2, 32, 5, 7)
    assert torch.equal(block(x), x / 2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_equal_timm(dtype, tolerance, bias):
    torch.manual_seed(0)
    ours = SEBlock(64, reduction=16, se_bias=bias).to(dtype)
    theirs = SEModule(64, rd_channels=4, bias=bias).to(dtype)
    with torch.no_grad():
        for name in ("fc1", "fc2"):
            a, b = getattr(ours, name), getattr(theirs, name)
            a.weight.copy_(b.weight.flatten(1))
            if bias:
                a.bias.copy_(b.bias.normal_())
    x = torch.randn(3, 64, 6, 5, dtype=dtype, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    a, b = ours(x), theirs(y)
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
    a.square().sum().backward()
    b.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=100 * tolerance)


@pytest.mark.parametrize("excitation", ["sigmoid", "tanh", "relu"])
def test_excitation_is_the_last_nonlinearity(excitation):
    block = SEBlock(8, reduction=2, excitation=excitation).double()
    x = torch.randn(2, 8, 3, 3).double()
    hidden = F.relu(F.linear(x.mean(dim=(2, 3)), block.fc1.weight, block.fc1.bias))
    logits = F.linear(hidden, block.fc2.weight, block.fc2.bias)
    expected = {
        "sigmoid": 1 / (1 + torch.exp(-logits)),
        "tanh": (torch.exp(2 * logits) - 1) / (torch.exp(2 * logits) + 1),
        "relu": logits.clamp(min=0),
    }[excitation]
    torch.testing.assert_close(block.gate(x)[:, :, 0, 0], expected, rtol=0, atol=1e-12)
    assert set(EXCITATIONS) == {"sigmoid", "tanh", "relu"}


def test_max_squeeze_takes_the_largest_pixel():
    block = SEBlock(8, reduction=2, squeeze="max").double()
    average = SEBlock(8, reduction=2).double()
    average.load_state_dict(block.state_dict())
    x = torch.randn(2, 8, 4, 4).double()
    largest = F.max_pool2d(x, 4)
    assert torch.equal(block.gate(x), average.gate(largest))
    assert not torch.allclose(block.gate(x), average.gate(x))


def test_no_squeeze_is_two_1x1_convolutions_at_full_resolution():
    block = SEBlock(8, reduction=2, squeeze="none").double()
    x = torch.randn(2, 8, 3, 5).double()
    hidden = F.relu(F.conv2d(x, block.fc1.weight[:, :, None, None], block.fc1.bias))
    gate = torch.sigmoid(F.conv2d(hidden, block.fc2.weight[:, :, None, None], block.fc2.bias))
    torch.testing.assert_close(block(x), x * gate, rtol=0, atol=1e-12)


def test_hidden_units_are_not_rounded_to_multiples_of_eight():
    assert hidden_units(64, 16) == 4
    assert hidden_units(24, 16) == 1
    assert SEBlock(64, reduction=16).fc1.weight.shape == (4, 64)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reduction": 32}, "reduction 32 leaves no hidden unit of 16 channels; use 16 or less"),
        ({"reduction": 0}, "reduction is an integer of at least 1, not 0"),
        ({"reduction": 2.5}, "reduction is an integer of at least 1, not 2.5"),
        ({"se_bias": "no"}, "se_bias is true or false, not 'no'"),
        ({"squeeze": "mean"}, "squeeze is one of avg, max, none, not 'mean'"),
        ({"excitation": "gelu"}, "excitation is one of sigmoid, tanh, relu, not 'gelu'"),
    ],
)
def test_an_option_without_sense_is_refused_by_name(options, words):
    with pytest.raises(ValueError, match=words):
        SEBlock(16, **options)
