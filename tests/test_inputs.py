"""Sound in any form: the same answers as the file, a sentence for what cannot be read, memory of bounded size."""

import copy
import io
import json
import sys
import wave
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import gafx
from gafx.audio.decode import Encoded, Wave, check_rate
from gafx.audio.read import stream
from gafx.cli import main
from gafx.deploy.features import extract
from gafx.deploy.inputs import open_inputs
from gafx.deploy.predict import predict_files, probabilities
from gafx.errors import EXTRAS, UnreadableAudio, UsageError

CLASSES = ["blues", "hip-hop", "error"]
RATE = 44100


def build(seed=0, **frontend):
    torch.manual_seed(seed)
    built = gafx.create_model(
        {"name": "mel", **frontend}, {"name": "ast", "depth": 1}, classes=CLASSES, segment_seconds=0.5
    ).eval()
    with torch.no_grad():  # a new head gives nearly equal probabilities
        built.classifier.output.weight.mul_(30)
    return built


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture
def clip(rng, wav_factory):
    """A stereo file of 16 bits, and its samples `(samples, channels)` as int16."""
    samples = (8000 * rng.standard_normal((round(1.3 * RATE), 2))).astype(np.int16)
    return str(wav_factory("song.wav", samples, RATE)), samples


def answer(model, inputs, **options):
    (found,) = gafx.predict(inputs, model, over_time=True, **options)
    assert found.error is None, found.error
    return found


def tensor(samples):
    return torch.from_numpy(np.ascontiguousarray(samples))


# --- the same answer as the file --------------------------------------------------------------------------------------

FORMS = {
    "path in a list": lambda path, pcm, floats: ([path], {}),
    "bytes": lambda path, pcm, floats: (Path(path).read_bytes(), {}),
    "bytearray": lambda path, pcm, floats: (bytearray(Path(path).read_bytes()), {}),
    "memoryview": lambda path, pcm, floats: (memoryview(Path(path).read_bytes()[::-1])[::-1], {}),
    "file object": lambda path, pcm, floats: (io.FileIO(path), {}),
    "BytesIO": lambda path, pcm, floats: (io.BytesIO(Path(path).read_bytes()), {}),
    "float32": lambda path, pcm, floats: (floats.T[None], {"sample_rate": RATE}),
    "float64": lambda path, pcm, floats: (floats.T[None].astype(np.float64), {"sample_rate": float(RATE)}),
    "tensor": lambda path, pcm, floats: (tensor(floats.T[None]).requires_grad_(), {"sample_rate": torch.tensor(RATE)}),
    "int16": lambda path, pcm, floats: (pcm.T[None], {"sample_rate": np.int64(RATE)}),
    "int16 of another byte order": lambda path, pcm, floats: (pcm.T[None].astype(">i2"), {"sample_rate": RATE}),
    "int32": lambda path, pcm, floats: ((pcm.astype(np.int32) << 16).T[None], {"sample_rate": RATE}),
    "transformers": lambda path, pcm, floats: ({"array": floats.T, "sampling_rate": RATE}, {}),
    "a pipeline's": lambda path, pcm, floats: ([{"raw": floats, "sampling_rate": RATE}], {}),
    "datasets": lambda path, pcm, floats: ({"path": None, "bytes": Path(path).read_bytes()}, {}),
    "datasets' path": lambda path, pcm, floats: (iter([{"path": path, "bytes": None}]), {}),
    "torchaudio": lambda path, pcm, floats: ((tensor(floats.T), RATE), {}),
    "soundfile": lambda path, pcm, floats: (soundfile.read(path), {}),
    "scipy": lambda path, pcm, floats: ((RATE, pcm), {}),
    "torchcodec": lambda path, pcm, floats: (
        SimpleNamespace(get_all_samples=lambda: SimpleNamespace(data=tensor(floats.T), sample_rate=RATE)), {}
    ),
    "an iterator": lambda path, pcm, floats: (iter([tensor(floats.T[None])]), {"sample_rate": RATE}),
    "an array of paths": lambda path, pcm, floats: (np.array([path]), {}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_bits_of_the_file(model, clip, form):
    path, pcm = clip
    inputs, options = FORMS[form](path, pcm, soundfile.read(path, dtype="float32")[0])
    found, file = answer(model, inputs, **options), answer(model, path)
    np.testing.assert_array_equal(found.probabilities, file.probabilities)
    np.testing.assert_array_equal(found.window_probabilities, file.window_probabilities)
    assert found.seconds == file.seconds
    assert found.file in (path, "clip 0")


@pytest.mark.parametrize(("subtype", "dtype"), [("PCM_U8", np.uint8), ("PCM_24", np.int32), ("FLOAT", np.float32)])
def test_scales_of_other_types(wav_factory, rng, subtype, dtype):
    path = wav_factory("a.wav", np.clip(0.4 * rng.standard_normal((900, 1)), -1, 1), 8000, subtype=subtype)
    if dtype == np.uint8:  # soundfile does not read it as stored
        with wave.open(str(path)) as file:
            samples = np.frombuffer(file.readframes(900), np.uint8)[:, None]
    else:
        samples = soundfile.read(path, dtype=dtype, always_2d=True)[0]
    (expected,), (found,) = stream(path, sample_rate=8000), stream(Wave(samples, 8000), sample_rate=8000)
    np.testing.assert_array_equal(found, expected)


def test_lossy_files_and_other_rates(model, rng, wav_factory):
    for name, rate in (("a.flac", 22050), ("b.ogg", 48000), ("c.mp3", 44100)):
        path = wav_factory(name, 0.1 * rng.standard_normal((round(1.1 * rate), 1)), rate)
        samples, rate = soundfile.read(path, dtype="float32")
        found, file = answer(model, samples, sample_rate=rate), answer(model, path)
        np.testing.assert_array_equal(found.probabilities, file.probabilities)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(model, rng, dtype):
    samples = torch.from_numpy(0.1 * rng.standard_normal((1, 1, 30000)).astype(np.float32)).to(dtype)
    found, same = (answer(model, each, sample_rate=22050) for each in (samples, samples.float().numpy()))
    np.testing.assert_array_equal(found.probabilities, same.probabilities)


def test_batches_are_clips_in_order(model, rng):
    samples = (0.1 * rng.standard_normal((3, 22050))).astype(np.float32)
    found = list(gafx.predict(samples, model, sample_rate=22050))
    assert [each.file for each in found] == ["clip 0", "clip 1", "clip 2"]
    for form in (samples[:, None], list(samples), [*samples[:1, None, None], samples[1:, None]]):
        for each, other in zip(found, gafx.predict(form, model, sample_rate=22050), strict=True):
            assert each.file == other.file
            np.testing.assert_array_equal(each.probabilities, other.probabilities)


def test_a_mixed_list_keeps_its_order_and_names(model, clip, rng, tmp_path):
    path, pcm = clip
    named = {"array": pcm[:, 0], "sampling_rate": RATE, "path": "named.wav"}
    inputs = [pcm[:, 0], path, b"no audio", named, str(tmp_path / "gone.wav"), path]
    for form in (inputs, iter(inputs)):
        found = list(gafx.predict(form, model, sample_rate=RATE))
        assert [each.file for each in found] == ["clip 0", path, "clip 2", "named.wav", inputs[4], path]
        assert [each.error is None for each in found] == [True, True, False, True, False, True]
    assert len(list(gafx.predict([path, path], model))) == 1  # of paths alone: each file once


def test_an_ensemble_reads_an_iterator_once(rng, wav_factory):
    members = [build(), build(1, sample_rate=16000)]
    clips = [(0.1 * rng.standard_normal(9000)).astype(np.float32) for _ in range(30)]
    taken = []
    found = list(gafx.predict((taken.append(n) or each for n, each in enumerate(clips)), members, sample_rate=22050))
    assert taken == list(range(30))
    apart = [[each.probabilities for each in gafx.predict(clips, one, sample_rate=22050)] for one in members]
    np.testing.assert_allclose([each.probabilities for each in found], np.mean(apart, axis=0), atol=1e-6)


@pytest.mark.parametrize("members", [1, 2])
def test_an_iterator_is_taken_as_it_is_needed(rng, members):
    """An endless one is answered, and few clips are ahead of the answers."""
    models = [build(), build(1, sample_rate=16000)][:members]
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield np.zeros(11025, np.float32)

    found = gafx.predict(endless(), models, sample_rate=22050, batch_size=2)
    ahead = max(taken - number for number, _ in zip(range(1, 200), found, strict=False))
    found.close()
    assert ahead < 100


def test_errors_of_an_iterator_are_raised(model):
    def clips():
        yield np.zeros(11025, np.float32)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(gafx.predict(clips(), model, sample_rate=22050))
    with pytest.raises(UsageError, match=r"^input 1: None holds no sound: give a path"):
        list(gafx.predict(iter([np.zeros(9000), None]), model, sample_rate=22050))


@pytest.mark.parametrize(("members", "options"), [(1, {}), (1, {"readers": 3}), (2, {})])
def test_the_answers_before_an_error_of_an_iterator_come_first(rng, members, options):
    clips = [(0.1 * rng.standard_normal(9000 + n)).astype(np.float32) for n in range(5)]
    found = gafx.predict(
        iter([*clips, None]), [build(), build(1, sample_rate=16000)][:members], sample_rate=22050, **options
    )
    assert [next(found).file for _ in clips] == [f"clip {n}" for n in range(5)]
    with pytest.raises(UsageError, match="^input 5: None"):
        next(found)


# --- what cannot be read ----------------------------------------------------------------------------------------------

ZEROS = np.zeros(9000, np.float32)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (ZEROS, {}, r"^an array has no sampling rate of its own: give it in Hz"),
        ([ZEROS, {"array": ZEROS}], {"sample_rate": None}, r"^input 0: an array has no sampling rate"),
        (ZEROS, {"sample_rate": 0}, r"^sample_rate=0 Hz must be 1,000 to 768,000"),
        (ZEROS, {"sample_rate": -22050}, r"^sample_rate=-22050 Hz must be"),
        (ZEROS, {"sample_rate": "22050"}, r"^sample_rate='22050' must be a whole number"),
        (ZEROS, {"sample_rate": 22050.5}, r"^sample_rate=22050.5 must be a whole number"),
        (ZEROS, {"sample_rate": float("nan")}, r"^sample_rate=nan must be a whole number"),
        (iter([]), {"sample_rate": 22.05}, r"^sample_rate=22.05 must be a whole number"),
        ("a.wav", {"sample_rate": 22050}, r"^sample_rate=22050 is for arrays and tensors, and there are none"),
        (b"RIFF", {"sample_rate": 22050}, r"^sample_rate=22050 is for arrays"),
        ({"array": ZEROS, "sampling_rate": 16000}, {"sample_rate": 22050}, r"states a rate of 16000 Hz, and sample_"),
        (np.zeros((2, 9000)), {}, r"shape \(2, 9000\) has three readings.* 2 clips of one channel are x\[:, None\]; "
         r"one clip \(channels, samples\) is x\[None\]; one clip \(samples, channels\) is x.T\[None\]$"),
        (np.zeros((9000, 2)), {}, r"shape \(9000, 2\) has three readings"),
        (np.zeros((9000, 1)), {}, r"shape \(9000, 1\) has three readings"),
        ((np.zeros((100, 200)), 22050), {}, r"shape \(100, 200\) has three readings"),
        (np.zeros((4, 9000, 2)), {}, r"^a clip of 9000 channels and 2 samples: at most 64 channels"),
        (np.zeros((1, 2, 3, 4)), {}, r"^an array of shape \(1, 2, 3, 4\) has no reading: give \(samples,\)"),
        (np.zeros((0, 9000)), {}, r"shape \(0, 9000\) holds no clips"),
        (np.zeros(9000, np.int64), {}, r"^the samples are int64: give floats in \[-1, 1\]"),
        (np.zeros(9000, np.int8), {}, r"^the samples are int8: give floats"),
        (torch.zeros(9000, dtype=torch.complex64), {}, r"^the samples are complex64: give floats"),
        (np.zeros(9000, bool), {}, r"^the samples are bool: give floats"),
        ({"audio": {"array": ZEROS}, "label": 3}, {}, r"^a dict with 'audio', 'label' holds no sound: it needs 'array'"
         r".*; give its 'audio' alone"),
        ([0.1, 0.2, 0.3], {}, r"^input 0: 0.1 is a number: give the samples as an array"),
        ([[ZEROS]], {}, r"^input 0: a list in a list or an iterator is no sound"),
        (None, {}, r"^None holds no sound: give a path"),
        (7, {}, r"^7 is a number: give the samples as an array"),
        (object(), {}, r"^object holds no sound"),
        (np.array(7.0), {}, r"shape \(\) has no reading: give \(samples,\)"),
        (np.ma.masked_equal(ZEROS, 0), {}, r"^a masked array: give the masked samples a value"),
        (torch.zeros(9000, device="meta"), {}, r"^a tensor \(torch.float32, torch.strided, device meta\) has no"),
        (torch.zeros(9000).to_sparse(), {}, r"^a tensor \(torch.float32, torch.sparse_coo, device cpu\) has no"),
        (np.array([b"dog.ogg"]), {"sample_rate": None}, r"^an array of bytes could be of paths or of sounds"),
        (np.array([["a.wav"], ["b.wav"]]), {"sample_rate": None}, r"of shape \(2, 1\): give its items in a row"),
        ({"array": None, "sampling_rate": 8000}, {}, r"^a dict whose 'array' is None holds no sound"),
        ({"bytes": "abc", "path": None}, {}, r"^a dict whose 'bytes' are str holds no sound"),
        ({"path": 3}, {}, r"^a dict whose 'path' is 3 names no file"),
        (ZEROS, {"sample_rate": True}, r"^sample_rate=True must be a whole number"),
        ("a.wav", {"silence": "off"}, r"^silence='off' must be a number"),
        ("a.wav", {"threshold": "0.5"}, r"^threshold='0.5' must be a number"),
        ("a.wav", {"batch_size": "3"}, r"^batch_size='3' must be a whole number"),
        ("a.wav", {"overlaps": 0.5}, r"^predict has no option overlaps; did you mean 'overlap'\?; it has overlap, "),
        (io.StringIO("text"), {}, r"^StringIO gives str and no bytes: open the file with mode 'rb'"),
    ],
)  # fmt: skip
def test_mistakes_are_a_sentence_at_once(model, inputs, options, message):
    options = {"sample_rate": 22050} | options if hasattr(inputs, "dtype") and options == {} else options
    if message.startswith("^an array has no"):
        options = {}
    with pytest.raises(UsageError, match=message):
        gafx.predict(inputs, model, **options)


def test_a_file_object_is_read_from_where_it_is(model, clip):
    path, _ = clip
    content = Path(path).read_bytes()
    file = io.BytesIO(b"header" + content)
    file.seek(6)
    assert answer(model, file).file == "clip 0"
    with pytest.raises(UsageError, match=r"^BytesIO is at its end: rewind it with seek\(0\)"):
        gafx.predict(file, model)
    file.close()
    with pytest.raises(UsageError, match=r"^BytesIO cannot be read \(I/O operation on closed file"):
        gafx.predict(file, model)


@pytest.mark.parametrize(
    ("samples", "error"),
    [
        (ZEROS[:0], "holds no samples"), (np.zeros((1, 1, 0)), "holds no samples"),
        (np.zeros((1, 0)), "holds no samples"),
        ({"array": np.zeros((0, 2)), "sampling_rate": 22050}, "holds no samples"),
        (np.full(9000, np.nan), "holds NaN or infinite samples"),
        (np.full(9000, 1e300), "holds NaN or infinite samples"), (b"", "is empty (0 bytes)"),
        (torch.tensor([0.0, torch.inf]).repeat(4000), "holds NaN or infinite samples"),
        (np.linspace(-20000, 20000, 9000), "peaks at 20000 where full scale is 1: scale its samples to [-1, 1]"),
        (b"song.wav", "cannot be decoded"),
    ],
)  # fmt: skip
def test_faults_of_one_clip_are_its_error(model, samples, error):
    good, bad, other = gafx.predict([ZEROS + 0.1, samples, ZEROS], model, sample_rate=22050)
    assert good.error is other.error is bad.probabilities is None
    assert bad.error.startswith(error)
    assert (bad.file, bad.to_dict()) == ("clip 1", {"file": "clip 1", "error": bad.error})
    with pytest.raises(UnreadableAudio, match="^clip 0 "):
        model.embed_file(samples, sample_rate=None if isinstance(samples, bytes) else 22050)


def test_a_zero_byte_in_a_name_is_an_error_of_that_file(model, clip):
    first, second = gafx.predict([clip[0], "a\0b.wav"], model)
    assert first.error is None
    assert second.error == "cannot be opened (a zero byte in its name)"


def test_a_model_of_double_precision(rng):
    model, noise = build(), rng.standard_normal(9000).astype(np.float32) / 10
    (single,), (double,) = (
        list(each.predict(noise, sample_rate=22050)) for each in (model, copy.deepcopy(model).double())
    )
    np.testing.assert_allclose(double.probabilities, single.probabilities, atol=1e-5)


def test_nothing_gives_nothing(model):
    assert list(gafx.predict([], model)) == list(gafx.predict(iter([]), model, sample_rate=16000)) == []


def test_rates_of_other_types():
    assert [check_rate(rate) for rate in (22050, 22050.0, np.float32(8000), np.uint16(16000), torch.tensor(44100))] == [
        22050, 22050, 8000, 16000, 44100
    ]  # fmt: skip
    for wrong in (True, None, [22050], 10**400, complex(22050)):
        with pytest.raises(UsageError, match="^sample_rate="):
            check_rate(wrong)


def test_arrays_in_a_list_are_not_copied(rng):
    samples = (0.1 * rng.standard_normal((4, 1, 9000))).astype(np.float32)
    for source in open_inputs([samples, torch.from_numpy(samples)], 22050):
        assert isinstance(source, Wave)
        assert np.shares_memory(source.samples, samples)
    before = samples.copy()
    list(predict_files(probabilities(build()), open_inputs(samples, 22050)))
    np.testing.assert_array_equal(samples, before)


# --- the model's methods, and tables ----------------------------------------------------------------------------------


def test_methods_of_the_model(model, clip):
    path, pcm = clip
    (found,) = model.predict(pcm.T[None], sample_rate=RATE, overlap=0.25)
    (same,) = gafx.predict(path, model, overlap=0.25)
    np.testing.assert_array_equal(found.probabilities, same.probabilities)
    (features,) = extract({"array": pcm.T, "sampling_rate": RATE}, model)
    np.testing.assert_array_equal(features.values, model.embed_file(path, per_window=True))
    np.testing.assert_allclose(model.embed_file(path), features.values.mean(axis=0), atol=1e-5)
    wave = np.concatenate(list(stream(path, sample_rate=22050)), axis=1)
    with torch.no_grad():
        first = model.embed(torch.from_numpy(wave[None, :, :11025]))[0]
    np.testing.assert_allclose(features.values[0], first, atol=1e-5)
    model.train()
    assert model.embed_file(path).shape == (192,)
    assert model.training
    model.eval()


def test_an_embedding_is_that_of_one_sound(model, clip, tmp_path):
    with pytest.raises(UsageError, match=r"^embed_file takes one file or clip, and several were given"):
        model.embed_file([clip[0], Encoded(b"").content])
    with pytest.raises(UsageError, match="none was given"):
        model.embed_file([])
    with pytest.raises(UnreadableAudio, match=r"gone.wav does not exist$"):
        model.embed_file(tmp_path / "gone.wav")


def test_dictionaries_are_what_the_command_writes(model, clip, tmp_path, capsys):
    path, _ = clip
    model.save(tmp_path / "model")
    main(["predict", path, "--model", str(tmp_path / "model"), "--json", "--over-time"])
    (found,) = gafx.predict(path, model, over_time=True)
    assert json.loads(capsys.readouterr().out) == [json.loads(json.dumps(found.to_dict()))]
    assert list(found.to_dict(1, over_time=False)["probabilities"]) == [found.top(1)[0][0]]
    assert "over_time" not in found.to_dict(over_time=False)


def test_a_data_frame_in_one_call(model, clip, rng):
    pandas = pytest.importorskip("pandas")
    path, pcm = clip
    inputs = [path, pcm[:, 1], ZEROS[:0]]
    found = list(gafx.predict(inputs, model, sample_rate=RATE))
    table = gafx.predict(inputs, model, sample_rate=RATE).to_pandas()
    labels = ["blues", "hip-hop", "probability:error"]
    assert list(table.columns) == ["file", "seconds", "label", *labels, "level_db", "silent", "error", "note"]
    assert table["file"].tolist() == [path, "clip 1", "clip 2"]
    np.testing.assert_array_equal(table.iloc[:2, 3:6].to_numpy(), [each.probabilities for each in found[:2]])
    assert table["label"].tolist()[:2] == [each.top(1)[0][0] for each in found[:2]]
    assert table["error"].tolist()[2] == "holds no samples"
    assert table.iloc[2, 3:6].isna().all()
    assert pandas.isna(table["error"][0])
    assert all(table.dtypes.iloc[3:6] == "float64")
    windows = gafx.predict(inputs, model, sample_rate=RATE, over_time=True).to_pandas()
    assert list(windows.columns[:4]) == ["file", "start", "end", "label"]
    assert (windows["file"] == path).sum() == 5
    means = windows.groupby("file")[["blues", "hip-hop", "probability:error"]].mean()
    np.testing.assert_allclose(means.loc[path], found[0].probabilities, atol=1e-12)
    begun = gafx.predict(inputs, model, sample_rate=RATE)
    next(begun)
    with pytest.raises(UsageError, match="the table would lack them"):
        begun.to_pandas()
    empty = gafx.predict([], model).to_pandas()
    assert len(empty) == 0
    assert list(empty.columns) == list(table.columns)


def test_a_table_without_pandas_names_the_extra(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match=rf"^to_pandas\(\) needs pandas: pip install 'gafx\[{EXTRAS['pandas'][0]}\]'$"):
        gafx.predict(ZEROS, model, sample_rate=22050).to_pandas()


def test_without_a_model_the_published_one_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("GAFX_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"add --model audioset-crnn \(in Python: model='audioset-crnn'; fetched once"):
        gafx.predict(ZEROS, sample_rate=22050)


def test_probes_embed_any_form(model, clip, rng, tmp_path):
    from gafx.data.sources.base import load_manifest
    from gafx.studies.probes.embeddings import embed_inputs, embed_tracks
    from gafx.studies.probes.subjects import random_subject, trained_subject

    root = tmp_path / "set"
    sounds = [(0.1 * rng.standard_normal(22050 + 3000 * n)).astype(np.float32) for n in range(3)]
    for number, samples in enumerate(sounds):
        (root / "label").mkdir(parents=True, exist_ok=True)
        soundfile.write(root / "label" / f"{number}.wav", samples, 22050, subtype="FLOAT")
    manifest = load_manifest("folder", root)
    model.save(tmp_path / "saved" / "model")
    for subject in (random_subject("mel"), trained_subject(tmp_path / "saved" / "model")):
        tracks = embed_tracks(subject, manifest, np.arange(3), 0.5, tmp_path / "cache", "data")
        found = embed_inputs(subject, [*sounds, ZEROS[:0]], sample_rate=22050, seconds=0.5)
        np.testing.assert_allclose(found.values, tracks.values, atol=1e-4)
        assert found.row.tolist() == [0, 1, 2]
        assert [(each.path, each.reason) for each in found.skipped] == [("clip 3", "holds no samples")]
    with pytest.raises(UsageError, match="no sound can be read; clip 0: holds no samples"):
        embed_inputs(random_subject("mel"), ZEROS[:0], sample_rate=22050)
