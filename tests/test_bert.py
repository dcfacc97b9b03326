"""The transformer over frames, compared with PyTorch's own encoder."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from gafx.errors import UsageError
from gafx.registry import CLASSIFIERS

SHAPE = (2, 6, 20)


def bert(shape=SHAPE, **arguments):
    torch.manual_seed(0)
    arguments = {"width": 16, "heads": 4, "dropout": 0.0} | arguments
    return CLASSIFIERS.create("bert", shape, 3, **arguments).eval()


def positions(frames, width):
    """sin(k / 10000^(2i / width)) in the first half, the cosines in the second."""
    angles = [[frame / 10_000 ** (2 * i / width) for i in range(width // 2)] for frame in range(frames)]
    return torch.tensor([[*map(math.sin, row), *map(math.cos, row)] for row in angles])


def reference(model, feature_map):
    """Frames as tokens through torch's encoder layers with the same weights."""
    tokens = torch.stack([feature_map[..., frame].flatten(1) for frame in range(feature_map.shape[-1])], dim=1)
    tokens = model.project_norm(model.project(tokens)) + positions(tokens.shape[1], model.width)
    for block in model.blocks:
        heads = block.attn.num_heads
        layer = nn.TransformerEncoderLayer(
            model.width, heads, 4 * model.width, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True,
            norm_first=True,
        ).eval()  # fmt: skip
        names = {
            "self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj.": "attn.proj.", "linear1.": "mlp.fc1.",
            "linear2.": "mlp.fc2.", "norm1.": "norm1.", "norm2.": "norm2.",
        }  # fmt: skip
        state = block.state_dict()
        layer.load_state_dict({a + end: state[b + end] for a, b in names.items() for end in ("weight", "bias")})
        tokens = layer(tokens)
    return model.norm(tokens)


@torch.no_grad()
def test_four_layers_of_torchs_encoder():
    model, feature_map = bert(), torch.randn(3, *SHAPE)
    assert len(model.blocks) == 4
    assert model.tokens == 20
    assert_close(model.frames(feature_map), reference(model, feature_map), atol=1e-5, rtol=1e-5)
    assert_close(model.embed(feature_map), reference(model, feature_map).mean(dim=1), atol=1e-5, rtol=1e-5)
    longer = torch.randn(1, 2, 6, 50)  # positions exist for every length
    assert_close(model.frames(longer), reference(model, longer), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_every_frame_sees_those_before_and_after_it():
    model, feature_map = bert(), torch.randn(1, *SHAPE)
    before = model.frames(feature_map)
    for changed in (0, 19):
        other = feature_map.clone()
        other[..., changed] += 1
        assert ((model.frames(other) - before).abs().amax(dim=2) > 1e-6).all()
    assert not torch.allclose(model.embed(feature_map.flip(3)), model.embed(feature_map), atol=1e-4), "order counts"


@torch.no_grad()
def test_frames_joined_into_tokens():
    model, feature_map = bert(patch=3), torch.randn(2, *SHAPE)
    assert model.tokens == 7
    assert model.frames(feature_map).shape == (2, 7, 16)
    padded = nn.functional.pad(feature_map, (0, 1))
    assert torch.equal(model.frames(padded), model.frames(feature_map)), "the last token is filled with zeros"
    # A token reads three frames after each other: a map of a third of the frames and thrice the bins.
    single = bert((6, 6, 7))
    single.load_state_dict(model.state_dict())
    joined = padded.unflatten(3, (7, 3)).permute(0, 4, 1, 2, 3).flatten(1, 2)
    assert_close(single.frames(joined), model.frames(feature_map), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"heads": 3}, "multiple of classifier.heads=3"), ({"width": 15, "heads": 5}, "must be even"),
     ({"depth": 0}, "depth=0"), ({"patch": 0}, "patch=0"), ({"dropout": 1.0}, "dropout=1.0")],
)  # fmt: skip
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        bert(**arguments)
