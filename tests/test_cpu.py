"""Inference on CPUs: oneDNN's products and attention, batches in parts, against PyTorch's own functions."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import gafx
from gafx.deploy.threads import background
from gafx.deploy.windows import on_device
from gafx.nn import cpu
from gafx.nn.flops import count_flops

both = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 0.03}


@pytest.fixture
def onednn(monkeypatch):
    """Take oneDNN's operators on any processor that has them; give the number of calls."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of PyTorch has no oneDNN")
    calls = []
    real = cpu._onednn
    monkeypatch.setattr(cpu, "_faster", lambda: (torch.float32, torch.bfloat16))
    monkeypatch.setattr(cpu, "_onednn", lambda *given, **options: calls.append(1) or real(*given, **options))
    return calls


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@both
@pytest.mark.parametrize("queries", [600, 257])
def test_attention_agrees_with_the_definition(onednn, dtype, queries):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 600, 16, dtype=dtype) for _ in range(3))
    query = query[:, :, :queries]
    with torch.inference_mode():
        found = cpu.attend(query, key, value)
    scores = query.double() @ key.double().transpose(-1, -2) / 4
    assert onednn
    assert found.dtype == dtype
    assert found.shape == query.shape
    assert (found.double() - scores.softmax(-1) @ value.double()).abs().max() < TOLERANCE[dtype]


@both
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_layer_under_autocast_agrees_with_double_precision(onednn, dtype, gelu, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 48, bias=bias), torch.randn(5, 300, 64)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = cpu.linear(layer, x, gelu=gelu)
    expected = x.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    expected = nn.functional.gelu(expected) if gelu else expected
    assert onednn
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() < TOLERANCE[dtype]


def test_gradients_and_exports_take_pytorch_s_own_functions(onednn):
    layer, x = nn.Linear(64, 64), torch.randn(2, 600, 64, requires_grad=True)
    cpu.linear(layer, x, gelu=True).sum().backward()
    cpu.attend(x[None], x[None], x[None]).sum().backward()
    with torch.inference_mode():
        torch.export.export(_Linear(layer), (x.detach(),))
    assert not onednn
    assert x.grad is not None
    assert layer.weight.grad is not None


def test_layers_that_a_user_changed_are_called(onednn):
    torch.manual_seed(0)
    model = gafx.create_model("mel", {"name": "ast", "depth": 2}, num_classes=3, segment_seconds=6.0).eval()
    wave = 0.1 * torch.randn(1, 1, 6 * 22050)
    first, last = model.classifier.blocks
    first.mlp.fc1 = _Adapted(first.mlp.fc1)
    first.mlp.fc2.register_forward_hook(lambda layer, given, found: 0.5 * found)
    first.attn.qkv.forward = lambda x: nn.functional.linear(x, -first.attn.qkv.weight)
    nn.utils.parametrizations.weight_norm(last.mlp.fc1)
    seen = []
    model.classifier.blocks.register_forward_hook(lambda blocks, given, found: seen.append(found.shape[1]))
    expected = model(wave).detach()
    assert not onednn
    with torch.inference_mode():
        assert (model(wave) - expected).abs().max() < 1e-5
    assert onednn
    assert len(seen) == 2
    assert seen[0] == seen[1] > 256


class _Adapted(nn.Module):
    """A layer that adds to another one's output, whose weights it shows as its own, as adapters of peft do."""

    def __init__(self, base):
        super().__init__()
        self.base, self.weight, self.bias = base, base.weight, base.bias
        self.more = nn.Linear(base.in_features, base.out_features)

    def forward(self, x):
        return self.base(x) + self.more(x)


def test_operations_are_counted_in_full(monkeypatch, onednn):
    model = gafx.create_model("mel", {"name": "ast", "depth": 1}, num_classes=3, segment_seconds=6.0).eval()
    wave = torch.zeros(1, 1, 6 * 22050)
    found = count_flops(model, wave)
    monkeypatch.setattr(cpu, "_faster", lambda: ())
    assert found == count_flops(model, wave)
    assert found > 2 * 600 * 192 * 192 * 4  # queries, keys and values alone


class _Linear(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return cpu.linear(self.layer, x)


@pytest.mark.parametrize("classifier", [{"name": "ast", "depth": 2}, {"name": "ast", "depth": 2, "pooling": "mean"}])
def test_model_agrees_with_gradients_and_without(onednn, classifier):
    torch.manual_seed(0)
    model = gafx.create_model("mel", classifier, num_classes=3, segment_seconds=6.0).eval()
    wave = 0.1 * torch.randn(2, 1, 6 * 22050)
    expected = model(wave).detach()
    assert not onednn
    with torch.inference_mode():
        assert (model(wave) - expected).abs().max() < 1e-5
    assert onednn


@pytest.mark.parametrize(("clips", "samples"), [(0, 10), (1, 10), (2, 10), (7, 10), (7, 120_000), (3, 500_000)])
def test_parts_of_a_batch_run_in_threads_and_come_back_in_order(four_threads, clips, samples):
    names = set()

    def run(wave, number):
        names.add(threading.current_thread().name)
        assert wave.numel() <= max(250_000, samples)
        return 2 * number + wave[:, 0]

    number = torch.arange(clips)
    found = torch.cat(cpu.by_clips(run, torch.ones(clips, samples), number))
    assert found.tolist() == (2 * number + 1).tolist()
    assert names
    assert clips < 2 or all(name.startswith("gafx-clips") for name in names)


def test_number_of_threads_is_kept_and_errors_are_raised(four_threads):
    def fail(wave):
        raise ValueError("of a part")

    assert set(cpu.by_clips(lambda wave: torch.get_num_threads(), torch.zeros(4, 10))) == {1}
    assert set(cpu.by_clips(lambda wave: torch.get_num_threads(), torch.zeros(2, 10))) == {2}
    assert torch.get_num_threads() == 4
    with pytest.raises(ValueError, match="of a part"):
        cpu.by_clips(fail, torch.zeros(3, 10))


def test_pools_started_by_several_threads_leave_the_number_of_threads(four_threads):
    """As of `gafx serve`: several requests at once, each in a thread of its own."""
    for _ in range(10):
        cpu._workers.cache_clear()
        with ThreadPoolExecutor(8) as requests:
            found = list(requests.map(lambda _: cpu.by_clips(len, torch.ones(8, 10)), range(8)))
        assert found == [[2, 2, 2, 2]] * 8
        assert cpu._workers.cache_info().currsize == 1


def test_a_command_that_is_interrupted_ends_within_a_part_of_the_batch(four_threads):
    started, leave, parts = threading.Event(), threading.Event(), []

    def run(wave):
        parts.append(len(wave))
        started.set()
        assert leave.wait(60)
        return wave[:, 0, :1]

    def batches():
        yield on_device(run, "cpu", "fp32")(np.zeros((12, 1, 250_000), np.float32))

    with background([batches()], 1, leave.set):
        assert started.wait(60)
    assert len(parts) <= 4  # of 12


def test_batches_give_what_single_clips_give():
    torch.manual_seed(0)
    model = gafx.create_model("mel", {"name": "cnn", "widths": (8,)}, num_classes=3, segment_seconds=1.0).eval()
    run = on_device(model, "cpu", "fp32")
    wave = 0.1 * torch.randn(9, 1, 22050)
    with torch.inference_mode():
        expected = torch.cat([model(clip[None]) for clip in wave])
    assert (torch.from_numpy(run(wave.numpy())) - expected).abs().max() < 1e-5
