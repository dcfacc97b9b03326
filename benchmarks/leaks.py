"""Recall of the leak check on planted copies, pairs that it finds among the originals, and its cost.

    OMP_NUM_THREADS=1 python benchmarks/leaks.py esc ESC-10
    OMP_NUM_THREADS=1 python benchmarks/leaks.py gtzan genres --pictures FOLDER

Every clip of the data set is altered in each of the ways below and written into a separate folder; a copy counts as
found where the check pairs it with its original. A pair of a copy with another clip is false, unless the originals of
both are copies of each other. With --alternatives, in the same run and on the same clips, what people do instead: a
digest of the decoded samples, and the cosine of two clips' mean log-mel spectra above 0.999. Intervals are Wilson's,
95 %, over clips. With --pictures, mel spectrograms of what was found among the originals, aligned, and of pairs that
nearly were, are drawn to be looked at.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

from gafx.audio.read import resample
from gafx.data.leaks import copies
from gafx.data.leaks.fingerprint import HOP, RATE, Prints, fingerprint_clips
from gafx.data.manifest import Manifest, make_manifest
from gafx.data.sources.base import load_manifest
from gafx.stats.scores import wilson

CUT = 0.513  # seconds; half a second would fall on whole words
MP3_RATES = {True: (320, 32), False: (160, 8)}  # kbit/s at compression levels 0 and 1: MPEG-1 from 32 kHz on, MPEG-2


def quiet(wave: np.ndarray, rate: int) -> np.ndarray:
    return wave * 10 ** (-12 / 20)


def clipped(wave: np.ndarray, rate: int) -> np.ndarray:
    return np.clip(wave * 10 ** (6 / 20), -1, 1)


def cut(wave: np.ndarray, rate: int) -> np.ndarray:
    return wave[round(CUT * rate) :]


def halved(wave: np.ndarray, rate: int) -> np.ndarray:
    return np.repeat(resample(np.ascontiguousarray(wave[:, None], np.float32), rate, rate // 2), 2, axis=1)


def same(wave: np.ndarray, rate: int) -> np.ndarray:
    return wave


# Name -> what is done to the samples, and the mp3's kbit/s (None: 16-bit wav).
ALTERATIONS: dict[str, tuple[Callable[[np.ndarray, int], np.ndarray], int | None]] = {
    "exact": (same, None),
    "mp3, 128 kbit/s": (same, 128),
    "mp3, 64 kbit/s": (same, 64),
    "-12 dB": (quiet, None),
    "+6 dB, clipped": (clipped, None),
    f"first {CUT} s cut off": (cut, None),
    "stereo at half the rate": (halved, None),
    "-12 dB, cut, mp3 64": (lambda wave, rate: quiet(cut(wave, rate), rate), 64),
    "+6 dB, cut, mp3 64": (lambda wave, rate: clipped(cut(wave, rate), rate), 64),
}


def write(path: Path, wave: np.ndarray, rate: int, kbit: int | None) -> None:
    if kbit is None:
        soundfile.write(path, wave, rate, subtype="PCM_16")
        return
    high, low = MP3_RATES[rate >= 32000]
    level = (high - kbit) / (high - low)
    soundfile.write(
        path, wave, rate, format="MP3", subtype="MPEG_LAYER_III", compression_level=level, bitrate_mode="CONSTANT"
    )


def alter(manifest: Manifest, how: str, folder: Path) -> tuple[Manifest, np.ndarray]:
    """Altered copies of all clips in one folder, and which clip each is of; one of whose sound nothing is left is
    left out."""
    change, kbit = ALTERATIONS[how]

    def make(row: int) -> tuple[str, float, int] | None:
        wave, rate = soundfile.read(manifest.file(row), dtype="float32", always_2d=True)
        made = change(wave.mean(axis=1), rate)
        if np.abs(made).max(initial=0) < 1e-4:
            return None
        name = f"{row}.wav" if kbit is None else f"{row}.mp3"
        write(folder / name, made, rate // 2 if change is halved else rate, kbit)
        info = soundfile.info(folder / name)
        return name, info.duration, info.samplerate

    folder.mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(make, range(len(manifest))))
    rows = [row for row, found in enumerate(made) if found]
    names, seconds, rates = zip(*(found for found in made if found), strict=True)
    return make_manifest(folder, ["copy"], names, [[0]] * len(names), seconds, rates), np.array(rows)


def joined(one: Prints, other: Prints) -> Prints:
    return Prints(
        np.concatenate([one.first, one.first[-1] + other.first[1:]]), np.concatenate([one.words, other.words]),
        np.concatenate([one.sound, other.sound]), np.concatenate([one.digest, other.digest]),
    )  # fmt: skip


def mean_spectra(manifest: Manifest) -> tuple[np.ndarray, list[bytes]]:
    """Of each clip the mean log-mel spectrum, centred and of length one, and a digest of its samples as 16 bit."""
    import torch

    from gafx.data.readers import FileReader
    from gafx.model import create_frontend

    mel = create_frontend("mel", sample_rate=16000)
    reader, spectra, digests = FileReader(manifest, 16000, 1), [], []
    for row in range(len(manifest)):
        wave = reader.read(row, 0, 10**8)
        digests.append(hashlib.blake2b(np.rint(wave * 32767).astype("<i2").tobytes()).digest())
        with torch.inference_mode():
            spectra.append(mel(torch.from_numpy(np.pad(wave, ((0, 0), (0, 2000))))[None])[0, 0].mean(dim=1).numpy())
    centred = np.stack(spectra) - np.mean(spectra, axis=0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True), digests


def alternatives(altered: Manifest, of: np.ndarray, spectra: np.ndarray, digests: set[bytes]) -> str:
    """Format the copies that two other methods find, and the number of false pairs of the second."""
    theirs, their_digests = mean_spectra(altered)
    close = spectra @ theirs.T > 0.999
    hits = close[of, np.arange(len(of))]
    known = [digest in digests for digest in their_digests]
    return f" | {found_rate(known)} | {found_rate(hits)}, {int(close.sum() - hits.sum())} false"


def found_rate(found: np.ndarray | list[bool]) -> str:
    hits, total = int(np.sum(found)), len(found)
    score = wilson(hits, total)
    return f"{hits} of {total} = {100 * score.value:5.1f} % ({100 * score.low:.1f} to {100 * score.high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("root", type=Path)
    parser.add_argument("--alternatives", action="store_true")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--only", nargs="*", default=list(ALTERATIONS), help="alterations (default: all)")
    parsed = parser.parse_args()
    manifest = load_manifest(parsed.data, parsed.root, download=False)
    rows = np.arange(len(manifest))
    begin = time.process_time()
    prints = fingerprint_clips(manifest, rows)
    read, begin = time.process_time() - begin, time.process_time()
    own = copies.find_copies(prints)
    matched = time.process_time() - begin
    hours = manifest.duration.sum() / 3600
    print(
        f"{len(manifest)} clips, {hours:.2f} h: {1e3 * read / len(manifest):.1f} ms of processor time a clip to "
        f"fingerprint ({read / hours:.1f} s an hour of sound), {matched:.2f} s to compare all with all"
    )
    print(f"found among the originals: {len(own)} of {len(manifest) * (len(manifest) - 1) // 2} pairs")
    for place in range(len(own)):
        a, b = int(own.first[place]), int(own.second[place])
        print(
            f"  {manifest.relative_path(a)} ~ {manifest.relative_path(b)}: {100 * own.error[place]:.1f} % of bits, "
            f"{own.seconds[place]:.1f} s of sound, {own.offset[place]:+.2f} s"
        )
    related = {(int(a), int(b)) for a, b in zip(own.first, own.second, strict=True)}
    related |= {(b, a) for a, b in related} | {(row, row) for row in rows.tolist()}
    sounding = prints.sounding()
    spectra, digests = mean_spectra(manifest) if parsed.alternatives else (np.zeros(0), [])
    print("copies found, all clips | clips with a second of sound left | false pairs | instead: digest | mean spectrum")
    with tempfile.TemporaryDirectory() as folder:
        for number, how in enumerate(parsed.only):
            altered, of = alter(manifest, how, Path(folder) / str(number))
            more = fingerprint_clips(altered, np.arange(len(altered)))
            side = np.repeat([0, 1], [len(manifest), len(altered)])
            pairs = copies.find_copies(joined(prints, more), side)
            originals, of_copies = pairs.first, of[pairs.second - len(manifest)]
            hits = np.isin(of, of_copies[originals == of_copies])
            false = {(int(a), int(b)) for a, b in zip(originals, of_copies, strict=True)} - related
            enough = (more.sounding() >= copies.ENOUGH) & (sounding[of] >= copies.ENOUGH)
            instead = alternatives(altered, of, spectra, set(digests)) if parsed.alternatives else ""
            print(f"{how:26s} {found_rate(hits)} | {found_rate(hits[enough])} | {len(false)}{instead}", flush=True)
            missed = [manifest.relative_path(int(row)) for row in of[~hits]]
            if missed:
                print(f"    missed: {', '.join(missed[:8])}{' ...' if len(missed) > 8 else ''}")
            for a, b in sorted(false):
                print(f"    false: copy of {manifest.relative_path(b)} with {manifest.relative_path(a)}")
    if parsed.pictures:
        draw(manifest, prints, own, parsed.pictures)


def draw(manifest: Manifest, prints: Prints, own: copies.Copies, folder: Path) -> None:
    """A picture a pair: two mel spectrograms, one below the other, aligned; what was found, then what nearly was."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import torch

    from gafx.data.readers import FileReader
    from gafx.model import create_frontend

    limits = copies.LIMITS, copies.PART_LIMIT, copies._GLANCE, copies._GLANCE_AT_PART
    copies.LIMITS, copies.PART_LIMIT = tuple((most, 0.42) for most, _ in copies.LIMITS), 0.3
    copies._GLANCE = copies._GLANCE_AT_PART = 0.45
    near = copies.find_copies(prints)
    copies.LIMITS, copies.PART_LIMIT, copies._GLANCE, copies._GLANCE_AT_PART = limits
    found = set(zip(own.first.tolist(), own.second.tolist(), strict=True))
    rest = [n for n in range(len(near)) if (int(near.first[n]), int(near.second[n])) not in found]
    drawn = [("found", own, n) for n in range(len(own))] + [("near", near, n) for n in rest[:8]]
    folder.mkdir(parents=True, exist_ok=True)
    mel, reader = create_frontend("mel", sample_rate=16000), FileReader(manifest, 16000, 1)
    for number, (kind, pairs, n) in enumerate(drawn):
        figure, axes = plt.subplots(2, 1, sharex=True, figsize=(10, 6))
        for axis, row, begin in zip(
            axes, (int(pairs.first[n]), int(pairs.second[n])), (0.0, float(pairs.offset[n])), strict=True
        ):
            wave = reader.read(row, 0, 10**8)
            with torch.inference_mode():
                drawn_map = mel(torch.from_numpy(wave)[None])[0, 0].numpy()
            axis.imshow(
                drawn_map, origin="lower", aspect="auto", vmin=drawn_map.max() - 9, vmax=drawn_map.max(),
                extent=(begin, begin + wave.shape[1] / 16000, 0, len(drawn_map)),
            )  # fmt: skip
            axis.set_title(f"{manifest.relative_path(row)}, from {begin:+.2f} s", fontsize=9)
        axes[0].set_xlim(min(0.0, float(pairs.offset[n])), max(5.0, float(manifest.duration[int(pairs.first[n])])))
        figure.suptitle(f"{kind}: {100 * pairs.error[n]:.1f} % of bits over {pairs.seconds[n]:.1f} s of sound")
        figure.savefig(folder / f"{number:02d}-{kind}.png", dpi=80)
        plt.close(figure)
    print(f"{len(drawn)} pictures in {folder} (words every {1e3 * HOP / RATE:.0f} ms)")


if __name__ == "__main__":
    main()
