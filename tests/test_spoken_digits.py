"""The Free Spoken Digit Dataset: its layout, and folds that hold a speaker out."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from gafx.data.sources.base import load_manifest
from gafx.data.splits import split
from gafx.errors import UsageError

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "spoken_digits"


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    for speaker in ("theo", "george", "lucas"):
        for digit in (0, 1, 9):
            for number in (0, 2, 10):
                soundfile.write(folder / f"{digit}_{speaker}_{number}.wav", 0.1 * np.sin(np.arange(900) / 5), 8000)
    return folder


def names(manifest, rows):
    return [Path(manifest.relative_path(row)).stem for row in rows.tolist()]


@pytest.mark.parametrize("inside", [False, True])
def test_a_fold_is_a_speaker(recordings, inside):
    manifest = load_manifest("spoken_digits", recordings if inside else recordings.parent)
    assert manifest.classes == ("0", "1", "9")
    assert manifest.notes == ("each official fold is one speaker: 1 george, 2 lucas, 3 theo",)
    assert len(manifest) == len(np.unique(manifest.group)) == 27
    everything = names(manifest, np.arange(27))
    assert everything[:4] == ["0_george_0", "0_george_2", "0_george_10", "0_lucas_0"]
    assert [manifest.classes[label] for label in manifest.first_label()] == [name[0] for name in everything]
    for fold, speaker in enumerate(("george", "lucas", "theo"), 1):
        parts = split(manifest, "official", fold=fold)
        assert {name.split("_")[1] for name in names(manifest, parts.test)} == {speaker}
        assert {name.split("_")[1] for name in names(manifest, parts.train)} == {"george", "lucas", "theo"} - {speaker}
        assert len(parts.test) == 9
    with pytest.raises(UsageError, match=r"not one of the official folds \[1, 2, 3\]"):
        split(manifest, "official", fold=4)


def test_other_files(recordings):
    sound, rate = soundfile.read(recordings / "0_theo_0.wav")
    (recordings / "0_theo_0.wav").unlink()
    soundfile.write(recordings / "0_theo_0.ogg", sound, rate)
    for speaker in ("lucas", "zoe"):  # a speaker whose recordings are all damaged keeps the fold
        (recordings / f"0_{speaker}_0.wav").write_bytes(b"damaged")
    (recordings / "deeper").mkdir()
    for name in ("10_theo_1.wav", "theo.wav", "deeper/1_theo_1.wav"):
        soundfile.write(recordings / name, sound, rate)
    (recordings / "metadata.py").write_text("")
    manifest = load_manifest("spoken_digits", recordings.parent)
    assert manifest.notes == ("each official fold is one speaker: 1 george, 2 lucas, 3 theo, 4 zoe",)
    assert "0_theo_0.ogg" in {manifest.relative_path(row) for row in range(len(manifest))}
    assert len(manifest) == 26
    reasons = {clip.path: clip.reason for clip in manifest.skipped}
    for name in ("0_lucas_0.wav", "0_zoe_0.wav"):
        assert "cannot be decoded" in reasons.pop(name)
    assert set(reasons) == {"10_theo_1.wav", "theo.wav", str(Path("deeper/1_theo_1.wav"))}
    assert {reason.split(" as ")[0] for reason in reasons.values()} == {"is not named DIGIT_SPEAKER_NUMBER"}


def test_a_wrong_folder(tmp_path):
    for root in (None, tmp_path / "nowhere", tmp_path):
        with pytest.raises(UsageError, match=r"data\.root.*free-spoken-digit-dataset"):
            load_manifest("spoken_digits", root)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real set is not next to the checkout (../shared/data/spoken_digits)")
def test_the_real_set():
    manifest = load_manifest("spoken_digits", REAL)
    assert manifest.classes == tuple("0123456789")
    assert np.bincount(manifest.fold).tolist() == [0, *[500] * 6]
    assert not manifest.skipped
    assert "1 george, 2 jackson, 3 lucas, 4 nicolas, 5 theo, 6 yweweler" in manifest.notes[0]
    for fold in range(1, 7):
        parts = split(manifest, "official", fold=fold)
        assert np.bincount(manifest.first_label()[parts.test]).tolist() == [50] * 10
