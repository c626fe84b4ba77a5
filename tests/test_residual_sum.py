"""The fused end of a residual block equals the readable one, in values and gradients."""

import copy

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from backbones import build_network
from backbones.residual_sum import applies_to, normed_residual_sum, traced_residual_sum
from backbones.squeeze_excite import EXCITATIONS, SEBlock


@pytest.fixture
def parts():
    torch.manual_seed(0)

    def make(excitation="sigmoid", se_bias=True):
        se = SEBlock(6, reduction=2, excitation=excitation, se_bias=se_bias).double()
        norm = nn.BatchNorm2d(6).double()
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        x = (1 + 2 * torch.randn(2, 6, 2, 3).double()).requires_grad_()
        shortcut = torch.randn(2, 6, 2, 3).double().requires_grad_()
        return x, norm, se, shortcut

    return make


def check_gradients(ours, mine, readable, theirs, atol):
    """The same gradients of `ours` for `mine` as of `readable` for `theirs`."""
    weights = torch.randn_like(ours)
    found = torch.autograd.grad(ours, mine, weights)
    expected = torch.autograd.grad(readable, theirs, weights)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize("excitation", EXCITATIONS)
@pytest.mark.parametrize("se_bias", [True, False])
def test_gradients_are_those_of_finite_differences(parts, excitation, se_bias):
    x, norm, se, shortcut = parts(excitation, se_bias)
    inputs = (x, shortcut, *norm.parameters(), *se.parameters())
    assert torch.autograd.gradcheck(
        lambda x, shortcut, *_: normed_residual_sum(x, norm, se, shortcut), inputs
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_values_gradients_and_statistics_are_those_of_the_readable_form(parts, memory_format):
    x, norm, se, shortcut = parts()
    x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
    other_norm, other_se = copy.deepcopy(norm), copy.deepcopy(se)
    ours = normed_residual_sum(x, norm, se, shortcut)
    readable = torch.relu(other_se(other_norm(x)) + shortcut)
    torch.testing.assert_close(ours, readable, rtol=0, atol=1e-14)
    mine = (x, shortcut, *norm.parameters(), *se.parameters())
    theirs = (x, shortcut, *other_norm.parameters(), *other_se.parameters())
    check_gradients(ours, mine, readable, theirs, atol=1e-13)
    for one, other in zip(norm.buffers(), other_norm.buffers(), strict=True):
        assert torch.equal(one, other)


def frozen_like(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features).double()
    nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    frozen.load_state_dict(norm.state_dict())
    return frozen


def test_frozen_norms_give_the_values_and_gradients_of_the_readable_form(parts):
    x, norm, se, shortcut = parts()
    norm = frozen_like(norm)
    assert applies_to(x, norm, se)
    ours = normed_residual_sum(x, norm, se, shortcut)
    readable = torch.relu(se(norm(x)) + shortcut)
    torch.testing.assert_close(ours, readable, rtol=0, atol=1e-14)
    inputs = (x, shortcut, *se.parameters())
    check_gradients(ours, inputs, readable, inputs, atol=1e-13)
    assert torch.autograd.gradcheck(
        lambda x, shortcut, *_: normed_residual_sum(x, norm, se, shortcut), inputs
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_inside_the_compiler_values_gradients_and_statistics_are_those_of_the_readable_form(
    parts, frozen
):
    x, norm, se, shortcut = parts()
    if frozen:
        norm = frozen_like(norm)
    else:
        norm.running_mean.uniform_(-1, 1)
    other_norm, other_se = copy.deepcopy(norm), copy.deepcopy(se)

    def block(x, shortcut):
        assert torch.compiler.is_compiling()
        return normed_residual_sum(x, norm, se, shortcut)

    ours = torch.compile(block, backend="aot_eager", fullgraph=True)(x, shortcut)
    readable = torch.relu(other_se(other_norm(x)) + shortcut)
    torch.testing.assert_close(ours, readable, rtol=0, atol=1e-13)
    mine = (x, shortcut, *norm.parameters(), *se.parameters())
    theirs = (x, shortcut, *other_norm.parameters(), *other_se.parameters())
    check_gradients(ours, mine, readable, theirs, atol=1e-12)
    for one, other in zip(norm.buffers(), other_norm.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(
        lambda x, shortcut, *_: traced_residual_sum(x, norm, se, shortcut),
        (x, shortcut, *norm.parameters(), *se.parameters()),
    )


def test_statistics_keep_their_digits_where_the_mean_is_large(parts):
    x, norm, se, shortcut = (part.float() for part in parts())
    x = 300 + x.detach()  # 150 times the standard deviation
    exact = copy.deepcopy(norm).double()
    exact(x.double())
    traced_residual_sum(x, norm, se, shortcut)
    torch.testing.assert_close(norm.running_var.double(), exact.running_var, rtol=1e-5, atol=0)


def test_a_batch_larger_than_a_chunk_is_summed_whole(parts, monkeypatch):
    monkeypatch.setattr("backbones.residual_sum._CHUNK", 6 * 6 * 8)  # one picture
    x, norm, se, shortcut = parts()
    readable = torch.relu(copy.deepcopy(se)(copy.deepcopy(norm)(x)) + shortcut)
    torch.testing.assert_close(normed_residual_sum(x, norm, se, shortcut), readable)


def test_a_training_step_of_a_network_is_the_same_with_and_without(monkeypatch):
    torch.manual_seed(0)
    network = build_network("se_resnet_tiny", 10).double().train()
    readable = copy.deepcopy(network)
    x = torch.randn(4, 3, 32, 32).double()
    network(x).square().sum().backward()
    monkeypatch.setattr("backbones.blocks.applies_to", lambda *_: False)
    readable(x).square().sum().backward()
    for one, other in zip(network.parameters(), readable.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)
    for one, other in zip(network.buffers(), readable.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_evaluation_hooks_and_other_squeezes_take_the_readable_form(parts):
    x, norm, se, _ = parts()
    assert applies_to(x, norm, se)
    assert not applies_to(x, norm, SEBlock(6, 2, squeeze="max"))
    assert not applies_to(x, norm, nn.Identity())
    assert not applies_to(x, nn.GroupNorm(2, 6), se)
    seen = se.register_forward_hook(lambda *_: None)
    assert not applies_to(x, norm, se)
    seen.remove()
    with torch.no_grad():
        assert not applies_to(x, norm, se)
    with torch.autocast("cpu", torch.bfloat16):
        assert not applies_to(x, norm, se)
    assert not applies_to(x, norm.eval(), se)
