"""Models that transformers saved: the same answers from the wave on, its labels, its scale, and what is refused."""

import json

import pytest
import torch
import torchaudio
from safetensors.torch import save_file
from test_audioset_weights import published_logits, published_state
from torch.testing import assert_close

import gafx
from gafx.classifiers.ast import AUDIOSET_SCALE
from gafx.errors import UsageError
from gafx.saving import catalogue

LABELS = ["Speech", "Rain", "Dog", "Engine", "Applause"]
TINY = {"hidden_size": 192, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 768}


def config(**changes):
    return {
        "model_type": "audio-spectrogram-transformer", "architectures": ["ASTForAudioClassification"], **TINY,
        "patch_size": 16, "frequency_stride": 10, "time_stride": 10, "max_length": 1024, "num_mel_bins": 128,
        "hidden_act": "gelu", "qkv_bias": True, "layer_norm_eps": 1e-12, "transformers_version": "4.40.0",
        "id2label": {str(number): label for number, label in reversed(list(enumerate(LABELS)))}, **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def state():
    return published_state(blocks=2, width=192, classes=len(LABELS))


def write(folder, state, extractor=None, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(**changes)))
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    if extractor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    return folder


def sound():
    """10.24 s at 16 kHz."""
    return 0.1 * torch.randn(1, 1, 163_840, generator=torch.Generator().manual_seed(0))


def expected_logits(state, wave, mean, std):
    """transformers' feature extractor (Kaldi's filter bank, zeros up to 1024 frames, its scale) and its network."""
    bank = torchaudio.compliance.kaldi.fbank(wave[0], sample_frequency=16000, window_type="hanning", num_mel_bins=128)
    bank = torch.nn.functional.pad(bank, (0, 0, 0, 1024 - len(bank)))
    return published_logits(state, ((bank - mean) / (2 * std)).T[None, None], 1e-12, 1e-12, heads=3)


@torch.no_grad()
@pytest.mark.parametrize(
    ("extractor", "scale"),
    [
        (None, AUDIOSET_SCALE),
        ({"mean": -6.6, "std": 5.4, "sampling_rate": 16000, "do_normalize": True}, (-6.6, 5.4)),
        ({"mean": -6.6, "std": 5.4, "do_normalize": False}, (0.0, 0.5)),
    ],
)
def test_the_same_logits_from_the_wave_on(extractor, scale, state, tmp_path):
    model = gafx.load(write(tmp_path / "saved", state, extractor))
    expected = expected_logits(state, sound(), *scale)
    assert expected.std() > 0.1
    assert_close(model(sound()).double(), expected, atol=1e-3, rtol=0)
    assert model.info.classes == LABELS
    assert (model.info.objective, model.info.sample_rate, model.info.segment_seconds) == ("classify", 16000, 10.24)
    again = gafx.load(model.save(tmp_path / "ours"))
    assert torch.equal(again(sound()), model(sound()))
    assert again.info == model.info


@torch.no_grad()
def test_other_labels(state, tmp_path):
    folder = write(tmp_path / "saved", state, problem_type="multi_label_classification")
    model, other = gafx.load(folder), gafx.load(folder, classes=list("abcde"))
    assert model.info.objective == other.info.objective == "tag"
    assert other.info.classes == list("abcde")
    short = sound()[..., :32_000]
    assert torch.equal(other.embed(short), model.embed(short))
    assert not torch.equal(other(short), model(short))


@torch.no_grad()
def test_equals_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.ASTForAudioClassification(transformers.ASTConfig(**TINY, num_labels=3)).eval()
    theirs.save_pretrained(tmp_path / "saved")
    extractor = transformers.ASTFeatureExtractor()
    extractor.save_pretrained(tmp_path / "saved")
    read = extractor(sound()[0, 0].numpy(), sampling_rate=16000, return_tensors="pt")
    model = gafx.load(tmp_path / "saved")
    assert_close(model(sound()), theirs(**read).logits, atol=1e-3, rtol=0)
    assert model.info.classes == ["LABEL_0", "LABEL_1", "LABEL_2"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "wav2vec2"}, "'wav2vec2' of transformers"),
        ({"max_length": 512}, "max_length=512"),
        ({"num_mel_bins": 64}, "num_mel_bins=64"),
        ({"hidden_size": 256}, "hidden_size=256"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers='two'"),
        ({"time_stride": 8}, "one stride for both axes"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label must give a label"),
        ({"id2label": {"0": "a", "1": "a"}}, "distinct labels"),
        ({"num_hidden_layers": 3}, "with 3 blocks"),
        ({"id2label": {str(number): str(number) for number in range(6)}}, r"5 labels, .* names 6 .*classes="),
    ],
)
def test_what_gafx_has_not_is_refused(changes, match, state, tmp_path):
    with pytest.raises(UsageError, match=match):
        gafx.load(write(tmp_path / "saved", state, **changes))


def test_a_wrong_extractor_is_refused(state, tmp_path):
    with pytest.raises(UsageError, match="std='x' must be a number"):
        gafx.load(write(tmp_path / "saved", state, {"std": "x"}))
    with pytest.raises(UsageError, match=r"std=0\.0 above 0"):
        gafx.load(write(tmp_path / "saved", state, {"std": 0}))
    with pytest.raises(UsageError, match=r"preprocessor_config\.json: num_mel_bins=64"):
        gafx.load(write(tmp_path / "saved", state, {"num_mel_bins": 64}))


@torch.no_grad()
def test_without_an_output_layer(state, tmp_path):
    """`ASTModel.save_pretrained` writes none; a random one is only made for labels that are given."""
    prefix = "audio_spectrogram_transformer."
    body = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    assert len(body) < len(state)
    folder = write(tmp_path / "body", body)
    with pytest.raises(UsageError, match=r"no output layer .*classifier\.dense\.weight.*classes="):
        gafx.load(folder)
    model, whole = gafx.load(folder, classes=["a", "b"]), gafx.load(write(tmp_path / "whole", state))
    short = sound()[..., :32_000]
    assert torch.equal(model.embed(short), whole.embed(short))


def test_a_file_in_several_parts_is_refused(state, tmp_path):
    folder = write(tmp_path / "parts", state)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    for load in (
        gafx.load,
        lambda source: gafx.create_model("mel", {"name": "ast", "pretrained": str(source)}, num_classes=2),
    ):
        with pytest.raises(UsageError, match=r"model-00001-of-00002\.safetensors.*max_shard_size"):
            load(folder)


def test_published_weights_set_the_scale_of_the_input(state, tmp_path, monkeypatch):
    """`audioset` is a file in the hub's cache; here one of size base is written in its place."""
    path = tmp_path / "model.safetensors"
    save_file(published_state(blocks=1), path)
    monkeypatch.setattr("gafx.classifiers.ast.find_weights", lambda *_: path)
    classifier = {"name": "ast", "size": "base", "stride": 10, "depth": 1, "pretrained": "audioset"}
    model = gafx.create_model({"name": "mel", "form": "kaldi"}, classifier, num_classes=2, segment_seconds=1.0)
    assert (model.map_norm.mean.item(), model.map_norm.std.item()) == pytest.approx(AUDIOSET_SCALE)
    learned = gafx.create_model({"name": "gafx_r", "width": 16}, classifier, num_classes=2, segment_seconds=1.0)
    assert not learned.map_norm.is_fitted_before
    named = gafx.create_model(
        {"name": "mel", "form": "kaldi"}, {**classifier, "pretrained": "ast-audioset"}, num_classes=2
    )
    assert (named.info.segment_seconds, named.map_norm.mean.item()) == (10.24, model.map_norm.mean.item())
    assert named.info.provenance.classifier.kind == model.info.provenance.classifier.kind == "published"


@pytest.mark.parametrize(("name", "other"), [("ast", "audioset-crnn"), ("crnn", "ast-audioset")])
def test_weights_of_another_classifier(name, other):
    owner = catalogue.CATALOGUE[other].classifier["name"]
    with pytest.raises(UsageError, match=f"pretrained={other} are weights of classifier={owner}"):
        gafx.create_model({"name": "mel", "n_mels": 64}, {"name": name, "pretrained": other}, num_classes=2)


def test_the_catalogue_names_a_repository(state, tmp_path, monkeypatch):
    folder = write(tmp_path / "saved", state, {"mean": -6.6, "std": 5.4})
    asked = []

    def fetch(repo, files, revision=None):
        asked.append((repo, *files))
        return folder / files[0]

    monkeypatch.setattr("gafx.saving.weights.fetch", fetch)
    model = gafx.load("ast-audioset")
    entry = catalogue.CATALOGUE["ast-audioset"]
    assert {repo for repo, _ in asked} == {entry.repository}
    monkeypatch.undo()
    with pytest.raises(UsageError, match=r"^ast-audioset: .*put config\.json and model\.safetensors of https"):
        gafx.load("ast-audioset", local_files_only=True, cache_dir=tmp_path / "empty")
    assert model.map_norm.mean.item() == pytest.approx(-6.6)
    assert model.info.classes == LABELS
