"""The AST classifier against a float64 reference written from the paper, and its ImageNet start."""

import os
import pickle
import socket

import hub_server
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import gafx
from gafx.classifiers.ast import AST, stem_kernel
from gafx.deploy.export import FORMATS, export
from gafx.errors import UsageError
from gafx.inference import Probabilities
from gafx.nn.positions import resize_positions
from gafx.nn.transformer import DeiTEncoder

NAME = "deit_tiny_distilled_patch16_224"
PLACE = f"/timm/{NAME}.fb_in1k/resolve/main/model.safetensors"
WAYS = ("classifier.pretrained=true", ".safetensors", "model.safetensors", "classifier.pretrained=false")


def randomise(module):
    """Give every parameter, biases and norms included, values that matter."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            is_norm_scale = "norm" in name and name.endswith("weight")
            tensor.copy_(1 + 0.2 * noise if is_norm_scale else 0.06 * noise)


def make_map(*shape, seed=0):
    return 0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the network ------------------------------------------------------------------------------------------------------


def layer_norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / ((centred**2).mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def attention(x, qkv_weight, qkv_bias, out_weight, out_bias, heads):
    width = x.shape[-1]
    q, k, v = (x @ qkv_weight.T + qkv_bias).split(width, dim=-1)
    mixed = []
    for head in range(heads):
        own = slice(head * width // heads, (head + 1) * width // heads)
        scores = q[..., own] @ k[..., own].transpose(1, 2) / (width / heads) ** 0.5
        scores = (scores - scores.amax(-1, keepdim=True)).exp()
        mixed.append(scores / scores.sum(-1, keepdim=True) @ v[..., own])
    return torch.cat(mixed, -1) @ out_weight.T + out_bias


def reference_logits(module, feature_map, heads, depth):
    """AST in float64 from the specification's text."""
    w = {name: tensor.detach().double() for name, tensor in module.state_dict().items()}
    x = feature_map.double()
    batch, _, frequency, frames = x.shape
    rows, columns = frequency // 16, frames // 16
    patches = torch.stack(
        [
            x[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16].reshape(batch, -1)
            for row in range(rows)
            for column in range(columns)
        ],
        dim=1,
    )
    kernel = w["patches.weight"]
    x = patches @ kernel.reshape(len(kernel), -1).T + w["patches.bias"]
    x = torch.cat([w["cls_token"].expand(batch, -1, -1), w["dist_token"].expand(batch, -1, -1), x], 1) + w["pos_embed"]
    for block in range(depth):
        b = {name.removeprefix(f"blocks.{block}."): t for name, t in w.items() if name.startswith(f"blocks.{block}.")}
        y = layer_norm(x, b["norm1.weight"], b["norm1.bias"], 1e-6)
        x = x + attention(
            y, b["attn.qkv.weight"], b["attn.qkv.bias"], b["attn.proj.weight"], b["attn.proj.bias"], heads
        )
        y = layer_norm(x, b["norm2.weight"], b["norm2.bias"], 1e-6)
        y = y @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]
        y = y * (1 + torch.erf(y / 2**0.5)) / 2
        x = x + y @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
    x = layer_norm(x, w["norm.weight"], w["norm.bias"], 1e-6)
    x = (x[:, 0] + x[:, 1]) / 2
    x = layer_norm(x, w["head_norm.weight"], w["head_norm.bias"], module.head_norm.eps)
    return x @ w["output.weight"].T + w["output.bias"]


@pytest.mark.parametrize(
    ("channels", "frames", "depth"), [(1, 1024, 12), (1, 3308, 2), (2, 50, 1)], ids=["10s", "30s", "short"]
)
@torch.no_grad()
def test_equals_the_reference(channels, frames, depth):
    module = AST((channels, 128, frames), 10, depth=depth).eval()
    randomise(module)
    feature_map = make_map(1, channels, 128, frames)
    expected = reference_logits(module, feature_map, heads=3, depth=depth)
    assert expected.std() > 0.1
    assert_close(module(feature_map).double(), expected, rtol=0, atol=1e-5)
    assert_close(module.double()(feature_map.double()), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("size", "width", "heads"), [("tiny", 192, 3), ("small", 384, 6), ("base", 768, 12)])
def test_sizes(size, width, heads):
    with torch.device("meta"):
        module = AST((1, 128, 3308), 10, size=size, depth=2)
    assert module.width == width
    assert module.blocks[0].attn.num_heads == heads
    assert module.grid == (8, 206)
    assert module.pos_embed.shape == (1, 2 + 8 * 206, width)
    block = 12 * width**2 + 13 * width  # qkv, projection and MLP with their biases, two norms
    expected = (
        (256 + 1) * width + 2 * width + (2 + 8 * 206) * width + 2 * block + 2 * width + 2 * width + 10 * (width + 1)
    )
    assert sum(p.numel() for p in module.parameters()) == expected


def test_embed_and_head_make_the_logits():
    module = AST((1, 128, 64), 7, depth=1).eval()
    feature_map = make_map(2, 1, 128, 64)
    embedding = module.embed(feature_map)
    assert embedding.shape == (2, 192)
    assert_close(module.head(embedding), module(feature_map))
    assert module(feature_map).shape == (2, 7)
    changed = {n: p.shape for n, p in AST((1, 128, 64), 9, depth=1).named_parameters()}
    of_classes = [n for n, p in module.named_parameters() if changed[n] != p.shape]
    assert of_classes
    assert all(n.startswith(module.head_names()) for n in of_classes)


def test_a_remainder_of_a_patch_is_dropped():
    module = AST((1, 128, 1876), 3, depth=1).eval()  # 8 x 117 patches, 4 frames left over
    assert module.grid == (8, 117)
    feature_map = make_map(1, 1, 128, 1876)
    noisy = feature_map.clone()
    noisy[..., 117 * 16 :] = 100
    assert torch.equal(module(feature_map), module(noisy))
    noisy[..., 117 * 16 - 1] = 100
    assert not torch.equal(module(feature_map), module(noisy))


@pytest.mark.parametrize(
    ("shape", "cure"),
    [((1, 15, 64), "more frequency bins"), ((1, 128, 15), "longer clips"), ((1, 0, 0), "longer clips")],
)
def test_a_map_below_one_patch_is_refused(shape, cure):
    with pytest.raises(UsageError, match="smaller than one 16 x 16 patch"):
        AST(shape, 3, depth=1)
    with pytest.raises(UsageError, match=cure):
        AST((1, 128, 64), 3, depth=1)(torch.zeros(1, *shape))


@pytest.mark.parametrize("shape", [(128, 64), (1, 128, 64), (1, 2, 128, 64)])
def test_a_map_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match="does not fit"):
        AST((1, 128, 64), 3, depth=1)(torch.zeros(shape))


@pytest.mark.parametrize("stride", [1, 10, 16])
@torch.no_grad()
def test_patches_of_any_stride_are_the_convolution(stride):
    module = AST((2, 40, 70), 3, depth=1, stride=stride)
    assert module.grid == ((40 - 16) // stride + 1, (70 - 16) // stride + 1)
    feature_map = make_map(2, 2, 40, 70)
    expected = torch.nn.functional.conv2d(
        feature_map.double(), module.patches.weight.double(), module.patches.bias.double(), stride
    )
    assert_close(module._tokens(feature_map).double(), expected.flatten(2).transpose(1, 2), rtol=0, atol=1e-5)
    assert module(feature_map).shape == (2, 3)


def test_gradients_pass_overlapping_patches():
    module = AST((1, 32, 46), 3, depth=1, stride=10)
    feature_map = make_map(1, 1, 32, 46).requires_grad_()
    module(feature_map).square().sum().backward()
    reached = feature_map.grad[0, 0] != 0
    assert reached[:26].all()
    assert not reached[26:].any()  # rows 0 to 25 and 10 to 25 + 10: a third patch does not fit
    for parameter in module.parameters():
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("stride", [0, 17, -1])
def test_a_stride_out_of_range_is_refused(stride):
    with pytest.raises(UsageError, match=f"stride={stride}.*between 1 and 16"):
        AST((1, 128, 64), 3, depth=1, stride=stride)


@pytest.mark.parametrize("stride", [10, 16])
@torch.no_grad()
def test_planes_at_every_length(stride):
    module = AST((1, 64, 4 * 100), 3, 4, depth=1, stride=stride).eval()
    for frames in (4, 5, 17, 50, 99, 100, 101, 250):
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                assert module(make_map(2, 1, 64, 4 * frames)).isfinite().all()
    with pytest.raises(ValueError, match="401 frames does not divide into 4 planes"):
        module(make_map(1, 1, 64, 401))
    with pytest.raises(ValueError, match="402 frames does not divide into 4 planes"):
        AST((1, 64, 402), 3, 4, depth=1)


@pytest.mark.parametrize("depth", [0, 13])
def test_a_depth_out_of_range_is_refused(depth):
    with pytest.raises(UsageError, match=f"depth={depth}"):
        AST((1, 128, 64), 3, depth=depth)


# --- other lengths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [32, 63, 64, 96, 200])
@torch.no_grad()
def test_other_lengths_than_the_one_built_for(frames):
    """A module built for 128 x 64 equals, at any length, one built for that length with positions laid out for it."""
    module, other = AST((1, 128, 64), 4, depth=1).eval(), AST((1, 128, frames), 4, depth=1).eval()
    randomise(module)
    old = module.pos_embed[0, 2:].reshape(8, 4, -1).numpy()
    centres = (np.arange(frames // 16) + 0.5) * 4 / (frames // 16) - 0.5
    if frames <= 64:
        new = old[:, : frames // 16]
    else:
        new = np.apply_along_axis(lambda line: np.interp(centres, np.arange(4), line), 1, old)
    state = module.state_dict()
    places = torch.from_numpy(np.ascontiguousarray(new, np.float32)).flatten(0, 1)
    state["pos_embed"] = torch.cat([module.pos_embed[0, :2], places])[None]
    other.load_state_dict(state)
    feature_map = make_map(2, 1, 128, frames)
    assert_close(module(feature_map), other(feature_map), atol=1e-5, rtol=0)


# --- stem -------------------------------------------------------------------------------------------------------------


def test_stem_kernel_by_hand():
    kernel = torch.tensor([[1.0, 2.0, 6.0], [0.0, 3.0, -9.0]])[:, :, None, None]
    assert stem_kernel(kernel, 1, "mean").flatten(1).tolist() == [[3.0], [-2.0]]
    assert stem_kernel(kernel, 1, "sum").flatten(1).tolist() == [[9.0], [-6.0]]
    assert stem_kernel(kernel, 2, "mean").flatten(1).tolist() == [[1.5, 1.5], [-1.0, -1.0]]
    assert stem_kernel(kernel, 3, "sum").flatten(1).tolist() == [[3.0, 3.0, 3.0], [-2.0, -2.0, -2.0]]


# --- ImageNet weights -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deit():
    """A state dict as timm's deit_tiny_distilled has it, with random numbers."""
    model = timm.create_model(NAME, pretrained=False)
    randomise(model)
    return model.state_dict()


@pytest.fixture(scope="module")
def weights_file(deit, tmp_path_factory):
    path = tmp_path_factory.mktemp("imagenet") / "model.safetensors"
    save_file(deit, path)
    return path


BUILD_FROM_HUB = """
import sys, torch
from safetensors.torch import save_file
from gafx.classifiers.ast import AST
from gafx.errors import UsageError
torch.set_num_threads(1)
try:
    module = AST((1, 128, 1024), 10, pretrained=True)
except UsageError as error:
    print(error)
    sys.exit(2)
save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, sys.argv[1])
"""


@pytest.fixture(scope="module", autouse=True)
def hub_started(weights_file, tmp_path_factory):
    """Two processes: one with a hub that answers, one whose hub refuses the connection.

    They start with the first test of the module and are awaited by the last: the hub's client retries for 23 s
    before it gives up.
    """
    folder = tmp_path_factory.mktemp("hub")
    closed = socket.socket()  # bound but not listening: connections are refused
    closed.bind(("127.0.0.1", 0))
    with hub_server.serve({f"timm/{NAME}.fb_in1k": {"model.safetensors": weights_file.read_bytes()}}) as hub:
        up = hub_server.start(BUILD_FROM_HUB, hub.url, folder / "home", folder / "out.safetensors")
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        down = hub_server.start(BUILD_FROM_HUB, nowhere, folder / "empty", folder / "never.safetensors")
        yield {"up": up, "down": down, "asked": hub.asked, "folder": folder}
        for run in (up, down):
            run.kill()
            run.communicate()
    closed.close()


def body_of(module_or_state):
    state = module_or_state if isinstance(module_or_state, dict) else module_or_state.state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith("output.")}


def assert_same_state(one, other):
    one, other = body_of(one), body_of(other)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_file_and_folder_give_the_same_module(weights_file, deit):
    module = AST((1, 128, 1024), 10, pretrained=str(weights_file))
    assert_same_state(module, AST((1, 128, 1024), 10, pretrained=str(weights_file.parent)))
    assert torch.equal(module.patches.weight, stem_kernel(deit["patch_embed.proj.weight"], 1, "mean"))
    assert torch.equal(module.patches.bias, deit["patch_embed.proj.bias"])
    assert torch.equal(module.pos_embed, resize_positions(deit["pos_embed"], (14, 14), (8, 64), "ast"))
    same = [name for name in deit if name.startswith(("blocks.", "norm.", "cls_token", "dist_token"))]
    assert len(same) == 12 * 12 + 4
    for name in same:
        assert torch.equal(module.state_dict()[name], deit[name]), name


def test_stem_and_positions_are_passed_on(weights_file, deit):
    mean = AST((1, 128, 1024), 10, pretrained=str(weights_file), depth=1)
    sum_ = AST((1, 128, 1024), 10, pretrained=str(weights_file), depth=1, stem="sum", positions="timm")
    assert_close(sum_.patches.weight, 3 * mean.patches.weight)
    assert torch.equal(sum_.pos_embed, resize_positions(deit["pos_embed"], (14, 14), (8, 64), "timm"))


@torch.no_grad()
@pytest.mark.parametrize("stem", ["mean", "sum"])
def test_equal_channels_give_the_same_answer_however_many(weights_file, stem):
    feature_map = make_map(1, 1, 128, 64)
    answers = [
        AST((channels, 128, 64), 3, pretrained=str(weights_file), depth=1, stem=stem)
        .eval()
        .embed(feature_map.expand(-1, channels, -1, -1))
        for channels in (1, 2, 5)
    ]
    assert_close(answers[1], answers[0], atol=1e-5, rtol=0)
    assert_close(answers[2], answers[0], atol=1e-5, rtol=0)


def test_fewer_blocks_take_the_first(weights_file, deit):
    module = AST((1, 128, 64), 3, pretrained=str(weights_file), depth=4)
    assert len(module.blocks) == 4
    for name, tensor in module.state_dict().items():
        if name.startswith("blocks."):
            assert torch.equal(tensor, deit[name]), name


def refuse(source, *parts, **arguments):
    with pytest.raises(UsageError) as caught:
        AST((1, 128, 64), 3, pretrained=str(source), **{"depth": 1, **arguments})
    for part in parts:
        assert part in str(caught.value)


def test_weights_of_another_size_are_refused(weights_file):
    refuse(weights_file, "does not fit deit_small", "classifier.size", size="small")


@pytest.mark.parametrize("missing", ["dist_token", "patch_embed.proj.weight", "pos_embed", "blocks.11.norm1.weight"])
def test_weights_with_a_tensor_missing_are_refused(deit, tmp_path, missing):
    save_file({name: tensor for name, tensor in deit.items() if name != missing}, tmp_path / "part.safetensors")
    refuse(tmp_path / "part.safetensors", missing, depth=12 if missing.startswith("blocks") else 1)


def test_weights_of_a_plain_deit_are_refused(deit, tmp_path):
    plain = {name: tensor for name, tensor in deit.items() if not name.startswith(("dist_token", "head_dist"))}
    plain["pos_embed"] = plain["pos_embed"][:, 1:].contiguous()
    save_file(plain, tmp_path / "plain.safetensors")
    refuse(tmp_path / "plain.safetensors", "plain.safetensors")


@pytest.mark.parametrize("name", ["nowhere/file.safetensors", "./nowhere", "nowhere/at/all", "~/nowhere-gafx/x"])
def test_a_path_that_does_not_exist_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refuse(name, name, "does not exist", *WAYS)


def test_a_folder_without_weights_is_refused(tmp_path):
    refuse(tmp_path, str(tmp_path), *WAYS)


def test_a_pickle_is_refused_unread(tmp_path):
    trap = tmp_path / "trap"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(trap),)

    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Bomb()))
    refuse(tmp_path / "weights.pth", "pickles are never loaded", *WAYS)
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 64], ids=["empty", "text", "binary"])
def test_a_broken_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "broken.safetensors").write_bytes(content)
    refuse(tmp_path / "broken.safetensors", "broken.safetensors")


# --- options that depart from the paper -------------------------------------------------------------------------------

ALL = {"patch": "conv", "pooling": "mean", "position_embedding": "separate"}
FEW = {"size": "tiny", "depth": 2}


@torch.no_grad()
def test_the_start_is_that_of_before_the_options():
    """The random generator is used in the order of the first version."""
    torch.manual_seed(5)
    module = AST((1, 32, 48), 3, depth=1)
    torch.manual_seed(5)
    encoder = DeiTEncoder(192, 1, 3)
    patches, norm, output = torch.nn.Conv2d(1, 192, 16, 16), torch.nn.LayerNorm(192), torch.nn.Linear(192, 3)
    positions = torch.empty(1, 2 + 2 * 3, 192)
    for tensor in (patches.weight, positions, output.weight):
        torch.nn.init.trunc_normal_(tensor, std=0.02)
    for own, expected in (
        (module.patches.weight, patches.weight), (module.pos_embed, positions), (module.output.weight, output.weight),
        (module.cls_token, encoder.cls_token), (module.head_norm.weight, norm.weight),
        (module.blocks[0].mlp.fc2.weight, encoder.blocks[0].mlp.fc2.weight),
    ):  # fmt: skip
        assert torch.equal(own, expected)
    assert len(module.state_dict()) == 2 + 3 + 12 + 2 + 2 + 2


@torch.no_grad()
def test_a_stem_of_convolutions_by_numpy():
    """Pixel by pixel, in float64; a remainder of a patch is not read."""
    module = AST((2, 32, 40), 3, patch="conv", depth=1).eval().double()
    stem, generator = module.patches, torch.Generator().manual_seed(2)
    for name, tensor in stem.state_dict().items():
        if tensor.dtype.is_floating_point:
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_(0.5 + noise if "running_var" in name else 0.4 * noise - 0.2)
    convolutions = [layer for layer in stem.layers if isinstance(layer, torch.nn.Conv2d)]
    norms = [layer for layer in stem.layers if isinstance(layer, torch.nn.BatchNorm2d)]
    assert [layer.out_channels for layer in convolutions] == [24, 48, 96, 192]
    feature_map = make_map(1, 2, 32, 40).double()
    x = feature_map[0, :, :, :32].numpy()
    for convolution, norm in zip(convolutions, norms, strict=True):
        padded, kernel = np.pad(x, ((0, 0), (1, 1), (1, 1))), convolution.weight.numpy()
        y = np.zeros((len(kernel), x.shape[1] // 2, x.shape[2] // 2))
        for row, column in np.ndindex(*y.shape[1:]):
            window = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            y[:, row, column] = (kernel * window).sum((1, 2, 3))
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * scale
        x = np.maximum(y * scale.numpy()[:, None, None] + shift.numpy()[:, None, None], 0)
    expected = stem.proj.weight[:, :, 0, 0].numpy() @ x.reshape(192, -1) + stem.proj.bias.numpy()[:, None]
    assert_close(module._tokens(feature_map)[0], torch.from_numpy(expected.T))


@torch.no_grad()
def test_mean_pooling_and_separate_positions_by_the_reference():
    """As the reference without class tokens, whose positions are the sums of those of row and column."""
    module = AST((1, 48, 64), 3, depth=2, pooling="mean", position_embedding="separate").eval()
    randomise(module)
    assert module.tokens == 12
    assert not {"cls_token", "dist_token", "pos_embed"} & module.state_dict().keys()
    assert module.no_weight_decay() == {"row_embed", "column_embed"}
    feature_map = make_map(2, 1, 48, 64)
    x = module._tokens(feature_map).unflatten(1, (3, 4))
    for row, column in np.ndindex(3, 4):
        x[:, row, column] += module.row_embed[0, row] + module.column_embed[0, column]
    x = x.flatten(1, 2)
    for block in module.blocks:
        x = block(x)
    assert_close(module.embed(feature_map), module.norm(x).mean(1))


@torch.no_grad()
@pytest.mark.parametrize("planes", [1, 4])
@pytest.mark.parametrize("frames", [64, 160, 240])
def test_separate_positions_at_other_lengths_are_those_of_their_grid(frames, planes):
    module = AST((1, 48, 160), 3, planes, depth=1, position_embedding="separate").eval()
    grid = AST((1, 48, 160), 3, planes, depth=1).eval()
    randomise(module)
    state = module.state_dict()
    rows, columns = state.pop("row_embed"), state.pop("column_embed")
    cells = (rows[0, :, None] + columns[0, None]).flatten(0, 1)
    grid.load_state_dict({**state, "pos_embed": torch.cat([torch.zeros(2, 192), cells])[None]})
    feature_map = make_map(2, 1, 48, frames)
    assert_close(module(feature_map), grid(feature_map), atol=1e-5, rtol=0)
    shorter = module._positions(48, 64)[:, 2:].unflatten(1, (3, 4))
    if planes == 1:
        assert torch.equal(shorter[0, 1, 2], rows[0, 1] + columns[0, 2])


@pytest.mark.parametrize("planes", [1, 4])
@torch.no_grad()
def test_all_options_at_every_length_and_in_bfloat16(planes):
    module = AST((2, 64, 400), 3, planes, depth=1, **ALL).eval()
    for frames in (16, 20, 64, 400, 404, 600):
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                assert module(make_map(2, 2, 64, frames)).isfinite().all()
    with pytest.raises(UsageError, match="smaller than one 16 x 16 patch"):
        module(make_map(1, 2, 64, 12))


@pytest.mark.parametrize(
    "option", [{"patch": "conv"}, {"pooling": "mean"}, {"position_embedding": "separate"}, ALL], ids=str
)
def test_gradients_reach_every_parameter_of_an_option(option):
    module = AST((1, 48, 64), 3, depth=2, dropout=0.1, drop_path=0.1, **option)
    torch.manual_seed(0)
    torch.nn.functional.cross_entropy(module(make_map(8, 1, 48, 64)), torch.arange(8) % 3).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


def test_dropout_and_stochastic_depth_are_those_of_timm():
    options = {"drop_path": 0.3, "dropout": 0.2}
    blocks = AST((1, 32, 32), 3, depth=3, **options).train().blocks
    theirs = timm.create_model(NAME, depth=3, drop_path_rate=0.3, proj_drop_rate=0.2).train().blocks
    theirs.load_state_dict(blocks.state_dict())
    x, answers = make_map(5, 6, 192), []
    for each in (blocks, theirs):
        torch.manual_seed(7)
        answers.append(each(x))
    assert_close(answers[0], answers[1])
    assert [block.drop_path.rate for block in blocks] == pytest.approx([0, 0.15, 0.3])


def test_no_random_numbers_without_dropout():
    module, feature_map = AST((1, 32, 32), 3, depth=2), make_map(2, 1, 32, 32)
    before = torch.get_rng_state()
    assert torch.equal(module.train()(feature_map), module.eval()(feature_map))
    assert torch.equal(torch.get_rng_state(), before)
    dropping = AST((1, 32, 32), 3, depth=2, dropout=0.5)
    assert not torch.equal(dropping(feature_map), dropping(feature_map))
    assert torch.equal(dropping.eval()(feature_map), dropping(feature_map))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and less than 1"), ({"drop_path": -0.1}, "drop_path=-0.1"),
        ({"patch": "conv", "stride": 10}, "stride=10 with patch=conv"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(arguments, match):
    with pytest.raises(UsageError, match=match):
        AST((1, 128, 64), 3, depth=1, **arguments)


def test_imagenet_weights_and_the_options(weights_file, deit):
    plain = AST((1, 128, 1024), 3, pretrained=str(weights_file), **FEW)
    mean = AST((1, 128, 1024), 3, pretrained=str(weights_file), pooling="mean", **FEW)
    assert torch.equal(mean.pos_embed, plain.pos_embed[:, 2:])
    torch.manual_seed(3)
    fresh = AST((1, 128, 1024), 3, patch="conv", **FEW)
    torch.manual_seed(3)
    conv = AST((1, 128, 1024), 3, pretrained=str(weights_file), patch="conv", **FEW)
    for name, tensor in conv.state_dict().items():
        expected = fresh.state_dict() if name.startswith(("patches.", "output.", "head_norm.")) else plain.state_dict()
        assert torch.equal(tensor, expected[name]), name
    separate = AST((1, 128, 1024), 3, pretrained=str(weights_file), position_embedding="separate", **FEW)
    grid = plain.pos_embed[0, 2:].unflatten(0, (8, 64)).detach().double().numpy()
    # Least squares by a solver, for the matrix of which rows and columns a patch is in.
    design = np.array([[*(r == i for i in range(8)), *(c == i for i in range(64))] for r, c in np.ndindex(8, 64)])
    solved = np.linalg.lstsq(design.astype(float), grid.reshape(512, -1), rcond=None)[0]
    summed = (separate.row_embed[0, :, None] + separate.column_embed[0, None]).flatten(0, 1)
    assert_close(summed.double().detach(), torch.from_numpy(design @ solved), atol=1e-6, rtol=0)
    assert_close(separate.cls_token, deit["cls_token"] + deit["pos_embed"][:, :1])
    assert_close(separate.dist_token, deit["dist_token"] + deit["pos_embed"][:, 1:2])


OPTIONS = [
    {}, {"patch": "conv"}, {"pooling": "mean"}, {"position_embedding": "separate"},
    {"pooling": "mean", "position_embedding": "separate"}, ALL,
]  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_weights_of_gafx_with_the_same_options_load_whole(option, tmp_path):
    saved = AST((1, 48, 64), 3, depth=2, **option)
    randomise(saved)
    save_file(saved.state_dict(), tmp_path / "model.safetensors")
    loaded = AST((1, 48, 64), 3, depth=2, pretrained=str(tmp_path), **option)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    # For a longer map, the positions are those that the saved model uses there.
    longer = AST((1, 48, 96), 3, depth=2, pretrained=str(tmp_path), **option)
    assert_close(longer._positions(48, 96), saved._positions(48, 96), atol=1e-6, rtol=0)


def test_weights_of_gafx_with_other_options(tmp_path):
    def save(name, **option):
        module = AST((1, 48, 64), 3, depth=1, **option)
        randomise(module)
        save_file(module.state_dict(), tmp_path / f"{name}.safetensors")
        return module, str(tmp_path / f"{name}.safetensors")

    def load(path, **option):
        return AST((1, 48, 64), 3, depth=1, pretrained=path, **option)

    separate, path = save("separate", position_embedding="separate")
    grid = load(path)
    assert torch.equal(grid.pos_embed, separate._positions(48, 64))
    feature_map = make_map(1, 1, 48, 64)
    assert_close(grid.eval()(feature_map), separate.eval()(feature_map))
    # A grid that is a sum comes back as one: the positions of the tokens are in the tokens.
    save_file(grid.state_dict(), tmp_path / "grid.safetensors")
    again = load(str(tmp_path / "grid.safetensors"), position_embedding="separate").eval()
    assert_close(again(feature_map), separate(feature_map), atol=1e-5, rtol=1e-4)
    plain, path = save("plain")
    mean = load(path, pooling="mean")
    assert torch.equal(mean.pos_embed, plain.pos_embed[:, 2:])
    assert not torch.equal(mean.output.weight, plain.output.weight)  # it was trained on the class tokens
    _, path = save("mean", pooling="mean")
    with pytest.raises(UsageError, match=r"use classifier\.pooling=mean"):
        load(path)
    _, path = save("conv", patch="conv")
    with pytest.raises(UsageError, match=r"use classifier\.patch=conv"):
        load(path)
    _, path = save("all", **ALL)
    with pytest.raises(UsageError, match=r"positions are for 3 x 4 patches in the file, for 4 x 3 here"):
        AST((1, 64, 48), 3, depth=1, pretrained=path, **ALL)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_all_options_are_exported_for_every_length(format, tmp_path):
    classifier = {"name": "ast", "depth": 1, "dropout": 0.1, "drop_path": 0.1, **ALL}
    model = gafx.create_model("mel", classifier, classes=["a", "b"], segment_seconds=1.0).eval()
    for norm in model.map_norm.parts():
        norm.fit(-8.0, 3.0)
    made = export(Probabilities(model), tmp_path / f"model{FORMATS[format]}", format=format)
    assert made.fixed is None
    assert made.least_samples < made.window_samples
    assert len(made.checks) > 2


# --- the hub: last in the module, see `hub_started` -------------------------------------------------------------------


def test_the_hub_gives_the_same_module_as_a_file(weights_file, hub_started):
    _, errors = hub_started["up"].communicate(timeout=60)
    assert hub_started["up"].returncode == 0, errors
    assert ("GET", PLACE) in hub_started["asked"]
    module = AST((1, 128, 1024), 10, pretrained=str(weights_file))
    assert_same_state(module, load_file(hub_started["folder"] / "out.safetensors"))


@pytest.mark.slow
def test_an_unreachable_hub_is_an_error(hub_started):
    printed, errors = hub_started["down"].communicate(timeout=60)
    assert hub_started["down"].returncode == 2, errors
    for way in WAYS:
        assert way in printed
    assert f"timm/{NAME}.fb_in1k" in printed
    assert not (hub_started["folder"] / "never.safetensors").exists()
