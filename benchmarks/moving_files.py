"""gafx predict over a folder whose files another process writes, renames, truncates and deletes meanwhile.

    python benchmarks/moving_files.py [--minutes 15] [--seed 0]
    python benchmarks/moving_files.py --quick

The folder holds files that are left alone and files that change all the time: wav, flac, mp3 and ogg of 0.1 to 3 s,
written in pieces, renamed, truncated in the middle, replaced by noise or by nothing, and deleted. The command is given
over and over. It must end with status 0 or 1 and without a traceback, name each file once with probabilities or an
error, count them rightly, and give the files that are left alone the probabilities that they have otherwise.
"""

import argparse
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile

from gafx.model import create_model

FORMATS = {"wav": {}, "flac": {}, "mp3": {"format": "MP3"}, "ogg": {}}
STILL, MOVING = 24, 60
LABELS = [f"label {number}" for number in range(5)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="half a minute")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        create_model("mel", {"name": "ast", "depth": 1}, classes=LABELS, segment_seconds=0.5).save(base / "model")
        still, moving = base / "audio" / "still", base / "audio" / "moving"
        still.mkdir(parents=True)
        moving.mkdir()
        rng = np.random.default_rng(parsed.seed)
        for number in range(STILL):
            (still / f"{number}.{list(FORMATS)[number % 4]}").write_bytes(sound(rng, list(FORMATS)[number % 4]))
        status, errors, expected = predict(base, still)
        if status:
            sys.exit(errors)
        editor = multiprocessing.get_context("spawn").Process(target=edit, args=(moving, parsed.seed), daemon=True)
        editor.start()
        end = time.monotonic() + (30 if parsed.quick else 60 * parsed.minutes)
        faults: list[str] = []
        rounds, counts, reasons = 0, Counter(), Counter()
        while time.monotonic() < end:
            status, errors, found = predict(base, base / "audio")
            rounds += 1
            faults += check(status, errors, found, expected)
            counts += Counter("labelled" if "error" not in entry else "error" for entry in found)
            reasons += Counter(re.sub(r"[\d.,]+", "N", entry["error"])[:70] for entry in found if "error" in entry)
        if not editor.is_alive():
            faults.append("the editor has ended")
        editor.terminate()
        editor.join()
    print(f"{rounds} commands, {counts['labelled']} files labelled, {counts['error']} with an error, of these")
    for reason, count in reasons.most_common(20):
        print(f"  {count:>7}  {reason}")
    print(f"{len(faults)} faults")
    for fault in faults[:20]:
        print(f"  {fault}")
    sys.exit(1 if faults else 0)


def predict(base: Path, folder: Path) -> tuple[int, str, list[dict]]:
    """Label a folder; return the status, standard error, and the entries."""
    out = base / "labels.jsonl"
    out.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "gafx", "predict", str(folder), "--model", str(base / "model"), "--jsonl",
         "--device", "cpu", "--output", str(out)],
        capture_output=True, text=True, errors="replace", check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    return done.returncode, done.stderr, [json.loads(line) for line in lines]


def check(status: int, errors: str, found: list[dict], expected: list[dict]) -> list[str]:
    """Faults of the answer to one command."""
    faults = []
    failed = sum("error" in entry for entry in found)
    if status != (1 if failed else 0) or "Traceback" in errors:
        faults.append(f"status {status} with {failed} errors: {errors.strip()[-300:]}")
    names = Counter(entry["file"] for entry in found)
    faults += [f"{name} is named {count} times" for name, count in names.items() if count > 1]
    labelled = re.search(r"^([\d,]+) files? labelled", errors, re.MULTILINE)
    unread = re.search(r"^([\d,]+) files? could not be read", errors, re.MULTILINE)
    counted = [int(match[1].replace(",", "")) if match else 0 for match in (labelled, unread)]
    if counted != [len(found) - failed, failed]:
        faults.append(f"{counted} are counted, {[len(found) - failed, failed]} are in the file")
    faults += [f"{entry} has neither an error nor a result" for entry in found if len(entry) < 2]
    answers = {entry["file"]: entry for entry in found}
    faults += [f"{entry['file']} has changed" for entry in expected if answers.get(entry["file"]) != entry]
    return faults


def edit(folder: Path, seed: int) -> None:
    """Change files until the process is ended."""
    rng = np.random.default_rng(seed + 1)
    sounds = {form: [sound(rng, form) for _ in range(6)] for form in FORMATS}
    while True:
        form = list(FORMATS)[rng.integers(4)]
        path = folder / f"{rng.integers(MOVING)}.{form}"
        content = sounds[form][rng.integers(6)]
        kind = rng.integers(7)
        try:
            if kind <= 1:  # in pieces, as a recorder or a download does
                with path.open("wb") as file:
                    for begin in range(0, len(content), 1 + len(content) // 4):
                        file.write(content[begin : begin + 1 + len(content) // 4])
                        file.flush()
                        time.sleep(0.004)
            elif kind == 2:
                os.truncate(path, int(rng.integers(0, path.stat().st_size + 1)))
            elif kind == 3:
                os.replace(path, folder / f"{rng.integers(MOVING)}.{list(FORMATS)[rng.integers(4)]}")
            elif kind == 4:
                path.unlink()
            elif kind == 5:
                path.write_bytes(rng.bytes(int(rng.integers(0, 5000))))
            else:
                path.write_bytes(content)
        except FileNotFoundError:
            pass
        time.sleep(0.002)


def sound(rng: np.random.Generator, form: str) -> bytes:
    """Noise of 0.1 to 3 s as a file of a format."""
    buffer = io.BytesIO()
    rate = int(rng.choice([16000, 22050, 44100]))
    wave = rng.normal(0, 0.1, int(rng.uniform(0.1, 3) * rate)).astype(np.float32)
    soundfile.write(buffer, wave, rate, **{"format": form.upper(), **FORMATS[form]})
    return buffer.getvalue()


if __name__ == "__main__":
    main()
