"""The front-end vq and its VQ-VAE: layers, codebook, codes, hand-over, `gafx features --what codes`."""

import copy

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

import gafx
from gafx.cli import main
from gafx.deploy.features import Extractor, extract
from gafx.errors import UsageError
from gafx.nn.vqvae import VQVAE
from gafx.registry import FRONTENDS

SMALL = {"codec_width": 8, "codec_depth": 2, "num_codes": 32}


def codec(**arguments):
    torch.manual_seed(0)
    return VQVAE(**{"width": 8, "depth": 2, "num_codes": 32, **arguments})


def front_end(**arguments):
    torch.manual_seed(0)
    return gafx.create_frontend("vq", **{**SMALL, **arguments}).eval()


def sound(samples, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 44100
    tones = torch.sin(2 * torch.pi * 300 * torch.arange(1, batch + 1)[:, None, None] * time)
    return 0.3 * tones + 0.03 * torch.randn((batch, 1, samples), generator=generator)


# --- layers -----------------------------------------------------------------------------------------------------------


def residual(x, state, prefix, dilations):
    for number, dilation in enumerate(dilations):

        def convolve(y, layer, padding, dilation, at=f"{prefix}.{number}"):
            weight, bias = (state[f"{at}.{layer}.{name}"] for name in ("weight", "bias"))
            return F.conv1d(y, weight, bias, padding=padding, dilation=dilation)

        x = x + convolve(convolve(x.relu(), 1, dilation, dilation).relu(), 3, 0, 1)
    return x


@torch.no_grad()
def test_the_layers_are_jukeboxs():
    """Its 128x level written out: three stages of 3, 2 and 2 halvings, dilations 1 3 9 27, reversed in the decoder."""
    built = VQVAE(num_codes=4)
    state = built.state_dict()
    wave = sound(1280)
    x = wave
    for stage, halvings in enumerate((3, 2, 2)):
        for number in range(halvings):
            at = f"encoder.{stage}.{number}"
            x = F.conv1d(x, state[f"{at}.0.weight"], state[f"{at}.0.bias"], stride=2, padding=1)
            assert x.shape[1] == 32
            x = residual(x, state, f"{at}.1", (1, 3, 9, 27))
        last = f"encoder.{stage}.{halvings}"
        x = F.conv1d(x, state[f"{last}.weight"], state[f"{last}.bias"], padding=1)
        assert x.shape[1] == 64
    assert x.shape == (2, 64, 10)
    assert_close(built.encode(wave), x)
    for stage, doublings in enumerate((2, 2, 3)):
        x = F.conv1d(x, state[f"decoder.{stage}.0.weight"], state[f"decoder.{stage}.0.bias"], padding=1)
        for number in range(1, doublings + 1):
            at = f"decoder.{stage}.{number}"
            x = residual(x, state, f"{at}.0", (27, 9, 3, 1))
            x = F.conv_transpose1d(x, state[f"{at}.1.weight"], state[f"{at}.1.bias"], stride=2, padding=1)
        assert x.shape[1] == 64
    x = F.conv1d(x, state["decoder.3.weight"], state["decoder.3.bias"], padding=1)
    assert x.shape == wave.shape
    assert_close(built.decode_vectors(built.encode(wave)), x)
    assert (built.sample_rate, built.hop_length, built.dim) == (44100, 128, 64)


@torch.no_grad()
def test_an_untrained_codec_keeps_the_scale_of_the_wave():
    built = codec(width=32, depth=4, num_codes=2048)
    wave = sound(12800)
    assert 0.3 < float(built.encode(wave).std() / wave.std()) < 3
    assert not built.encode(torch.zeros(1, 1, 640)).any()
    assert len(built.codes(wave).unique()) > 10


# --- codes ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("samples", [1, 127, 128, 129, 1000])
def test_codes_are_the_nearest_vectors_of_the_padded_wave(samples):
    built = codec().eval()
    wave = sound(samples)
    frames = -(-samples // 128)
    padded = torch.zeros(2, 1, frames * 128)
    padded[..., :samples] = wave
    distances = torch.cdist(built.encoder(padded).transpose(1, 2), built.codebook)
    codes = built.codes(wave)
    assert codes.dtype == torch.int64
    assert torch.equal(codes[:, 0], distances.argmin(dim=2))
    assert built.frames(samples) == frames
    assert torch.equal(built.vectors(codes), built.codebook[codes[:, 0]].transpose(1, 2))
    assert torch.equal(built.decode(codes), built.decode_vectors(built.vectors(codes)))
    assert built.decode(codes).shape == (2, 1, frames * 128)


@torch.no_grad()
def test_codes_do_not_depend_on_the_precision():
    model = front_end(num_codes=512)
    wave = sound(20000)
    expected = model.codes(wave)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.codes(wave), expected)
        assert torch.equal(model(wave), model.codec.codebook[expected].transpose(1, 2).unsqueeze(1))


# --- training of the codebook -----------------------------------------------------------------------------------------


def test_gradients_pass_the_codebook_and_commit_the_encoder():
    built = codec().train()
    vectors = torch.randn(2, 64, 5, requires_grad=True)
    codebook = built.codebook.clone()
    found = built.quantize(vectors)
    wanted = codebook[torch.cdist(vectors.detach().transpose(1, 2), codebook).argmin(dim=2)].transpose(1, 2)
    assert_close(found.vectors, wanted)
    assert_close(found.commitment, (vectors - wanted).square().mean(dim=(1, 2)))
    upstream = torch.randn(2, 64, 5)
    (gradient,) = torch.autograd.grad((found.vectors * upstream).sum(), vectors, retain_graph=True)
    assert_close(gradient, upstream)
    (gradient,) = torch.autograd.grad(found.commitment.sum(), vectors)
    assert_close(gradient, 2 * (vectors - wanted).detach() / (64 * 5))


def test_the_codebook_is_a_moving_average():
    built = codec(num_codes=3, decay=0.9, restart_below=0.0).train()
    state = built.quantizer._codebook
    with torch.no_grad():
        state.embed.copy_(torch.tensor([[[1.0], [0.0], [-1.0]]]).expand(1, 3, 64))
        state.cluster_size.fill_(2.0)
        state.embed_avg.copy_(2 * state.embed)
    vectors = torch.tensor([0.8, 0.9, 0.1]).expand(1, 64, 3)
    built.quantize(vectors)
    # Sums and counts: 0.9 of the old ones and 0.1 of the batch's.
    first = (0.9 * 2 * 1.0 + 0.1 * (0.8 + 0.9)) / (0.9 * 2 + 0.1 * 2)
    second = (0.9 * 2 * 0.0 + 0.1 * 0.1) / (0.9 * 2 + 0.1 * 1)
    assert_close(built.codebook[:, 0], torch.tensor([first, second, -1.0]), atol=1e-4, rtol=0)


def test_unused_codes_restart_at_vectors_of_the_batch():
    built = codec(num_codes=8, restart_below=0.05).train()
    vectors = 5 + torch.randn(4, 64, 16)
    used = built.quantize(vectors).codes.unique()
    pool = vectors.transpose(1, 2).reshape(-1, 64)
    restarted = torch.cdist(built.codebook, pool).min(dim=1).values < 1e-3
    assert len(used) < 8
    assert sorted(restarted.nonzero().flatten().tolist() + used.tolist()) == list(range(8))
    assert len(built.quantize(vectors).codes.unique()) == 8


def test_nothing_changes_in_eval_mode_or_while_the_codec_is_frozen():
    model = front_end()
    before = copy.deepcopy(model.state_dict())
    model.train()
    assert not model.codec.training
    model.codec.quantize(torch.randn(1, 64, 4))
    model(sound(500))
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    model.codec.requires_grad_(True)
    assert model.train().codec.training
    assert not model.eval().codec.training


def test_the_state_has_no_bool_and_nothing_that_requires_a_gradient():
    """Buffers are averaged, broadcast and restored after a step that was not finite."""
    built = codec().train()
    built.quantize(torch.randn(1, 64, 4, requires_grad=True)).vectors.sum().backward()
    assert {tensor.dtype for tensor in built.state_dict().values()} == {torch.float32}
    for buffer in built.buffers():
        assert not buffer.requires_grad
        buffer.copy_(buffer.clone())


def _rank(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    built = codec(num_codes=8).train()
    torch.manual_seed(rank)
    for _ in range(3):
        built.quantize(torch.randn(1, 64, 3 + rank))
    torch.save(built.quantizer.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_processes_have_the_same_codebook(tmp_path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Sizes after one step are 0.01 of the counts of both ranks, 3 + 4.
    assert first["_codebook.cluster_size"].sum() > 0.2


# --- front-end --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_maps_are_codebook_vectors_or_learned_embeddings():
    wave = sound(1000)
    model = front_end()
    codes = model.codes(wave)
    assert codes.shape == (2, 8)
    assert not model.learned
    assert torch.equal(model(wave)[0, 0, :, 3], model.codec.codebook[codes[0, 3]])
    learned = front_end(output="embedding", width=5)
    assert torch.equal(learned.codes(wave), codes)  # the codec is built first: the same seed gives the same
    assert learned.learned
    assert learned.output_shape(1000) == (1, 5, 8)
    assert torch.equal(learned(wave)[1, 0, :, 7], learned.embedding.weight[codes[1, 7]])
    assert [name for name, p in learned.named_parameters() if p.requires_grad] == ["embedding.weight"]
    assert torch.equal(model.decode(codes), model.codec.decode(codes[:, None]))
    assert model.decode(codes).shape == (2, 1, 1024)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(2, 1, 8, dtype=torch.int64), r"takes integers \(batch, frames\)"),
        (torch.zeros(8, dtype=torch.int64), "shape"),
        (torch.zeros(1, 0, dtype=torch.int64), "shape"),
        (torch.zeros(1, 8), "float32"),
        (torch.tensor([[0, 32]]), "codes from 0 to 32 are not of this codec, which has 0 to 31"),
        (torch.tensor([[-1, 3]]), "codes from -1 to 3"),
    ],
)
def test_codes_that_cannot_be_decoded(codes, message):
    with pytest.raises(ValueError, match=message):
        front_end().decode(codes)


@torch.no_grad()
def test_codes_of_a_file_are_decoded_as_they_are():
    """`gafx features` writes int32."""
    model = front_end()
    codes = model.codes(sound(1000))
    assert torch.equal(model.decode(codes.int()), model.decode(codes))


def test_front_ends_without_codes_say_so():
    for name in FRONTENDS.names():
        if name not in ("vq", "fused", "gafx_u", "tokens"):
            built = gafx.create_frontend(name)
            assert built.num_codes is None
            with pytest.raises(UsageError, match="a front-end with a codec, e.g. vq"):
                built.codes(torch.zeros(1, 1, 100))
            with pytest.raises(UsageError, match="no discrete codes"):
                built.decode(torch.zeros(1, 3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_codes": 0}, "frontend.num_codes=0"),
        ({"restart_below": -1.0}, "frontend.restart_below=-1.0"),
        ({"quantizers": 2}, "codec=vqvae has one codebook"),
        ({"codec": "mp3"}, "vqvae"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(UsageError, match=message):
        gafx.create_frontend("vq", **arguments)


def test_a_codec_is_handed_over_with_or_without_embeddings(tmp_path):
    def saved(name, **arguments):
        model = gafx.create_model({"name": "vq", **SMALL, **arguments}, "cnn", num_classes=2, segment_seconds=0.1)
        return model, str(model.save(tmp_path / name))

    torch.manual_seed(1)
    plain, plain_path = saved("plain")
    learned, learned_path = saved("learned", output="embedding", width=16)
    wave = sound(1000)
    for output in ("codebook", "embedding"):
        for path, origin in ((plain_path, plain), (learned_path, learned)):
            built = front_end(output=output, width=16, pretrained=path)
            assert torch.equal(built.codes(wave), origin.frontend.codes(wave))
            assert built.weight_source.kind != "random"
    assert torch.equal(built(wave), learned.frontend(wave))
    with pytest.raises(UsageError, match="embedding"):
        front_end(output="embedding", width=17, pretrained=learned_path)
    with pytest.raises(UsageError, match="44100 Hz"):
        front_end(sample_rate=22050, pretrained=plain_path)
    with pytest.raises(UsageError, match="the codec's arguments"):
        front_end(codec_width=16, pretrained=plain_path)


# --- gafx features ----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = gafx.create_model({"name": "vq", **SMALL}, "cnn", num_classes=2, segment_seconds=0.1)
    return model.eval(), model.save(tmp_path / "model")


def test_features_are_integers(saved, rng, wav_factory, tmp_path):
    model, folder = saved
    samples = (0.3 * rng.standard_normal(9000)).astype(np.float32)
    file = wav_factory("a.wav", samples, 44100, subtype="FLOAT")
    starts = (0, 4410, 9000 - 4410)[:2]
    wanted = [
        model.frontend.codes(torch.from_numpy(samples[None, None, start : start + 4410]))[0].numpy() for start in starts
    ]
    for target in ("codes", "codes.parquet"):
        arguments = ["features", str(file), "--model", str(folder), "--what", "codes", "--output"]
        main([*arguments, str(tmp_path / target)])
    array = np.load(tmp_path / "codes/a.npy", allow_pickle=False)
    assert array.dtype == np.int32
    np.testing.assert_array_equal(array, wanted)
    table = pq.read_table(tmp_path / "codes.parquet")
    assert str(table.schema.field("values").type) == "list<element: int32>"
    np.testing.assert_array_equal([row["values"] for row in table.to_pylist()], wanted)
    (found,) = extract(file, model, "codes")
    assert found.values.dtype == np.int32
    (alone,) = extract(file, model.frontend, "codes", window_seconds=0.1)
    np.testing.assert_array_equal(found.values, alone.values)


def test_features_refuse_front_ends_without_codes(tmp_path, capsys):
    with pytest.raises(UsageError, match="no discrete codes"):
        Extractor(gafx.create_frontend("mel"), "codes")
    with pytest.raises(SystemExit):
        main(["features", "a.wav", "--frontend", "vq", "--what", "codes", "--pool", "--output", str(tmp_path / "out")])
    assert "codes of different lengths" in capsys.readouterr().err
