"""The names that users of timm know: create, list, features and head, another output layer."""

import pytest
import torch
from torch.testing import assert_close

import gafx
from gafx.errors import UsageError

CLASSES = ["blues", "jazz", "rock"]
# An estimator is fitted, and has no output layer of its own; some write tokens and read no maps.
OTHERS = ("estimator", "decoder", "vae_lstm", "vae_transformer")
LEARNING = [name for name in gafx.list_classifiers() if name not in OTHERS]
CHEAP = {"ast": {"depth": 1}, "timm": {"backbone": "test_resnet"}}


def build(classifier="ast", **more):
    torch.manual_seed(0)
    options = {"classes": CLASSES, "segment_seconds": 0.5, **more}
    return gafx.create_model("mel", {"name": classifier, **CHEAP.get(classifier, {})}, **options).eval()


def wave():
    return 0.1 * torch.randn(2, 1, 11025, generator=torch.Generator().manual_seed(5))


def test_lists_with_wildcards():
    names = gafx.list_models()
    assert len(names) == len(gafx.list_frontends()) * len(gafx.list_classifiers())
    assert gafx.list_models("*mel*") == [f"mel+{name}" for name in gafx.list_classifiers()]
    assert gafx.list_models(["gafx_r+ast", "*+cnn"])[:2] == ["fused+cnn", "gabor+cnn"]
    assert gafx.list_frontends("gafx_?") == ["gafx_a", "gafx_r", "gafx_u"]
    assert gafx.list_classifiers("c*") == ["cnn", "cnn_dense", "cnn_lstm", "crnn"]
    assert gafx.list_models("nothing*") == []
    assert [model.name for model in gafx.list_models("ast-*", pretrained=True)] == ["ast-audioset"]
    assert {model.name for model in gafx.list_models(pretrained=True)} == {"audioset-crnn", "ast-audioset"}


def test_create_by_one_name():
    model = gafx.create_model("mel+cnn", num_classes=10)
    assert (model.info.frontend["name"], model.info.classifier["name"]) == ("mel", "cnn")
    assert model.info.segment_seconds == 10.0
    assert gafx.create_model("mel", num_classes=2).info.classifier["name"] == "ast"
    with pytest.raises(UsageError, match=r"'mel\+cnn' names a classifier, and classifier='ast' another"):
        gafx.create_model("mel+cnn", "ast", num_classes=2)
    with pytest.raises(UsageError, match="unknown front-end 'mal'; did you mean 'mel'"):
        gafx.create_model("mal+cnn", num_classes=2)


def test_the_length_of_pretrained_weights_is_the_default(tmp_path):
    saved = build().save(tmp_path / "model")
    again = gafx.create_model("mel", {"name": "ast", "depth": 1, "pretrained": str(saved)}, num_classes=3)
    assert again.info.segment_seconds == 0.5
    by_file = {"name": "ast", "depth": 1, "pretrained": str(saved / "model.safetensors")}
    assert gafx.create_model("mel", by_file, num_classes=3).info.map_shape == again.info.map_shape
    assert gafx.create_model("mel", by_file, num_classes=3, segment_seconds=2.0).info.segment_seconds == 2.0


@pytest.mark.parametrize("classifier", LEARNING)
@torch.no_grad()
def test_features_and_head(classifier):
    model = build(classifier)
    feature_map = model.forward_features(wave())
    assert tuple(feature_map.shape[1:]) == tuple(model.info.map_shape)
    assert torch.equal(model.forward_head(feature_map), model(wave()))
    before_logits = model.forward_head(feature_map, pre_logits=True)
    assert before_logits.shape == (2, model.num_features)
    assert torch.equal(before_logits, model.embed(wave()))


@pytest.mark.parametrize("classifier", LEARNING)
def test_another_output_layer(classifier, tmp_path):
    model = build(classifier)
    model.info.training, model.info.license = {"data": "folder"}, "cc0-1.0"
    embedding = model.embed(wave())
    kept = dict(model.named_parameters())
    model.reset_classifier(5)
    assert model.info.classes == ["0", "1", "2", "3", "4"]
    assert (model.info.training, model.info.license) == ({}, "cc0-1.0")  # of the weights that stay
    assert model(wave()).shape == (2, 5)
    assert torch.equal(model.embed(wave()), embedding)
    assert not model.training
    heads = tuple(f"classifier.{name}" for name in model.classifier.head_names())
    new = {name for name, parameter in model.named_parameters() if parameter is not kept[name]}
    assert new == {name for name in kept if name.startswith(heads)}  # an optimiser keeps the others
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if name in new}
    model(wave()).square().sum().backward()
    optimiser.step()
    assert not any(torch.equal(before[name], dict(model.named_parameters())[name]) for name in new)
    model.reset_classifier(classes=["sea", "wind"])
    loaded = gafx.load(model.save(tmp_path / "model"))
    assert loaded.info.classes == ["sea", "wind"]
    assert loaded.classifier.num_classes == 2
    with torch.no_grad():
        assert_close(loaded(wave()), model(wave()))
    loaded.reset_classifier(4)
    assert loaded.info.provenance.classifier.kind == "saved"  # no longer a random start
    with pytest.raises(UsageError, match="reset_classifier: classes must be distinct"):
        model.reset_classifier(classes=["a", "a"])


def test_what_is_asked_for_in_timm_s_words():
    model = build()
    assert model.num_classes == 3
    with pytest.raises(UsageError, match=r"num_classes=0 .*model\.embed\(wave\).*pre_logits=True"):
        model.reset_classifier(0)
    for number in (True, False):
        with pytest.raises(UsageError, match=f"num_classes={number} must be an integer of at least 1"):
            model.reset_classifier(number)
    with pytest.raises(UsageError, match=r"published model, not a front-end: gafx.load\('audioset-crnn', classes=\["):
        gafx.create_model("audioset-crnn", num_classes=3)
    for names in (gafx.list_models, gafx.list_frontends, gafx.list_classifiers):
        for wrong in (3, [3], None):
            with pytest.raises(UsageError, match="must be a name with the wildcards"):
                names(wrong)


def test_a_model_of_classes_has_no_description_to_reset():
    model = build()
    with pytest.raises(UsageError, match="built by name"):
        gafx.GAFX(model.frontend, model.classifier).reset_classifier(2)
