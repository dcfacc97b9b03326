"""Fuzz the reading of audio: damaged files of every format must be read as finite sound or refused with a reason.

    python tests/fuzz_audio.py --files 10000 --seed 0

File `index` of `seed` is the same at every run. Worker processes read the files; one that dies, takes too long or needs
too much memory is a failure, its file is kept, and a new worker continues.
"""

import argparse
import io
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
import soundfile
from odd_headers import in_ogg, inside_wav, repair_checksums, two_chunks, without_end, without_total, zeroed

from gafx.audio.read import probe, read_segment, resampled_length, stream
from gafx.errors import UnreadableAudio

SAMPLE_RATE = 16000
LONGEST = 30 * SAMPLE_RATE
LOUDEST = 16.0  # the reader lets peaks of 8 pass; resampling overshoots them by some percent
Reading = Callable[[str, np.random.Generator], str]
KINDS = {
    "wav 16 bit": (".wav", 1, {"subtype": "PCM_16"}),
    "wav 24 bit": (".wav", 2, {"subtype": "PCM_24"}),
    "wav 8 bit": (".wav", 1, {"subtype": "PCM_U8"}),
    "wav float": (".wav", 2, {"subtype": "FLOAT"}),
    "wav double": (".wav", 1, {"subtype": "DOUBLE"}),
    "wav big-endian": (".wav", 1, {"subtype": "PCM_16", "endian": "BIG"}),
    "wavex": (".wav", 6, {"format": "WAVEX", "subtype": "PCM_16"}),
    "rf64": (".wav", 2, {"format": "RF64", "subtype": "PCM_16"}),
    "wav mu-law": (".wav", 1, {"subtype": "ULAW"}),
    "wav MS ADPCM": (".wav", 2, {"subtype": "MS_ADPCM"}),
    "wav IMA ADPCM": (".wav", 1, {"subtype": "IMA_ADPCM"}),
    "flac 16 bit": (".flac", 1, {"subtype": "PCM_16"}),
    "flac 24 bit": (".flac", 2, {"subtype": "PCM_24"}),
    "ogg vorbis": (".ogg", 1, {}),
    "ogg vorbis stereo": (".ogg", 2, {}),
    "ogg opus": (".ogg", 1, {"subtype": "OPUS"}),
    "mp3 constant": (".mp3", 1, {"bitrate_mode": "CONSTANT", "compression_level": 0.5}),
    "mp3 variable": (".mp3", 2, {"bitrate_mode": "VARIABLE", "compression_level": 0.6}),
    "mp3 without Xing": (".mp3", 1, {"bitrate_mode": "VARIABLE", "compression_level": 0.6}),
    "mp3 with tags": (".mp3", 1, {"bitrate_mode": "CONSTANT", "compression_level": 0.5}),
    "mp3 joined": (".mp3", 1, {"bitrate_mode": "CONSTANT", "compression_level": 0.5}),
    "mp3 in wav": (".wav", 1, {"format": "MP3"}),
    "wav size 0": (".wav", 1, {"subtype": "PCM_16"}),
    "wav two chunks": (".wav", 2, {"subtype": "PCM_16"}),
    "flac without total": (".flac", 1, {"subtype": "PCM_16"}),
    "flac joined": (".flac", 1, {"subtype": "PCM_16"}),
    "ogg flac": (".oga", 1, {"format": "FLAC", "subtype": "PCM_16"}),
    "ogg vorbis no end": (".ogg", 1, {}),
    "ogg opus no end": (".ogg", 1, {"subtype": "OPUS"}),
    "ogg vorbis joined": (".ogg", 1, {}),
    "au 16 bit": (".au", 1, {"subtype": "PCM_16"}),
    "au float": (".au", 2, {"subtype": "FLOAT"}),
    "au mu-law": (".au", 1, {"subtype": "ULAW"}),
}
ODD_NUMBERS = [0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**32 - 1, 2**40]
CHUNKS = re.compile(rb"fmt |data|fact|LIST|PEAK|ds64|fLaC|OggS|\.snd|ID3|Xing|Info")


# --- the files --------------------------------------------------------------------------------------------------------


def valid_files(seed: int) -> dict[str, bytes]:
    """A whole file of every kind, about a second long."""
    rng = np.random.default_rng(seed)
    return {kind: _valid_file(kind, rng) for kind in KINDS}


def mutated(files: dict[str, bytes], seed: int, index: int) -> tuple[str, str, bytes]:
    """(kind, extension, content) of file `index`."""
    rng = np.random.default_rng([seed, index])
    kind = list(files)[index % len(files)]
    content = bytearray(files[kind])
    for _ in range(int(rng.integers(1, 4))):
        _MUTATIONS[rng.integers(len(_MUTATIONS))](content, rng, files)
    if kind.startswith("ogg") and rng.random() < 0.5:
        repair_checksums(content)  # else every page that was touched is passed over for its checksum
    extension = KINDS[kind][0]
    if rng.random() < 0.15:
        extension = [".wav", ".flac", ".ogg", ".mp3", ".au"][rng.integers(5)]
    return kind, extension, bytes(content)


def _valid_file(kind: str, rng: np.random.Generator) -> bytes:
    extension, channels, options = KINDS[kind]
    rate = 24000 if "opus" in kind else int(rng.choice([22050, 44100, 16000]))
    time_axis = np.arange(int(rate * rng.uniform(0.6, 1.4)))[:, None] / rate
    wave = 0.3 * np.sin(2 * np.pi * 330 * time_axis * np.arange(1, channels + 1))
    wave = wave * np.exp(-3 * time_axis) + 0.02 * rng.standard_normal(wave.shape)
    file = io.BytesIO()
    soundfile.write(file, wave, rate, **{"format": extension[1:].upper(), **options})
    content = bytearray(file.getvalue())
    if extension == ".ogg":  # libsndfile draws a stream's number by the clock
        repair_checksums(content, number=zlib.crc32(kind.encode()))
    make = {
        "mp3 without Xing": lambda mp3: mp3[mp3.index(mp3[:2], 2) :],
        "mp3 with tags": lambda mp3: b"ID3\3\0\0\0\0\x20\0" + rng.bytes(4096) + mp3 + b"TAG" + bytes(125),
        "mp3 in wav": lambda mp3: inside_wav(mp3, rate),
        "wav size 0": lambda wav: zeroed(wav, 40, 44),
        "wav two chunks": two_chunks,
        "flac without total": without_total,
        "ogg flac": in_ogg,
        "ogg vorbis no end": without_end,
        "ogg opus no end": without_end,
    }.get(kind, lambda content: 2 * content if kind.endswith("joined") else content)
    return make(bytes(content))


# --- the damage: each changes the content in place --------------------------------------------------------------------


def _flip(content: bytearray, rng: np.random.Generator, first: int, last: int) -> None:
    last = min(last, len(content))
    for _ in range(int(rng.integers(1, 9))) if first < last else ():
        content[rng.integers(first, last)] = rng.integers(256)


def flip_header(content, rng, files):
    _flip(content, rng, 0, 128)


def flip_body(content, rng, files):
    _flip(content, rng, 0, len(content))


def odd_number(content, rng, files):
    size = int(rng.choice([2, 4, 8]))
    reach = 128 if rng.random() < 0.7 else len(content)
    at = int(rng.integers(max(1, min(reach, len(content)) - size)))
    value = int(rng.choice(ODD_NUMBERS)) % 256**size
    content[at : at + size] = value.to_bytes(size, "little" if rng.random() < 0.5 else "big")


def odd_chunk_size(content, rng, files):
    places = [match.start() for match in CHUNKS.finditer(content)][:50]
    if places:
        at = places[rng.integers(len(places))] + 4
        value = int(rng.choice([*ODD_NUMBERS, len(content), len(content) // 2, 2 * len(content)])) % 2**32
        content[at : at + 4] = value.to_bytes(4, "little" if rng.random() < 0.7 else "big")


def delete(content, rng, files):
    at = int(rng.integers(len(content) + 1))
    del content[at : at + int(rng.integers(1, 3000))]


def insert(content, rng, files):
    at = int(rng.integers(len(content) + 1))
    content[at:at] = rng.bytes(int(rng.integers(1, 3000))) if rng.random() < 0.7 else bytes(3000)


def truncate(content, rng, files):
    del content[int(rng.integers(len(content) + 1)) :]


def swap_blocks(content, rng, files):
    size = int(rng.integers(16, 2000))
    if len(content) > 2 * size:
        a, b = (int(place) for place in rng.integers(len(content) - size, size=2))
        content[a : a + size], content[b : b + size] = content[b : b + size], content[a : a + size]


def append_another(content, rng, files):
    content += files[list(files)[rng.integers(len(files))]]


def put_another_in(content, rng, files):
    other = files[list(files)[rng.integers(len(files))]]
    at = int(rng.integers(len(content) + 1))
    content[at:] = other[int(rng.integers(len(other))) :]


def not_finite(content, rng, files):
    values = [b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\xff" * 4, b"\x7f\x7f\xff\xff", b"\x7f\x80\0\0"]
    for _ in range(int(rng.integers(1, 5))):
        at = 4 * int(rng.integers(len(content) // 4 + 1))
        content[at : at + 4] = values[rng.integers(len(values))]


def tag_before(content, rng, files):
    size = int(rng.choice([0, 100, 5000, 2**27]))
    content[:0] = b"ID3\4\0\0" + bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127])
    content[10:10] = rng.bytes(min(size, 5000))


_MUTATIONS = [
    *(flip_header, flip_body, odd_number, odd_number, odd_chunk_size, delete, insert, truncate, swap_blocks),
    *(append_another, put_another_in, not_finite, tag_before),
]


# --- the reading ------------------------------------------------------------------------------------------------------


def check(path: str, rng: np.random.Generator) -> str:
    """Probe and read a file: '' if every segment was fine, else the reason of the first refusal.

    Raises:
        AssertionError: what came back is not what `read_segment` promises.
    """
    reason, length, other = "", LONGEST, LONGEST
    try:
        info = probe(path)
        assert info.frames > 0
        assert info.sample_rate > 0
        assert info.channels > 0
        length = resampled_length(info.frames, info.sample_rate, SAMPLE_RATE)
        other = resampled_length(info.frames, info.sample_rate, 22050)
    except UnreadableAudio as error:
        reason = f"probe: {error}"
    # Also a file that `probe` refuses: it may have been damaged after it was listed.
    for start, wanted, rate, channels in (
        (0, min(length, LONGEST), SAMPLE_RATE, 1),
        (int(rng.integers(max(1, length))), int(rng.integers(1, SAMPLE_RATE)), SAMPLE_RATE, int(rng.integers(1, 3))),
        (max(0, length - 4000), 8000, SAMPLE_RATE, 1),
        (int(rng.integers(max(1, other))), 5000, 22050, 2),
    ):
        try:
            segment = read_segment(path, start, wanted, sample_rate=rate, channels=channels)
        except UnreadableAudio as error:
            reason = reason or f"read: {error}"
            continue
        where = f"segment of {wanted} from {start} at {rate} Hz"
        assert segment.dtype == np.float32, f"{where}: {segment.dtype}"
        assert segment.shape[0] == channels, f"{where}: shape {segment.shape}, {channels} channels wanted"
        assert 0 < segment.shape[1] <= wanted, f"{where}: shape {segment.shape}"
        assert np.isfinite(segment).all(), f"{where}: not finite"
        assert np.abs(segment).max() <= LOUDEST, f"{where}: peaks at {np.abs(segment).max()}"
    label(path, length if not reason else None)
    return reason


def label(path: str, length: int | None) -> None:
    """Read a file as for labelling, up to `LONGEST`.

    Raises:
        AssertionError: what came back is no sound, or is shorter than the length of a file that data sets take, and
            nothing was said.
    """
    notes: list[str] = []
    read = 0
    try:
        for block in stream(path, sample_rate=SAMPLE_RATE, any_format=True, block_seconds=5.0, note=notes.append):
            assert block.dtype == np.float32
            assert np.isfinite(block).all(), "labelling: not finite"
            assert np.abs(block).max() <= LOUDEST, f"labelling: peaks at {np.abs(block).max()}"
            read += block.shape[1]
            if read >= LONGEST:
                return
    except UnreadableAudio:
        return
    if length is not None:
        assert notes or read >= min(length, LONGEST) - 4 * 1152, f"labelling: {read} of {length} samples without a note"


@dataclass
class Result:
    """Outcome of one file. `failure` is empty unless the reader broke a promise."""

    index: int
    kind: str
    reason: str = ""
    failure: str = ""
    seconds: float = 0.0


@dataclass
class Summary:
    """Results of a run."""

    results: list[Result] = field(default_factory=list)

    @property
    def failures(self) -> list[Result]:
        return [result for result in self.results if result.failure]

    def table(self) -> str:
        rows: dict[str, list[Result]] = defaultdict(list)
        for result in self.results:
            rows[result.kind].append(result)
        lines = [f"{'format':18s} {'files':>6s} {'accepted':>8s} {'refused':>7s} {'failed':>6s} {'slowest':>9s}"]
        for kind, results in [*rows.items(), ("all", self.results)]:
            refused = [result.reason for result in results if result.reason]
            failed = sum(bool(result.failure) for result in results)
            slowest = 1000 * max((result.seconds for result in results), default=0)
            lines.append(
                f"{kind:18s} {len(results):6d} {len(results) - len(refused) - failed:8d} {len(refused):7d} "
                f"{failed:6d} {slowest:6.0f} ms"
            )
            reasons = Counter(re.sub(r"\b\d[\d,.e+-]*\b", "N", reason) for reason in refused)
            lines += [f"{'':20s}{count:5d}  {reason}" for reason, count in reasons.most_common(5)]
        lines += [f"FAILED file {result.index} ({result.kind}): {result.failure}" for result in self.failures]
        return "\n".join(lines)


def work(pipe: Connection, act: Reading, seed: int, folder: str, mebibytes: int) -> None:
    """Read the files whose numbers come through the pipe, within so much memory more than the process has now."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the mp3 decoder prints each damaged frame
    files = valid_files(seed)
    with open("/proc/self/statm") as statm:
        have = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (have + mebibytes * 2**20,) * 2)
    pipe.send(None)  # ready
    while (index := pipe.recv()) is not None:
        kind, extension, content = mutated(files, seed, index)
        path = os.path.join(folder, f"{index}{extension}")
        Path(path).write_bytes(content)
        result = Result(index, kind)
        begin = time.perf_counter()
        try:
            result.reason = act(path, np.random.default_rng([seed, index, 1]))
        except Exception as error:  # whatever is no UnreadableAudio is a failure
            result.failure = f"{type(error).__name__}: {error}"
        result.seconds = time.perf_counter() - begin
        if not result.failure:
            os.unlink(path)
        pipe.send(result)


class Worker:
    """A process that reads files, and the file that it is at."""

    def __init__(self, act: Reading, seed: int, folder: str, mebibytes: int):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, act, seed, folder, mebibytes), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()
        self.index, self.since = -1, 0.0

    def give(self, index: int) -> None:
        self.index, self.since = index, time.monotonic()
        self.pipe.send(index)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def fuzz(
    files: int,
    seed: int,
    *,
    workers: int = 2,
    seconds: float = 10.0,
    mebibytes: int = 512,
    keep: str = "",
    act: Reading = check,
) -> Summary:
    """Read `files` damaged files of `seed`.

    Args:
        files: how many.
        seed: of the files.
        workers: processes.
        seconds: that probing and reading one file may take.
        mebibytes: address space that a worker may take for it.
        keep: folder for the files that failed; none are kept without it.
        act: what is done to each.
    """
    summary, todo = Summary(), iter(range(files))
    kinds = list(KINDS)
    with tempfile.TemporaryDirectory() as folder:
        crew = [Worker(act, seed, folder, mebibytes) for _ in range(min(workers, files))]
        for worker in crew:
            worker.give(next(todo))
        while crew:
            ready = wait([worker.pipe for worker in crew], timeout=0.5)
            for worker in list(crew):
                index, failure = worker.index, ""
                if worker.pipe in ready:
                    try:
                        summary.results.append(worker.pipe.recv())
                    except EOFError:
                        worker.process.join()
                        failure = f"the worker died with exit code {worker.process.exitcode}"
                elif time.monotonic() - worker.since > seconds:
                    failure = f"took more than {seconds:g} s"
                else:
                    continue
                if failure:
                    summary.results.append(Result(index, kinds[index % len(kinds)], failure=failure, seconds=seconds))
                    worker.end()
                    crew[crew.index(worker)] = worker = Worker(act, seed, folder, mebibytes)
                following = next(todo, None)
                if following is None:
                    worker.end()
                    crew.remove(worker)
                else:
                    worker.give(following)
        if keep:
            Path(keep).mkdir(parents=True, exist_ok=True)
            for path in Path(folder).iterdir():  # workers delete the files that went well
                shutil.copy(path, Path(keep) / f"{seed}-{path.name}")
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds-per-file", type=float, default=10.0)
    parser.add_argument("--memory", type=int, default=512, metavar="MIB", help="that reading one file may take")
    parser.add_argument("--keep", default="", metavar="FOLDER", help="where the files that failed go")
    given = parser.parse_args()
    begin = time.monotonic()
    summary = fuzz(
        *(given.files, given.seed), workers=given.workers, seconds=given.seconds_per_file, mebibytes=given.memory,
        keep=given.keep,
    )  # fmt: skip
    print(summary.table())
    print(f"{given.files} files of seed {given.seed} in {time.monotonic() - begin:.0f} s")
    return bool(summary.failures)


if __name__ == "__main__":
    sys.exit(main())
