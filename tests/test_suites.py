"""The interfaces of evaluation suites: `gafx.hear` (HEAR 2021) and `gafx.maeb` (mteb's encoder protocol)."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from gafx import create_frontend, create_model, hear, maeb
from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd

RATE = 16000
MEL = {"name": "mel", "sample_rate": RATE, "hop_length": 200}
CRNN = {"frontend": {**MEL, "n_mels": 64}, "classifier": "crnn"}
CNN = {"frontend": {**MEL, "n_mels": 64}, "classifier": {"name": "cnn", "stem": 8, "widths": [8, 8]}}
AST = {"frontend": MEL, "classifier": {"name": "ast", "depth": 1}}


def built(parts, **options):
    torch.manual_seed(0)
    model = create_model(parts["frontend"], parts["classifier"], classes=["a", "b"], segment_seconds=1.0)
    return hear.HEARModel(model, **options).eval()


def noise(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(params=["crnn", "cnn", "ast", "mel", "gafx_r_slim"])
def model(request):
    if request.param == "mel":
        return hear.load_model("frontend=mel,sample_rate=16000,hop_length=200,n_mels=40")
    if request.param == "gafx_r_slim":
        return hear.load_model("frontend=gafx_r,width=16,hop_length=400,sample_rate=16000")
    return built({"crnn": CRNN, "cnn": CNN, "ast": AST}[request.param], window_seconds=0.4)


@pytest.mark.parametrize("samples", [1, 700, 16000, 41000])
def test_the_api(model, samples):
    """Shapes, types and spacing as the specification asks, for any length."""
    assert isinstance(model, torch.nn.Module)
    assert model.sample_rate in (16000, 22050, 32000, 44100, 48000)
    audio = noise(2, samples)
    scenes = hear.get_scene_embeddings(audio, model)
    found, times = hear.get_timestamp_embeddings(audio, model)
    assert scenes.shape == (2, model.scene_embedding_size)
    assert found.shape == (2, max(1, round(samples / 16000 / 0.05)), model.timestamp_embedding_size)
    assert times.shape == found.shape[:2]
    assert scenes.dtype == found.dtype == torch.float32
    assert torch.isfinite(scenes).all()
    assert torch.isfinite(found).all()
    assert times[0, 0] == 25.0
    assert torch.allclose(times.diff(), torch.tensor(50.0), atol=1e-3)
    # A sound's embeddings do not depend on the others'.
    alone = hear.get_timestamp_embeddings(audio[1:], model)[0]
    torch.testing.assert_close(alone[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parts", [CRNN, CNN], ids=["crnn", "cnn"])
def test_scenes_are_the_model_s_embeddings(parts):
    """Of a clip no longer than a segment `embed` itself; of a longer one the mean over the windows of `predict`."""
    model = built(parts)
    audio = noise(3, 16000 * 2 + 8000)
    with torch.no_grad():
        windows = [model.model.embed(audio[:, None, start : start + 16000]) for start in (0, 16000, 24000)]
    torch.testing.assert_close(hear.get_scene_embeddings(audio[:, :16000], model), windows[0], rtol=1e-4, atol=1e-5)
    expected = torch.stack(windows).mean(dim=0)
    torch.testing.assert_close(hear.get_scene_embeddings(audio, model), expected, rtol=1e-4, atol=1e-5)


def test_timestamps_are_centred(model):
    """A burst in otherwise silent audio changes the embeddings around its own time, not those far away."""
    audio = 1e-3 * noise(1, RATE * 3)
    silent, times = hear.get_timestamp_embeddings(audio, model)
    for seconds in (0.8, 1.3, 2.1):
        burst, at = audio.clone(), int(seconds * RATE)
        burst[:, at - 400 : at + 400] += noise(1, 800)
        changed = (hear.get_timestamp_embeddings(burst, model)[0] - silent).norm(dim=2)[0]
        weight = (changed - changed.median()).clamp(min=0)
        centre = float((weight * times[0]).sum() / weight.sum())
        assert abs(centre - 1000 * seconds) < (50 if isinstance(model.model, FrontEnd) else 250), (seconds, centre)


def test_bins_of_a_front_end_alone():
    """Each cell of 50 ms is the mean of its frames, beside its neighbours; a scene is mean and std of the bins."""
    front_end = create_frontend(**MEL, n_mels=8)  # four frames in 50 ms
    model = hear.HEARModel(front_end).eval()
    audio = noise(1, 16000)
    with torch.no_grad():
        bins = front_end(audio[:, None])[0, 0]  # (8, 80)
    cells = bins.unflatten(1, (20, 4)).mean(dim=2).T
    found, _ = hear.get_timestamp_embeddings(audio, model)
    torch.testing.assert_close(found[0, 1:-1], torch.cat([cells[:-2], cells[1:-1], cells[2:]], dim=1))
    scene = torch.cat([bins.mean(dim=1), bins.std(dim=1, correction=0)])
    torch.testing.assert_close(hear.get_scene_embeddings(audio, model)[0], scene)


def test_a_saved_model_and_refusals(tmp_path):
    model = built(CNN).model
    model.save(tmp_path / "model")
    audio = noise(1, 9000)
    loaded = hear.load_model(str(tmp_path / "model"), hop_ms=20)
    assert hear.get_timestamp_embeddings(audio, loaded)[1].diff().unique().round(decimals=3).tolist() == [20.0]
    torch.testing.assert_close(
        hear.get_scene_embeddings(audio, loaded), hear.get_scene_embeddings(audio, hear.HEARModel(model.eval()))
    )
    for source in ("", "frontend=mle"):
        with pytest.raises(UsageError):
            hear.load_model(source)
    with pytest.raises(UsageError, match="'frontend=mel,n_mels': 'n_mels' has no value; write e.g. frontend=mel,sampl"):
        hear.load_model("frontend=mel,n_mels")
    for hop in (0, -1.0, "50", float("inf"), float("nan"), True, None):
        with pytest.raises(UsageError, match=f"hop_ms={hop!r} must be a number above 0"):
            hear.load_model("frontend=mel", hop_ms=hop)
    with pytest.raises(UsageError, match="no option 'hop'; did you mean 'hop_ms'.* it takes hop_ms and window_seconds"):
        hear.load_model("frontend=mel", hop=20)
    for wrong in (audio[0], audio.to(torch.int16), audio[:, :0], audio[:0], audio.numpy()[0], audio.tolist()):
        for embeddings in (hear.get_scene_embeddings, hear.get_timestamp_embeddings):
            with pytest.raises(UsageError, match=r"must be \(sounds, samples\)"):
                embeddings(wrong, loaded)
    with pytest.raises(UsageError, match="NaN or infinite"):
        hear.get_scene_embeddings(audio.index_fill(1, torch.tensor([7]), torch.nan), loaded)


def test_arrays_are_tensors():
    model, audio = hear.load_model("frontend=mel"), noise(2, 9000)
    for embeddings in (hear.get_scene_embeddings, lambda *given: hear.get_timestamp_embeddings(*given)[0]):
        assert torch.equal(embeddings(audio.numpy(), model), embeddings(audio, model))
        assert torch.equal(embeddings(audio.numpy().astype(np.float64), model), embeddings(audio, model))


def test_a_linear_layer_on_a_crnn_has_the_frames_of_the_crnn():
    probe = built({**CRNN, "classifier": {"name": "linear_probe", "base_classes": 5}})
    crnn = create_model(CRNN["frontend"], "crnn", num_classes=5, segment_seconds=1.0)
    crnn.classifier.load_state_dict(probe.model.classifier.base.state_dict())
    audio, expected = noise(2, 20000), hear.HEARModel(crnn).eval()
    assert (probe.scene_embedding_size, probe.timestamp_embedding_size) == (261, 256)
    assert hear.get_scene_embeddings(audio, probe).shape == (2, 261)
    for found, own in zip(*(hear.get_timestamp_embeddings(audio, each) for each in (probe, expected)), strict=True):
        assert torch.equal(found, own)


def item(samples, rate):
    return {"array": samples, "sampling_rate": rate}


def test_an_encoder_of_mteb():
    """Stand-ins of mteb's batches: any length, rate and number of channels gives the scene embedding of the sound."""
    encoder = maeb.encoder("frontend=mel,sample_rate=16000")
    time = np.arange(32000) / 32000
    tone = np.sin(2 * np.pi * 440 * time)
    stereo = np.stack([tone, 0 * tone])
    batches = [
        {"audio": [item(tone[::2], 16000), item(tone, 32000)], "label": [0, 1]},
        {"audio": [item(stereo, 32000)]},
    ]
    found = encoder.encode(batches, task_metadata=None, hf_split="test", hf_subset="default", batch_size=2)
    assert found.shape == (3, encoder.model.scene_embedding_size)
    own = torch.from_numpy(tone[::2]).float()[None]
    np.testing.assert_allclose(found[0], hear.get_scene_embeddings(own, encoder.model)[0], rtol=1e-5)
    halved = hear.get_scene_embeddings(own / 2, encoder.model)[0]
    middle = slice(0, encoder.model.scene_embedding_size // 2)  # the means over time
    np.testing.assert_allclose(found[1][middle], found[0][middle], atol=0.3)  # but for the resampler's edges
    np.testing.assert_allclose(found[2][middle], halved[middle], atol=0.3)
    products = found @ found.T
    norms = np.linalg.norm(found, axis=1)
    np.testing.assert_allclose(encoder.similarity(found, found), products / np.outer(norms, norms), rtol=1e-5)
    pairs = encoder.similarity_pairwise(found, found[::-1].copy())
    np.testing.assert_allclose(pairs, np.diag(encoder.similarity(found, found[::-1].copy())), rtol=1e-5)
    with pytest.raises(UsageError, match="a batch of text: gafx models encode audio alone"):
        encoder.encode([{"text": ["a dog"]}])
    with pytest.raises(UsageError, match="must hold 'array' and 'sampling_rate', in Hz; it holds array"):
        encoder.encode([{"audio": [{"array": tone}]}])


def test_metadata_for_mteb():
    encoder = maeb.encoder("frontend=mel")
    if find_spec("mteb") is None:
        with pytest.raises(UsageError, match="gafx.maeb needs mteb: pip install mteb"):
            _ = encoder.mteb_model_meta
        return
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.embed_dim, meta.modalities) == ("gafx/frontend-mel", 256, ["audio"])
