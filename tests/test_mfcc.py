"""MFCC against librosa; the networks of the MFCC paper and of the thesis; their recipes."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn
from torch.testing import assert_close

from gafx.classifiers.cnn_dense import CNNDense
from gafx.classifiers.cnn_lstm import CNNLSTM
from gafx.classifiers.lstm import LSTM
from gafx.classifiers.mlp import MLP
from gafx.compose import compose_train
from gafx.errors import UsageError
from gafx.frontends.mfcc import MfccFrontEnd
from gafx.nn.conv import BatchNorm, PooledConvs
from gafx.nn.maps import fit_length
from gafx.nn.recurrent import unrolled_lstm
from gafx.registry import CLASSIFIERS
from gafx.studies.ablation.spec import read_table

ROOT = Path(__file__).resolve().parents[1]
GTZAN = ROOT.parents[0] / "shared" / "data" / "gtzan_mini" / "genres"
RATE = 22050
TIME = np.arange(RATE) / RATE


def librosa_mfcc(wave, **options):
    librosa = pytest.importorskip("librosa")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "n_fft=.* is too large")
        given = {"sr": RATE, "n_mfcc": 13, "n_fft": 2048, "hop_length": 512, **options}
        return librosa.feature.mfcc(y=wave.astype(np.float64), **given)


def ours(wave, **options):
    return MfccFrontEnd(**options)(torch.from_numpy(wave).float()[None, None])[0, 0].numpy()


def single(wave):
    """The wave as both get it: rounded to float32."""
    return wave.astype(np.float32).astype(np.float64)


def noise(samples, scale=0.1, seed=0):
    return single(scale * np.random.default_rng(seed).standard_normal(samples))


WAVES = {
    "noise": noise(RATE),
    "tone": single(0.5 * np.sin(2 * np.pi * 440 * TIME)),
    "quiet": noise(RATE, 1e-5),
    "silence": np.zeros(RATE),
    "silence, then noise": np.concatenate([np.zeros(8000), noise(8000)]),
    "square": np.sign(np.sin(0.05 * np.arange(RATE)) + 1e-9),
    "shorter than a window": noise(700),
    "one sample": np.array([0.25]),
    "a whole number of hops": noise(5120),
}


# --- front-end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WAVES)
def test_equal_to_librosa(name):
    expected, found = librosa_mfcc(WAVES[name]), ours(WAVES[name])
    assert found.shape == expected.shape == (13, 1 + len(WAVES[name]) // 512)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({"n_mfcc": 40, "n_mels": 64}, {}),
        ({"sample_rate": 8000, "n_fft": 512, "hop_length": 80, "n_mels": 40}, {}),
        ({"n_mfcc": 1}, {}),
        ({"f_min": 100.0, "f_max": 8000.0}, {"fmin": 100.0, "fmax": 8000.0}),
    ],
)
def test_options_are_librosas(options, theirs):
    theirs = theirs or {("sr" if key == "sample_rate" else key): value for key, value in options.items()}
    np.testing.assert_allclose(ours(WAVES["noise"], **options), librosa_mfcc(WAVES["noise"], **theirs), atol=1e-4)


def test_top_db_is_of_each_clip():
    """A quiet clip next to a loud one is not cut off at the loud one's maximum."""
    loud, quiet = WAVES["tone"], noise(RATE, 1e-5)
    together = MfccFrontEnd()(torch.from_numpy(np.stack([loud, quiet])).float()[:, None])
    np.testing.assert_allclose(together[1, 0].numpy(), librosa_mfcc(quiet), atol=1e-4)
    deep = ours(WAVES["tone"], top_db=None)
    assert np.abs(deep - ours(WAVES["tone"])).max() > 1
    librosa = pytest.importorskip("librosa")
    mel = librosa.feature.melspectrogram(y=WAVES["tone"], sr=RATE, n_fft=2048, hop_length=512)
    every = librosa.feature.mfcc(S=librosa.power_to_db(mel, top_db=None), n_mfcc=13)
    # Bands 100 dB below the tone are rounding of float32 filters in librosa, too.
    np.testing.assert_allclose(deep, every, atol=0.05)


@pytest.mark.skipif(not GTZAN.is_dir(), reason="gtzan_mini is not next to the checkout (../shared/data)")
@pytest.mark.parametrize("genre", ["classical", "hiphop", "jazz"])
def test_real_music(genre):
    wave, rate = soundfile.read(GTZAN / genre / f"{genre}.00000.wav")
    assert rate == RATE
    np.testing.assert_allclose(ours(wave), librosa_mfcc(wave), rtol=0, atol=1e-4)


def test_each_coefficient_is_normalised_on_its_own():
    assert MfccFrontEnd().map_norm == "band"
    assert MfccFrontEnd(map_norm=None).map_norm is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_mfcc": 0}, "n_mfcc=0"),
        ({"n_mfcc": 129}, "n_mfcc=129 .*n_mels=128"),
        ({"hop_length": 4096}, "hop_length=4096 .*n_fft=2048"),
        ({"top_db": 0.0}, "top_db=0.0 .* null"),
        ({"f_max": 12000.0}, "f_max=12000.0"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(UsageError, match=message):
        MfccFrontEnd(**options)


# --- networks ---------------------------------------------------------------------------------------------------------


def parameters(name, shape):
    part = dict(compose_train([f"classifier={name}"]).classifier)
    classifier = CLASSIFIERS.create(part.pop("name"), shape, 10, **part)
    running = sum(buffer.numel() for key, buffer in classifier.named_buffers() if "running" in key)
    return sum(p.numel() for p in classifier.parameters()), running


def test_sizes():
    """Of the thesis's dense network Keras counts 767,434 trainable parameters and 3,968 others, 771,402 in all."""
    assert parameters("dense", (1, 63, 1)) == (767_434, 3_968)
    inputs, lstm = 13 * 130, [4 * 64 * (13 + 64 + 2), 4 * 64 * (64 + 64 + 2)]
    assert parameters("mlp", (1, 13, 130)) == (
        (inputs + 1) * 512 + 513 * 256 + 257 * 128 + 129 * 10,
        0,
    )
    assert parameters("lstm", (1, 13, 130)) == (sum(lstm) + 65 * 64 + 65 * 10, 0)
    # 13 x 130 becomes 5 x 44, 2 x 15, 1 x 5 by pooling of 3.
    convs = 32 * 10 + 32 * (9 * 32 + 1) + 32 * (4 * 32 + 1) + 3 * 2 * 32
    assert parameters("cnn_mfcc", (1, 13, 130)) == (convs + (32 * 5 + 1) * 64 + 650, 192)


def test_layers_of_the_perceptron():
    def kinds(classifier):
        return "".join(type(layer).__name__[0] for layer in [*classifier.layers, classifier.dropout, classifier.output])

    shape = (1, 4, 5)
    assert kinds(MLP(shape, 3, widths=(8, 6))) == "LRDLRDL"  # linear, ReLU, dropout, ...
    assert kinds(MLP(shape, 3, widths=(8, 6), activation="elu", norm="batch", dropout_layers="last")) == "LEBLEBDL"


@torch.no_grad()
def test_the_perceptron_by_numpy():
    classifier = MLP((2, 3, 4), 5, widths=(7, 6)).eval()
    x = torch.randn(3, 2, 3, 4)
    hidden = x.reshape(3, -1).numpy()
    for layer in [layer for layer in classifier.layers if isinstance(layer, nn.Linear)]:
        hidden = np.maximum(hidden @ layer.weight.numpy().T + layer.bias.numpy(), 0)
    np.testing.assert_allclose(classifier.embed(x).numpy(), hidden, atol=1e-5)


@pytest.mark.parametrize(
    "build", [lambda: MLP((1, 13, 20), 2, norm="batch", dropout=0.0), lambda: CNNDense((1, 13, 20), 2, dropout=0.0)]
)
def test_a_single_clip_in_training(build):
    """The last batch of an epoch. Where a channel has one value it is normalised as in evaluation."""
    classifier = build()
    norm = [layer for layer in classifier.modules() if isinstance(layer, BatchNorm)][-1]
    classifier(torch.randn(16, 1, 13, 20))
    before = norm.running_mean.clone()
    classifier(torch.randn(1, 1, 13, 20)).sum().backward()
    assert torch.equal(norm.running_mean, before)
    assert all(parameter.grad.isfinite().all() for parameter in classifier.parameters())


def test_batch_norm_is_torchs():
    ours, theirs = BatchNorm(3), nn.BatchNorm2d(3)
    for _ in range(2):
        x = torch.randn(4, 3, 2, 5)
        assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    one = torch.randn(1, 3, 1, 1)
    assert torch.equal(ours.train()(one), theirs(one))


def test_fit_length():
    x = torch.arange(12.0).reshape(1, 1, 2, 6)
    assert fit_length(x, 6) is x
    assert fit_length(x, 3)[0, 0].tolist() == [[0.5, 2.5, 4.5], [6.5, 8.5, 10.5]]
    assert fit_length(x, 1)[0, 0].tolist() == [[2.5], [8.5]]
    assert fit_length(x[..., :2], 4)[0, 0, 0].tolist() == [0.0, 0.0, 1.0, 1.0]


@torch.no_grad()
def test_features_of_several_windows_are_averaged():
    classifier = MLP((1, 63, 1), 4, widths=(8,)).eval()
    windows = torch.randn(2, 1, 63, 5)
    assert_close(classifier(windows), classifier(windows.mean(dim=-1, keepdim=True)))


@pytest.mark.parametrize("size", [(13, 130), (1, 1), (2, 3), (9, 10), (7, 64)])
@torch.no_grad()
def test_pooled_convolutions_by_their_definition(size):
    convs = PooledConvs(2, (4, 3), (3, 2), 3, "relu").eval()
    first, second = (layer for layer in convs.layers if isinstance(layer, nn.Conv2d))
    norms = [layer for layer in convs.layers if isinstance(layer, BatchNorm)]
    for norm in norms:
        norm.running_mean.normal_()
    x = torch.randn(1, 2, *size)

    def pooled(y, norm):
        """Maxima of blocks of 3 x 3, the last of them partial."""
        rows, columns = (math.ceil(length / 3) for length in y.shape[2:])
        maxima = torch.stack([
            torch.stack([y[0, :, 3 * i:3 * i + 3, 3 * j:3 * j + 3].amax(dim=(1, 2)) for j in range(columns)], dim=-1)
            for i in range(rows)
        ], dim=1)  # fmt: skip
        return ((maxima - norm.running_mean[:, None, None]) / (1 + norm.eps) ** 0.5)[None]

    functional = nn.functional
    y = pooled(functional.conv2d(functional.pad(x, (1, 1, 1, 1)), first.weight, first.bias).relu(), norms[0])
    y = pooled(functional.conv2d(functional.pad(y, (0, 1, 0, 1)), second.weight, second.bias).relu(), norms[1])
    assert_close(convs(x), y, atol=1e-5, rtol=1e-5)
    assert convs.sizes(*size) == tuple(y.shape[2:])


@torch.no_grad()
def test_the_lstm_of_exported_models():
    lstm = nn.LSTM(5, 8, 2, batch_first=True)
    x = torch.randn(3, 11, 5)
    assert_close(unrolled_lstm(lstm, x), lstm(x)[0], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_recurrent_networks_read_frames_in_order():
    """The last frame counts, all channels of a frame are its input, and the order of frames matters."""
    x = torch.randn(2, 2, 16, 40)
    for classifier in (LSTM((2, 16, 40), 3).eval(), CNNLSTM((2, 16, 40), 3).eval()):
        logits = classifier(x)
        for changed in (x.flip(3), torch.cat([x[:, :1], x[:, :1]], dim=1), torch.cat([x[..., :-8], x[..., :8]], dim=3)):
            assert (classifier(changed) - logits).abs().max() > 1e-4
    lstm = LSTM((2, 16, 40), 3).eval()
    frames = x.permute(0, 3, 1, 2).flatten(2)
    assert_close(lstm.embed(x), lstm.dense(lstm.lstm(frames)[0][:, -1]).relu())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP((1, 4, 4), 2, widths=()), r"widths=\[\]"),
        (lambda: MLP((1, 4, 4), 2, dropout=1.0), "dropout=1.0"),
        (lambda: LSTM((1, 4, 4), 2, depth=0), "depth=0"),
        (lambda: CNNDense((1, 4, 4), 2, channels=(8, 8), kernels=(3,)), r"channels=\[8, 8\].*kernels=\[3\]"),
        (lambda: CNNDense((1, 4, 4), 2, pool=0), "pool=0"),
        (lambda: CNNDense((1, 4, 4), 2, dense=0), "dense=0"),
        (lambda: CNNLSTM((1, 4, 4), 2, width=0), "width=0"),
    ],
)
def test_arguments_of_networks_out_of_range(build, message):
    with pytest.raises(UsageError, match=message):
        build()


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "published"), [("mlp", 60.24), ("lstm", 67.95), ("cnn", 74.43)])
def test_recipes_of_the_paper(network, published):
    config = compose_train([f"experiment=mfcc_{network}"])
    data, optim = config.data, config.optim
    assert (data.segment_seconds, data.crop, data.group_by, data.protocol) == (3.0, "segments", "recording", "paper")
    assert (optim.name, optim.lr, optim.schedule, config.epochs) == ("adam", 1e-4, "constant", 100)
    assert config.classifier["dropout"] == 0.3
    arguments = {key: value for key, value in config.frontend.items() if key != "name"}
    assert MfccFrontEnd(**arguments).output_shape(round(data.segment_seconds * RATE)) == (1, 13, 130)
    rows = {row.name: row for row in read_table(ROOT / "configs" / "ablation" / "mfcc.yaml").rows}
    for name, group in ((f"mfcc_{network}", "recording"), (f"mfcc_{network}_segment", "segment")):
        assert rows[name].published == published
        assert compose_train(rows[name].overrides).data.group_by == group


def test_recipes_of_the_thesis():
    rows = {row.name: row for row in read_table(ROOT / "configs" / "ablation" / "thesis.yaml").rows}
    assert {name: row.published for name, row in rows.items() if row.published} == {
        "thesis_dense": 89, "thesis_cnn": 70, "thesis_resnetv2": 70, "thesis_mobilenetv2": 76,
        "thesis_dense_segment": 89,
    }  # fmt: skip
    dense, cnn = compose_train(["experiment=thesis_dense"]), compose_train(["experiment=thesis_cnn"])
    assert (dense.frontend["name"], dense.classifier["widths"]) == ("handcrafted", (1024, 512, 256, 128, 64))
    assert (dense.classifier["dropout"], dense.classifier["dropout_layers"]) == (0.25, "last")
    assert (cnn.frontend["n_mels"], cnn.classifier["activation"], cnn.classifier["dropout"]) == (256, "elu", 0.25)
    assert {config.data.test_fraction for config in (dense, cnn)} == {0.3}
    assert compose_train(["experiment=thesis_cnn_lstm"]).classifier["width"] == 128
