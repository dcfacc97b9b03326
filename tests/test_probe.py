"""Probes: encoded factors are found, absent ones are marked as chance; no model is tested on its training tracks."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import binomtest

import gafx
from gafx.cli import main
from gafx.config import DataConfig, TrainConfig, to_dict
from gafx.data.sources.base import load_manifest
from gafx.errors import UsageError
from gafx.fitting.features import cached, data_digest
from gafx.fitting.folds import deal
from gafx.studies.probes import findings, linear
from gafx.studies.probes.embeddings import embed_tracks, mfcc_statistics
from gafx.studies.probes.factors import Factor, chord_class, synthetic_factors
from gafx.studies.probes.features import modulation, segment_means, statistics
from gafx.studies.probes.page import table, write_probed
from gafx.studies.probes.real import NAMES, probe_real
from gafx.studies.probes.subjects import random_subject, read_frontend, trained_subject
from gafx.studies.probes.synthetic import open_probe_set, probe_synthetic


def of_classes(target, classes=4, track=None):
    track = np.arange(len(target)) if track is None else track
    return Factor("made", "statistics", target, track, tuple("abcdefghijklmnop"[:classes]))


def test_an_encoded_class_is_found_and_noise_is_marked_as_chance(rng):
    target = rng.integers(0, 4, 160)
    carrying = rng.normal(size=(160, 30))
    carrying[:, 7] += 3.0 * (target == 2)
    carrying[:, 9] += 3.0 * (target == 1)
    encoded, noise = findings.holm(
        [linear.probe(name, of_classes(target), x) for name, x in (("a", carrying), ("b", rng.normal(size=(160, 30))))]
    )
    assert not encoded.by_chance
    assert encoded.score.value > 0.5 > encoded.chance
    assert noise.by_chance
    assert noise.score.low < 0.3


def test_an_encoded_value_is_found_and_noise_is_marked_as_chance(rng):
    target = rng.normal(size=160)
    carrying = rng.normal(size=(160, 300))  # more dimensions than tracks
    carrying[:, :40] += target[:, None]
    factor = Factor("made", "statistics", target, np.arange(160))
    encoded, noise = findings.holm(
        [linear.probe(name, factor, x) for name, x in (("a", carrying), ("b", rng.normal(size=(160, 300))))]
    )
    assert not encoded.by_chance
    assert encoded.score.value > 0.7
    assert encoded.score.low > 0
    assert noise.by_chance
    assert noise.score.value < 0.15
    assert noise.chance == 0


def test_random_labels_are_chance_for_every_front_end(rng):
    features = [rng.normal(size=(100, 10)) for _ in range(6)]
    target = rng.integers(0, 3, 100)
    found = findings.holm([linear.probe(str(i), of_classes(target, 3), x) for i, x in enumerate(features)])
    assert all(finding.by_chance for finding in found)


def test_chords_of_a_track_are_in_one_fold(rng):
    # Features that identify the track: a probe fitted on another chord of it would know this one's class.
    track = np.repeat(np.arange(60), 4)
    target = rng.integers(0, 3, 60)[track]
    finding = linear.probe("leak", of_classes(target, 3, track), np.eye(60)[track])
    assert finding.score.value < 0.6
    assert finding.by_chance
    assert finding.tracks == 60
    assert finding.rows == 240
    assert "60 groups" in finding.score.interval


def test_every_front_end_has_the_same_stratified_folds(rng):
    strata = np.repeat([0, 1, 2], [50, 30, 20])
    fold = deal(strata, 5, 0)
    np.testing.assert_array_equal(fold, deal(strata, 5, 0))
    assert (fold != deal(strata, 5, 1)).any()
    counts = np.array([[np.sum((strata == s) & (fold == f)) for f in range(5)] for s in range(3)])
    np.testing.assert_array_equal(counts, [[10] * 5, [6] * 5, [4] * 5])


def test_the_penalty_is_chosen_without_the_test_tracks(rng):
    # Changed targets of a test fold do not change its predictions.
    target, features = rng.integers(0, 2, 60), rng.normal(size=(60, 5))
    train, test = np.arange(40), np.arange(40, 60)
    inner = np.arange(40) % 3
    before = linear._predict_classes(features[train], target[train], inner, features[test])
    target[test] = 1 - target[test]
    np.testing.assert_array_equal(
        before, linear._predict_classes(features[train], target[train], inner, features[test])
    )


def test_the_rotation_changes_no_prediction(rng):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    train, test, target = rng.normal(size=(40, 90)), rng.normal(size=(10, 90)), rng.integers(0, 2, 40)
    train[:, 3] = 5.0  # constant: std 0
    test[:, 3] = 5.0
    scale = StandardScaler().fit(train)
    plain = LogisticRegression(C=0.01, tol=1e-8).fit(scale.transform(train), target)
    turned, turned_test = linear.standardise(train, test)
    assert turned.shape == (40, 40)
    rotated = LogisticRegression(C=0.01, tol=1e-8).fit(turned, target)
    np.testing.assert_allclose(
        rotated.decision_function(turned_test), plain.decision_function(scale.transform(test)), atol=1e-3
    )


def test_the_flip_test_is_mcnemars_and_holm_is_holms():
    differences = np.repeat([1.0, -1.0, 0.0], [18, 6, 40])
    exact = binomtest(18, 24, alternative="greater").pvalue
    assert findings.flip_test(differences, np.arange(64)) == pytest.approx(exact, rel=0.2)
    assert findings.flip_test(np.zeros(9), np.arange(9)) == 1.0
    assert findings.flip_test(-np.ones(9), np.arange(9)) == 1.0
    blank = linear.probe("x", of_classes(np.arange(20) % 2, 2), np.zeros((20, 1)))
    family = [dataclasses.replace(blank, p=p) for p in (0.04, 0.001, 0.03)]
    assert [round(f.p_adjusted, 6) for f in findings.holm(family)] == [0.06, 0.003, 0.06]


def test_chord_classes():
    assert [chord_class(name) for name in ("C:maj", "C:min7", "G#:7", "B:hdim7", "F:maj7", "A:dim")] == [
        0, 1, 16, 23, 10, 19,
    ]  # fmt: skip


@pytest.mark.parametrize("rate", [110.25, 15.625])
def test_a_beat_shows_in_the_modulation_and_not_in_the_statistics(rng, rate):
    times = np.arange(int(10 * rate)) / rate
    signs = rng.choice([-1.0, 1.0], (1, 16, 1))  # learned bins may move in opposite directions
    maps = {bpm: 3 + signs * np.cos(2 * np.pi * bpm / 60 * times)[None, None] for bpm in (90, 150)}
    frequencies = np.geomspace(0.5, 7, 64)
    for bpm, array in maps.items():
        spectrum = modulation(array, len(times) / rate).reshape(4, 64)
        np.testing.assert_allclose(frequencies[spectrum.argmax(axis=1)], bpm / 60, rtol=0.03)
    np.testing.assert_allclose(statistics(maps[90]), statistics(maps[150]), atol=0.02)


def test_segments_use_the_frames_whose_middle_is_inside():
    array = np.arange(10.0).reshape(1, 1, 10)  # ten frames of 0.1 s
    found = segment_means(array, 1.0, [(0.0, 0.5), (0.5, 1.0), (0.31, 0.33)])
    np.testing.assert_allclose(found[:, 0], [2.0, 7.0, 3.0])


def test_planes_are_channels():
    subject = random_subject("gafx_u")
    wave = torch.zeros(1, 2, 8192)
    with torch.inference_mode():
        feature_map = subject.frontend(wave)[0]
    assert feature_map.shape == (1, 128, 32)
    planes = subject.frontend.planes_to_channels(feature_map)
    assert planes.shape == (4, 128, 8)
    np.testing.assert_allclose(planes[1], feature_map[0, :, 8:16].numpy())


def test_slim_front_ends_are_those_of_the_configurations():
    for name in ("gafx_r", "gafx_a", "gafx_u"):
        text = (gafx_root() / "configs" / "frontend" / f"{name}_slim.yaml").read_text()
        assert read_frontend(name)["width"] == yaml.safe_load(text)["width"]


def gafx_root():
    from pathlib import Path

    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def probed_root(tmp_path_factory):
    """50 tracks of 2 s of the probe's seed."""
    root = tmp_path_factory.mktemp("probe") / "set"
    manifest, settings = open_probe_set(root, tracks=5, seconds=2.0)
    assert settings["seed"] == 1000
    return manifest, settings


def test_mel_encodes_loudness_and_genre_of_the_synthetic_set(probed_root, tmp_path, monkeypatch):
    manifest, settings = probed_root
    subject = random_subject("mel")
    probed = probe_synthetic(manifest, settings, [subject], tmp_path / "features", folds=2)
    found = {finding.question: finding for finding in probed.findings}
    assert list(found) == ["tempo", "key", "chord", "instrument", "loudness", "genre"]
    for factor in ("loudness", "genre"):
        assert not found[factor].by_chance, factor
    assert found["loudness"].score.value > 0.5
    assert found["tempo"].others["within_tolerance"][0].value > 0
    assert set(probed.label_alone) == set(found) - {"genre"}
    page = write_probed(probed, tmp_path).read_text()
    record = json.loads((tmp_path / "probe.json").read_text())
    assert len(record["findings"]) == 6
    for finding in record["findings"]:
        assert finding["low"] < finding["value"] < finding["high"]
        assert finding["tracks"] == 50
    hollow = page.count('class="hollow"')
    # The plot has a wide and a narrow form, of which the page shows one.
    assert hollow == 2 * (len(found) - 1 + sum(finding["by_chance"] for finding in record["findings"]))
    assert "<script" not in page
    assert (tmp_path / "probe.csv").read_text().count("\n") == 7
    assert "50 tracks of 2 s" in table(probed)

    # A second call computes only the probes.
    monkeypatch.setattr(type(subject.frontend), "forward", lambda *_: pytest.fail("the cache was not used"))
    again = probe_synthetic(manifest, settings, [subject], tmp_path / "features", folds=2)
    assert again.findings == probed.findings


def test_digests_depend_on_weights_and_arguments():
    assert random_subject("gafx_r", 0).digest == random_subject("gafx_r", 0).digest
    assert random_subject("gafx_r", 0).digest != random_subject("gafx_r", 1).digest
    assert random_subject("mel").digest != random_subject("mel:n_mels=64").digest


def test_a_damaged_cache_is_written_again_and_never_unpickled(tmp_path, caplog):
    made = []

    def make():
        made.append(1)
        return {"row": np.arange(3)}, []

    cached(tmp_path, "maps", (1,), make)
    cached(tmp_path, "maps", (1,), make)
    assert len(made) == 1
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:40])
    np.testing.assert_array_equal(cached(tmp_path, "maps", (1,), make)[0]["row"], [0, 1, 2])
    np.savez(path, row=np.array([object()], dtype=object))
    np.testing.assert_array_equal(cached(tmp_path, "maps", (1,), make)[0]["row"], [0, 1, 2])
    assert len(made) == 3
    assert "damaged" in caplog.text


def save_run(folder, manifest, **data):
    """Write a finished run on these data: a tiny model, config.yaml and run.json."""
    model = gafx.create_model("mel", {"name": "ast", "depth": 1}, classes=list(manifest.classes), segment_seconds=0.5)
    config = TrainConfig(
        frontend=model.info.frontend, classifier=model.info.classifier, data=DataConfig(root=str(manifest.root), **data)
    )
    model.info.training = {"data": config.data.name, "protocol": config.data.protocol, "fold": config.data.fold}
    model.save(folder / "model")
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    record = {"data": {"fingerprint": manifest.fingerprint()}, "run_id": "0" * 8}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_a_model_is_not_probed_on_the_synthetic_tracks_that_it_was_trained_on(probed_root, tmp_path):
    manifest, settings = probed_root
    trained = {key: settings[key] for key in ("tracks", "seconds", "vary")}
    same = trained_subject(save_run(tmp_path / "same", manifest, options={**trained, "seed": settings["seed"]}))
    with pytest.raises(UsageError, match="was trained on the synthetic set of seed 1000"):
        probe_synthetic(manifest, settings, [same], tmp_path / "features")
    (tmp_path / "same" / "config.yaml").unlink()
    with pytest.raises(UsageError, match="does not say with which seed"):
        probe_synthetic(manifest, settings, [trained_subject(tmp_path / "same")], tmp_path / "features")


@pytest.fixture
def tones(wav_factory, rng):
    """Three classes of eight clips: low tones, high tones, noise, half a second to a second long."""
    for number in range(8):
        length = 11025 + 500 * number
        time = np.arange(length) / 22050
        for name, wave in (
            ("low", np.sin(2 * np.pi * (180 + 5 * number) * time)),
            ("high", np.sin(2 * np.pi * (3000 + 50 * number) * time)),
            ("noise", rng.normal(size=length) / 4),
        ):
            path = wav_factory(f"tones/{name}/{number}.wav", 0.3 * wave)
    return path.parents[1]


def test_real_data_are_probed_under_their_protocol(tones, tmp_path):
    config = DataConfig(name="folder", root=str(tones), protocol="", folds=2)
    (tones / "low" / "broken.wav").write_bytes(b"RIFF")
    config.max_unreadable = 0.2
    probed = probe_real([random_subject("mel:n_mels=32")], config, tmp_path / "features", asked=("folds",))
    assert probed.data["protocol"] == "kfold"
    assert [clip.path for clip in probed.skipped] == ["low/broken.wav"]
    assert len(probed.findings) == 2 * len(NAMES)
    for finding in probed.findings:
        assert finding.tracks == 24
        assert finding.score.value > 0.9
        assert finding.score.interval == "Wilson 95 %"
        assert not finding.by_chance


def test_a_model_is_probed_on_its_own_fold_alone(tones, tmp_path):
    manifest = load_manifest("folder", tones)
    own = {"name": "folder", "protocol": "kfold", "folds": 3}
    runs = [save_run(tmp_path / f"mel-{fold}", manifest, **own, fold=fold) for fold in (1, 3)]
    subjects = [trained_subject(run) for run in runs]
    config = DataConfig(name="folder", root=str(tones), protocol="")
    probed = probe_real(subjects, config, tmp_path / "features")
    assert [subject.name for subject in probed.subjects] == ["mel", "MFCC statistics"]
    assert probed.subjects[0].details["folds"] == [1, 3]
    assert probed.subjects[0].note == " (folds 1, 3)"
    assert {finding.subject: finding.tracks for finding in probed.findings} == {"mel": 16, "MFCC statistics": 24}
    assert (probed.data["protocol"], probed.data["folds"]) == ("kfold", 3)

    for asked, value in (("protocol", "paper"), ("folds", 5), ("split_seed", 3)):
        with pytest.raises(UsageError, match=f"was trained under data.{asked}=.*its training tracks would be tested"):
            probe_real(subjects, dataclasses.replace(config, **{"protocol": "kfold", "folds": 3, asked: value}),
                       tmp_path / "features", asked=(asked,))  # fmt: skip
    (runs[0] / "config.yaml").unlink()
    with pytest.raises(UsageError, match="does not say on which of its clips"):
        probe_real([trained_subject(runs[0])], config, tmp_path / "features")
    segments = save_run(tmp_path / "segments", manifest, **own, group_by="segment")
    with pytest.raises(UsageError, match="group_by=segment"):
        probe_real([trained_subject(segments)], config, tmp_path / "features")


def test_embeddings_are_means_over_segments(tones, tmp_path):
    manifest = load_manifest("folder", tones)
    subject = random_subject("mel")
    found = embed_tracks(subject, manifest, np.arange(3), 0.25, tmp_path, data_digest(manifest))
    assert found.values.shape == (3, 256)
    wave = torch.from_numpy(_read(manifest, 0))
    segments = [wave[:, start : start + 5512] for start in (0, 5512, wave.shape[1] - 5512)][: len(wave[0]) // 5512]
    with torch.inference_mode():
        maps = [subject.frontend(segment[None])[0, 0] for segment in segments]
    expected = np.mean([np.r_[m.mean(dim=1), m.std(dim=1, correction=0)] for m in maps], axis=0)
    np.testing.assert_allclose(found.values[0], expected, rtol=1e-4, atol=1e-4)


def _read(manifest, row):
    from gafx.data.readers import FileReader

    return FileReader(manifest, 22050, 1).read(row, 0, 10**6)


def test_mfcc_are_those_of_torchaudio(rng):
    torchaudio = pytest.importorskip("torchaudio")
    wave = torch.from_numpy(rng.normal(size=(1, 1, 22050)).astype(np.float32))
    log_mel = random_subject("mel").frontend(wave)[:, 0]
    matrix = torchaudio.functional.create_dct(20, 128, norm="ortho")
    expected = (log_mel.transpose(1, 2) @ matrix).mean(dim=1)
    np.testing.assert_allclose(mfcc_statistics(log_mel)[:, :20], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["synthetic", "--frontends", "mle"], "unknown front-end 'mle'; did you mean"),
        (["synthetic", "--frontends", "mel:n_mels"], "--frontends mel: 'n_mels' is no option"),
        (["synthetic", "--frontends", "gafx_r:widht=16"], "did you mean"),
        (["synthetic", "--frontends", "mel", "mel"], "more than once"),
        (["synthetic", "--frontends", "handcrafted"], "too few columns per second"),
        (["synthetic", "--frontends"], "nothing to probe"),
        (["synthetic", "--frontends", "mel", "--folds", "1"], "--folds 1"),
        (["synthetic", "--frontends", "mel", "--folds", "60"], "--folds 60"),
        (["synthetic", "--protocol", "kfold"], "are for other data sets"),
        (["esc", "nowhere", "--tracks", "3"], "belongs to gafx probe synthetic"),
        (["esc", "nowhere", "--protocol", "kflod"], "did you mean 'kfold'"),
        (["ecs", "nowhere"], "did you mean 'esc'"),
        (["synthetic", "--frontends", "mel", "--device", "cuda:99"], "device=cuda:99: "),
        (["synthetic", "--frontends", "mel", "--device", "gpu"], "'gpu' must be auto, cpu, cuda"),
    ],
)
def test_errors(arguments, message, synthetic_root, capsys, tmp_path):
    if arguments[0] == "synthetic":
        arguments = ["synthetic", str(synthetic_root), *arguments[1:]]
    with pytest.raises(SystemExit) as stopped:
        main(["probe", *arguments, "--output", str(tmp_path)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_the_factors_of_the_synthetic_set(synthetic_root):
    manifest = load_manifest("synthetic", synthetic_root, tracks=4, seconds=1.5)
    factors = {factor.name: factor for factor in synthetic_factors(manifest)}
    fact = manifest.facts[7]
    assert 2 ** factors["tempo"].target[7] == pytest.approx(fact["tempo"])
    tonic, third = factors["key"].classes[factors["key"].target[7]].split()
    assert fact["key"].startswith(tonic)
    assert third == ("minor" if fact["mode"] in ("minor", "dorian") else "major")
    assert np.sum(factors["chord"].track == 7) == len(fact["chords"])
    some = factors["chord"].take(np.array([2, 7]))
    assert set(some.track) == {0, 1}
    assert len(some.target) == len(manifest.facts[2]["chords"]) + len(fact["chords"])
    with pytest.raises(UsageError, match="has no annotation"):
        synthetic_factors(dataclasses.replace(manifest, facts=None))
