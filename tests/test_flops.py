"""Counting operations: by hand where that is possible, and on the paths that PyTorch's counter does not see."""

import pytest
import torch
from demucs.hdemucs import HDemucs
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import gafx
from gafx.frontends.gafx_r import GAFXR
from gafx.nn.flops import FlopCounter, count_flops


class Attention(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_matrix_product():
    assert count_flops(nn.Linear(7, 5), torch.zeros(3, 7)) == 2 * 3 * 7 * 5


def test_attention_is_seen_though_it_is_fused():
    assert count_flops(Attention(), torch.zeros(2, 3, 10, 4)) == 2 * (2 * 2 * 3 * 10 * 10 * 4)


@pytest.mark.parametrize(("layers", "two_ways"), [(1, False), (2, True), (3, True)])
def test_lstm(layers, two_ways):
    lstm = nn.LSTM(8, 16, layers, bidirectional=two_ways)
    # Every weight matrix is used once a step and clip.
    weights = sum(p.numel() for name, p in lstm.named_parameters() if name.startswith("weight"))
    assert count_flops(lstm, torch.zeros(5, 3, 8)) == 2 * 5 * 3 * weights


def test_gafx_r_at_30_seconds():
    with torch.device("meta"):
        assert count_flops(GAFXR().eval(), torch.zeros(1, 1, 661_600)) == pytest.approx(735e9, rel=0.01)


def test_hooks_are_taken_off():
    net = HDemucs(["a", "b", "c", "d"], channels=16).eval()
    first = count_flops(net, torch.zeros(1, 2, 4096))
    assert count_flops(net, torch.zeros(1, 2, 4096)) == first > 0
    assert not any(part._forward_hooks for part in net.modules())


@pytest.mark.parametrize("name", ["mel", "leaf", "gafx_r", "gafx_a", "gafx_u"])
def test_equals_the_counter_of_pytorch(name):
    small = {"gafx_r": {"width": 16}, "gafx_a": {"width": 16}}.get(name, {})
    model = gafx.create_model({"name": name, **small}, {"name": "ast", "depth": 2}, num_classes=3, segment_seconds=0.5)
    wave = torch.zeros(1, model.frontend.channels, round(0.5 * model.frontend.sample_rate))
    model = model.eval().requires_grad_(False)
    for grad_mode in (torch.no_grad, torch.inference_mode):
        ours, theirs = FlopCounter(), FlopCounterMode(display=False)
        for counter in (ours, theirs):
            with grad_mode(), sdpa_kernel(SDPBackend.MATH), counter:
                model(wave)
        assert ours.total == theirs.get_total_flops() > 1e7
