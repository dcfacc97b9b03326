"""Songs as sound: by the instruments of the built-in music, or by FluidSynth and a soundfont."""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from gafx.errors import UsageError, first_line
from gafx.io import atomic_path
from gafx.midi.song import Song
from gafx.midi.write import write_midi
from gafx.report.format import duration
from gafx.studies.synth.drums import drum
from gafx.studies.synth.instruments import tone
from gafx.studies.synth.mix import Room, mix, set_level, set_loudness
from gafx.studies.synth.render import add

Wave = npt.NDArray[np.float32]

SAMPLE_RATE = 22050
MOST_SECONDS = 1200.0
_LOUDNESS = -18.0  # RMS in dBFS, the middle of the built-in music's genres
_ROOM = Room(room=0.8, wet=-14.0, tilt=-1.0, cutoff=9000.0)
_TAIL = 0.6  # seconds after the last note, for its release and the room
# The instrument of each family of eight programs of General MIDI, and of programs that differ from their family.
_FAMILIES = (
    "piano", "vibraphone", "organ", "steel_guitar", "finger_bass", "strings", "strings", "brass",
    "clarinet", "flute", "saw", "pad", "pad", "pluck", "vibraphone", "pad",
)  # fmt: skip
_PROGRAMS = {
    4: "epiano", 5: "epiano", 6: "clavinet", 7: "clavinet", 24: "nylon_guitar", 29: "distorted_guitar",
    30: "distorted_guitar", 32: "upright_bass", 38: "synth_bass", 39: "synth_bass", 40: "fiddle", 45: "pluck",
    46: "nylon_guitar", 52: "pad", 53: "pad", 54: "pad", 80: "square", 110: "fiddle",
}  # fmt: skip
_BASSES = range(32, 40)
_DRUMS = {
    **dict.fromkeys((35, 36), "kick"), **dict.fromkeys((38, 40), "snare"), 39: "clap",
    **dict.fromkeys((41, 43, 45, 47, 48, 50), "tom"), **dict.fromkeys((42, 44), "hat"), 46: "open_hat",
    **dict.fromkeys((49, 52, 55, 57), "crash"), **dict.fromkeys((51, 53, 59), "ride"),
    **dict.fromkeys((54, 69, 70, 82), "shaker"),
}  # fmt: skip
_PARTS = ("drums", "bass", "melody")


def instrument_of(program: int) -> str:
    """Instrument of `gafx.studies.synth.instruments` that plays a program of General MIDI, counted from 0."""
    return _PROGRAMS.get(program, _FAMILIES[program // 8])


def render(
    song: Song, sample_rate: int = SAMPLE_RATE, *, seconds: float | None = None, soundfont: str | None = None
) -> Wave:
    """Play a song; all songs have the same loudness.

    The built-in instruments approximate General MIDI by families of programs. Volume, panning and pitch bend of a file
    are not played.

    Args:
        song: to play.
        sample_rate: in Hz.
        seconds: play so much of it at most.
        soundfont: file for the program `fluidsynth`, which plays in place of the built-in instruments.

    Returns:
        `(samples,)` float32 in [-1, 1], mono; the same samples in every process on one machine.

    Raises:
        UsageError: longer than `MOST_SECONDS`; `fluidsynth` is not installed or fails.
    """
    lasts = min(song.duration, np.inf if seconds is None else seconds)
    if lasts > MOST_SECONDS:
        raise UsageError(
            f"{song.name or 'a song'} lasts {duration(song.duration)}, and at most {duration(MOST_SECONDS)} are "
            "rendered at once: cut it"
        )
    samples = round((lasts + _TAIL if seconds is None else min(lasts + _TAIL, seconds)) * sample_rate)
    if soundfont is not None:
        wave = _fluidsynth(song, soundfont, sample_rate)[:samples]
    else:
        wave = _play(song, samples, sample_rate)
    return set_loudness(wave, _LOUDNESS) if wave.any() else wave


def write_wav(wave: Wave, path: Path, sample_rate: int = SAMPLE_RATE) -> None:
    """Write a wave atomically, 16 bit."""
    with atomic_path(path) as part:
        soundfile.write(part, wave, sample_rate, subtype="PCM_16", format="WAV")


def _play(song: Song, samples: int, rate: int) -> Wave:
    notes, rng = song.notes, np.random.default_rng(0)
    start = song.seconds(notes["start"])
    # Lengths are rounded up to 20 ms, so that many notes use one waveform.
    length = np.ceil((song.seconds(notes["start"] + notes["duration"]) - start) * 50).astype(np.int64)
    buses = np.zeros((len(_PARTS), samples), np.float32)
    gains: list[list[float]] = [[] for _ in _PARTS]
    waves: dict[tuple[Any, ...], Wave] = {}
    fields = (notes[name].tolist() for name in ("pitch", "velocity", "program", "drum"))
    for begin, lasts, pitch, velocity, program, is_drum in zip(start.tolist(), length.tolist(), *fields, strict=True):
        if begin * rate >= samples:
            continue
        lasts = min(lasts, int(np.ceil(50 * (samples / rate - begin))))
        name = _DRUMS.get(pitch, "rim") if is_drum else instrument_of(program)
        key = (name,) if is_drum else (name, pitch, lasts)
        if key not in waves:
            waves[key] = (
                drum(name, "acoustic", 1.0, rate, rng) if is_drum else _tone(name, pitch, lasts / 50, rate, rng)
            )
        part = 0 if is_drum else 1 if program in _BASSES else 2
        gain = (velocity / 127) ** 1.5
        gains[part].append(gain)
        add(buses[part], waves[key], begin, gain, rate)
    loudest = max((float(np.mean(part)) for part in gains if part), default=1.0)
    for bus, played, name in zip(buses, gains, _PARTS, strict=True):
        if played:
            set_level(bus, name, 20 * float(np.log10(np.mean(played) / loudest)), rate)
    return mix(buses, _PARTS, _ROOM, rate, rng).astype(np.float32)


def _tone(name: str, pitch: int, seconds: float, rate: int, rng: np.random.Generator) -> Wave:
    frequency = 440.0 * 2 ** ((pitch - 69) / 12)
    while frequency > 0.45 * rate:  # the highest keys are beyond what a low rate holds
        frequency /= 2
    return tone(name, frequency, seconds, rate, rng)


def _fluidsynth(song: Song, soundfont: str, rate: int) -> Wave:
    program = shutil.which("fluidsynth")
    if program is None:
        raise UsageError(
            "a soundfont needs the program fluidsynth, which is not installed here: install it with the system's "
            "packages, or leave the soundfont out for the built-in instruments"
        )
    if not Path(soundfont).is_file():
        raise UsageError(f"there is no soundfont {soundfont}: name an .sf2 or .sf3 file")
    with tempfile.TemporaryDirectory(prefix="gafx-") as folder:
        midi, wav = Path(folder, "song.mid"), Path(folder, "song.wav")
        write_midi(song, midi)
        command = [program, "-n", "-i", "-q", "-r", str(rate), "-F", str(wav), soundfont, str(midi)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode or not wav.is_file():
            reason = first_line(ValueError(done.stderr or f"status {done.returncode}"))
            raise UsageError(f"fluidsynth could not play {song.name or 'a song'} with {soundfont}: {reason}")
        wave, _ = soundfile.read(wav, dtype="float32", always_2d=True)
    return wave.mean(axis=1)
