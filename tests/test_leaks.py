"""The leak check: planted copies are found whatever was done to them, and nothing else is."""

import csv
import dataclasses
import io
import json
import os
from contextlib import redirect_stdout
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from gafx.audio.read import resample
from gafx.cli import main
from gafx.commands import leaks
from gafx.config import TrainConfig, build, run_id
from gafx.data.leaks import check
from gafx.data.leaks.check import find_leaks, list_copies
from gafx.data.leaks.copies import find_copies
from gafx.data.leaks.describe import describe_check, merge
from gafx.data.leaks.fingerprint import RATE, _energies, _words, fingerprint_clips
from gafx.data.manifest import make_manifest
from gafx.data.segments import by_segment
from gafx.data.sources.base import load_manifest
from gafx.data.splits import Split
from gafx.errors import UsageError
from gafx.evaluation.result import Result, Section
from gafx.report.evaluation import write_report
from gafx.studies.synth import GENRES, compose, render
from gafx.training import run_dir

SOURCE_RATE = 22050


def noise(number, seconds=6.0):
    """Rain: noise with distinct drops, different in every clip."""
    rng = np.random.default_rng(number)
    wave = rng.standard_normal(int(seconds * SOURCE_RATE))
    return (
        0.1 * wave * (1 + 0.3 * np.repeat(rng.standard_normal(int(seconds * 10) + 1), SOURCE_RATE // 10)[: len(wave)])
    )


@pytest.fixture(scope="module")
def sounds():
    """Three tracks of one genre, one of another, and three noises: `(samples,)` at 22.05 kHz."""
    tracks = [("house", 0), ("house", 1), ("house", 2), ("waltz", 0)]
    names = list(GENRES)
    waves = [render(compose(names[place != "house"], index, seconds=6.0), SOURCE_RATE) for place, index in tracks]
    return [np.asarray(wave, np.float64) for wave in waves] + [noise(number) for number in range(3)]


def mp3(wave, rate=SOURCE_RATE):
    """A wave as it comes back from an mp3 of 64 kbit/s."""
    file = io.BytesIO()
    soundfile.write(
        file, wave, rate, format="MP3", subtype="MPEG_LAYER_III", compression_level=96 / 152, bitrate_mode="CONSTANT"
    )
    file.seek(0)
    return soundfile.read(file)[0]


def shifted(wave):
    return wave[int(0.513 * SOURCE_RATE) :]


ALTERED = {
    "mp3": mp3,
    "quiet": lambda wave: wave * 10 ** (-12 / 20),
    "clipped": lambda wave: np.clip(2 * wave, -1, 1),
    "shifted": shifted,
    "stereo at another rate": lambda wave: resample(wave[:, None], SOURCE_RATE, SOURCE_RATE // 2) * [1, 0.8],
    "all together": lambda wave: mp3(np.clip(2 * shifted(wave), -1, 1)),
}


def data(folder, waves, *, labels=None, rates=None, **columns):
    """A manifest of waves, which are written as 16-bit wav: `{name: wave}`."""
    for name, wave in waves.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, wave, (rates or {}).get(name, SOURCE_RATE), subtype="PCM_16")
    infos = [soundfile.info(folder / name) for name in waves]
    return make_manifest(
        folder, ["a", "b"], list(waves), labels or [[0]] * len(waves), [info.duration for info in infos],
        [info.samplerate for info in infos], **columns,
    )  # fmt: skip


def parts(train, test, val=()):
    return Split(*(np.array(list(rows), np.int64) for rows in (train, val, test)))


@pytest.mark.parametrize("how", ALTERED)
def test_planted_copies_are_found_and_nothing_else(tmp_path, sounds, how):
    waves = {f"train/{n}.wav": wave for n, wave in enumerate(sounds)}
    waves |= {f"test/{n}.wav": ALTERED[how](wave) for n, wave in enumerate(sounds)}
    rates = {name: SOURCE_RATE // 2 for name in waves if how.startswith("stereo") and name.startswith("test")}
    count = len(sounds)
    manifest = data(tmp_path, waves, rates=rates)
    found = find_leaks(manifest, parts(range(count), range(count, 2 * count)))
    assert {(pair.first, pair.second) for pair in found.listed} == {
        (f"test/{n}.wav", f"train/{n}.wav") for n in range(count)
    }
    late = 0.513 if how in ("shifted", "all together") else 0.0
    for pair in found.listed:
        assert (pair.kind, pair.parts) == ("near copy", ("test", "train"))
        assert abs(pair.offset + late) < 0.05  # the training clip begins before the test clip
        assert pair.error < 0.2
    (between,) = found.copies
    assert (between.near_copies, between.same_bytes, between.clips) == (count, 0, count)


def test_the_same_bytes(tmp_path, sounds):
    waves = {"a/1.wav": sounds[0], "a/2.wav": sounds[4], "b/1.wav": sounds[0], "b/other.wav": sounds[1]}
    manifest = data(tmp_path, waves, labels=[[0], [0], [1], [1]])
    found = find_leaks(manifest, parts([0, 1], [2, 3]))
    (pair,) = found.listed
    assert (pair.first, pair.second, pair.kind, pair.error) == ("b/1.wav", "a/1.wav", "same bytes", 0)
    assert pair.labels == ("b", "a")
    assert found.copies[0].labels_differ == 1
    text = found.describe()
    assert "1 of 2 test clips (50.0 %) has copies among the 2 training clips" in text
    assert "labels differ: b and a" in text


def test_a_copy_of_copies_counts_for_each_of_them(tmp_path, sounds):
    """Same bytes in two parts, and a near copy of them: whichever represents both, no pair is lost."""
    waves = {"1.wav": sounds[0], "2.wav": sounds[0], "3.wav": 0.5 * sounds[0]}
    manifest = data(tmp_path, waves)
    for rows in ([0, 2], [1, 2]):
        other = [row for row in range(3) if row not in rows]
        found = find_leaks(manifest, parts(other, rows))
        assert len(found.listed) == 2, rows  # with the same bytes, and the one that is quieter
    assert len(list_copies(manifest)["listed"]) == 3


def test_a_clip_inside_a_longer_one_and_clips_that_overlap(tmp_path, sounds):
    music, rate = sounds[0], SOURCE_RATE
    waves = {
        "long.wav": np.concatenate([sounds[4], music, sounds[5]]),
        "inside.wav": music[int(1.3 * rate) : int(3.3 * rate)],
        "first half.wav": sounds[6][: 4 * rate],
        "second half.wav": sounds[6][int(2.5 * rate) :],
    }
    found = find_leaks(data(tmp_path, waves), parts([0, 2], [1, 3]))
    pairs = {pair.first: pair for pair in found.listed}
    assert set(pairs) == {"inside.wav", "second half.wav"}
    assert pairs["inside.wav"].offset == pytest.approx(-7.3, abs=0.05)
    assert pairs["second half.wav"].second == "first half.wav"
    assert pairs["second half.wav"].seconds == pytest.approx(1.1, abs=0.2)  # words at the ends depend on more samples


def test_parts_are_compared_as_they_should_be(tmp_path, sounds):
    waves = {f"{n}.wav": sounds[0] for n in range(3)}
    found = find_leaks(data(tmp_path, waves), parts([0], [1], [2]))
    assert [between.parts for between in found.copies] == [("test", "train"), ("val", "train"), ("test", "val")]
    assert [between.same_bytes for between in found.copies] == [1, 1, 1]
    assert find_leaks(data(tmp_path, waves), parts([0, 1, 2], [])).listed == ()  # within one part there is no leak


def test_silence_is_no_copy_of_silence(tmp_path, rng):
    almost = rng.integers(-1, 2, 6 * SOURCE_RATE) / 32768  # dither
    waves = {"1.wav": np.zeros(6 * SOURCE_RATE), "2.wav": np.zeros(6 * SOURCE_RATE), "3.wav": almost}
    waves |= {"4.wav": np.zeros(3 * SOURCE_RATE), "5.wav": np.zeros(100)}
    manifest = data(tmp_path, waves)
    found = find_leaks(manifest, parts([0, 2], [1, 3, 4]))
    assert found.listed == ()
    assert found.silent == 5
    assert "5 too silent or short to compare" in found.describe()


def test_no_copies_among_synthetic_tracks(synthetic_root):
    """40 tracks of ten genres from one generator with the same drums."""
    manifest = load_manifest("synthetic", synthetic_root, download=False, tracks=4, seconds=1.5)
    record = list_copies(manifest)
    assert record["listed"] == []
    assert record["words"] == "40 clips of 40 recordings: no copies found"


def test_level_does_not_change_a_word_and_a_step_in_time_moves_it():
    wave = noise(7).astype(np.float32)[: 6 * RATE]
    words, sound = _words(_energies(wave))
    assert sound.all()
    assert np.array_equal(words, _words(_energies(wave * np.float32(0.25)))[0])
    assert np.array_equal(words[5:], _words(_energies(wave[5 * 160 :]))[0])


def test_a_long_clip_is_read_in_blocks(tmp_path, sounds, monkeypatch):
    wave = np.concatenate(sounds)
    manifest = data(tmp_path, {"long.wav": wave}, starts=[0.7])
    manifest = replace(manifest, duration=manifest.duration - 0.7)
    whole = fingerprint_clips(manifest, np.arange(1))
    monkeypatch.setattr("gafx.data.leaks.fingerprint._BLOCK_SECONDS", 5)
    blocks = fingerprint_clips(manifest, np.arange(1))
    assert len(blocks.words) == len(whole.words)
    assert np.bitwise_count(blocks.words ^ whole.words).mean() < 0.1  # of 32: rounding at the seams


def test_an_unreadable_file_is_counted_and_the_rest_compared(tmp_path, sounds):
    manifest = data(tmp_path, {"1.wav": sounds[0], "2.wav": sounds[0], "3.wav": sounds[1]})
    (tmp_path / "3.wav").write_bytes(b"RIFF, and nothing more")
    found = find_leaks(manifest, parts([0], [1, 2]), cache=tmp_path / "kept")
    assert (len(found.listed), found.unreadable, found.silent) == (1, 1, 0)
    assert "1 unreadable" in found.describe()


def test_fingerprints_are_kept_and_a_changed_file_is_read_again(tmp_path, sounds):
    manifest = data(tmp_path / "data", {"1.wav": sounds[0], "2.wav": sounds[0], "3.wav": sounds[1]})
    rows, kept, reads = np.arange(3), tmp_path / "kept", []

    def read():
        reads.clear()
        return fingerprint_clips(manifest, rows, folder=kept, progress=lambda: reads.append(1))

    first = read()
    assert len(reads) == 3
    again = read()
    assert not reads
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in ("first", "words", "sound"))
    (file,) = kept.iterdir()
    assert np.load(file, allow_pickle=False)["words"].dtype == np.uint32
    soundfile.write(tmp_path / "data" / "2.wav", sounds[2], SOURCE_RATE, subtype="PCM_16")
    assert len(find_copies(read())) == 0
    assert len(reads) == 1
    os.utime(tmp_path / "data" / "3.wav", ns=(1, 1))
    read()
    assert len(reads) == 1
    file.write_bytes(file.read_bytes()[:-50])  # cut short
    read()
    assert len(reads) == 3


def test_clips_that_were_not_asked_for_are_read_later(tmp_path, sounds):
    manifest = data(tmp_path / "data", {f"{n}.wav": wave for n, wave in enumerate(sounds[:3])})
    kept = tmp_path / "kept"
    assert (np.diff(fingerprint_clips(manifest, np.array([1]), folder=kept).first) > 0).tolist() == [False, True, False]
    assert (np.diff(fingerprint_clips(manifest, np.arange(3), folder=kept).first) > 0).all()


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path, sounds):
    (tmp_path / "file").write_text("no folder")
    manifest = data(tmp_path / "data", {"1.wav": sounds[0], "2.wav": sounds[0]})
    assert len(find_leaks(manifest, parts([0], [1]), cache=tmp_path / "file").listed) == 1


def test_too_many_hours_are_not_read_and_it_says_so(tmp_path, sounds):
    manifest = data(tmp_path, {"song_part1.wav": sounds[0], "song_part2.wav": sounds[0]})
    found = find_leaks(manifest, parts([0], [1]), most_hours=0.001)
    assert (found.listed, found.copies) == ((), ())
    assert found.names.count == 1  # what needs no reading is looked at
    assert "gafx leaks" in found.describe()
    assert "sound not compared" in found.describe()
    kept = tmp_path / "kept"
    find_leaks(manifest, parts([0], [1]), cache=kept)
    assert len(find_leaks(manifest, parts([0], [1]), cache=kept, most_hours=0.001).listed) == 1  # known by now


def test_segments_of_one_file_on_both_sides(tmp_path, sounds):
    manifest = by_segment(data(tmp_path, {"1.wav": sounds[4], "2.wav": sounds[5]}), 2.0)
    assert len(manifest) == 6
    found = find_leaks(manifest, parts([0, 1, 3, 4, 5], [2]))
    assert found.files.count == 1
    assert found.files.examples == ("1.wav",)
    assert found.listed == ()  # adjacent segments have no sound in common
    assert "1 file has segments on two sides, e.g. 1.wav" in found.describe()


def test_recordings_and_numbered_parts_on_both_sides(tmp_path, sounds):
    names = ["x/song_part1.wav", "x/song_part2.wav", "x/song.part3.wav", "y/song_part4.wav", "blues.00001.wav"]
    manifest = data(tmp_path, dict.fromkeys(names, np.zeros(100)), groups=["g", "h", "i", "j", "g"])
    found = find_leaks(manifest, parts([0, 3], [1, 2, 4]))
    assert (found.recordings.count, found.names.count, found.files.count) == (1, 1, 0)
    assert "group_pattern" in found.describe()


def test_artists_are_known_from_a_csv_and_else_unknown(tmp_path, sounds):
    data(tmp_path, {"1.wav": sounds[0], "2.wav": sounds[1], "3.wav": sounds[2]})
    for column, message in (("artist", "1 artist has clips on two sides, e.g. Nina"), ("remark", "artists unknown")):
        (tmp_path / "list.csv").write_text(f"path,label,{column}\n1.wav,a,Nina\n2.wav,b,Nina\n3.wav,b,\n")
        manifest = load_manifest("folder", tmp_path, download=False, csv="list.csv")
        assert message in find_leaks(manifest, parts([0, 2], [1])).describe()


def test_every_pair_is_counted_and_some_are_listed(tmp_path, monkeypatch):
    wave, described = noise(1, 2.0), []
    manifest = data(tmp_path, {f"{n:02}.wav": wave for n in range(40)}, labels=[[n % 2] for n in range(40)])
    make = check._pair
    monkeypatch.setattr(check, "_pair", lambda *given, **more: described.append(given) or make(*given, **more))
    found = find_leaks(manifest, parts(range(20), range(20, 40)))
    assert found.copies[0].same_bytes == 400
    assert found.copies[0].labels_differ == 200
    assert len(found.listed) == len(described) == 200  # the others cost nothing but their place in arrays
    assert "395 more pairs, the first 200 in run.json, all by gafx leaks" in found.describe()


def test_folds_are_added_up(tmp_path, sounds):
    waves = {"1.wav": sounds[0], "2.wav": sounds[1], "3.wav": sounds[0], "4.wav": sounds[2]}
    manifest = data(tmp_path, waves)
    folds = [find_leaks(manifest, parts(train, test)).as_dict() for train, test in (([0, 1], [2, 3]), ([2, 3], [0, 1]))]
    together = merge(folds)
    assert "2 of 4 test clips (50.0 %)" in together["words"][0]
    assert len(together["listed"]) == 2
    assert merge([folds[0]]) == folds[0]
    assert merge([folds[0], None]) is None  # a fold that was not checked


def test_in_a_run_it_is_found_once_and_recorded(tmp_path, sounds):
    manifest = data(tmp_path / "data", {"1.wav": sounds[0], "2.wav": sounds[0]})
    config = build(TrainConfig, {"output_dir": str(tmp_path / "out"), "frontend": {"name": "mel"}})
    split = parts([0], [1])
    found = run_dir.check_leaks(config, manifest, split)
    assert found["copies"][0]["same_bytes"] == 1
    assert list((tmp_path / "out" / ".fingerprints").iterdir())
    json.dumps(found)
    config.folder.mkdir(parents=True)
    (config.folder / "run.json").write_text(json.dumps({"leaks": {**found, "elapsed": -1}}))
    assert run_dir.check_leaks(config, manifest, split)["elapsed"] == -1  # resumed: it is known
    off = build(TrainConfig, {**json.loads('{"data": {"leak_check": false}}'), "frontend": {"name": "mel"}})
    assert run_dir.check_leaks(off, manifest, split) is None
    assert run_id(off) == run_id(build(TrainConfig, {"frontend": {"name": "mel"}}))


def test_the_report_lists_them(tmp_path, sounds):
    manifest = data(tmp_path, {"<1>.wav": sounds[0], "2.wav": sounds[0]}, labels=[[0], [1]])
    found = find_leaks(manifest, parts([0], [1])).as_dict()
    bare = Result(name="m", data="folder", protocol="paper", classes=["a", "b"], scores={})
    text = write_report(tmp_path / "r.html", [Section(dataclasses.replace(bare, leaks=found))], title="t").read_text()
    assert "has copies among the 1 training clips" in text
    assert "training" in text.lower()
    assert "&lt;1&gt;.wav" in text
    assert "b / a" in text
    text = write_report(tmp_path / "r.html", [Section(bare)], title="t").read_text()
    assert "Not checked" in text


def run_command(*arguments):
    out = io.StringIO()
    with redirect_stdout(out):
        main(["leaks", *map(str, arguments)])
    return out.getvalue()


def test_the_command(tmp_path, sounds, capsys):
    root, kept = tmp_path / "data", ("--outputs", tmp_path / "out")
    waves = {"a/1.wav": sounds[0], "a/2.wav": sounds[1], "b/1.wav": sounds[4], "b/2.wav": 0.5 * sounds[0]}
    data(root, waves)
    text = run_command("folder", root, *kept)
    assert text.startswith(
        "4 clips of 4 recordings: 0 pairs of the same bytes, 1 near copy; 0 of them in one recording,"
    )
    assert "a/1.wav ~ b/2.wav" in text
    assert "labels differ: a and b" in text
    assert json.loads(run_command("folder", root, *kept, "--json"))["near_copies"] == 1
    (row,) = csv.DictReader(io.StringIO(run_command("folder", root, *kept, "--csv")))
    assert (row["first"], row["second"], row["labels"]) == ("a/1.wav", "b/2.wav", "a / b")
    split = run_command("folder", root, *kept, "--protocol", "paper", "--test-fraction", "0.5")
    assert "leak check: " in split
    assert "copies among" in split or "nothing found" in split
    with pytest.raises(SystemExit):
        main(["leaks", "folder", str(root), "--protocol", "kfold", "--fold", "9"])
    assert "data.fold=9" in capsys.readouterr().err
    with pytest.raises(UsageError, match="test-fraction 2.0"):
        leaks.run(SimpleNamespace(test_fraction=2.0))


def test_lines_hold_what_a_record_holds(tmp_path, sounds):
    manifest = data(tmp_path, {"1.wav": sounds[0], "2.wav": 0.5 * sounds[0]})
    found = find_leaks(manifest, parts([0], [1])).as_dict()
    assert describe_check(json.loads(json.dumps(found))) == found["words"]


def test_clips_that_agree_over_a_stretch_alone(tmp_path, sounds):
    """A splice: the same three seconds, then other sound, in both at another time."""
    begin = int(3.3 * SOURCE_RATE)
    waves = {
        "1.wav": np.concatenate([sounds[5][:begin], sounds[4]]),
        "2.wav": np.concatenate([sounds[6][: begin // 2], sounds[5][:begin], sounds[0]]),
    }
    (pair,) = find_leaks(data(tmp_path, waves), parts([0], [1])).listed
    assert pair.offset == pytest.approx(1.65, abs=0.05)
    assert pair.seconds < 2
