"""The published AST as a start: the same model, whatever way its file names the tensors; and what gafx saved."""

import json

import hub_server
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import conv2d, gelu, layer_norm, linear, scaled_dot_product_attention
from torch.testing import assert_close

from gafx.classifiers.ast import AST, AUDIOSET_REPO
from gafx.errors import UsageError
from gafx.nn.positions import Patches, fit_positions, resize_positions, restride_positions, spread_positions
from gafx.saving import weights

BLOCKS = 2
HF = "audio_spectrogram_transformer."
MAP = (1, 128, 1024)
BASE = {"size": "base", "stride": 10, "depth": BLOCKS}


# --- the published model, in three layouts ----------------------------------------------------------------------------


def published_state(blocks=BLOCKS, width=768, patches=1212, classes=527):
    """Random tensors, every one of which matters, as transformers names and shapes them."""
    generator = torch.Generator().manual_seed(4)
    state = {
        f"{HF}embeddings.cls_token": (1, 1, width),
        f"{HF}embeddings.distillation_token": (1, 1, width),
        f"{HF}embeddings.position_embeddings": (1, 2 + patches, width),
        f"{HF}embeddings.patch_embeddings.projection": (width, 1, 16, 16),
        f"{HF}layernorm": (width,),
        "classifier.layernorm": (width,),
        "classifier.dense": (classes, width),
    }
    for block in range(blocks):
        for name, shape in {
            "layernorm_before": (width,),
            "attention.attention.query": (width, width),
            "attention.attention.key": (width, width),
            "attention.attention.value": (width, width),
            "attention.output.dense": (width, width),
            "layernorm_after": (width,),
            "intermediate.dense": (4 * width, width),
            "output.dense": (width, 4 * width),
        }.items():
            state[f"{HF}encoder.layer.{block}.{name}"] = shape
    tensors = {}
    for name, shape in state.items():
        noise = 0.04 * torch.randn(shape, generator=generator)
        if "embeddings." in name and "projection" not in name:
            tensors[name] = 10 * noise
        else:
            tensors[f"{name}.weight"] = noise + ("layernorm" in name)
            tensors[f"{name}.bias"] = 0.1 * torch.randn(shape[:1], generator=generator)
    return tensors


def published_logits(state, feature_map, eps, head_eps, heads=12):
    """The published model in float64, written from its tensors."""
    state = {name.removeprefix(HF): tensor.double() for name, tensor in state.items()}
    width = state["embeddings.cls_token"].shape[-1]

    def apply(x, name):
        return linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name, eps=eps):
        return layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def split(x):
        return x.unflatten(-1, (heads, width // heads)).transpose(1, 2)

    projection = "embeddings.patch_embeddings.projection"
    x = conv2d(feature_map.double(), state[f"{projection}.weight"], state[f"{projection}.bias"], stride=10)
    x = x.flatten(2).transpose(1, 2)
    tokens = [state[f"embeddings.{name}_token"].expand(len(x), -1, -1) for name in ("cls", "distillation")]
    x = torch.cat([*tokens, x], dim=1) + state["embeddings.position_embeddings"]
    block = 0
    while f"encoder.layer.{block}.output.dense.bias" in state:
        name = f"encoder.layer.{block}"
        y = norm(x, f"{name}.layernorm_before")
        q, k, v = (split(apply(y, f"{name}.attention.attention.{part}")) for part in ("query", "key", "value"))
        y = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + apply(y, f"{name}.attention.output.dense")
        y = gelu(apply(norm(x, f"{name}.layernorm_after"), f"{name}.intermediate.dense"))
        x = x + apply(y, f"{name}.output.dense")
        block += 1
    x = norm(x, "layernorm")
    return apply(norm((x[:, 0] + x[:, 1]) / 2, "classifier.layernorm", head_eps), "classifier.dense")


def as_authors(state, prefix="module."):
    """The same numbers as AST's authors save them: timm's names under `v`, the head under `mlp_head`."""
    renamed = {
        "embeddings.cls_token": "v.cls_token",
        "embeddings.distillation_token": "v.dist_token",
        "embeddings.position_embeddings": "v.pos_embed",
        "embeddings.patch_embeddings.projection": "v.patch_embed.proj",
        "encoder.layer": "v.blocks",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "classifier.layernorm": "mlp_head.0",
        "classifier.dense": "mlp_head.1",
        "layernorm.": "v.norm.",
    }
    out = {}
    for name, tensor in state.items():
        name = name.removeprefix(HF)
        if "attention.attention" in name:
            if ".query." in name:
                parts = [state[HF + name.replace("query", part)] for part in ("query", "key", "value")]
                qkv = name.replace("encoder.layer", "v.blocks").replace("attention.attention.query", "attn.qkv")
                out[prefix + qkv] = torch.cat(parts)
            continue
        for old, new in renamed.items():
            name = name.replace(old, new)
        out[prefix + name] = tensor
    # the authors' files keep DeiT's two heads, which nothing uses
    return {**out, **{f"{prefix}v.{head}.weight": torch.ones(1000, 768) for head in ("head", "head_dist")}}


@pytest.fixture(scope="module")
def state():
    return published_state()


@pytest.fixture(scope="module")
def published(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "model.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def module(published):
    return AST(MAP, 527, **BASE, pretrained=str(published)).eval()


def make_map(*shape, seed=0):
    return 0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_same(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@torch.no_grad()
@pytest.mark.parametrize(
    ("eps", "head_eps", "atol"), [(1e-6, 1e-5, 1e-5), (1e-12, 1e-12, 1e-4)], ids=["authors", "hub"]
)
def test_equals_the_published_model(eps, head_eps, atol, module, state):
    """LayerNorm's eps is that of the authors' code; transformers has another, which hardly matters."""
    feature_map = make_map(1, *MAP)
    expected = published_logits(state, feature_map, eps, head_eps)
    assert expected.std() > 0.1
    assert_close(module(feature_map).double(), expected, rtol=0, atol=atol)


@torch.no_grad()
def test_equals_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ASTConfig(num_hidden_layers=BLOCKS, num_labels=527)
    theirs = transformers.ASTForAudioClassification(config).eval()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in theirs.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.copy_(0.05 * noise + (tensor.ndim == 1 and "norm" in name and name.endswith("weight")))
    theirs.save_pretrained(tmp_path)
    ours = AST(MAP, 527, **BASE, pretrained=str(tmp_path)).eval().double()
    for part in ours.modules():
        if isinstance(part, torch.nn.LayerNorm):
            part.eps = config.layer_norm_eps
    feature_map = make_map(1, *MAP).double()
    expected = theirs.double()(feature_map[:, 0].transpose(1, 2)).logits  # they take (batch, time, frequency)
    assert expected.std() > 0.1
    assert_close(ours(feature_map), expected, rtol=0, atol=1e-9)


def test_tensors_are_where_they_belong(module, state):
    own = module.state_dict()
    assert torch.equal(own["patches.weight"], state[f"{HF}embeddings.patch_embeddings.projection.weight"])
    assert torch.equal(own["pos_embed"], state[f"{HF}embeddings.position_embeddings"])
    assert torch.equal(own["output.weight"], state["classifier.dense.weight"])
    assert torch.equal(own["head_norm.bias"], state["classifier.layernorm.bias"])
    attention = f"{HF}encoder.layer.1.attention.attention"
    assert torch.equal(own["blocks.1.attn.qkv.weight"][768:1536], state[f"{attention}.key.weight"])
    assert torch.equal(own["blocks.1.attn.qkv.bias"][1536:], state[f"{attention}.value.bias"])


LAYOUTS = {
    "authors, wrapped": as_authors,
    "authors": lambda state: as_authors(state, prefix=""),
    "gafx, classifier": None,
    "gafx, model": None,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_module(layout, module, state, tmp_path):
    own = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    if layout == "gafx, classifier":
        other = own
    elif layout == "gafx, model":
        other = {f"classifier.{name}": tensor for name, tensor in own.items()}
        other["frontend.conv.weight"] = other["map_norm.mean"] = torch.ones(3)
    else:
        other = LAYOUTS[layout](state)
    other = {name: tensor.clone() for name, tensor in other.items()}
    save_file(other, tmp_path / "any.safetensors")
    assert_same(module, AST(MAP, 527, **BASE, pretrained=str(tmp_path / "any.safetensors")))
    assert_same(module, AST(MAP, 527, **BASE, pretrained=str(tmp_path)))


def test_a_model_saved_without_its_head(module, state, tmp_path):
    body = {name.removeprefix(HF): tensor for name, tensor in state.items() if name.startswith(HF)}
    save_file(body, tmp_path / "model.safetensors")
    bare = AST(MAP, 527, **BASE, pretrained=str(tmp_path))
    own, bare = module.state_dict(), bare.state_dict()
    differ = {name for name in own if not torch.equal(own[name], bare[name])}
    assert differ == {"head_norm.weight", "head_norm.bias", "output.weight", "output.bias"}


def test_a_head_for_other_classes_stays_fresh(module, published):
    fresh = AST(MAP, 10, **BASE, pretrained=str(published))
    assert (fresh.head_norm.weight == 1).all()
    assert (fresh.head_norm.bias == 0).all()
    assert (fresh.output.bias == 0).all()
    assert fresh.output.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert fresh.head_names() == ("output.",)
    own, fresh = module.state_dict(), fresh.state_dict()
    for name in own:
        if not name.startswith(("head_norm.", "output.")):
            assert torch.equal(own[name], fresh[name]), name


@torch.no_grad()
def test_equal_channels_give_the_published_answer(module, published):
    for stem in ("mean", "sum"):
        several = AST((3, 128, 1024), 527, **BASE, pretrained=str(published), stem=stem).eval()
        assert_close(several.patches.weight, module.patches.weight.expand(-1, 3, -1, -1) / 3)
    feature_map = make_map(1, 1, 128, 200)
    assert_close(several(feature_map.expand(-1, 3, -1, -1)), module(feature_map), rtol=0, atol=1e-4)


def test_fewer_blocks_take_the_first(module, published):
    one = AST(MAP, 527, size="base", stride=10, depth=1, pretrained=str(published))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, module.state_dict()[name]), name


# --- positions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["ast", "timm"])
def test_positions_at_another_stride_and_length(how, published, module):
    """Without overlap and for 30 s: first read at the new patches' centres, then resized as any positions are."""
    built = AST((1, 128, 3308), 10, size="base", depth=1, pretrained=str(published), positions=how)
    table = module.pos_embed.detach()
    grid = table[0, 2:].reshape(12, 101, 768).numpy()
    rows = np.clip(1.6 * np.arange(8), 0, 11)
    columns = np.clip(1.6 * np.arange(64), 0, 100)
    some = np.stack([np.interp(columns, np.arange(101), row) for row in grid[:, :, 5]])
    some = np.stack([np.interp(rows, np.arange(12), column) for column in some.T], axis=1)
    read = restride_positions(table, Patches(128, 1024, 10), 16)
    np.testing.assert_allclose(read[0, 2:, 5].reshape(8, 64), some, atol=1e-5)
    assert torch.equal(built.pos_embed, resize_positions(read, (8, 64), (8, 206), how))
    ten = AST(MAP, 10, size="base", depth=1, pretrained=str(published))
    assert torch.equal(ten.pos_embed, read)


def test_positions_of_planes(published, module):
    built = AST((1, 128, 1876), 10, 4, size="base", depth=1, pretrained=str(published))
    read = restride_positions(module.pos_embed.detach(), Patches(128, 1024, 10), 16)
    assert torch.equal(built.pos_embed, spread_positions(read, (8, 64), Patches(128, 1876, planes=4), "ast"))
    columns = built.pos_embed[0, 2:].reshape(8, 117, 768)
    published_columns = read[0, 2:].reshape(8, 64, 768)
    assert torch.equal(columns[:, 29:59], published_columns[:, 32 - 15 : 32 + 15])
    assert torch.equal(columns[:, :29], columns[:, 59:88])


@pytest.mark.parametrize(("patches", "stride"), [(512, 16), (657, 14), (850, 12)])
def test_models_that_were_trained_at_another_stride(patches, stride, tmp_path):
    """The authors have also published those; the number of positions distinguishes them."""
    other = published_state(blocks=1, width=192, patches=patches)
    save_file(other, tmp_path / "model.safetensors")
    same = AST(MAP, 10, depth=1, stride=stride, pretrained=str(tmp_path))
    assert torch.equal(same.pos_embed, other[f"{HF}embeddings.position_embeddings"])
    finer = AST(MAP, 10, depth=1, stride=10, pretrained=str(tmp_path))
    expected = restride_positions(same.pos_embed, Patches(128, 1024, stride), 10)
    assert torch.equal(finer.pos_embed, expected)


# --- what gafx saved --------------------------------------------------------------------------------------------------


def save(module, folder, **config):
    save_file({f"classifier.{name}": tensor.clone() for name, tensor in module.state_dict().items()},
              folder / "model.safetensors")  # fmt: skip
    if config:
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("frames", [100, 512, 1000])
@torch.no_grad()
def test_a_saved_classifier_starts_another_length_as_it_would_go_on(frames, described, tmp_path):
    saved = AST((1, 128, 512), 5, depth=1, stride=12).eval()
    save(
        saved,
        tmp_path,
        **({"map_shape": [1, 128, 512], "classifier": {"name": "ast", "stride": 12}} if described else {}),
    )
    other = AST((1, 128, frames), 5, depth=1, stride=12, pretrained=str(tmp_path)).eval()
    feature_map = make_map(2, 1, 128, frames)
    assert_close(other(feature_map), saved(feature_map), rtol=0, atol=1e-5)


def test_a_saved_classifier_of_other_classes_or_stride(tmp_path):
    saved = AST((2, 128, 256), 5, depth=2)
    save(saved, tmp_path, map_shape=[2, 128, 256], classifier={"name": "ast"})
    other = AST((2, 128, 256), 7, depth=1, stride=8, pretrained=str(tmp_path))
    assert torch.equal(other.patches.weight, saved.patches.weight)
    assert torch.equal(other.pos_embed, restride_positions(saved.pos_embed, Patches(128, 256), 8))
    assert (other.head_norm.weight == 1).all()
    assert not torch.equal(other.output.weight[:5], saved.output.weight)


def test_a_saved_classifier_of_planes(tmp_path):
    saved = AST((1, 64, 4 * 100), 5, 4, depth=1)
    save(saved, tmp_path, map_shape=[1, 64, 400], classifier={"name": "ast"})
    assert_same(saved, AST((1, 64, 4 * 100), 5, 4, depth=1, pretrained=str(tmp_path)))
    longer = AST((1, 64, 4 * 130), 5, 4, depth=1, pretrained=str(tmp_path))
    expected = fit_positions(saved.pos_embed, Patches(64, 400, planes=4), Patches(64, 520, planes=4), "ast")
    assert torch.equal(longer.pos_embed, expected)
    (tmp_path / "config.json").unlink()
    assert_same(saved, AST((1, 64, 4 * 100), 5, 4, depth=1, pretrained=str(tmp_path)))
    with pytest.raises(UsageError, match=r"pos_embed is for 100 patches in the file, for 4 x 32 here; build"):
        AST((1, 64, 4 * 130), 5, 4, depth=1, pretrained=str(tmp_path))


def test_one_plane_saved_starts_every_plane(tmp_path):
    saved = AST((1, 64, 110), 5, depth=1)
    save(saved, tmp_path, map_shape=[1, 64, 110], classifier={"name": "ast"})
    other = AST((1, 64, 4 * 100), 5, 4, depth=1, pretrained=str(tmp_path))
    expected = spread_positions(saved.pos_embed, (4, 6), Patches(64, 400, planes=4), "ast")
    assert torch.equal(other.pos_embed, expected)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_another_size_is_refused_before_anything_is_fetched(size, monkeypatch):
    monkeypatch.setattr(weights, "find", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(UsageError, match=f"not {size}.*classifier=ast_audioset.*classifier.size=base"):
        AST(MAP, 527, size=size, pretrained="audioset", stride=10)


def refuse(state, folder, *parts, shape=MAP, **arguments):
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UsageError) as caught:
        AST(shape, 527, **{"stride": 10, "depth": 1, "pretrained": str(folder), **arguments})
    for part in (str(folder), *parts):
        assert part in str(caught.value)


@pytest.fixture(scope="module")
def small_state():
    return published_state(blocks=1, width=192)


def test_weights_of_another_size_name_it(small_state, tmp_path):
    shapes = ("dist_token is (1, 1, 192) in the file, (1, 1, 768) here", "use classifier.size=tiny")
    refuse(small_state, tmp_path, "does not fit deit_base", *shapes, size="base")


@pytest.mark.parametrize(
    "missing",
    [
        f"{HF}embeddings.cls_token",
        f"{HF}embeddings.patch_embeddings.projection.weight",
        f"{HF}encoder.layer.0.attention.attention.key.bias",
        f"{HF}layernorm.weight",
    ],
)
def test_a_missing_tensor_is_named_as_the_file_would(small_state, tmp_path, missing):
    part = {name: tensor for name, tensor in small_state.items() if name != missing}
    refuse(part, tmp_path, missing.removeprefix(HF), "AST as transformers saves it")


def test_too_few_blocks_are_refused(small_state, tmp_path):
    refuse(small_state, tmp_path, "encoder.layer.1.", "and 29 more", "with 3 blocks", "classifier.depth", depth=3)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (f"{HF}encoder.layer.0.intermediate.dense.weight", (700, 192)),
        (f"{HF}embeddings.patch_embeddings.projection.weight", (192, 1, 8, 16)),
        (f"{HF}embeddings.patch_embeddings.projection.weight", (192, 256)),
        (f"{HF}embeddings.position_embeddings", (1214, 192)),
        (f"{HF}embeddings.position_embeddings", (1, 1214, 100)),
    ],
)
def test_a_tensor_of_another_shape_is_refused(small_state, tmp_path, name, shape):
    own = {
        f"{HF}encoder.layer.0.intermediate.dense.weight": "(768, 192) here",
        f"{HF}embeddings.patch_embeddings.projection.weight": "(192, 1, 16, 16) here",
        f"{HF}embeddings.position_embeddings": "(1, 1214, 192) here",
    }
    parts = (f"{shape} in the file", own[name])
    refuse({**small_state, name: torch.zeros(shape)}, tmp_path, *parts)


def test_positions_of_no_such_map_are_refused(tmp_path):
    refuse(published_state(blocks=1, width=192, patches=144), tmp_path, "144 positions", "128 x 1024")
    refuse(published_state(blocks=1, width=192, patches=0), tmp_path, "0 positions")


def test_tensors_of_another_kind_of_model_are_refused(small_state, tmp_path):
    for name in ("encoder.layer.0.scale.gamma", "pooler.dense.weight"):
        refuse({**small_state, HF + name: torch.zeros(3)}, tmp_path, name, "does not have")


def test_a_file_of_something_else_is_refused(tmp_path):
    refuse({"conv.weight": torch.zeros(3)}, tmp_path, "cls_token", "distilled DeiT", "AST as its authors save it")
    refuse({}, tmp_path, "cls_token")


# --- the hub ----------------------------------------------------------------------------------------------------------


BUILD_FROM_HUB = f"""
import sys, torch
from safetensors.torch import save_file
from gafx.classifiers.ast import AST
torch.set_num_threads(1)
module = AST({MAP}, 527, size="base", stride=10, depth=1, pretrained=sys.argv[2])
save_file({{name: tensor.contiguous() for name, tensor in module.state_dict().items()}}, sys.argv[1])
"""


def test_the_hub_gives_the_same_module_as_a_file(published, tmp_path):
    place = f"/{AUDIOSET_REPO}/resolve/main/model.safetensors"
    with hub_server.serve({AUDIOSET_REPO: {"model.safetensors": published.read_bytes()}}) as hub:
        run = hub_server.start(BUILD_FROM_HUB, hub.url, tmp_path / "home", tmp_path / "out.safetensors", "audioset")
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
        assert ("GET", place) in hub.asked
    fetched = load_file(tmp_path / "out.safetensors")
    module = AST(MAP, 527, size="base", stride=10, depth=1, pretrained=str(published)).state_dict()
    assert fetched.keys() == module.keys()
    for name, tensor in module.items():
        assert torch.equal(tensor, fetched[name]), name


def test_without_the_hub_the_error_names_the_model(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        AST(MAP, 527, **BASE, pretrained="audioset")
    for part in (AUDIOSET_REPO, "could not be fetched", ".safetensors", "classifier.pretrained=false"):
        assert part in str(caught.value)
