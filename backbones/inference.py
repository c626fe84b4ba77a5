"""Exact rewrites that make a trained network faster; equal to the plain form up to rounding.

A convolution and the norm after it are one convolution; ReLUs work in place; and SE on the output of
a 1x1 convolution is squeezed before that convolution: with the norm folded, y = W3 x + b3 is affine
in each pixel, so that the mean over the pixels commutes with it,

    mean(y) = W3 mean(x) + b3    and    W1 mean(y) + b1 = (W1 W3) mean(x) + (W1 b3 + b1),

and the gate comes from the smaller x, by one matrix worked out beforehand. Scale and sum are one pass.

The plain modules stay the reference. Modules a rewrite does not recognise are left unchanged.
"""

import copy
import operator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from backbones.blocks import ResidualBlock
from backbones.config import unknown
from backbones.features import Backbone, Network
from backbones.inception import InceptionResidualBlock
from backbones.residual_sum import is_frozen
from backbones.squeeze_excite import EXCITATIONS, SEBlock

MODES = ("auto", "plain", "eager", "compiled")


@torch.no_grad()
def prepare_for_inference(network: nn.Module, mode: str = "auto") -> nn.Module:
    """Return a copy of `network` that computes the same faster, in evaluation mode.

    Args:
        network: a Network or Backbone, or any module that holds backbones, such as a detector; of
            the latter, the backbones alone are rewritten. It stays as it is.
        mode: "plain" copies; "eager" rewrites; "compiled" rewrites and compiles by inductor with
            frozen weights, at the first call for every input shape (about a minute for ResNet-50).
            "auto" is "eager" on a CPU and "plain" elsewhere, where nothing was measured.

    Call the copy under `torch.inference_mode()`; it cannot be trained. On CPUs channels-last pays;
    the copy's weights are in that format, and a compiled copy wants its input in it too.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(unknown("mode", mode, MODES))
    network = copy.deepcopy(network).eval().requires_grad_(False)
    if mode == "auto":
        on_cpu = all(parameter.device.type == "cpu" for parameter in network.parameters())
        mode = "eager" if on_cpu else "plain"
    if mode == "plain":
        return network
    backbones = [module for module in network.modules() if isinstance(module, Backbone)]
    for backbone in backbones:
        _fold_norms(backbone)
        _rewrite_blocks(backbone)
        backbone.to(memory_format=torch.channels_last)
    if mode == "compiled":
        if isinstance(network, Network | Backbone):
            return Compiled(network)
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, Backbone):
                    setattr(parent, name, Compiled(child))
    return network


class Compiled(nn.Module):
    """`module` compiled by inductor with its weights frozen, at the first call for every shape."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.module.compile(dynamic=False)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """Do what `module` does, in compiled code."""
        with _frozen_weights(), torch.no_grad():
            return self.module(x)


def _frozen_weights() -> AbstractContextManager[Any]:
    """Let inductor take weights for constants.

    A private setting of torch: `torch.compile(options={"freezing": True})` is the public way, but
    tracing asks the global setting. Without it the compiled network is equal, and slower by the
    layout of its weights; `test_a_compiled_network_is_equal` would fail.
    """
    from torch._inductor import config  # slow to import

    return config.patch(freezing=True)


class EarlyGate(nn.Module):
    """The gate of `se` on the output of the 1x1 convolution `last`, from that one's input."""

    def __init__(self, se: SEBlock, last: nn.Conv2d) -> None:
        super().__init__()
        w1, w3 = se.fc1.weight.double(), last.weight.flatten(1).double()  # (C/r, C), (C, inner)
        bias = torch.zeros(len(w1), dtype=torch.float64, device=w1.device)
        if se.fc1.bias is not None:
            bias += se.fc1.bias
        if last.bias is not None:
            bias += w1 @ last.bias.double()
        self.fc1 = nn.Linear(w3.shape[1], len(w1), device=w1.device, dtype=se.fc1.weight.dtype)
        self.fc1.weight.copy_(w1 @ w3)
        self.fc1.bias.copy_(bias)
        self.fc2 = se.fc2
        self.excitation = EXCITATIONS[se.excitation]

    def forward(self, inner: Tensor) -> Tensor:
        """Return the gate (N, C, 1, 1) from the input of `last` (N, inner channels, H, W)."""
        z = inner.mean(dim=(2, 3))  # (N, inner channels)
        return self.excitation(self.fc2(self.fc1(z).relu_()))[:, :, None, None]


class ResidualSum(nn.Module):
    """y = act(gate * last(body(x)) + shortcut(x)): a residual block without norms.

    Args:
        gate: of the sum's first term: from the input of `last` early, or from what it will scale, as
            SE is; None for plain blocks.
        shortcut: of x.
        relu: whether a ReLU follows the sum.
    """

    def __init__(
        self,
        body: nn.Module,
        last: nn.Conv2d,
        gate: EarlyGate | SEBlock | None,
        shortcut: nn.Module,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.body, self.last, self.shortcut = body, last, shortcut
        self.gate: EarlyGate | SEBlock | None = gate
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in channels, H, W) to (N, out channels, H / stride, W / stride)."""
        inner = self.body(x)
        y = self.last(inner)
        if self.gate is None:
            y = y.add_(self.shortcut(x))
        else:
            gate = self.gate
            factor = gate(inner) if isinstance(gate, EarlyGate) else gate.gate(y)
            y = torch.addcmul(self.shortcut(x), y, factor, out=y)
        return y.relu_() if self.relu else y


# Norms ---------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Traces a network down to torch's modules, frozen norms and attention."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Say whether tracing stops at a module."""
        is_attention = name.rpartition(".")[2] == "se"
        return is_attention or _is_norm(module) or super().is_leaf_module(module, name)


def _fold_norms(root: nn.Module) -> None:
    """Fold norms into the convolutions before them; make ReLUs in-place.

    ReLUs only where nothing else reads their input. Which module follows which is read from the traced graph, not from names. What cannot be traced
    (control flow that depends on values) is tried again part by part.
    """
    for name, module in list(root.named_modules()):
        if name.rpartition(".")[2] == "se" and list(module.children()):
            _fold_norms(module)
    try:
        graph = _Tracer().trace(root)
    except Exception:  # tracing runs the network's own code on proxies: anything may be raised
        for child in root.children():
            _fold_norms(child)
        return
    calls: dict[nn.Module, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(root.get_submodule(str(node.target)), []).append(node)

    def producer(node: fx.Node) -> nn.Module | None:
        """The module whose output `node` alone takes, called there alone."""
        source = _source(node)
        if source is None or source.op != "call_module" or len(source.users) > 1:
            return None
        module = root.get_submodule(str(source.target))
        return module if len(calls[module]) == 1 else None

    for relu, nodes in calls.items():
        if type(relu) is nn.ReLU:
            relu.inplace = all(
                isinstance(producer(node), nn.Conv2d) or _is_norm(producer(node)) or _is_sum(node)
                for node in nodes
            )
    for norm, nodes in calls.items():
        conv = producer(nodes[0]) if _is_norm(norm) and len(nodes) == 1 else None
        source = _source(nodes[0])
        if type(conv) is nn.Conv2d and source is not None:
            batch_norm: Any = norm  # a frozen one has the same tensors
            folded = fuse_conv_bn_eval(conv, batch_norm)
            root.set_submodule(str(source.target), folded)
            # timm's norms have drop and activation inside.
            rest: nn.Module = nn.Identity()
            if hasattr(batch_norm, "act"):
                rest = nn.Sequential(batch_norm.drop, batch_norm.act)
            root.set_submodule(str(nodes[0].target), rest)


def _is_norm(module: nn.Module | None) -> bool:
    """Whether it is a batch norm, trained or frozen as Detectron2 and torchvision have it."""
    return isinstance(module, nn.BatchNorm2d) or is_frozen(module)


def _is_sum(node: fx.Node) -> bool:
    source = _source(node)
    return source is not None and source.target is operator.add and len(source.users) == 1


def _source(node: fx.Node) -> fx.Node | None:
    """The node whose output a module takes."""
    source = node.args[0] if node.args else None
    return source if isinstance(source, fx.Node) else None


# Blocks --------------------------------------------------------------------------------------------


def _rewrite_blocks(root: nn.Module) -> None:
    for parent in list(root.modules()):
        for name, block in list(parent.named_children()):
            if isinstance(block, ResidualBlock):
                setattr(parent, name, _rewrite_residual_block(block))
            elif type(block) is InceptionResidualBlock:
                setattr(parent, name, _rewrite_inception_block(block))


def _rewrite_residual_block(block: ResidualBlock) -> nn.Module:
    """Sum, gate and ReLU in one, for SE at any place; other attentions and norms keep their block."""
    if type(block) is not ResidualBlock:  # a subclass may compute otherwise
        return block
    if type(block.se) not in (nn.Identity, SEBlock):
        return block
    if not all(type(norm) is nn.Identity for _, norm in block.layers):
        return block
    *inner, last = [conv for conv, _ in block.layers]
    assert isinstance(last, nn.Conv2d)
    body = nn.Sequential()
    if block.placement == "pre":
        body.append(block.se)
    for conv in inner:
        body.extend([conv, nn.ReLU(inplace=True)])
    if block.placement == "3x3":
        body.append(block.se)
    gate = None
    if block.placement == "standard" and isinstance(block.se, SEBlock):
        gate = _build_gate(block.se, last)
    shortcut = block.shortcut
    if block.placement == "identity":
        shortcut = nn.Sequential(shortcut, block.se)
    rewritten = ResidualSum(body, last, gate, shortcut)
    return nn.Sequential(rewritten, block.se) if block.placement == "post" else rewritten


def _rewrite_inception_block(block: InceptionResidualBlock) -> nn.Module:
    if type(block.se) not in (nn.Identity, SEBlock):
        return block
    gate = _build_gate(block.se, block.conv) if isinstance(block.se, SEBlock) else None
    last = block.conv
    if not isinstance(gate, SEBlock):
        last = copy.deepcopy(last)  # the block's scale becomes part of its weights
        last.weight.mul_(block.scale)
        assert last.bias is not None
        last.bias.mul_(block.scale)
    elif block.scale != 1.0:
        return block
    return ResidualSum(block.branches, last, gate, nn.Identity(), type(block.relu) is nn.ReLU)


def _build_gate(se: SEBlock, last: nn.Conv2d) -> EarlyGate | SEBlock:
    is_pointwise = last.kernel_size == last.stride == (1, 1) and last.groups == 1
    return EarlyGate(se, last) if is_pointwise and se.squeeze == "avg" else se
