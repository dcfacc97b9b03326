"""The transformer encoder against timm's distilled DeiT: same seed, same weights; same weights, same outputs."""

import pytest
import timm
import torch
from torch.testing import assert_close

from gafx.classifiers.ast import AST
from gafx.nn.flops import count_flops
from gafx.nn.transformer import Attention, Block, DeiTEncoder

SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}


def deit(size="tiny", **options):
    return timm.create_model(f"deit_{size}_distilled_patch16_224", pretrained=False, num_classes=0, **options)


def encoder_state(module):
    """Tensors of `module` without those of the patch embedding and the positions, which only timm's DeiT has."""
    return {
        name: tensor for name, tensor in module.state_dict().items() if not name.startswith(("patch_embed.", "pos_emb"))
    }


def randomise(module, seed=0):
    """Give every parameter a value that matters, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(1 + 0.2 * noise if "norm" in name and name.endswith("weight") else 0.05 * noise)


def assert_same_gradients(ours, theirs, outputs):
    """Compare the gradients of the mean square of two outputs in two lists of tensors by name."""
    assert ours.keys() == theirs.keys()
    found, expected = (
        torch.autograd.grad(output.square().mean(), tensors.values())
        for tensors, output in zip((ours, theirs), outputs, strict=True)
    )
    for name, one, other in zip(ours, found, expected, strict=True):
        assert other.any(), name
        assert_close(one, other, rtol=0, atol=1e-6 * max(1.0, other.abs().max().item()), msg=name)


@pytest.mark.parametrize(("size", "depth", "seed"), [("tiny", 12, 0), ("tiny", 1, 1), ("small", 2, 2), ("base", 1, 3)])
def test_a_seed_gives_the_weights_of_timm(size, depth, seed):
    torch.manual_seed(seed)
    theirs = deit(size, depth=depth)
    expected = torch.get_rng_state()
    torch.manual_seed(seed)
    width, num_heads = SIZES[size]
    ours = DeiTEncoder(width, depth, num_heads)
    assert torch.equal(torch.get_rng_state(), expected)
    ours, theirs = encoder_state(ours), encoder_state(theirs)
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_distributions_of_a_random_start():
    torch.manual_seed(0)
    encoder = DeiTEncoder(192, 2, 3)
    for name, tensor in encoder.named_parameters():
        if name.endswith("bias"):
            assert not tensor.any(), name
        elif "norm" in name:
            assert (tensor == 1).all(), name
        elif name == "cls_token":
            assert 0 < tensor.std() < 2e-6
        else:
            assert tensor.std().item() == pytest.approx(0.02, rel=0.15 if tensor.numel() < 1000 else 0.02), name


def test_blocks_equal_those_of_timm():
    theirs, ours = deit(depth=3), DeiTEncoder(192, 3, 3)
    randomise(theirs)
    ours.load_state_dict(encoder_state(theirs))
    tokens = torch.randn(2, 37, 192, generator=torch.Generator().manual_seed(1))
    inputs = tokens.clone().requires_grad_(), tokens.clone().requires_grad_()
    outputs = ours(inputs[0]), theirs.norm(theirs.blocks(inputs[1]))
    assert_close(*outputs, rtol=0, atol=5e-6)
    tensors = [
        {"tokens": tokens, **dict(module.blocks.named_parameters()), **dict(module.norm.named_parameters())}
        for module, tokens in zip((ours, theirs), inputs, strict=True)
    ]
    assert_same_gradients(*tensors, outputs)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_ast_equals_timm_on_an_image_of_the_size_of_the_map(size):
    theirs = deit(size, depth=2, img_size=(128, 96), in_chans=1)
    ours = AST((1, 128, 96), 5, size=size, depth=2)
    randomise(theirs)
    names = {name: name.replace("patch_embed.proj", "patches") for name in theirs.state_dict()}
    state = {names[name]: tensor for name, tensor in theirs.state_dict().items()}
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert all(name.startswith(("head_norm.", "output.")) for name in missing)
    assert not unexpected
    feature_map = torch.randn(2, 1, 128, 96, generator=torch.Generator().manual_seed(2))
    embeddings = ours.embed(feature_map), theirs(feature_map)
    assert_close(*embeddings, rtol=0, atol=5e-6)
    logits = tuple(ours.head(embedding) for embedding in embeddings)
    assert_close(*logits, rtol=0, atol=5e-6)
    parameters = dict(ours.named_parameters())
    assert_same_gradients(
        {name: parameters[names[name]] for name, _ in theirs.named_parameters()},
        dict(theirs.named_parameters()),
        logits,
    )


def test_flops_equal_those_of_timm():
    ours, theirs = DeiTEncoder(192, 2, 3).eval(), deit(depth=2).blocks.eval()
    tokens = torch.zeros(1, 50, 192)
    per_token = 2 * 12 * 192**2 + 2 * 2 * 50 * 192  # linear layers; scores and their product with the values
    assert count_flops(ours, tokens) == count_flops(theirs, tokens) == 2 * 50 * per_token


def test_attention_has_no_access_to_other_samples_and_all_tokens():
    attention = Attention(8, 2)
    tokens = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(4)).requires_grad_()
    attention(tokens)[0, 0].sum().backward()
    assert (tokens.grad[0] != 0).all()
    assert not tokens.grad[1].any()


def test_the_mlp_ratio_sets_the_hidden_width():
    assert Block(192, 3, mlp_ratio=2.5).mlp.fc1.weight.shape == (480, 192)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="width=192 is not a multiple of num_heads=5"):
        Attention(192, 5)
