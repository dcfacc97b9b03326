"""AudioSet: lists as they are published, clips under the names of people's copies, what is missing or broken."""

import csv
import json
import string
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audioset_standin import classes, make_audioset
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from runs import SMALL, script, train

from gafx.data.manifest import Ragged, check_readable
from gafx.data.sources import audioset as module
from gafx.data.sources.audioset import PARTS, Segments, class_list, listed_segments, match_files, read_segments
from gafx.data.sources.base import load_manifest
from gafx.data.splits import split
from gafx.errors import UsageError

MIDS = ("/m/0aa", "/t/dd00001", "/m/0b_c", "/m/0d")
COUNTS = {"balanced": 40, "unbalanced": 24, "evaluation": 20}


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    """The substitute with 84 clips of a second: its folder and listed clips."""
    root = tmp_path_factory.mktemp("audioset")
    return root, make_audioset(root, **COUNTS, seconds=1.5, rate=16000, broken=0.05, missing=0.1)


def write_lists(root, parts, names=("One", "Two, too", 'The "third"', "Four"), folder="."):
    """The lists of `parts`: part -> rows (id, start, end, mids)."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    if names:
        with (root / folder / "class_labels_indices.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["index", "mid", "display_name"], *zip(range(4), MIDS, names, strict=True)])
    for part, rows in parts.items():
        lines = ["# made\n", f"# num_segs={len(rows)}\n", "# YTID, start_seconds, end_seconds, positive_labels\n"]
        lines += [f'{key}, {start:.3f}, {end:.3f}, "{",".join(mids)}"\n' for key, start, end, mids in rows]
        (root / folder / f"{part}_segments.csv").write_text("".join(lines))


def clip(root, path, seconds=0.5, rate=8000):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(root / path, 0.1 * np.sin(np.arange(round(seconds * rate)) / 5), rate)


@pytest.fixture
def two(tmp_path):
    """Two segments of half a second for training, one for testing, without any file."""
    write_lists(
        tmp_path,
        {
            "balanced_train": [("Yabcdefghij", 30, 30.5, MIDS[:1]), ("bbbbbbbbbbb", 0, 0.5, MIDS[1:3])],
            "eval": [("ccccccccccc", 10, 10.5, MIDS[2:])],
        },
    )
    return tmp_path


def read_lists(root):
    """Segments and class names by Python's own csv module: (part, id, start) -> set of names."""
    with (root / "class_labels_indices.csv").open(newline="") as file:
        names = {row["mid"]: row["display_name"] for row in csv.DictReader(file)}
    found = {}
    for part in PARTS:
        with (root / f"{part}_segments.csv").open(newline="") as file:
            for row in csv.reader((line for line in file if line[0] != "#"), skipinitialspace=True):
                found[part, row[0], float(row[1])] = {names[mid] for mid in row[3].split(",")}
    return found


def test_labels_and_parts_agree_with_an_independent_reading(standin):
    root, clips = standin
    listed, made = read_lists(root), {clip.path: clip for clip in clips}
    assert listed == {(clip.part, clip.id, clip.start): set(clip.names) for clip in clips}
    manifest = load_manifest("audioset", root, train="full")
    assert manifest.classes == tuple(list(classes())[:527])
    assert len(manifest) == sum(clip.path is not None and not clip.broken for clip in clips)
    for row in range(len(manifest)):
        clip = made[manifest.relative_path(row)]
        assert {manifest.classes[label] for label in manifest.labels[row]} == listed[clip.part, clip.id, clip.start]
        assert (manifest.split[row] == 2) == (clip.part == "eval")
        assert manifest.duration[row] == pytest.approx(clip.end - clip.start, abs=0.1)
        assert manifest.start[row] in (0, clip.start)
    keys = [made[manifest.relative_path(row)].id for row in range(len(manifest))]
    assert len(np.unique(manifest.group)) == len(set(keys))


def test_the_clip_inside_a_whole_video_is_what_is_read(standin):
    root, clips = standin
    manifest = load_manifest("audioset", root, train="full")
    ends = {clip.path: clip.end for clip in clips}
    lengths = np.array([soundfile.info(manifest.file(row)).duration for row in range(len(manifest))])
    inside = np.flatnonzero(lengths > manifest.duration + 1)
    assert any(note.startswith(f"{len(inside)} clips are read out of longer files") for note in manifest.notes)
    assert len(inside)
    for row in inside:
        end = manifest.start[row] + manifest.duration[row]
        assert end == pytest.approx(ends[manifest.relative_path(row)])
        assert end < lengths[row] - 1


@pytest.mark.parametrize("train_part", ["balanced", "unbalanced", "full"])
def test_missing_and_broken_clips_are_counted_apart(standin, train_part):
    root, clips = standin
    parts = {"balanced": PARTS[:1], "unbalanced": PARTS[1:2], "full": PARTS[:2]}[train_part] + PARTS[2:]
    chosen = [clip for clip in clips if clip.part in parts]
    manifest = load_manifest("audioset", root, train=train_part)
    assert manifest.missing == sum(clip.path is None for clip in chosen)
    assert {entry.path for entry in manifest.skipped} == {clip.path for clip in chosen if clip.broken}
    for part, note in zip(parts, manifest.notes, strict=False):
        listed = [clip for clip in chosen if clip.part == part]
        lost = [clip for clip in listed if clip.path is None]
        here = len(listed) - len(lost)
        assert note.startswith(
            f"{part}: {here} of {len(listed)} listed clips are here, {len(lost)} missing (e.g. {lost[0].id}"
        )
    assert not any("belong to no segment" in note for note in manifest.notes)
    check_readable(manifest, max_unreadable=0.08, strict=False)
    with pytest.raises(UsageError, match="data.strict is set"):
        check_readable(manifest, max_unreadable=0.08, strict=True)


def test_the_order_and_the_fingerprint_do_not_depend_on_the_names(standin, tmp_path):
    root, clips = standin
    for part in PARTS:
        (tmp_path / f"{part}_segments.csv").write_bytes((root / f"{part}_segments.csv").read_bytes())
    (tmp_path / "class_labels_indices.csv").write_bytes((root / "class_labels_indices.csv").read_bytes())
    for item in clips:
        if item.path is not None and not item.broken:
            (tmp_path / f"Y{item.id}{Path(item.path).suffix}").symlink_to(root / item.path)
    before, after = load_manifest("audioset", root), load_manifest("audioset", tmp_path)
    assert np.array_equal(before.labels.values, after.labels.values)
    assert np.array_equal(before.duration, after.duration)


def test_protocols(standin, two):
    manifest = load_manifest("audioset", standin[0])
    official, chosen = split(manifest, "official"), split(manifest, "official_val", val_fraction=0.3)
    assert np.array_equal(official.test, np.flatnonzero(manifest.split == 2))
    assert not len(official.val)
    assert len(chosen.val)
    assert np.array_equal(chosen.test, official.test)
    assert len(split(manifest, "paper", test_fraction=0.3).test)
    clip(two, "Yabcdefghij.wav")
    clip(two, "Ybbbbbbbbbbb.wav")
    for name in ("aaaaaaaaaaa", "ddddddddddd", "eeeeeeeeeee"):
        with (two / "balanced_train_segments.csv").open("a") as file:
            file.write(f'{name}, 0.000, 0.500, "{MIDS[0]}"\n')
        clip(two, f"{name}.flac")
    (two / "eval_segments.csv").unlink()
    manifest = load_manifest("audioset", two)
    assert any("eval_segments.csv is not there: protocol official cannot be run" in note for note in manifest.notes)
    with pytest.raises(
        UsageError, match="no clip is in 'test'; protocols paper and kfold need no parts.*data.test_fraction"
    ):
        split(manifest, "official")
    assert len(split(manifest, "paper", test_fraction=0.4).train)


KEYS = st.text(string.ascii_letters + string.digits + "-_Y", min_size=11, max_size=11)
TIMES = st.one_of(st.integers(0, 2000).map(float), st.integers(0, 2_000_000).map(lambda n: n / 1000))


def manner(key, start, end, number):
    return (
        key, f"Y{key}", f"{key}_{start:.0f}",
        f"Y{key}-{start:.3f}", f"{key}-{start:06.0f}", f"{key}_{start * 1000:.0f}",
        f"{key}_{start:.0f}_{end:.0f}", f"Y{key}_{start:.3f}_{end:.3f}", f"{key}_{int(start)}",
    )[number]  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    rows=st.dictionaries(KEYS, st.tuples(TIMES, st.integers(0, 8)), min_size=1, max_size=20), folder=st.integers(0, 2)
)
def test_any_id_is_found_under_any_name(rows, folder):
    keys = list(rows)
    # Ids whose beginnings and ends look like prefixes and separators.
    keys += [
        key for key in ("Y" + keys[0][:10], keys[0][1:] + "Y", keys[0][1:] + "_", "-" + keys[0][:10]) if key not in rows
    ]
    entries = [(key, *rows.get(key, (30.0, place % 9))) for place, key in enumerate(keys)]
    entries = list({entry[0]: entry for entry in entries}.values())
    segments = table([(key, start) for key, start, _ in entries])
    inside = ("", "eval_segments/", f"unbal_train/{keys[0][:2]}/")[folder]
    paths = [f"{inside}{manner(key, start, start + 10, number)}.wav" for key, start, number in entries]
    copies, rest = match_files(paths, segments)
    assert not len(rest)
    assert copies.segment.tolist() == copies.file.tolist() == list(range(len(entries)))
    assert not copies.shared.any()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(key=KEYS, other=KEYS, start=st.integers(0, 500), wrong=st.integers(0, 500))
def test_other_names_are_nobodys(key, other, start, wrong):
    assume(other != key and abs(start - wrong) > 1 and start > 1)
    segments = table([(key, float(start))])
    names = [
        f"{other}.wav",
        f"{key}_{wrong}.wav",
        f"{key}x.wav",
        f"x{key}.wav",
        f"{key}_.wav",
        f"YY{key}.wav",
        f"{key[:10]}.wav",
    ]
    assert match_files(names, segments)[1].tolist() == list(range(len(names)))


def table(rows):
    keys, starts = zip(*rows, strict=True)
    starts = np.array(starts)
    labels = Ragged.of([[0]] * len(keys), np.int32)
    return Segments(
        np.array([k.encode() for k in keys], "S11"), np.zeros(len(keys), np.int8), starts, starts + 10, labels
    )


def test_several_copies_of_a_clip(two):
    clip(two, "eval/ccccccccccc.wav")
    clip(two, "bbbbbbbbbbb.wav")
    clip(two, "a/bbbbbbbbbbb_0.flac")  # names the start: before the other formats
    clip(two, "Yabcdefghij.flac")
    (two / "Yabcdefghij.wav").write_bytes(b"")  # comes first, and cannot be read
    (two / "ddddddddddd.wav").write_bytes(b"")
    manifest = load_manifest("audioset", two)
    assert [manifest.relative_path(row) for row in range(3)] == [
        "Yabcdefghij.flac", "a/bbbbbbbbbbb_0.flac", "eval/ccccccccccc.wav",
    ]  # fmt: skip
    assert not manifest.skipped
    assert any(note.startswith("2 files are further copies of clips") for note in manifest.notes)
    assert manifest.notes[-1].startswith("1 audio files belong to no segment of AudioSet's lists here")
    (two / "Yabcdefghij.flac").write_text("no sound")
    (entry,) = load_manifest("audioset", two).skipped
    assert entry.as_dict() == {"path": "Yabcdefghij.wav", "reason": "is empty (0 bytes)"}


def test_lengths_that_are_not_the_segments(two):
    clip(two, "bbbbbbbbbbb.wav", seconds=1.4)  # at most a second over: the clip as it was cut
    clip(two, "ccccccccccc.wav", seconds=10.2)  # a video whose end is the segment's, but for rounding
    clip(two, "Yabcdefghij.wav", seconds=20)
    manifest = load_manifest("audioset", two)
    assert manifest.duration.tolist() == pytest.approx([1.4, 0.2])
    assert manifest.start.tolist() == [0, 10]
    assert manifest.skipped[0].reason == (
        "is 20.0 s long: neither its segment (0.5 s) nor a video that reaches the segment's end at 30.5 s"
    )


def test_several_segments_of_one_video(two):
    with (two / "balanced_train_segments.csv").open("a") as file:
        file.write(f'bbbbbbbbbbb, 4.000, 4.500, "{MIDS[0]}"\nbbbbbbbbbbb, 0.000, 0.500, "{MIDS[0]},{MIDS[1]}"\n')
        file.write(f'ccccccccccc, 20.000, 20.500, "{MIDS[0]}"\n')
    clip(two, "ccccccccccc.wav")
    clip(two, "bbbbbbbbbbb_4.wav")
    clip(two, "Ybbbbbbbbbbb.mp3", rate=16000)
    manifest = load_manifest("audioset", two)
    assert len(manifest) == 2
    assert "put the start into its name" in manifest.skipped[0].reason
    assert any(
        "1 training segments are of videos in the evaluation part (e.g. ccccccccccc)" in n for n in manifest.notes
    )
    assert any("1 segments are listed more than once (e.g. bbbbbbbbbbb)" in note for note in manifest.notes)
    clip(two, "Ybbbbbbbbbbb.mp3", seconds=6, rate=16000)  # the whole video holds both
    manifest = load_manifest("audioset", two)
    assert manifest.start.tolist() == [0, 0, 0]
    assert [manifest.labels[row].tolist() for row in range(3)] == [[1, 2, 0], [0], [2, 3]]
    assert manifest.group[0] == manifest.group[1] != manifest.group[2]


def test_a_segment_in_both_training_parts(two):
    rows = [("Yabcdefghij", 30, 30.5, MIDS[1:2]), ("eeeeeeeeeee", 3, 3.5, MIDS[:1])]
    write_lists(two, {"unbalanced_train": rows})
    segments, notes = listed_segments(two, "full", MIDS)
    assert segments.id.tolist() == [b"Yabcdefghij", b"bbbbbbbbbbb", b"eeeeeeeeeee", b"ccccccccccc"]
    assert segments.part.tolist() == [0, 0, 1, 2]
    assert segments.labels[0].tolist() == [0, 1]
    assert notes == ["1 segments are listed more than once (e.g. Yabcdefghij); their labels are joined"]


def test_lists_in_a_folder_and_folders_that_cannot_be_read(two, tmp_path):
    (two / "metadata").mkdir()
    for path in two.glob("*.csv"):
        path.rename(two / "metadata" / path.name)
    clip(two, "bal_train/bb/Ybbbbbbbbbbb.wav")
    (two / "gone").symlink_to(two / "nowhere")
    manifest = load_manifest("audioset", two)
    assert manifest.relative_path(0) == "bal_train/bb/Ybbbbbbbbbbb.wav"
    assert [entry.path for entry in manifest.skipped] == ["gone"]
    assert manifest.missing == 2


def test_ancestors(standin, two):
    root, _ = standin
    plain, more = load_manifest("audioset", root), load_manifest("audioset", root, ancestors=True)
    names = [name.strip("*") for name in classes()]
    nodes = json.loads((root / "ontology.json").read_text())
    parent = {child: node["id"] for node in nodes for child in node["child_ids"]}
    mids = list(classes().values())
    for row in range(len(plain)):
        expected = dict.fromkeys(plain.labels[row].tolist())
        for label in plain.labels[row].tolist():
            mid = mids[label]
            while mid := parent.get(mid):
                if mids.index(mid) < 527:
                    expected[mids.index(mid)] = None
        assert set(more.labels[row].tolist()) == set(expected)
        assert more.labels[row][: len(plain.labels[row])].tolist() == plain.labels[row].tolist()
        assert len(more.labels[row]) == len(expected)
    assert names.index("Music") in more.labels.values  # above the genres, though an abstract class is between them
    clip(two, "Yabcdefghij.wav")
    with pytest.raises(UsageError, match="ancestors=true needs ontology.json, which is not under"):
        load_manifest("audioset", two, ancestors=True)


def test_without_the_class_list_the_ontology_orders_the_classes(two):
    (two / "class_labels_indices.csv").unlink()
    with pytest.raises(UsageError, match=r"neither class_labels_indices.csv nor ontology.json.*research.google.com"):
        load_manifest("audioset", two)
    nodes = [{"id": mid, "name": "Sound", "child_ids": []} for mid in ("/m/unused", *reversed(MIDS))]
    (two / "ontology.json").write_text(json.dumps(nodes))
    assert class_list(two) == (MIDS[::-1], tuple(f"Sound ({mid})" for mid in MIDS[::-1]))
    clip(two, "Yabcdefghij.wav")
    manifest = load_manifest("audioset", two)
    assert manifest.labels[0].tolist() == [3]
    assert any("the 4 classes in the lists are in the order of ontology.json" in note for note in manifest.notes)
    (two / "ontology.json").write_text('[{"id": "/m/x", "name": "X"}]')
    with pytest.raises(UsageError, match="is not AudioSet's ontology: an entry lacks 'child_ids'"):
        load_manifest("audioset", two)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('ddddddddddd, 0.000, "/m/0aa"', "has 3 of four fields; a line is YTID, start_seconds, end_seconds"),
        ('dddd, 0.000, 1.000, "/m/0aa"', "'dddd' is no YouTube id"),
        ('ddddddddddd, now, 1.000, "/m/0aa"', "start 'now' is no number of seconds"),
        ('ddddddddddd, 0.000, 1.0.0, "/m/0aa"', "end '1.0.0' is no number of seconds"),
        ('ddddddddddd, 2.000, 1.000, "/m/0aa"', "the segment ends at 1.000 s, not after its start at 2.000 s"),
        ('ddddddddddd, 0.000, 1.000, "/m/0aa,/m/0zz"', "label '/m/0zz' is none of the 4 classes"),
        ('ddddddddddd, 0.000, 1.000, "/m/0aa', "its labels are"),
        ('ddddddddddd, 0.000, 1.000, ""', "its labels are"),
        ("ddddddddddd, 0.000, 1.000, /m/0aa,/m/0d", r"labels|cannot be read"),
    ],
)
def test_malformed_lines_are_named(two, line, sentence):
    with (two / "eval_segments.csv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UsageError, match=rf"eval_segments.csv, line 5: .*({sentence})"):
        load_manifest("audioset", two)


def test_lines_as_other_programs_save_them(two):
    text = "\ufeffYTID,start_seconds,end_seconds,positive_labels\r\n\r\nddddddddddd,0,10.5,/m/0aa\r\n"
    (two / "eval_segments.csv").write_text(text, encoding="utf-8", newline="")
    segments = read_segments(two, ["eval"], MIDS)
    assert (segments.id.tolist(), segments.end.tolist(), segments.labels[0].tolist()) == ([b"ddddddddddd"], [10.5], [0])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("index,mid\n0,/m/0aa\n", r"lacks the columns \['display_name'\]"),
        ("index,mid,display_name\nx,/m/0aa,One\n", "line 2: invalid literal"),
        ("index,mid,display_name\n0,/m/0aa,One\n0,/m/0d,Two\n", "line 3: index 0 occurs twice"),
        ("index,mid,display_name\n1,/m/0aa,One\n", "do not count from 0"),
        ("index,mid,display_name\n0,/m/0aa,One\n1,/m/0aa,Two\n", "lists '/m/0aa' twice"),
        ("index,mid,display_name\n0,/m/0aa\n", "line 2: "),
        ("index,mid,display_name\n0,/m/0aa,One, two\n", "csv, line 2: has more than the 3 fields"),
    ],
)
def test_malformed_class_lists(two, text, sentence):
    (two / "class_labels_indices.csv").write_text(text)
    with pytest.raises(UsageError, match=sentence):
        load_manifest("audioset", two)


def test_what_is_not_there(two):
    with pytest.raises(UsageError, match="0 audio files, but no readable clip of its training parts"):
        load_manifest("audioset", two)
    with pytest.raises(UsageError, match=r"holds no unbalanced_train_segments.csv.*research.google.com"):
        load_manifest("audioset", two, train="unbalanced")
    with pytest.raises(UsageError, match="data.options.train='all' is not one of 'balanced', 'unbalanced', 'full'"):
        load_manifest("audioset", two, train="all")
    with pytest.raises(UsageError, match="data.root is missing"):
        load_manifest("audioset", None)


def test_headers_are_read_batch_by_batch(standin, monkeypatch):
    whole = load_manifest("audioset", standin[0])
    monkeypatch.setattr(module, "_BATCH", 7)
    assert load_manifest("audioset", standin[0]).fingerprint() == whole.fingerprint()


def test_training_and_evaluation(standin, tmp_path):
    root, clips = standin
    options = [option for option in SMALL if "options" not in option]
    run = train(
        "data=audioset", f"data.root={root}", *options, "objective=tag", "frontend=mel", "epochs=1",
        "data.max_unreadable=0.1", "data.sampling=balanced", f"output_dir={tmp_path}",
    )  # fmt: skip
    missing = sum(clip.path is None for clip in clips if clip.part != "unbalanced_train")
    data = json.loads((run / "run.json").read_text())["data"]
    assert data["missing"] == missing
    assert data["notes"][0].startswith("balanced_train: ")
    done = script("evaluate.py", run, "max_unreadable=0.1")
    assert done.returncode == 0, done.stderr
    assert "mean average precision" in done.stdout
    result = json.loads((run / "result.json").read_text())
    assert len(result["skipped"]) == sum(clip.broken for clip in clips if clip.part != "unbalanced_train")


def test_class_names_that_are_no_utf_8(tmp_path):
    """A list that another program has saved again."""
    (tmp_path / "class_labels_indices.csv").write_bytes(
        'index,mid,display_name\n0,/m/01,"Café, busy"\n1,/m/02,Speech\n'.encode("latin-1")
    )
    notes = []
    mids, names = class_list(tmp_path, notes)
    assert mids == ("/m/01", "/m/02")
    assert names == ("Café, busy", "Speech")
    assert notes == ["class_labels_indices.csv is not UTF-8, and was read as Windows-1252"]
