"""Convolution and batch norm as one convolution: where, with the same result, and where not."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from gafx.classifiers.cnn import CNN
from gafx.frontends.gafx_r import GAFXR
from gafx.nn.conv import ConvNorms, ConvStem, conv_norm

# Large enough that every map has more values than the kernel that reads it.
SHAPES = {"gafx_r": (2, 1, 58_000), "separable": (2, 1, 58_000), "cnn": (2, 1, 64, 100), "stem": (2, 1, 128, 160)}


def build(name):
    """A network in evaluation whose norms do something."""
    torch.manual_seed(0)
    network = {
        "gafx_r": lambda: GAFXR(width=16),
        "separable": lambda: GAFXR(width=16, conv="separable"),
        "cnn": lambda: CNN((1, 64, 100), 3, stem=8, widths=(8, 8)),
        "stem": lambda: ConvStem(1, 32),
    }[name]()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return network.eval()


def norms(network):
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def apart(network):
    """The same network with its batch norms computed apart: layers with hooks are not folded."""
    network = copy.deepcopy(network)
    calls = []
    for module in norms(network):
        module.register_forward_hook(lambda *_: calls.append(1))
    return network, calls


@pytest.mark.parametrize("name", list(SHAPES))
def test_inference_gives_the_same_without_a_batch_norm(name, monkeypatch):
    network = build(name)
    plain, calls = apart(network)
    x, state = torch.randn(SHAPES[name]), copy.deepcopy(network.state_dict())
    with torch.no_grad():
        expected = plain(x)
    assert len(calls) == len(norms(network)) > 3
    monkeypatch.setattr(nn.BatchNorm2d, "forward", None)  # not called
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = network(x)
        scale = float(expected.abs().max())
        assert_close(found / scale, expected / scale, atol=1e-5, rtol=0)
    assert_close(network.state_dict(), state, atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gafx_r", "cnn"])
def test_bfloat16_is_as_exact_as_before(name):
    network = build(name)
    x = torch.randn(SHAPES[name])
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        folded, plain = (each(x).float() for each in (network, apart(network)[0]))
    errors = [float((found - exact).square().mean().sqrt() / exact.std()) for found in (folded, plain)]
    assert errors[0] < max(1.5 * errors[1], 0.01)
    assert errors[0] < 0.05


@torch.no_grad()
def test_a_model_converted_to_bfloat16():
    network = build("stem")
    x = torch.randn(SHAPES["stem"])
    exact, network = network(x), network.bfloat16()
    assert network(x.bfloat16()).dtype == torch.bfloat16
    assert_close(network(x.bfloat16()).float(), exact, atol=0.05 * float(exact.abs().max()), rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_training_and_gradients_do_not_change(training):
    """The bits of the plain sequence of layers, with and without training."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
    results = []
    for compute in (ConvNorms(conv, norm, nn.ReLU()), nn.Sequential(conv, norm, nn.ReLU())):
        twin = copy.deepcopy(compute).train(training)
        x = torch.randn(4, 3, 10, 11, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = twin(x)
        y.square().mean().backward()
        results.append([y, x.grad, *(p.grad for p in twin.parameters()), *twin.buffers()])
    for one, other in pairwise(results):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@torch.no_grad()
def test_a_bias_a_stride_and_a_wider_kernel():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 5, 2, 1, dilation=2, groups=2).eval()
    norm = nn.BatchNorm2d(8).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 4)
    x = torch.randn(2, 4, 20, 21)
    assert_close(conv_norm(conv, norm, x), norm(conv(x)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_other_norms_stay_as_they_are():
    conv, x = nn.Conv2d(4, 8, 3).eval(), torch.randn(2, 4, 12, 12)
    no_statistics = nn.BatchNorm2d(8, track_running_stats=False).eval()
    for norm in (nn.GroupNorm(4, 8).eval(), no_statistics, nn.BatchNorm2d(8)):
        assert torch.equal(conv_norm(conv, norm, x), copy.deepcopy(norm)(conv(x)))


@torch.no_grad()
@pytest.mark.parametrize("changed", ["conv", "norm"])
@pytest.mark.parametrize("way", ["class", "forward", "parametrization"])
def test_layers_that_compute_something_else_are_not_folded(changed, way):
    torch.manual_seed(0)
    layers = {"conv": nn.Conv2d(4, 8, 3).eval(), "norm": nn.BatchNorm2d(8).eval()}
    layer = layers[changed]
    if way == "class":
        kind = type(layer)
        layer.__class__ = type("Twice", (kind,), {"forward": lambda self, x: 2 * kind.forward(self, x)})
    elif way == "forward":
        plain = layer.forward
        layer.forward = lambda x: 2 * plain(x)
    else:
        parametrize.register_parametrization(layer, "weight", nn.Softplus())
    conv, norm = layers.values()
    x = torch.randn(2, 4, 12, 12)
    assert torch.equal(ConvNorms(conv, norm)(x), norm(conv(x)))


@torch.no_grad()
def test_compiled_and_in_half_precision():
    torch.manual_seed(0)
    conv, norm, x = nn.Conv2d(4, 8, 3).eval(), nn.BatchNorm2d(8).eval(), torch.randn(2, 4, 12, 12)
    norm.running_var.uniform_(1e-4, 4)
    layers = ConvNorms(conv, norm, nn.ReLU())
    expected = norm(conv(x)).relu()
    assert_close(torch.compile(layers, fullgraph=True, backend="eager")(x), expected, atol=1e-5, rtol=1e-5)
    half = copy.deepcopy(layers).half()(x.half())
    assert half.dtype == torch.float16
    assert_close(half.float(), expected, atol=2e-3 * float(expected.max()), rtol=0)


def test_a_part_of_the_layers():
    """The convolution alone, of which a slice of the layers ends before the norm."""
    conv, x = nn.Conv2d(4, 8, 3), torch.randn(2, 4, 12, 12)
    assert torch.equal(ConvNorms(conv, nn.BatchNorm2d(8))[:1](x), conv(x))


@torch.no_grad()
def test_a_map_smaller_than_the_kernel_is_not_worth_it(monkeypatch):
    conv, norm = nn.Conv2d(4, 8, 3, padding=1).eval(), nn.BatchNorm2d(8).eval()
    calls = []
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda _, x: calls.append(x.shape[-1]) or x)
    for width in (17, 18):  # the kernel has 288 values, a map of 4 x 4 x 18 as many
        conv_norm(conv, norm, torch.randn(9, 4, 4, width))
    assert calls == [17]
