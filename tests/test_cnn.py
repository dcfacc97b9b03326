"""The classifier cnn: its layers written out again, its size, and the maps that it accepts."""

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

import gafx
from gafx.classifiers.cnn import CNN
from gafx.errors import UsageError


def build(map_shape=(1, 64, 100), classes=10, **arguments):
    torch.manual_seed(0)
    return CNN(map_shape, classes, **arguments).eval()


@torch.no_grad()
def test_its_layers_written_out():
    model = build()
    for module in model.modules():  # statistics other than 0 and 1
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    state, feature_map = model.state_dict(), torch.randn(2, 1, 64, 77)

    def layer(x, conv, norm, **options):
        x = functional.conv2d(x, state[f"{conv}.weight"], **options)
        values = (state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        return functional.relu(functional.batch_norm(x, *values))

    x = layer(feature_map, "stem.0", "stem.1", stride=2, padding=2)
    for block in range(3):
        for first in (0, 3):
            x = layer(x, f"blocks.{block}.layers.{first}", f"blocks.{block}.layers.{first + 1}", padding=1)
        x = functional.max_pool2d(x, 2)
    x = x.mean(dim=2)
    embedding = torch.cat([x.mean(dim=-1), x.amax(dim=-1)], dim=1)
    assert_close(model.embed(feature_map), embedding, atol=1e-4, rtol=1e-4)
    assert_close(model(feature_map), functional.linear(embedding, state["output.weight"], state["output.bias"]))


def test_size():
    kernels = 25 * 32 + 9 * (32 * 32 * 2 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128)
    norms, output = 2 * (32 * 3 + 64 * 2 + 128 * 2), 256 * 10 + 10
    assert sum(parameter.numel() for parameter in build().parameters()) == kernels + norms + output == 299_242
    assert build(stem=8, widths=(16, 24)).width == 48


@torch.no_grad()
@pytest.mark.parametrize(("widths", "shortest"), [((32,), 3), ((32, 64, 128), 15)])
def test_the_shortest_map(widths, shortest):
    model = build((1, 16, 100), widths=widths)
    assert model.min_frames == shortest
    assert model(torch.randn(1, 1, 16, shortest)).isfinite().all()
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 1, 16, shortest - 1))


@torch.no_grad()
def test_bfloat16_stays_finite_on_narrow_maps():
    """A transformer's patch convolution gives NaN there on some CPUs (gafx.classifiers.ast)."""
    model = build((1, 128, 100))
    for frames in (15, 16, 17, 31, 64):
        for _ in range(5):
            with torch.autocast("cpu", torch.bfloat16):
                assert model(torch.randn(8, 1, 128, frames)).isfinite().all()


@pytest.mark.parametrize(
    ("shape", "wrong", "text"),
    [
        ((1, 14, 100), {}, r"a map of 14 x 100 \(frequency x time\) is too small for 3 blocks"),
        ((1, 64, 100), {"widths": ()}, "at least one block"),
        ((1, 64, 100), {"dropout": 1.0}, "less than 1"),
        ((1, 64, 100), {"stem": 12, "norm": "group"}, "multiple of 8"),
        ((1, 64, 100), {"widths": (32, 0)}, "0 channels"),
    ],
)
def test_wrong_arguments_are_named(shape, wrong, text):
    with pytest.raises(UsageError, match=text):
        build(shape, **wrong)


@torch.no_grad()
def test_it_does_not_depend_on_the_position_in_time():
    """Rolled by a whole number of its 16-frame cells, a map with silent edges gives the same logits."""
    model = gafx.create_model("mel", "cnn", num_classes=3, segment_seconds=2.0).classifier.eval()
    feature_map = torch.zeros(1, 1, 128, 320)
    feature_map[..., 96:192] = torch.randn(1, 1, 128, 96)
    assert_close(model(feature_map), model(feature_map.roll(32, dims=-1)), atol=1e-4, rtol=1e-4)
