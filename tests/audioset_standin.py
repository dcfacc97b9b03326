"""A substitute for AudioSet: its CSV files and synthesised clips whose sounds match their labels.

527 classes, of which about sixty occur: genres, instruments, tempo and loudness of music made by code, and simple
sounds (tones, chirps, clicks, noises), alone or over music. Clips have the file names of common copies; some of
those that are listed are missing, some are broken. Everything is a function of the seed; of ogg files the samples are,
the bytes are not.

    python tests/audioset_standin.py ROOT --balanced 600 --evaluation 200
"""

import argparse
import json
import string
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import oaconvolve

from gafx.studies.synth import GENRES, compose, render
from gafx.studies.synth.instruments import INSTRUMENTS

PARTS = ("balanced_train", "unbalanced_train", "eval")
_LETTERS = string.ascii_letters + string.digits + "-_"
Wave = np.ndarray


def _shaped(rng, t, gain: Callable[[Wave], Wave]) -> Wave:
    """Noise whose spectrum is `gain` of the frequency in Hz."""
    frequencies = np.fft.rfftfreq(len(t), t[1])
    return np.fft.irfft(np.fft.rfft(rng.standard_normal(len(t))) * gain(frequencies), len(t))


def _fm(t, frequency: Wave) -> Wave:
    return np.sin(2 * np.pi * np.cumsum(frequency) * t[1])


def _glide(rng, t, low: float, high: float) -> Wave:
    """A tone that goes from `low` to `high` Hz again and again."""
    place = t / rng.uniform(0.7, 1.5) % 1
    return _fm(t, low * (high / low) ** place)


def _harmonics(phase: Wave, count: int) -> Wave:
    return sum(np.sin(2 * np.pi * n * phase) / n for n in range(1, count + 1))


def _strokes(rng, t, rate: float, stroke: Wave) -> Wave:
    return oaconvolve(rng.random(len(t)) < rate * t[1], stroke)[: len(t)]


def _decay(t, seconds: float) -> Wave:
    return np.exp(-t[: int(5 * seconds / t[1])] / seconds)


def _white(rng, t) -> Wave:
    return rng.standard_normal(len(t))


SOUNDS: dict[str, Callable[[np.random.Generator, Wave], Wave]] = {
    "Sine tone": lambda r, t: np.sin(2 * np.pi * r.uniform(300, 2500) * t),
    "Chirp, rising": lambda r, t: _glide(r, t, 300, 4000),
    "Chirp, falling": lambda r, t: _glide(r, t, 4000, 300),
    "Siren, wailing": lambda r, t: _fm(t, 900 + 500 * np.sin(2 * np.pi * r.uniform(0.3, 0.6) * t)),
    "Alarm, two tones": lambda r, t: _fm(t, np.where(t * r.uniform(1, 2) % 1 < 0.5, 700, 1000)),
    "Beep": lambda r, t: np.sin(2 * np.pi * r.uniform(900, 2000) * t) * (t * r.uniform(2, 5) % 1 < 0.4),
    "Tone with vibrato": lambda r, t: _harmonics(r.uniform(200, 500) * (t + 0.002 * np.sin(2 * np.pi * 6 * t)), 8),
    "Tremolo": lambda r, t: np.sin(2 * np.pi * r.uniform(300, 900) * t) * (1 + np.sin(2 * np.pi * r.uniform(5, 9) * t)),
    'Sound called "buzz"': lambda r, t: _harmonics(r.uniform(90, 140) * t, 40),
    "Drone, low": lambda r, t: _harmonics(r.uniform(45, 75) * t, 6),
    "Bell": lambda r, t: _strokes(r, t, 1.5, sum(_decay(t, 0.3) * np.sin(2 * np.pi * f * t[: len(_decay(t, 0.3))])
                                                for f in r.uniform(0.95, 1.05) * np.array([620, 1480, 2510, 3890]))),
    "Click": lambda r, t: _strokes(r, t, 5, _decay(t, 0.002)),
    "Crackle": lambda r, t: _strokes(r, t, 90, _decay(t, 0.0004)),
    "Knock, wooden": lambda r, t: _strokes(r, t, 3, _decay(t, 0.03) * np.sin(2513 * t[: len(_decay(t, 0.03))])),
    "White noise": _white,
    "Pink noise": lambda r, t: _shaped(r, t, lambda f: np.maximum(f, 30) ** -0.5),
    "Rumble": lambda r, t: _shaped(r, t, lambda f: f < 120),
    "Hiss": lambda r, t: _shaped(r, t, lambda f: f > 5000),
    "Noise, bursts of": lambda r, t: _white(r, t) * (t / r.uniform(0.5, 1) % 1 < 0.25),
    "Noise, pulsing": lambda r, t: _white(r, t) * (1 + np.sin(2 * np.pi * r.uniform(4, 10) * t)),
}  # fmt: skip
_GENRES = {genre: f"{genre.capitalize()} music" for genre in GENRES}
_INSTRUMENTS = {name: name.replace("_", " ").capitalize() for name in INSTRUMENTS}
_MANNERS = ("Fast music", "Slow music", "Loud music", "Quiet music")
_GROUPS = {  # name -> children; the first two levels of the ontology, of which abstract ones (*) are no classes
    "Music": ["*Genre", "Musical instrument", "*Manner"],
    "*Genre": list(_GENRES.values()),
    "Musical instrument": list(_INSTRUMENTS.values()),
    "*Manner": list(_MANNERS),
    "*Sound": ["Tone", "Impact", "Noise"],
    "Tone": list(SOUNDS)[:10],
    "Impact": list(SOUNDS)[10:14],
    "Noise": list(SOUNDS)[14:],
}


def classes() -> dict[str, str]:
    """The mid of each name: the 527 classes in their order, then the abstract ones (`*`). The same for every seed."""
    named = [name for name in dict.fromkeys([*_GROUPS, *chain(*_GROUPS.values())]) if name[0] != "*"]
    named += [f"Thing {n}" + (", rare" if n % 3 else "") for n in range(527 - len(named))]
    rng = np.random.default_rng(527)
    names = [named[i] for i in rng.permutation(527)] + [name for name in _GROUPS if name[0] == "*"]
    letters = string.digits + string.ascii_lowercase + "_"
    return {
        name: f"/t/dd{n:05d}" if n % 12 == 0 else "/m/0" + "".join(letters[i] for i in rng.integers(37, size=5))
        for n, name in enumerate(names)
    }


@dataclass(frozen=True)
class Clip:
    """A listed clip: its entry in the CSV, and the file (`None`: missing; `broken`: cannot be read)."""

    part: str
    id: str
    start: float
    end: float
    names: tuple[str, ...]
    path: str | None
    broken: bool


def sound(rng: np.random.Generator, seconds: float, rate: int) -> tuple[Wave, tuple[str, ...]]:
    """A clip, mono float in [-1, 1], and the names of its one to six labels."""
    t = np.arange(round(seconds * rate)) / rate
    names: list[str] = []
    wave = np.zeros(len(t))
    kind = rng.random()
    if kind < 0.6:
        score = compose(
            str(rng.choice(GENRES)), int(rng.integers(1e6)), seed=int(rng.integers(1e6)), seconds=max(seconds, 1.0)
        )
        wave += render(score, rate)[: len(t)]
        names += [_GENRES[score.genre], _INSTRUMENTS[score.instruments["melody"]]]
        names += [_INSTRUMENTS[score.instruments["chords"]]] if rng.random() < 0.8 else []
        names += ["Fast music"] if score.tempo > 125 else ["Slow music"] if score.tempo < 85 else []
        names += ["Loud music"] if score.loudness > -15 else ["Quiet music"] if score.loudness < -20 else []
        names += ["Music"] if rng.random() < 0.7 and len(names) < 5 else []
    if kind > 0.45:
        for name in rng.choice(list(SOUNDS), 1 if kind < 0.8 else 2, replace=False):
            noise = SOUNDS[name](rng, t)
            wave += noise * rng.uniform(0.05, 0.2) / (np.sqrt(np.mean(noise**2)) + 1e-9)
            names.append(str(name))
    return np.clip(wave, -1, 1), tuple(dict.fromkeys(names))[:6]


def _name(rng: np.random.Generator, part: str, key: str, start: float, end: float, whole: bool) -> str:
    """The path of a clip without its extension, in one of the manners of people's copies."""
    folder = {"balanced_train": "bal_train", "unbalanced_train": "unbal_train", "eval": "eval"}[part]
    folder = f"{folder}/{key[:2]}" if rng.random() < 0.3 else f"{part}_segments"
    manners = (f"Y{key}", key) if whole else (
        f"Y{key}", f"Y{key}", key, f"{key}_{start:.0f}", f"{key}_{start:.3f}", f"{key}-{start:06.0f}",
        f"{key}_{start:.0f}_{end:.0f}", f"Y{key}_{start:.3f}_{end:.3f}", f"{key}_{start * 1000:.0f}",
    )  # fmt: skip
    return f"{folder}/{rng.choice(manners)}"


def _make(job: tuple) -> Clip:
    root, part, index, state, seed, seconds, rate = job
    rng = np.random.default_rng([seed, PARTS.index(part), index])
    # Ids that could be taken for prefixes and suffixes come first.
    key = ("Y", "-", "_", "Y_-30", "")[min(index, 4)]
    key += "".join(_LETTERS[i] for i in rng.integers(len(_LETTERS), size=11 - len(key)))
    short, whole = rng.random() < 0.04, rng.random() < 0.04
    start = 0.0 if short else seconds if whole else 10.0 * rng.integers(0, 30)
    end = start + seconds * (0.6 if short else 1.0)
    wave, names = sound(rng, end - start, rate)
    if state == "missing":
        return Clip(part, key, start, end, names, None, False)
    if whole:  # the whole video, in which the clip is the segment
        wave = np.concatenate([_white(rng, np.zeros(round(start * rate))) / 20, wave, np.zeros(3 * rate)])
    extension = str(rng.choice([".wav", ".flac", ".mp3", ".ogg"])) if state == "whole" else ".wav"
    path = _name(rng, part, key, start, end, whole) + extension
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(root / path, wave, rate)
    if state == "broken":
        content = (root / path).read_bytes()
        (root / path).write_bytes((b"", b"Video unavailable\n", content[: len(content) // 2])[index % 3])
    return Clip(part, key, start, end, names, path, state == "broken")


def _write_lists(root: Path, clips: list[Clip]) -> None:
    mids = classes()
    lines = ["index,mid,display_name\n"]
    for number, (name, mid) in enumerate(list(mids.items())[:527]):
        lines.append(f'{number},{mid},"{name.replace(chr(34), 2 * chr(34))}"\n')
    (root / "class_labels_indices.csv").write_text("".join(lines), encoding="utf-8")
    nodes = [
        {"id": mid, "name": name.strip("*"), "description": "", "citation_uri": "", "positive_examples": [],
         "child_ids": [mids[child] for child in _GROUPS.get(name, ())], "restrictions": ["abstract"] * (name[0] == "*")}
        for name, mid in sorted(mids.items())
    ]  # fmt: skip
    (root / "ontology.json").write_text(json.dumps(nodes, indent=2), encoding="utf-8")
    for part in PARTS:
        rows = [clip for clip in clips if clip.part == part]
        used = [name for clip in rows for name in clip.names]
        lines = [
            "# Segments csv created by tests/audioset_standin.py\n",
            f"# num_ytids={len(rows)}, num_segs={len(rows)}, num_unique_labels={len(set(used))}, "
            f"num_positive_labels={len(used)}\n",
            "# YTID, start_seconds, end_seconds, positive_labels\n",
        ]
        for clip in rows:
            labels = ",".join(mids[name] for name in clip.names)
            lines.append(f'{clip.id}, {clip.start:.3f}, {clip.end:.3f}, "{labels}"\n')
        (root / f"{part}_segments.csv").write_text("".join(lines), encoding="utf-8")


def make_audioset(
    root: str | Path,
    *,
    balanced: int = 600,
    unbalanced: int = 0,
    evaluation: int = 200,
    seed: int = 0,
    seconds: float = 10.0,
    rate: int = 22050,
    broken: float = 0.01,
    missing: float = 0.05,
    workers: int = 1,
) -> list[Clip]:
    """Write the substitute into `root` and return its listed clips, part by part in the order of the CSV files.

    Args:
        root: folder to make; existing files stay.
        balanced, unbalanced, evaluation: clips that each CSV lists.
        seed: of all draws.
        seconds: length of a clip (some are shorter, some are inside a longer file); at least 1.
        rate: sampling rate in Hz, 16000 or more.
        broken: fraction of each part whose file cannot be read (empty, text, truncated).
        missing: fraction of each part without a file.
        workers: processes.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    jobs = []
    for part, count in zip(PARTS, (balanced, unbalanced, evaluation), strict=True):
        lost, damaged = round(missing * count), round(broken * count)
        states = ["missing"] * lost + ["broken"] * damaged + ["whole"] * (count - lost - damaged)
        order = np.random.default_rng([seed, PARTS.index(part)]).permutation(count)
        jobs += [(root, part, index, states[i], seed, seconds, rate) for index, i in enumerate(order)]
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            clips = list(pool.map(_make, jobs, chunksize=8))
    else:
        clips = [_make(job) for job in jobs]
    _write_lists(root, clips)
    return clips


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="make a substitute for AudioSet")
    parser.add_argument("root", type=Path)
    for option, default in (("balanced", 600), ("unbalanced", 0), ("evaluation", 200), ("seed", 0), ("rate", 22050)):
        parser.add_argument(f"--{option}", type=int, default=default)
    for option, share in (("seconds", 10.0), ("broken", 0.01), ("missing", 0.05)):
        parser.add_argument(f"--{option}", type=float, default=share)
    parser.add_argument("--workers", type=int, default=1)
    made = make_audioset(**vars(parser.parse_args()))
    print(f"{sum(clip.path is not None for clip in made)} files, {len({n for c in made for n in c.names})} labels")
