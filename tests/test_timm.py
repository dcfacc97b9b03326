"""Networks of timm as classifiers: their outputs, and weights by name, by order, from gafx and from the hub."""

import os
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

import gafx
from gafx.errors import UsageError
from gafx.registry import CLASSIFIERS
from gafx.saving import weights

NAME = "mobilenetv3_small_050"  # its embedding is larger than the map of its last convolution; its head: `classifier`
SHAPE = (1, 64, 48)


def build(shape=SHAPE, classes=3, **arguments):
    torch.manual_seed(0)
    return CLASSIFIERS.create("timm", shape, classes, **{"backbone": NAME, **arguments}).eval()


def refuse(match, shape=SHAPE, **arguments):
    with pytest.raises(UsageError, match=match):
        build(shape, **arguments)


@pytest.fixture(scope="module")
def network():
    """timm's own network for RGB images and 5 classes, with statistics as after training."""
    torch.manual_seed(1)
    model = timm.create_model(NAME, num_classes=5).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(std=0.1)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
        model.classifier.weight.normal_()
    return model


@pytest.fixture(scope="module")
def by_name(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("named") / "model.safetensors"
    save_file(network.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def by_order(network, tmp_path_factory):
    """The same tensors as another project would name them."""
    path = tmp_path_factory.mktemp("ordered") / "net-123.pth"
    names = (f"layer{number}.{name.rpartition('.')[2]}" for number, name in enumerate(network.state_dict()))
    torch.save(dict(zip(names, network.state_dict().values(), strict=True)), path)
    return str(path)


@torch.no_grad()
@pytest.mark.parametrize("source", ["by_name", "by_order"])
def test_a_map_as_rgb_image_gives_the_logits_of_timm(source, network, request):
    module = build(classes=5, in_channels="rgb", pretrained=request.getfixturevalue(source))
    feature_map = torch.randn(2, 1, 64, 48)
    expected = network(feature_map.repeat(1, 3, 1, 1))
    assert expected.std() > 0.1
    assert_close(module(feature_map), expected)
    assert module.embed(feature_map).shape == (2, module.width)
    module = build((3, 64, 48), classes=5, in_channels="rgb", pretrained=request.getfixturevalue(source))
    colours = torch.randn(2, 3, 64, 48)
    assert_close(module(colours), network(colours))


@torch.no_grad()
@pytest.mark.parametrize("source", ["by_name", "by_order"])
def test_kernels_for_the_channels_of_the_map(source, network, request):
    """One channel gives what three equal ones give; without the head of other classes."""
    module = build(classes=3, pretrained=request.getfixturevalue(source))
    feature_map = torch.randn(2, 1, 64, 48)
    expected = network.forward_head(network.forward_features(feature_map.repeat(1, 3, 1, 1)), pre_logits=True)
    assert_close(module.embed(feature_map), expected, atol=1e-4, rtol=1e-4)
    fresh = build(classes=3)
    assert torch.equal(module.output.weight, fresh.output.weight)
    assert not torch.equal(module.backbone.conv_stem.weight, fresh.backbone.conv_stem.weight)
    two = build((2, 64, 48), pretrained=request.getfixturevalue(source))
    assert_close(two.backbone.conv_stem.weight[:, :2], 1.5 * network.conv_stem.weight[:, :2])


def test_the_published_weights_come_from_the_hub_as_safetensors(by_name, monkeypatch):
    asked = []
    monkeypatch.setattr(
        weights, "fetch", lambda repo, files: asked.append((repo, tuple(files))) or weights.Path(by_name)
    )
    module = build(pretrained=True)
    assert asked == [("timm/mobilenetv3_small_050.lamb_in1k", ("model.safetensors",))]
    assert module.weight_source.kind == "published"


@torch.no_grad()
def test_a_model_saved_by_gafx_is_a_start(tmp_path):
    make = {"name": "timm", "backbone": NAME}
    model = gafx.create_model("mel", make, classes=["a", "b", "c"], segment_seconds=0.5).eval()
    torch.nn.init.normal_(model.classifier.output.weight)
    model.save(tmp_path / "model")
    module = build(model.classifier.map_shape, pretrained=str(tmp_path / "model"))
    feature_map = torch.randn(1, *model.classifier.map_shape)
    assert torch.equal(module(feature_map), model.classifier(feature_map))
    other = build(model.classifier.map_shape, classes=4, pretrained=str(tmp_path / "model"))
    assert torch.equal(other.embed(feature_map), model.classifier.embed(feature_map))


def test_weights_that_do_not_fit_are_refused(network, by_name, tmp_path):
    state = network.state_dict()
    save_file({name: t for name, t in state.items() if name != "conv_head.bias"}, tmp_path / "part.safetensors")
    refuse("conv_head.bias: nothing in the file", pretrained=str(tmp_path / "part.safetensors"))
    refuse("does not fit", backbone="mobilenetv3_small_075", pretrained=by_name)
    names = {name: f"{number}.{name.rpartition('.')[2]}" for number, name in enumerate(state)}
    ordered = {names[name]: tensor for name, tensor in state.items()}
    for change, match in (
        (lambda d: d.pop("0.weight"), "the network has"),
        (lambda d: d.update({"0.bias": d.pop("0.weight")}), "does not fit, by order"),
        (lambda d: d.update({"0.weight": torch.zeros(16, 3, 5, 5)}), r"by order: 0.weight is \(16, 3, 5, 5\)"),
    ):
        changed = dict(ordered)
        change(changed)
        torch.save(changed, tmp_path / "changed.pt")
        refuse(match, pretrained=str(tmp_path / "changed.pt"))
    save_file(ordered, tmp_path / "ordered.safetensors")  # the order in such a file is not that of the network
    refuse("does not fit", pretrained=str(tmp_path / "ordered.safetensors"))


def test_a_pickle_of_anything_else_is_not_run(tmp_path):
    trap = tmp_path / "trap"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(trap),)

    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"weight": Bomb()}))
    refuse("nothing in it was run", pretrained=str(tmp_path / "weights.pth"))
    assert not trap.exists()


def test_networks_that_do_not_exist_or_cannot_read_a_map():
    refuse("did you mean 'resnet18'", backbone="resnet81")
    refuse("is no network of timm", backbone="hf-hub:timm/resnet18.a1_in1k")
    refuse("no such pretrained weights; there are .*resnet18.a1_in1k", backbone="resnet18.of_nobody")
    refuse("reads images of 224 x 224 only.*resnet18", backbone="deit_tiny_patch16_224")
    refuse("cannot read a map of 4 x 48", (1, 4, 48), backbone="convnext_atto")


def test_the_shortest_map():
    module = build((1, 64, 100), backbone="convnext_atto")
    assert module.min_frames == 32
    assert module(torch.zeros(1, 1, 64, 32)).shape == (1, 3)
    with pytest.raises(RuntimeError, match="Kernel size"):
        module(torch.zeros(1, 1, 64, 16))
    assert build().min_frames == 1


def test_options():
    refuse("takes maps of 1 or 3 channels, not 2", (2, 64, 48), in_channels="rgb")
    refuse("drop_rate=1.0 must be", drop_rate=1.0)
    refuse("drop_path=-0.1 must be", drop_path=-0.1)
    refuse("does not take drop_path_rate", backbone="vgg11", drop_path=0.1)
    module, feature_map = build(drop_rate=0.5), torch.randn(1, *SHAPE)
    plain = module.embed(feature_map)
    module.train()
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eval()
    zeros = (module.embed(feature_map) == 0) & (plain != 0)
    assert 0.4 < zeros.float().mean() / (plain != 0).float().mean() < 0.6
