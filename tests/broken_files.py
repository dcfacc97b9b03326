"""Files as people upload them by mistake."""

import zipfile

import numpy as np

RATE = 22050


def damaged(name, tmp_path, wav_factory):
    """Write `upload/NAME` of the kind that the name says; `long.wav` lasts 21 s."""
    noise = 0.1 * np.sin(np.arange(RATE))
    folder = tmp_path / "upload"
    folder.mkdir()
    path = folder / name
    if name == "archive.wav":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "a" * 1000)
    elif name in ("text.mp3", "text.wav"):
        path.write_text("no sound at all, only words. " * 100)
    elif name == "empty.wav":
        path.write_bytes(b"")
    elif name == "large.wav":
        with path.open("wb") as file:
            file.truncate(2**30)
    else:
        samples = {
            "long.wav": np.tile(noise, 21), "short.wav": noise[:20], "none.wav": noise[:0], "silent.wav": 0 * noise,
            "cut.wav": noise, "nan.wav": noise * np.nan,
        }[name]  # fmt: skip
        wav_factory(f"upload/{name}", samples, subtype="FLOAT" if name == "nan.wav" else "PCM_U8")
        if name == "cut.wav":
            path.write_bytes(path.read_bytes()[:9000])
    return path
