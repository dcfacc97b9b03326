"""GAFX-A: shapes, attention against its formula and torch's own layers, memory, and training at the paper's rates."""

import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from gafx.errors import UsageError
from gafx.frontends.gafx_a import GAFXA
from gafx.frontends.gafx_r import GAFXR
from gafx.model import create_model
from gafx.nn.attention import AttentionLayer, SelfAttention, rotary_angles, rotate
from gafx.nn.maps import MapNorm

NORMS = ["pre", "post", "none"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# --- shapes and arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "frames"), [(5, 552), (10, 1103), (29.7, 3275), (30, 3308)])
@pytest.mark.parametrize("pooling", ["mean", "project"])
def test_frames_of_the_specification(seconds, frames, pooling):
    with torch.device("meta"):
        frontend = GAFXA(pooling=pooling, norm="post")  # `pre` requires a device with autocast
        samples = round(seconds * 22050)
        assert frontend.output_shape(samples) == (1, 128, frames)
        assert frontend(torch.zeros(1, 1, samples)).shape == (1, 1, 128, frames)


@pytest.mark.parametrize("norm", NORMS)
@torch.no_grad()
def test_every_build_at_real_lengths(norm):
    frontend = GAFXA(width=16, norm=norm, pooling="project", depth=3, heads=8).eval()
    for samples in (1, 200, 5 * 22050):
        feature_map = frontend(torch.randn(1, 1, samples))
        assert feature_map.shape == (1, *frontend.output_shape(samples))
        assert feature_map.isfinite().all()


def test_parameters_by_formula():
    with torch.device("meta"):
        plain = sum(p.numel() for p in GAFXR().parameters())
        for norm, norms, gains in (("pre", 2, 2 * 32 + 2 * 128), ("post", 2, 0), ("none", 0, 0)):
            layer = 4 * 128 * 128 + 4 * 128 + 2 * 4 * 128 * 128 + 5 * 128 + norms * 2 * 128 + gains
            own = sum(p.numel() for p in GAFXA(norm=norm, depth=3).parameters())
            assert own == plain + 3 * layer, norm
        assert sum(p.numel() for p in GAFXA(pooling="project", depth=3, norm="none").parameters()) == own + 513 * 128


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 3}, "frontend.heads=3 must divide 128"),
        ({"heads": 0}, "heads=0"),
        ({"heads": 128}, "heads=128"),
        ({"depth": 0}, "frontend.depth=0 must be at least 1"),
        ({"width": 20}, "width=20 must be a multiple of 16"),
        ({"sample_rate": 0}, "sample_rate=0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        GAFXA(**arguments)


# --- the network and the entry ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "project"])
@torch.no_grad()
def test_the_network_is_that_of_gafx_r(pooling):
    """With equal weights and layers that add nothing the map is GAFX-R's, brought to its scale."""
    plain, frontend = GAFXR(width=16).eval(), GAFXA(width=16, pooling=pooling).eval()
    frontend.resnet.load_state_dict(plain.resnet.state_dict())
    for layer in frontend.layers:
        for last in (layer.attention.outward, layer.narrow):
            last.weight.zero_()
    wave = 0.3 * torch.randn(2, 1, 3000)
    assert_close(frontend(wave), MapNorm(learned=True)(plain(wave)), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_training_starts_near_gafx_r():
    plain, frontend = GAFXR(width=16).eval(), GAFXA(width=16).eval()
    frontend.resnet.load_state_dict(plain.resnet.state_dict())
    wave = 0.3 * torch.randn(2, 1, 3000)
    expected = MapNorm(learned=True)(plain(wave))
    away = (frontend(wave) - expected).square().mean().sqrt() / expected.std()
    assert 1e-4 < away < 0.1


@pytest.mark.parametrize("scale", [1e-2, 1e3, 1e6])
@torch.no_grad()
def test_the_scale_of_the_networks_output_does_not_matter(scale):
    frontend = GAFXA(width=16).eval()
    wave = 0.3 * torch.randn(2, 1, 3000)
    before = frontend(wave)
    frontend.resnet.register_forward_hook(lambda _m, _i, out: out * scale)
    assert_close(frontend(wave), before, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_soft_frames_stay_soft():
    """The clip's dynamics survive: no norm makes frames equally loud."""
    frontend = GAFXA(width=16).eval()
    wave = torch.cat([0.01 * torch.randn(1, 1, 4000), torch.randn(1, 1, 4000)], dim=-1)
    feature_map = frontend(wave)[0, 0]
    assert feature_map[:, :18].std() < 0.3 * feature_map[:, 22:].std()


@torch.no_grad()
def test_the_mean_ignores_the_order_of_pooling_and_the_projection_does_not():
    for pooling, same in (("mean", True), ("project", False)):
        frontend = GAFXA(width=16, pooling=pooling, norm="none").eval()
        wave = torch.randn(1, 1, 2000)
        before = frontend(wave)
        frontend.resnet.register_forward_hook(lambda _m, _i, out: out.flip(-1))
        assert torch.allclose(frontend(wave), before, atol=1e-4) is same


# --- attention --------------------------------------------------------------------------------------------------------


def explicit(layer, x, angles=None):
    """softmax(Q K^T / sqrt(d)) V written out, head by head, in the precision of `x`."""
    width, heads = x.shape[-1], layer.heads
    size = width // heads
    projected = x @ layer.inward.weight.T + layer.inward.bias
    outputs = []
    for head in range(heads):
        at = slice(head * size, (head + 1) * size)
        query, key, value = (projected[..., part * width : (part + 1) * width][..., at] for part in range(3))
        if layer.bounded:
            rms = [t / (t.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() for t in (query, key)]
            query, key = rms[0] * layer.query_gain, rms[1] * layer.key_gain
            turn = torch.exp(1j * angles)
            query, key = (torch.complex(*t.chunk(2, -1)) * turn for t in (query, key))
            query, key = (torch.cat([t.real, t.imag], -1) for t in (query, key))
        scores = query @ key.transpose(-1, -2) / math.sqrt(size)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        outputs.append(weights / weights.sum(-1, keepdim=True) @ value)
    return torch.cat(outputs, -1) @ layer.outward.weight.T + layer.outward.bias


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_attention_equals_its_formula(bounded, scale):
    layer = SelfAttention(128, 4, bounded=bounded)
    if bounded:
        nn.init.uniform_(layer.query_gain, 0.5, 2)
        nn.init.uniform_(layer.key_gain, 0.5, 2)
    x = scale * torch.randn(2, 57, 128)
    reference = SelfAttention(128, 4, bounded=bounded).double()
    reference.load_state_dict(layer.state_dict())
    angles = torch.outer(torch.arange(57.0).double(), 10_000 ** -(torch.arange(0, 32, 2).double() / 32))
    expected = explicit(reference, x.double(), angles)
    assert_close(layer(x).double(), expected, atol=2e-4 * scale, rtol=1e-4)


def test_gradients_of_attention_equal_those_of_its_formula():
    layer = SelfAttention(128, 4, bounded=True)
    reference = SelfAttention(128, 4, bounded=True).double()
    reference.load_state_dict(layer.state_dict())
    x, weight = torch.randn(1, 40, 128), torch.randn(1, 40, 128)
    angles = torch.outer(torch.arange(40.0).double(), 10_000 ** -(torch.arange(0, 32, 2).double() / 32))
    (layer(x) * weight).sum().backward()
    (explicit(reference, x.double(), angles) * weight).sum().backward()
    for (name, own), theirs in zip(layer.named_parameters(), reference.parameters(), strict=True):
        assert_close(own.grad.double(), theirs.grad, atol=2e-3, rtol=1e-3, msg=name)


def test_rotated_products_depend_on_the_distance_alone():
    query, key = torch.randn(32), torch.randn(32)
    angles = rotary_angles(4000, 32, torch.device("cpu"))
    assert angles.shape == (4000, 16)
    queries, keys = rotate(query.expand(4000, 32), angles), rotate(key.expand(4000, 32), angles)
    products = [queries[at + 7] @ keys[at] for at in (0, 50, 3900)]
    assert_close(products[1], products[0], atol=1e-3, rtol=0)
    assert_close(products[2], products[0], atol=5e-3, rtol=0)
    assert abs(queries[9] @ keys[0] - products[0]) > 1e-2
    assert_close(queries.norm(dim=-1), query.norm().expand(4000))


def test_positions_are_seen_by_ours_alone():
    x = torch.randn(1, 30, 128)
    order = torch.randperm(30)
    for norm, seen in (("pre", True), ("post", False), ("none", False)):
        layer = AttentionLayer(128, 4, norm)
        nn.init.normal_(layer.attention.outward.weight, std=0.1)
        assert torch.allclose(layer(x)[:, order], layer(x[:, order]), atol=1e-5) is not seen, norm


def test_bounded_products_stay_small():
    layer = SelfAttention(128, 4, bounded=True)
    for scale in (1e-6, 1.0, 1e6):
        query = scale * torch.randn(2, 4, 9, 32)
        angles = rotary_angles(9, 32, torch.device("cpu"))
        bound = layer._bound(query, layer.query_gain, angles)
        assert (bound @ bound.mT / 32**0.5).abs().max() <= 32**0.5 * 1.001


def test_gradients_of_loud_maps_stay_finite():
    """Without the bound they do not: the fused kernel's backward pass overflows at products of 1e8 (docs/gafx_a.md)."""
    layer = AttentionLayer(128, 4, "pre")
    layer(1e5 * torch.randn(2, 50, 128)).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def own_layer(theirs, norm, heads=4):
    """An `AttentionLayer` with the weights of a `torch.nn.TransformerEncoderLayer`."""
    names = {
        "self_attn.in_proj_weight": "attention.inward.weight", "self_attn.in_proj_bias": "attention.inward.bias",
        "self_attn.out_proj.weight": "attention.outward.weight", "self_attn.out_proj.bias": "attention.outward.bias",
        "linear1.weight": "wide.weight", "linear1.bias": "wide.bias", "linear2.weight": "narrow.weight",
        "linear2.bias": "narrow.bias",
    }  # fmt: skip
    state = {names.get(name, name): tensor for name, tensor in theirs.state_dict().items()}
    layer = AttentionLayer(128, heads, norm)
    layer.load_state_dict(state if norm == "post" else {k: t for k, t in state.items() if not k.startswith("norm")})
    return layer


@pytest.mark.parametrize("heads", [1, 4])
def test_post_equals_torchs_own_layer(heads):
    theirs = nn.TransformerEncoderLayer(128, heads, 512, dropout=0.0, batch_first=True)
    for norm in (theirs.norm1, theirs.norm2):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    own = own_layer(theirs, "post", heads)
    x, weight = torch.randn(2, 33, 128), torch.randn(2, 33, 128)
    assert_close(own(x), theirs(x), atol=1e-5, rtol=1e-5)
    (own(x) * weight).sum().backward()
    (theirs(x) * weight).sum().backward()
    assert_close(own.attention.inward.weight.grad, theirs.self_attn.in_proj_weight.grad, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_none_equals_torchs_own_layer_without_its_norms():
    theirs = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
    own = own_layer(theirs, "none")
    theirs.norm1 = theirs.norm2 = nn.Identity()
    x = 3 * torch.randn(2, 33, 128)
    theirs.train()  # its fast path in eval reads the norms
    assert_close(own(x), theirs(x), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("norm", ["post", "none"])
def test_the_plain_builds_start_as_torch_starts(norm):
    own, theirs = AttentionLayer(128, 4, norm), nn.TransformerEncoderLayer(128, 4, 512)
    pairs = [
        (own.attention.inward, theirs.self_attn.in_proj_weight, theirs.self_attn.in_proj_bias),
        (own.attention.outward, theirs.self_attn.out_proj.weight, theirs.self_attn.out_proj.bias),
        (own.wide, theirs.linear1.weight, theirs.linear1.bias),
        (own.narrow, theirs.linear2.weight, theirs.linear2.bias),
    ]
    for layer, weight, bias in pairs:
        assert layer.weight.std().item() == pytest.approx(weight.std().item(), rel=0.05)
        assert layer.weight.abs().max().item() == pytest.approx(weight.abs().max().item(), rel=0.05)
        assert layer.bias.std().item() == pytest.approx(bias.std().item(), rel=0.3)


# --- memory -----------------------------------------------------------------------------------------------------------


def bytes_saved(layers, frames):
    """Bytes that the layers keep for their backward pass at so many frames, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in layers.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = layers(torch.randn(1, frames, 128))
    assert output.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("norm", NORMS)
def test_memory_grows_linearly_with_frames(norm):
    layers = nn.Sequential(*(AttentionLayer(128, 4, norm) for _ in range(2)))
    small, middle, large = (bytes_saved(layers, frames) for frames in (1000, 2000, 4000))
    assert middle == pytest.approx(2 * small, rel=0.02)
    assert large == pytest.approx(4 * small, rel=0.02)
    assert small < 2 * 1000 * 128 * 4 * 40  # 40 activations of 128 floats a frame and layer


def test_memory_would_grow_with_the_square_on_the_unfused_path():
    layer = AttentionLayer(128, 4, "pre")
    with sdpa_kernel(SDPBackend.MATH):
        assert bytes_saved(layer, 2000) > 3 * bytes_saved(layer, 1000)


# --- half precision and training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("cnn_norm", ["batch", "group"])
def test_finite_on_silence_and_at_full_scale(norm, cnn_norm, dtype):
    model = create_model(
        {"name": "gafx_a", "width": 16, "norm": norm, "cnn_norm": cnn_norm}, {"name": "ast", "depth": 1},
        num_classes=3, segment_seconds=0.25,
    )  # fmt: skip
    square = torch.sign(torch.sin(torch.arange(5512) * 0.05) + 1e-6)
    loudest = torch.stack([torch.zeros(5512), torch.ones(5512), square, -square])[:, None]
    for batch in (loudest, torch.zeros(2, 1, 5512), torch.ones(1, 1, 5512)):
        model.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(batch)
        logits.float().square().sum().backward()
        assert logits.isfinite().all()
        for name, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_our_layers_hold_in_half_precision_whatever_comes_in(dtype):
    frontend = GAFXA(width=16).eval()
    maps = torch.randn(2, 1, 128, 50)
    maps[1, :, 0] = 50.0  # an outlier channel
    plain, half = [], []
    for scale in (1e-4, 1.0, 1e4, 1e8):
        x = frontend.entry(scale * maps).squeeze(1).transpose(1, 2)
        for results, enabled in ((plain, False), (half, True)):
            y = x
            with torch.autocast("cpu", dtype, enabled=enabled):
                for layer in frontend.layers:
                    y = layer(y)
            results.append(y)
    for exact, rounded in zip(plain[1:], half[1:], strict=True):
        assert rounded.dtype == torch.float32  # the residual path is not rounded
        assert_close(rounded, exact, atol=0.02, rtol=0.02)
    assert half[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_at_the_higher_rate_goes_down(dtype):
    """5e-4 is the higher of the paper's rates; Adam, batch 4."""
    model = create_model(
        {"name": "gafx_a", "width": 16}, {"name": "ast", "depth": 1}, num_classes=4, segment_seconds=0.25
    )
    time = torch.arange(5512) / 22050
    tones = torch.stack([torch.sin(2 * torch.pi * 150 * 2**octave * time) for octave in range(4)])[:, None]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    losses = []
    for _ in range(30):
        wave = torch.rand(4, 1, 1) * tones + 0.05 * torch.randn(4, 1, 5512)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(wave)
        loss = nn.functional.cross_entropy(logits.float(), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


# --- weights ----------------------------------------------------------------------------------------------------------


def saved(frontend, tmp_path):
    model = create_model(
        {"name": frontend, "width": 16}, {"name": "ast", "depth": 1}, classes=["a", "b"], segment_seconds=0.25
    )
    return model.save(tmp_path / frontend), model.frontend


def test_a_gafx_r_starts_the_network(tmp_path):
    folder, plain = saved("gafx_r", tmp_path)
    torch.manual_seed(1)
    fresh = GAFXA(width=16)
    torch.manual_seed(1)
    frontend = GAFXA(width=16, pretrained=str(folder))
    for name, tensor in plain.resnet.state_dict().items():
        assert torch.equal(frontend.resnet.state_dict()[name], tensor)
    for name, tensor in fresh.layers.state_dict().items():
        assert torch.equal(frontend.layers.state_dict()[name], tensor)
    with pytest.raises(UsageError, match="frontend.width and frontend.cnn_norm"):
        GAFXA(width=16, cnn_norm="group", pretrained=str(folder))


def test_a_gafx_a_loads_whole(tmp_path):
    folder, before = saved("gafx_a", tmp_path)
    frontend = GAFXA(width=16, pretrained=str(folder))
    for name, tensor in before.state_dict().items():
        assert torch.equal(frontend.state_dict()[name], tensor), name
    with pytest.raises(UsageError, match="does not fit GAFXA"):
        GAFXA(width=16, depth=3, pretrained=str(folder))
