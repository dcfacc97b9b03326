"""GAFX-R against Table 2 of the paper, layer by layer, and against torchvision's basic blocks."""

from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock

import gafx
from gafx.config import TrainConfig, build, run_id
from gafx.errors import UsageError
from gafx.frontends.gafx_r import GAFXR
from gafx.nn.flops import count_flops

# Table 2: stage, output channels, samples left of a frame.
TABLE_2 = [("conv1", 64, 100), ("pool", 64, 50), (0, 64, 50), (1, 128, 25), (2, 256, 13), (3, 512, 7), (4, 128, 4)]


def stage(frontend, name):
    return frontend.resnet.layers[name] if isinstance(name, int) else getattr(frontend.resnet, name)


def output_shapes(frontend, wave):
    """The shape of every stage's output, and the map's."""
    shapes = {}
    hooks = [
        stage(frontend, name).register_forward_hook(lambda _m, _i, out, n=name: shapes.update({n: tuple(out.shape)}))
        for name, _, _ in TABLE_2
    ]
    feature_map = frontend(wave)
    for hook in hooks:
        hook.remove()
    return shapes, tuple(feature_map.shape)


def test_every_stage_of_table_2_at_30_seconds():
    with torch.device("meta"):
        frontend = GAFXR()
        shapes, map_shape = output_shapes(frontend, torch.zeros(1, 1, 661_600))
    assert shapes == {name: (1, channels, 3308, samples) for name, channels, samples in TABLE_2}
    assert map_shape == (1, 1, 128, 3308)


@torch.no_grad()
def test_every_stage_of_table_2_in_numbers():
    frontend = GAFXR().eval()
    shapes, map_shape = output_shapes(frontend, torch.randn(1, 1, 3 * 200))
    assert shapes == {name: (1, channels, 3, samples) for name, channels, samples in TABLE_2}
    assert map_shape == (1, 1, 128, 3)


def test_kernels_and_strides():
    with torch.device("meta"):
        resnet = GAFXR().resnet
    assert (resnet.conv1.kernel_size, resnet.conv1.stride, resnet.conv1.padding) == ((7, 7), (1, 2), (3, 3))
    assert (resnet.pool.kernel_size, resnet.pool.stride, resnet.pool.padding) == (3, (1, 2), 1)
    assert [len(layer) for layer in resnet.layers] == [2] * 5
    for layer, stride in zip(resnet.layers, [1, 2, 2, 2, 2], strict=True):
        first, second = layer
        for convolution, own in ((first.conv1, stride), (first.conv2, 1), (second.conv1, 1), (second.conv2, 1)):
            assert (convolution.kernel_size, convolution.stride) == ((3, 3), (1, own))
            assert convolution.bias is None


@pytest.mark.parametrize(("width", "norm"), [(64, "batch"), (64, "group"), (16, "batch")])
def test_parameters_by_formula(width, norm):
    with torch.device("meta"):
        frontend = GAFXR(width=width, norm=norm)
    channels = [width, width, 2 * width, 4 * width, 8 * width, 128]
    expected = 7 * 7 * width + 2 * width
    for come, go in pairwise(channels):
        expected += 9 * come * go + 3 * 9 * go * go + 4 * 2 * go
        if go != come or go == 128:  # layers 2 to 5 stride, so they project their shortcut
            expected += come * go + 2 * go
    assert sum(p.numel() for p in frontend.parameters()) == expected


def test_735_gflop_a_30_second_clip():
    with torch.device("meta"):
        frontend = GAFXR()
        wave = torch.zeros(1, 1, 661_600)
        with FlopCounterMode(display=False) as counter:
            frontend(wave)
    places = 3308
    expected = 49 * 64 * 100 + 4 * 9 * 64 * 64 * 50
    for come, go, samples in ((64, 128, 25), (128, 256, 13), (256, 512, 7), (512, 128, 4)):
        expected += samples * (9 * come * go + 3 * 9 * go * go + come * go)
    assert counter.get_total_flops() == 2 * places * expected  # a multiplication and an addition
    assert counter.get_total_flops() == pytest.approx(735e9, rel=0.01)


@pytest.mark.parametrize(
    ("seconds", "frames"), [(5, 552), (10, 1103), (29.7, 3275), (30, 3308), (661_600 / 22050, 3308)]
)
def test_frames_of_the_specification(seconds, frames):
    with torch.device("meta"):
        frontend = GAFXR()
        samples = round(seconds * 22050)
        assert frontend.output_shape(samples) == (1, 128, frames)
        assert frontend(torch.zeros(1, 1, samples)).shape == (1, 1, 128, frames)


@pytest.fixture
def small():
    """A narrow GAFX-R in eval whose norms do something."""
    frontend = GAFXR(width=16).eval()
    generator = torch.Generator().manual_seed(5)
    for module in frontend.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return frontend


@torch.no_grad()
def test_equals_a_resnet_of_torchvision_blocks(small):
    """The same network from torchvision's BasicBlock, with Table 2's strides."""
    stages = [torch.nn.Conv2d(1, 16, 7, (1, 2), 3, bias=False), torch.nn.BatchNorm2d(16), torch.nn.ReLU()]
    stages.append(torch.nn.MaxPool2d(3, (1, 2), 1))
    come = 16
    for go, stride in ((16, 1), (32, 2), (64, 2), (128, 2), (128, 2)):
        shortcut = None
        if stride == 2:
            shortcut = torch.nn.Sequential(torch.nn.Conv2d(come, go, 1, (1, 2), bias=False), torch.nn.BatchNorm2d(go))
        stages += [BasicBlock(come, go, (1, stride), shortcut), BasicBlock(go, go)]
        come = go
    reference = torch.nn.Sequential(*stages).eval()
    own = small.resnet.state_dict()
    names = {"norm1.": "1.", "conv1.": "0."}
    renamed = {}
    for name, tensor in own.items():
        if name.startswith("layers."):
            _, layer, block, rest = name.split(".", 3)
            rest = rest.replace("norm", "bn").replace("shortcut", "downsample")
            renamed[f"{4 + 2 * int(layer) + int(block)}.{rest}"] = tensor
        else:
            renamed[names[name[:6]] + name[6:]] = tensor
    reference.load_state_dict(renamed)
    wave = 0.3 * torch.randn(2, 1, 5 * 200)
    expected = reference(wave.reshape(2, 1, 5, 200)).mean(-1)
    assert expected.std() > 0.01
    with torch.enable_grad():  # without gradients batch norms are folded: tests/test_conv.py
        found = small(wave)[:, 0].detach()
    assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_map_is_the_mean_over_the_last_axis(small):
    seen = []
    small.resnet.register_forward_hook(lambda _m, _i, out: seen.append(out))
    feature_map = small(torch.randn(2, 1, 800))
    assert seen[0].shape == (2, 128, 4, 4)
    by_hand = (seen[0][..., 0] + seen[0][..., 1] + seen[0][..., 2] + seen[0][..., 3]) / 4
    assert_close(feature_map, by_hand[:, None])


@torch.no_grad()
@pytest.mark.parametrize("samples", [1, 199, 200, 201, 1077])
def test_padding_with_zeros_to_whole_frames(small, samples):
    wave = torch.randn(2, 1, samples)
    whole = torch.zeros(2, 1, (samples + 199) // 200 * 200)
    whole[..., :samples] = wave
    assert torch.equal(small(wave), small(whole))
    assert small(wave).shape == (2, *small.output_shape(samples))


@pytest.mark.parametrize(("norm", "same"), [("group", True), ("batch", False)])
def test_group_norm_does_not_see_the_batch(norm, same):
    frontend = GAFXR(width=16, norm=norm).train()
    waves = torch.randn(3, 1, 1000) * torch.tensor([0.1, 1.0, 0.5])[:, None, None]
    together = frontend(waves)
    alone = torch.cat([frontend(wave[None]) for wave in waves])
    assert torch.allclose(together, alone, atol=1e-4) is same


@pytest.mark.parametrize("width", [20, 8, 0, -16])
def test_a_width_that_groups_do_not_divide_is_refused(width):
    with pytest.raises(UsageError, match=f"width={width} must be a multiple of 16"):
        GAFXR(width=width)


@pytest.mark.parametrize("shape", [(1000,), (1, 1000), (1, 2, 1000), (1, 1, 0)])
def test_a_wave_of_the_wrong_shape_is_refused(small, shape):
    with pytest.raises(ValueError, match="22050 Hz"):
        small(torch.zeros(shape))


@torch.no_grad()
def test_a_gabor_start_covers_all_frequencies_with_pairs():
    kernel = GAFXR(width=16, init="gabor").resnet.conv1.weight[:, 0]
    assert kernel[:, [0, 1, 2, 4, 5, 6]].abs().max() == 0  # only the frame itself
    peaks = torch.fft.rfft(kernel[:, 3], 512).abs().argmax(dim=1) / 256
    # Fractions of half the rate. With 7 taps the lowest sines and cosines peak at most half a main lobe away.
    assert_close(peaks, ((torch.arange(16) // 2 + 0.5) / 8), atol=0.2, rtol=0)
    assert (peaks[::2].diff() >= 0).all()
    torch.manual_seed(0)
    random = GAFXR(width=16).resnet.conv1.weight
    assert_close(kernel.std(), random.std(), rtol=0.1, atol=0)


@torch.no_grad()
def test_the_logarithm_of_the_map():
    torch.manual_seed(0)
    plain = GAFXR(width=16).eval()
    logarithmic = GAFXR(width=16, log=True).eval()
    logarithmic.load_state_dict(plain.state_dict())
    wave = torch.randn(2, 1, 3000)
    assert_close(logarithmic(wave), torch.log(plain(wave) + 0.01))


def test_new_arguments_change_the_id_of_a_run_only_where_they_are_used():
    plain, named, other = (
        build(TrainConfig, {"frontend": {"name": "gafx_r", **arguments}})
        for arguments in (
            {}, {"init": "random", "log": False, "time_stride": 1, "conv": "full"}, {"init": "gabor"}
        )
    )  # fmt: skip
    assert run_id(plain) == run_id(named) != run_id(other)
    others = [{"time_stride": 2}, {"conv": "separable"}]
    ids = {run_id(build(TrainConfig, {"frontend": {"name": "gafx_r", **arguments}})) for arguments in others}
    assert len(ids | {run_id(plain)}) == 3


# --- departures from the paper ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", range(1, 8))
def test_a_stride_in_time_divides_cost_and_frames(stride):
    with torch.device("meta"):
        frontend, paper = GAFXR(time_stride=stride).eval(), GAFXR().eval()
        mel = gafx.create_frontend("mel", hop_length=200 * stride, win_length=2048)
        for samples in (1, 199, 200, 201, 399, 400, 401, 1400, 1401, 5555):
            shape = frontend.output_shape(samples)
            assert frontend(torch.zeros(2, 1, samples)).shape == (2, *shape)
            assert shape == mel.output_shape(samples)
        wave = torch.zeros(1, 1, 420 * 7 * 200)
        assert count_flops(frontend, wave) * stride == count_flops(paper, wave)


@torch.no_grad()
@pytest.mark.parametrize("stride", [2, 3, 4, 7])
def test_the_strided_convolution_is_centred_on_its_frames(stride):
    """It takes every stride-th output of the unstrided one, from the middle (or before it) of each group of frames."""
    frontend, paper = GAFXR(width=16, time_stride=stride), GAFXR(width=16)
    frontend.load_state_dict(paper.state_dict())
    frames = torch.randn(1, 1, 4 * stride, 200)
    every = paper.resnet.conv1(frames)
    assert_close(frontend.resnet.conv1(frames), every[:, :, (stride - 1) // 2 :: stride], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_incomplete_groups_of_frames_are_padded_with_zeros():
    frontend = GAFXR(width=16, time_stride=4).eval()
    wave = torch.randn(2, 1, 1001)
    whole = torch.zeros(2, 1, 1600)
    whole[..., :1001] = wave
    assert torch.equal(frontend(wave), frontend(whole))


@pytest.mark.parametrize("stride", [0, -1, 8])
def test_a_stride_that_would_skip_frames_is_refused(stride):
    with pytest.raises(UsageError, match=rf"frontend.time_stride={stride} must be between 1 .* and 7, e.g. 2"):
        GAFXR(width=16, time_stride=stride)


@torch.no_grad()
def test_separable_convolutions_are_full_ones_of_products():
    """The kernel of a channel alone times the weight of the 1 x 1 convolution is a kernel of the full network."""
    frontend, full = GAFXR(width=16, conv="separable").eval(), GAFXR(width=16).eval()
    state = {}
    for name, tensor in frontend.state_dict().items():
        if ".0.weight" in name and "shortcut" not in name:
            state[name.replace(".0.weight", ".weight")] = (
                tensor[None, :, 0] * frontend.state_dict()[name.replace(".0.weight", ".1.weight")]
            )
        elif ".1.weight" not in name or "shortcut" in name:
            state[name] = tensor
    full.load_state_dict(state)
    wave = 0.3 * torch.randn(2, 1, 1500)
    expected = full(wave)
    scale = float(expected.abs().max())
    assert scale > 0
    assert_close(frontend(wave) / scale, expected / scale, atol=1e-5, rtol=0)


def test_separable_convolutions_cost_an_eighth():
    with torch.device("meta"):
        frontend = GAFXR(conv="separable").eval()
        assert count_flops(frontend, torch.zeros(1, 1, 661_600)) == pytest.approx(97e9, rel=0.01)
    assert sum(p.numel() for p in frontend.parameters()) == pytest.approx(1.63e6, rel=0.01)


def test_weights_of_the_other_form_are_refused(tmp_path):
    """Those of another stride are not: the network is the same."""
    torch.manual_seed(0)
    path = str(tmp_path / "full.safetensors")
    save_file({name: t.contiguous() for name, t in GAFXR(width=16).state_dict().items()}, path)
    with pytest.raises(UsageError, match=r"does not fit GAFXR.*conv1.*build the front-end with the arguments it was"):
        GAFXR(width=16, conv="separable", pretrained=path)
    strided = GAFXR(width=16, time_stride=2, pretrained=path)
    assert strided.state_dict()["resnet.conv1.weight"].equal(load_file(path)["resnet.conv1.weight"])
