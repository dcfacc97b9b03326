"""AudioSet in Parquet shards, as on the hub: with its own lists and without, and where the two disagree."""

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import shard_files
from shard_files import dataset, push

from gafx.data.readers import FileReader
from gafx.data.sources.base import load_manifest
from gafx.data.splits import split
from gafx.errors import UsageError

MIDS = ["/m/01", "/m/02", "/t/dd03"]
PARTS = {"balanced_train": "bal_train", "unbalanced_train": "unbal_train", "eval": "eval"}


def key(number):
    return f"Y-_vid{number:05d}"


def write(root, rng, rows, lists, broken=()):
    """`rows`: by folder of the hub, pairs of id and mids; `lists`: by part, the same. The ids are numbers.

    Of the ids in `broken` the audio is cut off.
    """
    root.mkdir()
    (root / "class_labels_indices.csv").write_text(
        "index,mid,display_name\n" + "".join(f'{n},{mid},"Sound {n}"\n' for n, mid in enumerate(MIDS))
    )
    for part, entries in lists.items():
        lines = [f'{key(n)}, 30.000, 40.000, "{",".join(mids)}"' for n, mids in entries]
        (root / f"{part}_segments.csv").write_text("# header\n" + "\n".join(lines) + "\n")
    datasets.disable_progress_bars()
    strings = datasets.List(datasets.Value("string"))
    for folder, entries in rows.items():
        audio = shard_files.clips(rng, len(entries), forms=("flac",))
        for clip, (n, _) in zip(audio, entries, strict=True):
            clip["bytes"] = clip["bytes"][: 100 if n in broken else None]
        made = dataset(
            audio,
            video_id=([n if isinstance(n, str) else key(n) for n, _ in entries], datasets.Value("string")),
            labels=([mids for _, mids in entries], strings),
            human_labels=([["x"]] * len(entries), strings),
        )
        push(made, root, "x", 1)
        (root / "data" / folder).mkdir()
        (root / "data" / "x-00000-of-00001.parquet").rename(root / "data" / folder / "00.parquet")
    return root


ROWS = {
    "bal_train": [(1, MIDS[:1]), (2, MIDS[1:]), (3, MIDS[:2]), (4, MIDS[:1])],
    "unbal_train": [(11, MIDS[:1]), (12, MIDS)],
    "eval": [(21, MIDS[:1]), (22, MIDS[2:])],
}
LISTS = {part: ROWS[folder] for part, folder in PARTS.items()}


def labels(manifest, ids):
    return {name: [manifest.classes[n] for n in manifest.labels[row]] for row, name in enumerate(ids)}


@pytest.mark.parametrize(("train", "counts"), [("balanced", (4, 2)), ("unbalanced", (2, 2)), ("full", (6, 2))])
@pytest.mark.parametrize("listed", [True, False])
def test_as_on_the_hub(tmp_path, rng, train, counts, listed):
    root = write(tmp_path / "set", rng, ROWS, LISTS if listed else {})
    manifest = load_manifest("audioset", root, train=train)
    parts = split(manifest, "official")
    assert (len(parts.train), len(parts.test)) == counts
    assert manifest.classes == ("Sound 0", "Sound 1", "Sound 2")
    assert manifest.missing == 0
    assert manifest.skipped == ()
    assert len(np.unique(manifest.group)) == sum(counts)
    assert any("shards' own" in note for note in manifest.notes) == (not listed)
    assert not any("other labels" in note for note in manifest.notes)
    for row in range(len(manifest)):
        name = manifest.relative_path(row)
        folder, number = name.split("/")[1], int(name.rpartition("#")[2])
        wanted = ROWS[folder][number][1]
        assert [MIDS[label] for label in manifest.labels[row]] == wanted
        assert (manifest.split[row] == 2) == (folder == "eval")
        FileReader(manifest, 16000, 1).read(row, 0, 500)


def test_where_shards_and_lists_disagree(tmp_path, rng):
    rows = {
        "bal_train": [
            (1, MIDS[:1]),
            (1, MIDS[:1]),
            (2, MIDS[:1]),
            (5, MIDS),
            (21, MIDS[:1]),
            ("short", MIDS),
            (9, MIDS),
        ],
        "eval": [(21, MIDS[:1]), (3, MIDS[:2]), (9, MIDS)],
    }
    lists = {
        "balanced_train": [(1, MIDS[:1]), (2, MIDS[1:]), (3, MIDS[1::-1]), (4, MIDS), (9, MIDS)],
        "eval": [(21, MIDS[:1]), (22, MIDS)],
    }
    root = write(tmp_path / "set", rng, rows, lists)
    manifest = load_manifest("audioset", root)
    found = {}
    for row in range(len(manifest)):
        folder, number = manifest.relative_path(row).split("/")[1], int(manifest.relative_path(row).rpartition("#")[2])
        found[rows[folder][number][0]] = (
            int(manifest.split[row]), [MIDS[label] for label in manifest.labels[row]], folder
        )  # fmt: skip
    assert (
        found
        == {
            1: (0, MIDS[:1], "bal_train"),
            2: (0, MIDS[1:], "bal_train"),  # the list's labels
            3: (0, MIDS[1::-1], "eval"),  # the list's part; the same labels in another order
            9: (0, MIDS, "bal_train"),  # of the two shards that hold it, the one of its part
            21: (2, MIDS[:1], "eval"),
        }
    )
    assert manifest.missing == 2
    text = "; ".join(manifest.notes)
    for sentence in (
        "1 rows have no YouTube id of 11 characters (e.g. data/bal_train/00.parquet#5)",
        f"1 rows are of videos that their part holds already (e.g. {key(1)})",
        f"1 rows are of videos on none of the lists in use (e.g. {key(5)})",
        "2 videos are in shards of two parts",
        f"1 clips are in shards of another part than in the lists (e.g. {key(3)})",
        f"1 clips have other labels in the shards (e.g. {key(2)}); the lists count",
        "balanced_train: 4 of 5 listed clips are here",
        "eval: 1 of 2 listed clips are here",
    ):
        assert sentence in text, text


def test_without_lists(tmp_path, rng):
    rows = {
        "bal_train": [(1, MIDS[:1]), (21, MIDS)],
        "unbal_train": [(1, MIDS[:1]), (2, ["/m/unknown"]), (3, MIDS)],
        "eval": [(21, MIDS[:1])],
    }
    root = write(tmp_path / "set", rng, rows, {})
    manifest = load_manifest("audioset", root, train="full")
    assert len(manifest) == 3
    text = "; ".join(manifest.notes)
    assert f"1 training clips are of videos in the evaluation part (e.g. {key(21)})" in text
    assert f"1 videos are in both training parts (e.g. {key(1)}); each is taken once" in text
    assert [clip.reason for clip in manifest.skipped] == ["its label '/m/unknown' is none of the 3 classes"]
    with pytest.raises(UsageError, match="no usable clip of the training parts"):
        load_manifest("audioset", write(tmp_path / "none", rng, {"eval": [(1, MIDS)]}, {}))
    with pytest.raises(
        UsageError, match=r"none that holds audio and is named for one of the parts unbalanced_train, eval"
    ):
        load_manifest("audioset", write(tmp_path / "other", rng, {"bal_train": [(1, MIDS)]}, {}), train="unbalanced")


def test_where_there_are_lists_the_shards_labels_need_not_be_known(tmp_path, rng):
    rows = {
        "bal_train": [(1, ["/m/new"]), (2, None), (3, []), (4, MIDS[:1]), (5, [MIDS[1], "/m/new"])],
        "eval": [(21, MIDS[:1])],
    }
    lists = {"balanced_train": [(n, MIDS[1:]) for n in range(1, 6)], "eval": [(21, MIDS[:1])]}
    root = write(tmp_path / "set", rng, rows, lists)
    manifest = load_manifest("audioset", root)
    assert (len(manifest), manifest.missing, manifest.skipped) == (6, 0, ())
    assert all(manifest.labels[row].tolist() == [1, 2] for row in range(5))
    text = "; ".join(manifest.notes)
    assert "4 rows have no label in the shards, or one that is none of the 3 classes (e.g. data/bal_train/00." in text
    assert "#0: its label '/m/new' is none of the 3 classes); the lists count" in text
    assert f"5 clips have other labels in the shards (e.g. {key(1)}); the lists count" in text
    # Nor need there be any, or any that can be read.
    for labels in ([0.5], None):
        for path in (root / "data").rglob("*.parquet"):
            table = pq.read_table(path, columns=["audio", "video_id"])
            pq.write_table(table.append_column("labels", [labels * len(table)]) if labels else table, path)
        bare = load_manifest("audioset", root)
        assert np.array_equal(bare.labels.values, manifest.labels.values)


def test_what_cannot_be_used_is_not_missing(tmp_path, rng):
    lists = LISTS | {"balanced_train": [*LISTS["balanced_train"], (7, MIDS)]}
    root = write(tmp_path / "set", rng, ROWS, lists, {2, 22})
    manifest = load_manifest("audioset", root)
    assert manifest.missing == 1
    assert [clip.path for clip in manifest.skipped] == ["data/bal_train/00.parquet#1", "data/eval/00.parquet#1"]
    assert "balanced_train: 4 of 5 listed clips are here, 1 missing (e.g. Y-_vid00007 at 30 s)" in manifest.notes
    assert "eval: 2 of 2 listed clips are here" in manifest.notes


@pytest.mark.parametrize("listed", [True, False])
def test_what_is_told_where_no_training_clip_is_left(tmp_path, rng, listed):
    root = write(tmp_path / "set", rng, ROWS, LISTS if listed else {}, {1, 2, 3, 4})
    with pytest.raises(
        UsageError, match=r"no usable clip .* 4 rows are skipped \(data/bal_train/00\.parquet#0: "
    ) as info:
        load_manifest("audioset", root)
    assert ("balanced_train: 4 of 4 listed clips are here" in str(info.value)) == listed


@pytest.mark.parametrize(
    ("listed", "columns", "text"),
    [
        (
            True,
            ["audio", "labels"],
            r"00\.parquet has the columns .*, and no 'video_id': .* audio, video_id \(YouTube ",
        ),
        (False, ["audio", "video_id"], r"and no 'labels': .* and, without its lists, labels \(mids\)"),
    ],
)
def test_shards_that_are_not_audiosets(tmp_path, rng, listed, columns, text):
    root = write(tmp_path / "set", rng, ROWS, LISTS if listed else {})
    for path in (root / "data").rglob("*.parquet"):
        pq.write_table(pq.read_table(path, columns=columns), path)
    with pytest.raises(UsageError, match=text + ".*read by data=shards") as info:
        load_manifest("audioset", root)
    assert "data.options" not in str(info.value)


def test_parquet_files_that_are_no_shards_are_left_aside(tmp_path, rng):
    """Clips in files stay clips in files; and where there are shards as well, they are what is read."""
    root = write(tmp_path / "set", rng, {}, LISTS)
    for part, entries in LISTS.items():
        (root / part).mkdir()
        for (n, _), clip in zip(entries, shard_files.clips(rng, len(entries), forms=("flac",)), strict=True):
            (root / part / f"Y{key(n)}.flac").write_bytes(clip["bytes"])
    plain = load_manifest("audioset", root)
    audio = [clip["bytes"] for clip in shard_files.clips(rng, 2)]
    shard_files.plain(root / "eval", "scores.parquet", {"score": [1.0]})
    shard_files.plain(root, "embeddings.parquet", {"audio": audio})
    manifest = load_manifest("audioset", root)
    assert (manifest.spans, manifest.fingerprint()) == (None, plain.fingerprint())
    assert manifest.notes == (
        *plain.notes,
        "2 Parquet files are not named for a part (bal_train, unbal_train, eval) or hold no audio; they are ignored "
        "(e.g. embeddings.parquet)",
    )
    shards = write(tmp_path / "shards", rng, ROWS, {})
    (shards / "data").rename(root / "data")
    manifest = load_manifest("audioset", root)
    assert manifest.spans is not None
    assert len(manifest) == 6
    assert any(note.startswith("2 Parquet files are not named") for note in manifest.notes)
    assert (
        "the clips are read from the 3 Parquet shards, and audio files in the same folder (e.g. balanced_train/"
        in (manifest.notes[-1])
    )


@pytest.mark.parametrize(
    ("there", "train", "note"),
    [
        (
            ["balanced_train", "eval"],
            "full",
            "unbalanced_train_segments.csv is not there: parts and labels are the shards",
        ),
        (["eval"], "full", "balanced_train_segments.csv and unbalanced_train_segments.csv are not there: parts"),
        (["balanced_train"], "balanced", "eval_segments.csv is not there: protocol official cannot be run"),
        ([], "balanced", "AudioSet's lists are not there: parts and labels are the shards' own"),
    ],
)
def test_which_list_lacks(tmp_path, rng, there, train, note):
    root = write(tmp_path / "set", rng, ROWS, {part: LISTS[part] for part in there})
    notes = load_manifest("audioset", root, train=train).notes
    assert sum(text.startswith(note) for text in notes) == 1, notes
    assert sum("not there" in text for text in notes) == 1
