"""Shards as the `datasets` library writes them, for the tests that read them."""

import io

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

FORMATS = {
    "flac": {"format": "FLAC"},
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3"},
}


def encoded(samples, rate, form="flac"):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **FORMATS[form])
    return buffer.getvalue()


def clips(rng, count, seconds=0.3, rate=16000, forms=tuple(FORMATS)):
    """`count` audio entries, cycling through the formats, each a little longer than the last."""
    forms = [forms[number % len(forms)] for number in range(count)]
    return [
        {
            "bytes": encoded(0.1 * rng.standard_normal(int(seconds * rate) + 37 * number), rate, form),
            "path": f"{number}.{form}",
        }
        for number, form in enumerate(forms)
    ]


def dataset(audio, **columns):
    """A data set of the library: `columns` are pairs of values and a feature."""
    struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"audio": struct, **{name: feature for name, (_, feature) in columns.items()}})
    made = datasets.Dataset.from_dict(
        {"audio": audio, **{name: values for name, (values, _) in columns.items()}}, features=features
    )
    # Cast afterwards: encoding through `Audio` requires a decoder, even where there is nothing to encode.
    return made.cast_column("audio", datasets.Audio(decode=False))


def push(made, root, part, shards):
    """The files that `push_to_hub` would make of a split."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        path = root / "data" / f"{part}-{number:05d}-of-{shards:05d}.parquet"
        made.shard(shards, number, contiguous=True).to_parquet(path)


def plain(root, name, columns, **options):
    """A Parquet file without metadata of `datasets`."""
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), root / name, **options)
    return root / name


def as_files(audio, folder):
    """The same clips as plain files."""
    folder.mkdir(parents=True)
    for number, clip in enumerate(audio):
        (folder / f"{number:04d}.{clip['path'].rpartition('.')[2]}").write_bytes(clip["bytes"])
    return folder


def decoded(content):
    return soundfile.read(io.BytesIO(content), dtype="float64", always_2d=True)[0].T.astype(np.float64)
