"""GAFX-U against demucs' own forward pass, Table 1 of the paper, and the layouts in which its weights are published."""

import copy
import json
import math
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import hub_server
import pytest
import torch
from demucs.hdemucs import HDemucs
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from torchaudio.models import HDemucs as TorchaudioHDemucs

import gafx
from gafx.errors import UsageError
from gafx.frontends import _hdemucs
from gafx.frontends.gafx_u import GAFXU

WIDTH = 16
RATE = 16000
# Table 1, as far as it is not loose: input and output channels of the spectral branch's six layers.
ENCODER = [(4, 48), (48, 96), (96, 192), (192, 384), (384, 768), (768, 1536)]
DECODER = [(1536, 768), (768, 384), (384, 192), (192, 96), (96, 48), (48, 4 * 2 * 2)]


def music(seconds=1.0, batch=2, channels=2, seed=0):
    """Detuned tones over noise, the channels different."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(seconds * RATE)) / RATE
    pitch = torch.rand(batch, channels, 5, 1, generator=generator) * 900 + 60
    tones = torch.sin(2 * math.pi * pitch * time).mean(dim=2)
    return 0.4 * tones + 0.02 * torch.randn(tones.shape, generator=generator)


@pytest.fixture(scope="module")
def frontend():
    torch.manual_seed(0)
    return GAFXU(width=WIDTH).eval()


# --- the network ------------------------------------------------------------------------------------------------------


def test_every_row_of_table_1():
    with torch.device("meta"):
        net = GAFXU().hdemucs
    assert [(layer.conv.in_channels, layer.conv.out_channels) for layer in net.encoder] == ENCODER
    assert [(layer.conv_tr.in_channels, layer.conv_tr.out_channels) for layer in net.decoder] == DECODER
    # The temporal branch: stereo in, 4 sources x stereo out; its last layer gives what the spectral one merges with.
    temporal = [(2, 48), *ENCODER[1:5]]
    assert [(layer.conv.in_channels, layer.conv.out_channels) for layer in net.tencoder] == temporal
    assert [(d.conv_tr.in_channels, d.conv_tr.out_channels) for d in net.tdecoder] == [*DECODER[1:5], (48, 4 * 2)]
    assert sum(p.numel() for p in net.parameters()) == 83_637_832
    assert (net.nfft, net.hop_length, net.depth, net.cac, net.hybrid) == (4096, 1024, 6, True, True)
    inner = [[type(part).__name__ for part in layer.dconv.layers[0]] for layer in net.encoder]
    assert [("BLSTM" in names, "LocalState" in names) for names in inner] == [(False, False)] * 4 + [(True, True)] * 2


@pytest.mark.parametrize(("seconds", "frames"), [(5, 316), (10, 628), (29.7, 1860), (30, 1876)])
def test_map_shapes(frontend, seconds, frames):
    samples = round(seconds * RATE)
    assert frontend.output_shape(samples) == (1, 128, frames)
    assert GAFXU(width=WIDTH, sources="channels").output_shape(samples) == (4, 128, frames // 4)
    assert frontend.planes == 4


@torch.no_grad()
def test_the_map_of_30_seconds(frontend):
    assert frontend(music(30.0, 1)).shape == (1, 1, 128, 1876)
    assert frontend.complex_map(music(30.0, 1)).shape == (1, 4, 2, 2048, 469)


@torch.no_grad()
@pytest.mark.parametrize("samples", [1, 1000, 1024, 7777, 24_000])
def test_the_complex_map_is_z_plus_the_stft_of_the_waves(frontend, samples, monkeypatch):
    """Z and the waves are caught inside demucs' own forward pass, the STFT is written out here."""
    own = HDemucs(list(_hdemucs.SOURCES), channels=WIDTH).eval()
    own.load_state_dict(frontend.hdemucs.state_dict())
    caught = {}
    inverse = own._ispec

    def catch(z, length):
        caught["z"], caught["wave of z"] = z, inverse(z, length)
        return caught["wave of z"]

    monkeypatch.setattr(own, "_ispec", catch)
    wave = music(1.5)[..., :samples]
    waves = own(wave) - caught["wave of z"]  # (batch, sources, channels, samples)

    hop, frames = 1024, math.ceil(samples / 1024)
    around = (3 * hop // 2, 3 * hop // 2 + frames * hop - samples)
    if samples > max(around):
        padded = torch.nn.functional.pad(waves.flatten(0, 2)[:, None], around, mode="reflect")[:, 0]
        spectrum = torch.stft(
            padded, 4096, hop, window=torch.hann_window(4096), normalized=True, center=True, return_complex=True
        )[:, :2048, 2 : 2 + frames].unflatten(0, waves.shape[:3])
    else:  # demucs' padding of short clips is its own affair
        spectrum = own._spec(waves.flatten(0, 1)).unflatten(0, waves.shape[:2])
    assert_close(frontend.complex_map(wave), caught["z"] + spectrum, atol=1e-5, rtol=0)
    assert frontend.complex_map(wave).shape == (2, 4, 2, 2048, frames)


@torch.no_grad()
def test_from_the_complex_map_to_the_map(frontend):
    wave = music()
    spectrum = frontend.complex_map(wave).numpy()
    magnitude = (abs(spectrum[:, :, 0]) + abs(spectrum[:, :, 1])) / 2
    expected = torch.from_numpy(magnitude).mul(1000).log1p()
    by_hand = torch.stack([expected[:, :, 16 * k : 16 * k + 16].mean(dim=2) for k in range(128)], dim=2)
    got = frontend(wave)
    assert_close(got[:, 0], torch.cat(list(by_hand.unbind(dim=1)), dim=-1), atol=1e-4, rtol=1e-4)
    channels = GAFXU(width=WIDTH, sources="channels").eval()
    channels.load_state_dict(frontend.state_dict())
    assert channels.planes == 1
    assert_close(channels(wave), by_hand, atol=1e-4, rtol=1e-4)
    linear = GAFXU(width=WIDTH, log_scale=None).eval()
    linear.load_state_dict(frontend.state_dict())
    assert_close(linear(wave)[0, 0, 0, 0], torch.from_numpy(magnitude)[0, 0, :16, 0].mean(), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_mono_is_duplicated(frontend):
    mono = music(channels=1)
    assert torch.equal(frontend(mono), frontend(mono.expand(-1, 2, -1)))


# --- learning ---------------------------------------------------------------------------------------------------------


def gradients(**arguments):
    torch.manual_seed(0)
    frontend = GAFXU(width=WIDTH, **arguments)
    frontend(music(0.5)).square().mean().backward()
    return frontend, {name: parameter.grad for name, parameter in frontend.named_parameters()}


def test_gradients_reach_every_parameter_and_checkpointing_changes_none():
    frontend, plain = gradients()
    for name, gradient in plain.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert (gradient != 0).any(), name
    other, recomputed = gradients(checkpointing=True)
    assert_close(plain, recomputed, atol=1e-6, rtol=1e-4)
    assert torch.equal(frontend(music(0.5)), other(music(0.5)))


def saved_bytes(frontend, wave):
    """Bytes that autograd keeps for the backward pass."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = frontend(wave)
    del result
    return sum(kept.values())


def test_checkpointing_keeps_less():
    wave = music(2.0)
    assert saved_bytes(GAFXU(width=WIDTH, checkpointing=True), wave) < 0.35 * saved_bytes(GAFXU(width=WIDTH), wave)


def test_frozen():
    frontend = GAFXU(width=WIDTH, frozen=True)
    assert not frontend.learned
    assert not any(parameter.requires_grad for parameter in frontend.parameters())
    assert frontend(music(0.5)).grad_fn is None


def test_a_copy_runs_on_its_own_weights(frontend):
    """Also where layers are wrapped."""
    one = GAFXU(width=WIDTH, checkpointing=True)
    other = copy.deepcopy(one)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
    assert other(music(0.2)).std() > 0.01
    other(music(0.2)).sum().backward()
    assert all(parameter.grad is None for parameter in one.parameters())


@torch.no_grad()
def test_bfloat16_stays_close(frontend):
    """Over 300 frames: distances in the local attention, counted in bfloat16, would be off by whole frames."""
    wave = music(20.0, 1)
    exact = frontend(wave)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = frontend(wave)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().mean() < 0.02 * exact.std()


# --- weights ----------------------------------------------------------------------------------------------------------

# Arguments of HDemucs in demucs' configuration, which it writes into a file.
KWARGS = {
    "sources": list(_hdemucs.SOURCES), "audio_channels": 2, "samplerate": 44100, "segment": 44, "channels": WIDTH,
    "channels_time": None, "growth": 2, "nfft": 4096, "wiener_iters": 0, "end_iters": 0, "wiener_residual": False,
    "cac": True, "depth": 6, "rewrite": True, "hybrid": True, "hybrid_old": False, "multi_freqs": [],
    "multi_freqs_depth": 3, "freq_emb": 0.2, "emb_scale": 10, "emb_smooth": True, "kernel_size": 8, "stride": 4,
    "time_stride": 2, "context": 1, "context_enc": 0, "norm_starts": 4, "norm_groups": 4, "dconv_mode": 1,
    "dconv_depth": 2, "dconv_comp": 4, "dconv_attn": 4, "dconv_lstm": 4, "dconv_init": 1e-3, "rescale": 0.1,
}  # fmt: skip


def metadata(klass="demucs.hdemucs.HDemucs", args=(), **more):
    return {"klass": klass, "args": json.dumps(list(args)), "kwargs": json.dumps({**KWARGS, **more})}


def save_demucs(frontend, path, **more):
    """As demucs publishes a model: its state, with class and arguments in the metadata."""
    save_file(frontend.hdemucs.state_dict(), path, metadata=metadata(**more))
    return path


def torchaudio_state(frontend):
    """The same numbers under torchaudio's names, two tensors that it has alone included."""
    other = TorchaudioHDemucs(list(_hdemucs.SOURCES), channels=WIDTH, nfft=4096, depth=6)
    names = {
        "encoder": "freq_encoder",
        "tencoder": "time_encoder",
        "decoder": "freq_decoder",
        "tdecoder": "time_decoder",
    }
    state = {}
    for name, tensor in frontend.hdemucs.state_dict().items():
        first, _, rest = name.partition(".")
        state[f"{names.get(first, first)}.{rest}"] = tensor
    for name in ("time_encoder.4.norm1.weight", "time_encoder.4.norm1.bias"):
        state[name] = torch.rand_like(other.state_dict()[name])
    assert state.keys() == other.state_dict().keys()
    other.load_state_dict(state)
    return other


@torch.no_grad()
def test_all_layouts_give_the_same_map(frontend, tmp_path):
    other = torchaudio_state(frontend)
    torch.save(other.state_dict(), tmp_path / "hdemucs_high_trained.pt")
    save_file(other.state_dict(), tmp_path / "torchaudio.safetensors")
    demucs_file = save_demucs(frontend, tmp_path / "75fc33f5.safetensors")
    save_file(frontend.state_dict(), tmp_path / "frontend.safetensors")
    whole = gafx.create_model(
        {"name": "gafx_u", "width": WIDTH, "sources": "channels"}, {"name": "ast", "depth": 1}, num_classes=2,
        segment_seconds=2.0,
    )  # fmt: skip
    whole.frontend.load_state_dict(frontend.state_dict())
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    wave = music()
    expected = frontend(wave)
    sources = [
        demucs_file, tmp_path / "hdemucs_high_trained.pt", tmp_path / "torchaudio.safetensors",
        tmp_path / "frontend.safetensors", tmp_path / "model.safetensors",
    ]  # fmt: skip
    for source in sources:
        torch.manual_seed(5)
        loaded = gafx.create_frontend("gafx_u", width=WIDTH, pretrained=str(source)).eval()
        assert torch.equal(loaded(wave), expected), source.name


@torch.no_grad()
def test_torchaudio_itself_agrees(frontend):
    """Its class, with these weights, separates as the sum of both branches."""
    other = torchaudio_state(frontend).eval()
    wave = music(1.0)
    net = frontend.hdemucs
    spectrum, waves = HDemucs.forward(net, wave)
    assert_close(other(wave), waves + HDemucs._ispec(net, spectrum, wave.shape[-1]), atol=1e-4, rtol=1e-3)


def test_a_local_folder_as_the_hub_lays_it_out(frontend, tmp_path):
    save_demucs(frontend, tmp_path / "75fc33f5.safetensors")
    (tmp_path / "hdemucs_mmi.yaml").write_text("models: ['../../../etc/passwd']\nsegment: 44\n")  # never read
    loaded = GAFXU(width=WIDTH, pretrained=str(tmp_path))
    assert_close(loaded.state_dict(), frontend.state_dict(), atol=0, rtol=0)


@pytest.fixture
def server(tmp_path):
    """A plain file server, as torchaudio's is: its folder and address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_torchaudios_bundle_is_fetched_once(frontend, server, tmp_path, monkeypatch):
    folder, address = server
    (folder / "models").mkdir()
    torch.save(torchaudio_state(frontend).state_dict(), folder / "models" / "hdemucs_high_trained.pt")
    monkeypatch.setattr(_hdemucs, "BUNDLE_ADDRESS", f"{address}/")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    loaded = GAFXU(width=WIDTH, pretrained="torchaudio")
    assert_close(loaded.state_dict(), frontend.state_dict(), atol=0, rtol=0)
    assert (tmp_path / "cache" / "torchaudio" / "models" / "hdemucs_high_trained.pt").is_file()
    (folder / "models" / "hdemucs_high_trained.pt").unlink()
    GAFXU(width=WIDTH, pretrained="torchaudio")


def test_a_bundle_that_cannot_be_fetched(server, tmp_path, monkeypatch):
    monkeypatch.setattr(_hdemucs, "BUNDLE_ADDRESS", f"{server[1]}/nothing/")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    with pytest.raises(UsageError, match=r"could not be fetched.*pretrained=true"):
        GAFXU(width=WIDTH, pretrained="torchaudio")
    assert not list((tmp_path / "cache").rglob("*.pt"))


FROM_HUB = """
import sys
import gafx
from safetensors.torch import save_file
for number, source in enumerate((True, "hdemucs_mmi", "somebody/else", "somebody/torchaudio")):
    front_end = gafx.create_frontend("gafx_u", width=16, pretrained=source)
    save_file(front_end.state_dict(), f"{sys.argv[1]}/{number}.safetensors")
"""


def test_the_hub(frontend, tmp_path):
    """The released repository, and others that hold the same numbers under the names that they may use."""
    published = save_demucs(frontend, tmp_path / "75fc33f5.safetensors").read_bytes()
    save_file(torchaudio_state(frontend).state_dict(), tmp_path / "torchaudio.safetensors")
    repos = {
        "adefossez/Demucs-hdemucs_mmi": {"75fc33f5.safetensors": published, "hdemucs_mmi.yaml": b"models: ['../x']"},
        "somebody/else": {"model.safetensors": published},
        "somebody/torchaudio": {"model.safetensors": (tmp_path / "torchaudio.safetensors").read_bytes()},
    }
    with hub_server.serve(repos) as hub:
        run = hub_server.start(FROM_HUB, hub.url, tmp_path / "home", tmp_path)
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
        assert not [path for _, path in hub.asked if "yaml" in path]
    for number in range(4):
        assert_close(load_file(tmp_path / f"{number}.safetensors"), dict(frontend.state_dict()), atol=0, rtol=0)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"klass": "os.system"}, "holds a os.system"),
        ({"klass": "demucs.htdemucs.HTDemucs"}, "holds a demucs.htdemucs.HTDemucs"),
        ({"cac": False}, "built with cac=False"),
        ({"hybrid_old": True}, "hybrid_old=True"),
        ({"channels": 48}, "set frontend.width=48"),
        ({"freq_emb": 0.5}, "freq_emb=0.5"),
        ({"__class__": "os.system"}, "does not have: __class__"),
        ({"sources": ["a", "b"]}, "separates 2 sources"),
        ({"sources": None}, "separates 0 sources"),
        ({"sources": 5}, "damaged metadata"),
        ({"multi_freqs": [0.5]}, "multi_freqs"),
    ],
)
def test_other_networks_are_refused(frontend, tmp_path, more, message):
    path = save_demucs(frontend, tmp_path / "75fc33f5.safetensors", **more)
    with pytest.raises(UsageError, match=message):
        GAFXU(width=WIDTH, pretrained=str(path))


def test_packed_weights_are_refused(frontend, tmp_path):
    save_file(
        frontend.hdemucs.state_dict(), tmp_path / "model.safetensors",
        metadata={**metadata(), "structure": json.dumps({"_class": "os.system"})},
    )  # fmt: skip
    with pytest.raises(UsageError, match="in packed form"):
        GAFXU(width=WIDTH, pretrained=str(tmp_path))


def test_damaged_metadata(frontend, tmp_path):
    save_file(
        frontend.hdemucs.state_dict(), tmp_path / "model.safetensors", metadata={**metadata(), "kwargs": "{not json"}
    )
    with pytest.raises(UsageError, match="damaged metadata"):
        GAFXU(width=WIDTH, pretrained=str(tmp_path))


def test_weights_of_another_width(frontend, tmp_path):
    save_file(frontend.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"does not fit .*encoder.0.conv.weight: \(16, 4, 8, 1\) in the file, \(32,"):
        GAFXU(width=32, pretrained=str(tmp_path))


@torch.no_grad()
def test_half_precision_weights(frontend, tmp_path):
    """The released file holds float16."""
    state = {name: tensor.half() for name, tensor in frontend.hdemucs.state_dict().items()}
    save_file(state, tmp_path / "75fc33f5.safetensors", metadata=metadata())
    loaded = GAFXU(width=WIDTH, pretrained=str(tmp_path)).eval()
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    assert_close(loaded(music()), frontend(music()), atol=0.05, rtol=0)


@torch.no_grad()
def test_nan_goes_through(frontend):
    """Training names, counts or skips what is not finite; demucs' own assertion would end it."""
    wave = music()
    wave[0, 0, 100] = float("nan")
    feature_map = frontend(wave)
    assert feature_map[0].isnan().any()
    assert feature_map[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_waves_of_other_types(frontend, dtype):
    assert frontend(music(0.2).to(dtype)).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 8}, "multiple of 16"),
        ({"sample_rate": 0}, "at least 1"),
        ({"log_scale": 0.0}, "above 0"),
        ({"sources": "space"}, "one of 'time', 'channels'"),
        ({"pretrained": "hdemucs.th"}, "does not exist"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(UsageError, match=message):
        gafx.create_frontend("gafx_u", **{"width": WIDTH, **arguments})
