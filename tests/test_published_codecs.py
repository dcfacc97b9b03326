"""Published codecs: EnCodec and DAC against transformers' own, Jukebox's file against a second implementation."""

import inspect
import json
import shutil

import numpy as np
import pytest
import soundfile
import test_contracts as contracts
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import gafx
from gafx.audio.read import read_segment
from gafx.deploy.features import extract
from gafx.errors import UsageError
from gafx.nn.published_codecs import DAC, EnCodec, find_vqvae, read_vqvae, rename_jukebox
from gafx.nn.vqvae import VQVAE
from gafx.registry import FRONTENDS
from gafx.saving import weights

transformers = pytest.importorskip("transformers")
pytest.importorskip("vector_quantize_pytorch")

ENCODEC = {
    "num_filters": 2, "hidden_size": 16, "codebook_size": 16, "upsampling_ratios": [5, 4, 2], "num_lstm_layers": 1,
    "target_bandwidths": [2.4, 7.2, 9.6],
}  # fmt: skip
DACS = {  # strides of the 44.1 kHz model, and the odd one of the others, where the decoder ends early
    "even": {"downsampling_ratios": [2, 4], "sampling_rate": 22050},
    "odd": {"downsampling_ratios": [2, 5], "sampling_rate": 24000},
}
SMALL_DAC = {
    "encoder_hidden_size": 4, "decoder_hidden_size": 8, "n_codebooks": 3, "codebook_size": 16, "codebook_dim": 4,
}  # fmt: skip
LENGTHS = (1, 2, 39, 40, 41, 1000, 24001)


def noise(samples, batch=2, seed=0):
    return 0.3 * torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def encodec(tmp_path_factory):
    """Folder that transformers saved, and its model, with codebooks in the range of the encoder's outputs."""
    torch.manual_seed(1)
    model = transformers.EncodecModel(transformers.EncodecConfig(**ENCODEC)).eval()
    with torch.no_grad():
        # The random encoder hardly depends on the wave: codes would be chosen by rounding.
        last = model.encoder.layers[-1].conv
        last.parametrizations.weight.original0.mul_(100)
        last.bias -= model.encoder(noise(4000)).mean(dim=(0, 2))
        residual = model.encoder(noise(4000))
        for layer in model.quantizer.layers:  # zeros until they are trained
            vectors = residual.transpose(1, 2).flatten(0, 1)
            layer.codebook.embed.copy_(vectors[torch.randperm(len(vectors))[: len(layer.codebook.embed)]])
            residual = residual - layer.decode(layer.encode(residual))
    folder = tmp_path_factory.mktemp("encodec")
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module", params=DACS)
def dac(request, tmp_path_factory):
    return make_dac(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def any_dac(tmp_path_factory):
    return make_dac(tmp_path_factory, "odd")


def make_dac(tmp_path_factory, strides):
    """As `encodec`."""
    torch.manual_seed(2)
    model = transformers.DacModel(transformers.DacConfig(**SMALL_DAC, **DACS[strides])).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the initial weights of transformers are too small for codes to differ
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    folder = tmp_path_factory.mktemp("dac")
    model.save_pretrained(folder)
    return folder, model


def build(codec, source, quantizers):
    front_end = gafx.create_frontend("vq", codec=codec, pretrained=str(source), quantizers=quantizers)
    return front_end.eval().codec


@pytest.mark.parametrize("samples", LENGTHS)
def test_encodec_equals_transformers(encodec, samples):
    folder, model = encodec
    codec, wave = build("encodec", folder, 3), noise(samples)
    codes = codec.codes(wave)
    with torch.no_grad():
        theirs = model.encode(wave, bandwidth=7.2).audio_codes[0]
        decoded = model.decode(theirs[None], [None]).audio_values
    assert theirs.shape[1] == 3
    assert samples < 1000 or theirs.unique().numel() > 8
    torch.testing.assert_close(codes, theirs, rtol=0, atol=0)
    assert codes.shape[-1] == codec.frames(samples) == -(-samples // 40)
    torch.testing.assert_close(codec.decode(codes), decoded)
    assert codec.decode(codes).shape == (2, 1, 40 * codes.shape[-1])
    torch.testing.assert_close(codec.vectors(codes), model.quantizer.decode(theirs.transpose(0, 1)))


@pytest.mark.parametrize("samples", LENGTHS)
def test_dac_equals_transformers(dac, samples):
    folder, model = dac
    codec, wave = build("dac", folder, 2), noise(samples)
    hop = codec.hop_length
    padded = F.pad(wave, (0, -samples % hop))  # as transformers' DacFeatureExtractor does
    codes = codec.codes(wave)
    with torch.no_grad():
        theirs = model.encode(padded, n_quantizers=2)
        decoded = model.decode(audio_codes=theirs.audio_codes).audio_values
    assert samples < 1000 or theirs.audio_codes.unique().numel() > 8
    torch.testing.assert_close(codes, theirs.audio_codes, rtol=0, atol=0)
    assert codes.shape[-1] == codec.frames(samples) == -(-samples // hop)
    torch.testing.assert_close(codec.vectors(codes), theirs.quantized_representation, rtol=1e-4, atol=1e-5)
    ours = codec.decode(codes)
    assert ours.shape == (2, 1, hop * codes.shape[-1])
    torch.testing.assert_close(ours[:, 0, : decoded.shape[-1]], decoded)
    assert (ours[..., decoded.shape[-1] :] == 0).all()
    assert ours.shape[-1] - decoded.shape[-1] < hop


def test_quantizers_are_the_first_ones(encodec):
    folder, _ = encodec
    wave = noise(4000)
    every = build("encodec", folder, 4)
    torch.testing.assert_close(build("encodec", folder, 1).codes(wave), every.codes(wave)[:, :1])
    with pytest.raises(UsageError, match=r"quantizers=5 must be between 1 and 4"):
        build("encodec", folder, 5)


def test_extractor_of_transformers_pads_dac_as_we_do(any_dac):
    folder, model = any_dac
    codec = build("dac", folder, 3)
    extractor = transformers.DacFeatureExtractor(sampling_rate=codec.sample_rate, hop_length=codec.hop_length)
    wave = noise(1003, batch=1)
    inputs = torch.as_tensor(extractor(wave[0, 0].numpy(), sampling_rate=codec.sample_rate).input_values[0])[None]
    with torch.no_grad():
        torch.testing.assert_close(codec.codes(wave), model.encode(inputs).audio_codes)


def test_names_of_torch_s_earlier_weight_norm(encodec, tmp_path):
    """The released EnCodec has weight_g and weight_v where transformers now saves parametrizations."""
    folder, _ = encodec
    for suffix, name in (("weight_g", "original0"), ("weight_v", "original1")):
        state = load_file(folder / "model.safetensors" if suffix == "weight_g" else tmp_path / "model.safetensors")
        renamed = {key.replace(f"parametrizations.weight.{name}", suffix): value for key, value in state.items()}
        assert renamed.keys() != state.keys()
        save_file(renamed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    wave = noise(4000)
    torch.testing.assert_close(build("encodec", tmp_path, 4).codes(wave), build("encodec", folder, 4).codes(wave))


def test_config_of_a_codec_is_what_differs_from_transformers_defaults(encodec):
    config, _ = EnCodec.find(str(encodec[0]))
    codec = EnCodec(config)
    assert codec.config == {**ENCODEC, "codebook_dim": 16}
    assert EnCodec(json.loads(json.dumps(codec.config))).config == codec.config
    assert (codec.sample_rate, codec.num_codes, codec.dim, codec.hop_length) == (24000, 16, 16, 40)


def test_codecs_of_transformers_are_frozen(any_dac):
    assert not any(parameter.requires_grad for parameter in build("dac", any_dac[0], 1).parameters())


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (("pytorch_model.bin", "config.json"), "holds pytorch_model.bin, and pickles are never loaded"),
        (("model.safetensors",), "lacks config.json beside it"),
    ],
)
def test_incomplete_folders(encodec, tmp_path, files, reason):
    for name in files:
        source = encodec[0] / name
        (tmp_path / name).write_bytes(source.read_bytes() if source.exists() else b"\x80\x04.")
    with pytest.raises(UsageError, match=reason):
        EnCodec.find(str(tmp_path))


def test_models_that_do_not_fit(encodec, any_dac, tmp_path):
    with pytest.raises(UsageError, match="describes 'dac', not the codec 'encodec'"):
        EnCodec.find(str(any_dac[0]))
    with pytest.raises(UsageError, match=r"audio_channels=2, normalize=True, chunk_length_s=1\.0"):
        EnCodec({"audio_channels": 2, "normalize": True, "chunk_length_s": 1.0, "overlap": 0.01})
    with pytest.raises(UsageError, match="codec_config has the key 'auto_map'"):
        DAC({"auto_map": "x"})
    with pytest.raises(UsageError, match=r"describes no encodec"):
        EnCodec({**ENCODEC, "upsampling_ratios": "no"})
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((encodec[0] / name).read_bytes())
    values = json.loads((tmp_path / "config.json").read_text()) | {"num_filters": 4}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match=r"does not fit VQ \(codec\.model\.encoder"):
        build("encodec", tmp_path, 1)
    with pytest.raises(UsageError, match="sample_rate=44100, but this encodec is of 24000 Hz"):
        gafx.create_frontend("vq", codec="encodec", codec_config=ENCODEC, sample_rate=44100)
    with pytest.raises(UsageError, match="leave it out"):
        gafx.create_frontend("vq", codec="encodec", codec_config=ENCODEC, pretrained=str(encodec[0]))
    with pytest.raises(UsageError, match="quantizers=2 is of codec=encodec and codec=dac"):
        gafx.create_frontend("vq", quantizers=2)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("encodec", {"num_filters": 2**15, "hidden_size": 2**15, "codebook_dim": 2**15}, "far more than its weights"),
        ("encodec", {"num_residual_layers": 10**9}, "1000000000 layers by num_residual_layers"),
        ("encodec", {"num_lstm_layers": 10**9}, "layers by num_lstm_layers"),
        ("encodec", {"target_bandwidths": [1e9]}, "layers by num_quantizers"),
        ("encodec", {"upsampling_ratios": [2**40, 2**40]}, "a frame must be at most a second"),
        ("encodec", {"upsampling_ratios": [1] * 10**6}, "1000000 layers by upsampling_ratios"),
        ("encodec", {"sampling_rate": 10**12}, "the rate at most"),
        ("encodec", {"dilation_growth_rate": 2**20, "num_residual_layers": 4}, "the limit is a second"),
        ("any_dac", {"encoder_hidden_size": 2**15}, "far more than its weights"),
        ("any_dac", {"n_codebooks": 10**9}, "layers by n_codebooks"),
        ("any_dac", {"downsampling_ratios": [0, 4]}, "a frame must be"),
    ],
)
def test_a_configuration_larger_than_its_weights_is_refused(request, tmp_path, kind, changes, reason):
    """Before anything of that size is built."""
    source, _ = request.getfixturevalue(kind)
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    values = json.loads((source / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match=reason):
        {"encodec": EnCodec, "any_dac": DAC}[kind].find(str(tmp_path))


def parts_of(kind, source):
    return {"name": "vq", "codec": kind, "pretrained": str(source), "quantizers": 2}


@pytest.mark.parametrize("kind", ["encodec", "any_dac"])
@pytest.mark.parametrize(
    "contract",
    [
        contracts.test_the_declared_shape_is_the_real_one,
        contracts.test_the_map_has_every_frame_of_a_longer_clip,
        contracts.test_types_of_waves,
        contracts.test_clips_of_a_batch_do_not_mix,
        contracts.test_gradients_reach_every_parameter,
        contracts.test_predictions_do_not_depend_on_neighbours,
        contracts.test_finite_in_bfloat16_on_silence_and_at_full_scale,
        contracts.test_converted_to_bfloat16,
        contracts.test_converted_to_float64,
    ],
)
def test_contracts_of_front_ends(request, monkeypatch, contract, kind):
    source, _ = request.getfixturevalue(kind)
    monkeypatch.setitem(contracts.SHORT, "vq", parts_of(kind.removeprefix("any_"), source) | {"output": "embedding"})
    contract("vq", "ast") if "classifier_name" in inspect.signature(contract).parameters else contract("vq")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encodec", "any_dac"])
def test_exported(request, monkeypatch, tmp_path, kind):
    source, _ = request.getfixturevalue(kind)
    monkeypatch.setitem(contracts.SHORT, "vq", parts_of(kind.removeprefix("any_"), source))
    contracts.test_an_exported_model_equals_the_model("vq", "ast", tmp_path)


def test_files_are_read_at_the_rate_of_the_codec(encodec, tmp_path, rng):
    front_end = gafx.create_frontend(**parts_of("encodec", encodec[0])).eval()
    path = tmp_path / "stereo.wav"
    soundfile.write(path, 0.3 * rng.standard_normal((44100, 2)), 44100, subtype="FLOAT")
    (found,) = extract(path, front_end, "maps")
    mono = torch.from_numpy(read_segment(path, 0, 10**9, sample_rate=24000))[None]
    assert mono.shape == (1, 1, 24000)
    np.testing.assert_allclose(found.values[0], front_end(mono)[0].numpy(), rtol=1e-5, atol=1e-6)
    (found,) = extract(path, front_end, "codes")
    np.testing.assert_array_equal(found.values[0], front_end.codes(mono)[0].numpy())
    assert found.values.shape == (1, 2, 600)


@pytest.mark.parametrize(("kind", "repository"), [("encodec", "facebook/encodec_24khz"), ("dac", "descript/dac_44khz")])
def test_released_weights_are_asked_of_the_hub(kind, repository, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match=rf"frontend.pretrained=true: {repository}.*HF_HUB_OFFLINE forbids"):
        gafx.create_frontend("vq", codec=kind, pretrained=True)
    assert FRONTENDS.get("vq").source_of({"codec": kind, "pretrained": True}).name == repository


def test_files_of_a_repository_are_of_one_commit(encodec, tmp_path, monkeypatch):
    """A file of the hub's cache: config.json is asked for at the commit of the weights."""
    folder = tmp_path / "models--owner--codec/snapshots/abc123"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes((encodec[0] / "model.safetensors").read_bytes())
    asked = []

    def fetch(repo, files, **options):
        asked.append((repo, list(files), options))
        (folder / files[0]).write_bytes((encodec[0] / files[0]).read_bytes())
        return folder / files[0]

    monkeypatch.setattr(weights, "fetch", fetch)
    front_end = gafx.create_frontend("vq", codec="encodec", pretrained="owner/codec")
    assert asked[1] == ("owner/codec", ["config.json"], {"revision": "abc123"})
    assert (front_end.weight_source.name, front_end.weight_source.revision) == ("owner/codec", "abc123")


@pytest.mark.parametrize("output", ["codebook", "embedding"])
@pytest.mark.parametrize("kind", ["encodec", "dac"])
def test_model_is_rebuilt_without_the_folder_of_its_codec(request, tmp_path, kind, output):
    folder, _ = request.getfixturevalue({"encodec": "encodec", "dac": "any_dac"}[kind])
    source = tmp_path / "codec"
    source.mkdir()
    for file in folder.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(0)
    frontend = parts_of(kind, source) | {"output": output}
    model = gafx.create_model(
        frontend, {"name": "cnn", "stem": 8, "widths": [8, 8]}, classes=["a", "b"], segment_seconds=0.5
    ).eval()
    assert model.info.provenance.frontend.name == "codec"
    if not model.frontend.learned:
        model.fit_statistics(noise(12000))
    model.save(tmp_path / "model")
    for file in source.iterdir():
        file.unlink()
    loaded = gafx.load(tmp_path / "model")
    wave = noise(model.frontend.sample_rate // 2)
    torch.testing.assert_close(loaded(wave), model(wave))
    assert loaded.info.frontend["codec_config"] == model.frontend.codec.config
    # A saved model is a source of weights too, with its codec's configuration.
    again = gafx.create_frontend("vq", codec=kind, output=output, quantizers=2, pretrained=str(tmp_path / "model"))
    torch.testing.assert_close(again(wave), model.frontend(wave))


# Jukebox. A second implementation, on the tensors as the file names them: its encoder, codebook and decoder of a level.

HALVINGS = (3, 2, 2)
WIDTHS, DEPTHS, DIM, CODES = (8, 4, 4), (4, 2, 2), 6, 32  # the lowest level is twice as wide and deep, as released
RELEASED = {"widths": (64, 32, 32), "depths": (8, 4, 4), "dim": 64, "codes": 2048}


def jukebox_state(widths=WIDTHS, depths=DEPTHS, dim=DIM, codes=CODES):
    """Random tensors with the names and shapes of vqvae.pth.tar."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def layer(name, *shape, out):
        fan = shape[1] * shape[2] if out == shape[0] else shape[0] * 2
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) / fan**0.5
        state[f"{name}.bias"] = 0.1 * torch.randn(out, generator=generator)

    def blocks(name, width, depth):
        for number in range(depth):
            layer(f"{name}.model.{number}.model.1", width, width, 3, out=width)
            layer(f"{name}.model.{number}.model.3", width, width, 1, out=width)

    for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for block in range(level + 1):
            inside, down = (1 if block == 0 else dim), HALVINGS[block]
            name = f"encoders.{level}.level_blocks.{block}.model"
            for number in range(down):
                layer(f"{name}.{number}.0", width, inside if number == 0 else width, 4, out=width)
                blocks(f"{name}.{number}.1", width, depth)
            layer(f"{name}.{down}", dim, width, 3, out=dim)
            name = f"decoders.{level}.level_blocks.{block}.model"
            layer(f"{name}.0", width, dim, 3, out=width)
            for number in range(1, down + 1):
                blocks(f"{name}.{number}.0", width, depth)
                out = dim if number == down else width
                layer(f"{name}.{number}.1", width, out, 4, out=out)
        layer(f"decoders.{level}.out", 1, dim, 3, out=1)
        state[f"bottleneck.level_blocks.{level}.k"] = torch.randn(codes, dim, generator=generator)
    return state


def weight(state, name):
    return state[f"{name}.weight"], state[f"{name}.bias"]


def reference_blocks(state, name, x, dilations):
    for number, dilation in enumerate(dilations):
        y = F.conv1d(x.relu(), *weight(state, f"{name}.model.{number}.model.1"), padding=dilation, dilation=dilation)
        x = x + F.conv1d(y.relu(), *weight(state, f"{name}.model.{number}.model.3"))
    return x


def reference_encode(state, level, wave):
    dilations = [3**number for number in range(DEPTHS[level])]
    x = wave
    for block in range(level + 1):
        name = f"encoders.{level}.level_blocks.{block}.model"
        for number in range(HALVINGS[block]):
            x = F.conv1d(x, *weight(state, f"{name}.{number}.0"), stride=2, padding=1)
            x = reference_blocks(state, f"{name}.{number}.1", x, dilations)
        x = F.conv1d(x, *weight(state, f"{name}.{HALVINGS[block]}"), padding=1)
    return torch.cdist(x.transpose(1, 2), state[f"bottleneck.level_blocks.{level}.k"]).argmin(dim=-1)


def reference_decode(state, level, codes):
    dilations = [3**number for number in range(DEPTHS[level])][::-1]
    x = state[f"bottleneck.level_blocks.{level}.k"][codes].transpose(1, 2)
    for block in range(level, -1, -1):
        name = f"decoders.{level}.level_blocks.{block}.model"
        x = F.conv1d(x, *weight(state, f"{name}.0"), padding=1)
        for number in range(1, HALVINGS[block] + 1):
            x = reference_blocks(state, f"{name}.{number}.0", x, dilations)
            x = F.conv_transpose1d(x, *weight(state, f"{name}.{number}.1"), stride=2, padding=1)
    return F.conv1d(x, *weight(state, f"decoders.{level}.out"), padding=1)


def load_vqvae(codec, path, stages):
    weights.fit(codec, rename_jukebox(read_vqvae(path), stages, path), path)


def vqvae(level, **changes):
    sizes = {"width": WIDTHS[level], "depth": DEPTHS[level], "dim": DIM, "num_codes": CODES}
    return VQVAE(**{**sizes, "halvings": HALVINGS[: level + 1], **changes}).eval()


def write(folder, state, form):
    if form == "safetensors":
        save_file(state, folder / "vqvae.safetensors")
    elif form == "module":
        torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, folder / "vqvae.pth.tar")
    else:
        torch.save({"model": state, "step": 1000, "hps": {"levels": 3}, "opt": None}, folder / "vqvae.pth.tar")
    return find_vqvae(str(folder))


@pytest.mark.parametrize(("level", "form"), [(2, "tar"), (2, "module"), (2, "safetensors"), (1, "tar"), (0, "tar")])
def test_jukebox(tmp_path, level, form):
    state = jukebox_state()
    codec = vqvae(level)
    load_vqvae(codec, write(tmp_path, state, form), level + 1)
    hop = 2 ** sum(HALVINGS[: level + 1])
    for samples in (1, hop, 20 * hop + 3):
        wave = noise(samples)
        expected = reference_encode(state, level, F.pad(wave, (0, -samples % hop)))
        with torch.no_grad():
            torch.testing.assert_close(codec.codes(wave)[:, 0], expected, rtol=0, atol=0)
            decoded = codec.decode(expected[:, None])
        torch.testing.assert_close(decoded, reference_decode(state, level, expected), rtol=1e-4, atol=1e-4)
    assert expected.unique().numel() > 4


def test_defaults_are_jukebox_s_released_sizes(tmp_path):
    path = write(tmp_path, jukebox_state(**RELEASED), "tar")
    front_end = gafx.create_frontend("vq", pretrained=str(path))
    torch.testing.assert_close(front_end.codec.codebook, read_vqvae(path)["bottleneck.level_blocks.2.k"])
    with pytest.raises(UsageError, match="was trained at 44100 Hz, and this front-end reads 22050 Hz"):
        gafx.create_frontend("vq", pretrained=str(path), sample_rate=22050)
    load_vqvae(VQVAE(width=64, depth=8, halvings=(3,)), path, 1)


def test_jukebox_training_continues_from_the_codebook(tmp_path):
    """The moving averages, which the file lacks, start so that one step moves the codebook, and does not replace it."""
    state = jukebox_state()
    codec = vqvae(2)
    load_vqvae(codec, write(tmp_path, state, "tar"), 3)
    before = codec.codebook.clone()
    codec.train().quantize(codec.encode(noise(128 * 200)))
    moved = (codec.codebook - before).norm(dim=1)
    assert moved.max() > 0
    assert moved.median() < 0.5 * before.norm(dim=1).median()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"model": {"a": torch.zeros(1)}, "step": 1}, "holds no VQ-VAE of Jukebox"),
        ({"model": {"bottleneck.level_blocks.0.k": torch.zeros(4, 2)}}, "lacks level 2"),
        ({"model": {"a": "text"}}, "'a' is a str"),
        ({"model": {}, "other": pytest.raises}, "nothing in it was run"),
    ],
)
def test_files_that_are_not_jukebox(tmp_path, content, reason):
    torch.save(content, tmp_path / "vqvae.pth.tar")
    with pytest.raises(UsageError, match=reason):
        load_vqvae(vqvae(2), find_vqvae(str(tmp_path)), 3)


def test_jukebox_of_other_sizes_and_missing_files(tmp_path):
    path = write(tmp_path, jukebox_state(), "tar")
    with pytest.raises(UsageError, match=r"encoder\.0\.0\.0\.weight: \(4, 1, 4\) in the file.*codec_width=32"):
        gafx.create_frontend("vq", pretrained=str(path), codec_width=6)
    with pytest.raises(UsageError, match="does not exist"):
        find_vqvae(str(tmp_path / "no" / "vqvae.pth.tar"))


def test_a_run_goes_on_without_the_folder_of_its_codec(encodec, tmp_path):
    """Its configuration differs from the default one: the run itself has to know it."""
    from gafx.config import TrainConfig, build
    from gafx.training.trainer import Trainer

    folder = tmp_path / "codec"
    shutil.copytree(encodec[0], folder)
    for label in ("low", "high"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(3):
            wave = noise(8000, 1, number)[0, 0].numpy()
            soundfile.write(tmp_path / "data" / label / f"{number}.wav", wave, 24000)
    values = {
        "frontend": {"name": "vq", "codec": "encodec", "pretrained": str(folder)},
        "classifier": {"name": "mlp", "widths": [4]}, "epochs": 1, "batch_size": 4, "workers": 0, "device": "cpu",
        "precision": "fp32", "output_dir": str(tmp_path / "out"),
        "data": {"name": "folder", "root": str(tmp_path / "data"), "segment_seconds": 0.2, "leak_check": False},
    }  # fmt: skip
    first = Trainer(build(TrainConfig, values)).fit()
    shutil.rmtree(folder)
    second = Trainer(build(TrainConfig, values | {"epochs": 2, "extend": str(first)})).fit()
    codec = gafx.load(second).frontend.codec
    assert codec.config == gafx.load(first).frontend.codec.config
    assert codec.config
