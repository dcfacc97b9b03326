"""Protocols: recordings stay whole, fractions are met, and a split depends only on the data and the seed."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gafx.data.manifest import make_manifest
from gafx.data.protocols import PROTOCOLS
from gafx.data.splits import split
from gafx.errors import UsageError

CLASSES = ("blues", "jazz", "rock")
# Those that any manifest can be divided by; the published split of GTZAN is tested in test_gtzan.py.
DRAWN = [protocol for protocol in PROTOCOLS if protocol != "fault_filtered"]


def manifest_of(groups, shuffle=0, parts=False, classes=CLASSES):
    """A manifest from (class, clips, fold) for each recording; the rows are shuffled."""
    rows = [(number, *group) for number, group in enumerate(groups) for _ in range(group[1])]
    rows = [rows[i] for i in np.random.default_rng(shuffle).permutation(len(rows))]
    return make_manifest(
        Path("/data"),
        classes,
        [f"{i}.wav" for i in range(len(rows))],
        [[label] for _, label, _, _ in rows],
        [30.0] * len(rows),
        [22050] * len(rows),
        groups=[f"recording {number}" for number, *_ in rows],
        folds=None if parts else [fold for *_, fold in rows],
        splits=[fold % 3 for *_, fold in rows] if parts else None,
    )


def gtzan_like(seed=0):
    rng = np.random.default_rng(seed)
    return manifest_of([(label, int(rng.integers(1, 4)), i % 5 + 1) for label in range(3) for i in range(20)], seed)


def check(manifest, parts, protocol):
    """Check every split: no recording in two parts, every row in exactly one part, ascending."""
    everything = np.concatenate([parts.train, parts.val, parts.test])
    assert sorted(everything.tolist()) == list(range(len(manifest)))
    sides = [set(manifest.group[rows].tolist()) for rows in (parts.train, parts.val, parts.test)]
    assert sum(map(len, sides)) == len(set().union(*sides))
    for rows in (parts.train, parts.val, parts.test):
        assert (np.diff(rows) > 0).all()
    assert len(parts.train)
    assert len(parts.test)
    assert set(manifest.first_label()[parts.train]) == set(range(len(manifest.classes)))
    if not protocol.endswith("_val"):
        assert len(parts.val) == 0


@pytest.mark.parametrize("protocol", DRAWN)
def test_200_seeds(protocol):
    manifest = gtzan_like()
    tests, vals = set(), set()
    for seed in range(200):
        parts = split(manifest, protocol, fold=seed % 5 + 1, seed=seed)
        check(manifest, parts, protocol)
        assert len(parts.val) > 0 or not protocol.endswith("_val")
        tests.add(tuple(parts.test))
        vals.add(tuple(parts.val))
    assert len(tests) == (5 if protocol.startswith("official") else 200)  # parts by seed, and official folds
    assert len(vals) == (200 if protocol.endswith("_val") else 1)


@st.composite
def recordings(draw):
    """Recordings of 2 or 3 classes, at least 6 a class and one for each fold, of 1 to 6 clips each."""
    groups = []
    for label in range(draw(st.integers(2, 3))):
        sizes = draw(st.lists(st.integers(1, 6), min_size=6, max_size=15))
        groups += [(label, size, i % 5 + 1) for i, size in enumerate(sizes)]
    return groups


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(groups=recordings(), seed=st.integers(0, 2**31), fold=st.integers(1, 5), parts=st.booleans())
def test_any_manifest(groups, seed, fold, parts):
    manifest = manifest_of(groups, seed, parts, CLASSES[: groups[-1][0] + 1])
    for protocol in DRAWN:
        try:
            fold = 1 if parts and protocol.startswith("official") else fold  # parts, not folds
            result = split(manifest, protocol, fold=fold, seed=seed)
        except UsageError as error:
            # Allowed where there are too few recordings to cut a validation part from.
            if not protocol.endswith("_val") or "leaves no validation clip" not in str(error):
                raise
            continue
        check(manifest, result, protocol)
        again = split(manifest, protocol, fold=fold, seed=seed)
        for one, other in zip(dataclasses.astuple(result), dataclasses.astuple(again), strict=True):
            assert np.array_equal(one, other)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(groups=recordings(), seed=st.integers(0, 2**31), fraction=st.sampled_from([0.1, 0.2, 0.35]))
def test_paper_is_stratified_within_one_recording(groups, seed, fraction):
    manifest = manifest_of(groups, seed, classes=CLASSES[: groups[-1][0] + 1])
    parts = split(manifest, "paper", seed=seed, test_fraction=fraction)
    labels = manifest.first_label()
    for label in range(len(manifest.classes)):
        clips = int((labels == label).sum())
        largest = max(size for of, size, _ in groups if of == label)
        assert abs((labels[parts.test] == label).sum() - fraction * clips) <= largest


def test_paper_of_equal_recordings_is_exact():
    """GTZAN: 100 tracks of each of 10 genres -> 20 of each are tested."""
    manifest = manifest_of([(label, 1, 1) for label in range(10) for _ in range(100)], classes=list("abcdefghij"))
    for seed in range(20):
        parts = split(manifest, "paper_val", seed=seed)
        assert np.bincount(manifest.first_label()[parts.test]).tolist() == [20] * 10
        assert np.bincount(manifest.first_label()[parts.val]).tolist() == [8] * 10


@settings(max_examples=60, deadline=None, derandomize=True)
@given(groups=recordings(), seed=st.integers(0, 2**31), folds=st.integers(2, 6))
def test_folds_partition_the_rows_and_are_stratified(groups, seed, folds):
    manifest = manifest_of(groups, seed, classes=CLASSES[: groups[-1][0] + 1])
    tests = [split(manifest, "kfold", fold=k + 1, folds=folds, seed=seed).test for k in range(folds)]
    assert sorted(np.concatenate(tests).tolist()) == list(range(len(manifest)))
    labels = manifest.first_label()
    for label in range(len(manifest.classes)):
        clips = [int((labels[rows] == label).sum()) for rows in tests]
        largest = max(size for of, size, _ in groups if of == label)
        assert max(clips) - min(clips) <= largest


@pytest.mark.parametrize("protocol", ["paper", "kfold", "official"])
def test_validation_is_cut_from_training_alone(protocol):
    manifest = gtzan_like()
    for seed in range(20):
        without, with_ = (split(manifest, name, fold=2, seed=seed) for name in (protocol, f"{protocol}_val"))
        assert np.array_equal(without.test, with_.test)
        assert np.array_equal(without.train, np.union1d(with_.train, with_.val))
        assert 0.05 < len(with_.val) / len(without.train) < 0.15


def test_official_folds_and_parts():
    manifest = gtzan_like()
    for fold in range(1, 6):
        assert np.array_equal(split(manifest, "official", fold=fold).test, np.flatnonzero(manifest.fold == fold))
    manifest = manifest_of([(label, 2, i) for label in range(3) for i in range(6)], parts=True)
    with_ = split(manifest, "official_val")
    for rows, number in ((with_.train, 0), (with_.val, 1), (with_.test, 2)):
        assert np.array_equal(rows, np.flatnonzero(manifest.split == number))
    without = split(manifest, "official")
    assert np.array_equal(without.train, np.flatnonzero(manifest.split < 2))  # nothing is thrown away


@pytest.mark.parametrize("protocol", DRAWN)
def test_the_order_of_the_rows_does_not_matter(protocol):
    """With the recordings' numbers kept, rows in another order give the same recordings on the same sides."""
    manifest = gtzan_like()
    order = np.random.default_rng(9).permutation(len(manifest))
    columns = {
        name: getattr(manifest, name)[order]
        for name in ("group", "start", "duration", "sample_rate", "row", "fold", "split", "weight")
    }
    shuffled = dataclasses.replace(
        manifest, path=manifest.path.take(order), labels=manifest.labels.take(order), **columns
    )
    one, other = split(manifest, protocol, fold=3, seed=4), split(shuffled, protocol, fold=3, seed=4)
    for part in ("train", "val", "test"):
        assert sorted(order[getattr(other, part)]) == getattr(one, part).tolist()


def test_the_root_does_not_matter():
    manifest = gtzan_like()
    moved = dataclasses.replace(manifest, root=Path("/elsewhere"))
    assert np.array_equal(split(manifest, "kfold_val").val, split(moved, "kfold_val").val)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data(), protocol=st.sampled_from([p for p in DRAWN if not p.startswith("official")]))
def test_recordings_with_clips_of_several_classes_stay_whole(data, protocol):
    rows = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 25)), min_size=60, max_size=90))
    assume(len({group for _, group in rows}) >= 18)
    manifest = make_manifest(
        Path("/data"),
        CLASSES,
        [f"{i}.wav" for i in range(len(rows))],
        [[label] for label, _ in rows],
        [30.0] * len(rows),
        [22050] * len(rows),
        groups=[group for _, group in rows],
    )
    try:
        parts = split(manifest, protocol)
    except UsageError as error:
        message = str(error)  # allowed where a class is left without training clips, but never a leak
        if "no training clip is left" not in message:
            raise
        return
    check(manifest, parts, protocol)


# --- what cannot be split ---------------------------------------------------------------------------------------------


def refuse(manifest, protocol, *parts, **arguments):
    with pytest.raises(UsageError) as caught:
        split(manifest, protocol, **arguments)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("protocol", DRAWN)
def test_a_single_class_is_refused(protocol):
    refuse(manifest_of([(0, 1, 1 + i % 2) for i in range(10)], classes=["rock"]), protocol, "single class", "'rock'")


@pytest.mark.parametrize("tags", [[[0], []], [[0], [], []], [[], [0], [0]]])
def test_one_tag_can_be_learned_from_clips_without_it(tags, tmp_path):
    labels = tags * 10
    paths = [f"{number}.wav" for number in range(len(labels))]
    manifest = make_manifest(tmp_path, ["dog"], paths, labels, [1.0] * len(labels), [8000] * len(labels))
    parts = split(manifest, "paper", every_class=False)
    counts = [np.bincount(manifest.labels.take(rows).lengths(), minlength=2) for rows in (parts.train, parts.test)]
    assert (np.array(counts) > 0).all()  # both parts have clips with and without it
    refuse(manifest, "paper", "single class")  # for an objective that reads one label per clip


def test_no_label_at_all_is_said(tmp_path):
    manifest = make_manifest(tmp_path, [], ["a.wav", "b.wav"], [[], []], [1.0] * 2, [8000] * 2)
    for every_class in (True, False):
        refuse(manifest, "kfold", "has a label", every_class=every_class)


def test_nothing_is_refused():
    refuse(manifest_of([]), "paper", "no usable clip", "/data")


def test_a_class_without_training_clips_is_refused():
    groups = [(0, 1, 1 + i % 2) for i in range(10)] + [(1, 1, 1 + i % 2) for i in range(10)]
    refuse(manifest_of([*groups, (2, 1, 1)]), "official", "no training clip", "'rock'", fold=1)
    refuse(manifest_of(groups), "paper", "no training clip", "'rock'")


def test_a_recording_across_official_folds_is_refused():
    manifest = gtzan_like()
    fold = manifest.fold.copy()
    first = int(np.flatnonzero(np.bincount(manifest.group)[manifest.group] > 1)[0])
    fold[first] = fold[first] % 5 + 1
    refuse(dataclasses.replace(manifest, fold=fold), "official", "both sides", ".wav", fold=int(fold[first]))


def test_no_official_folds_is_refused():
    manifest = gtzan_like()
    manifest = dataclasses.replace(manifest, fold=np.full(len(manifest), -1, np.int32))
    refuse(manifest, "official", "no official folds", "paper or kfold")


def test_parts_without_a_test_part_are_refused():
    manifest = manifest_of([(label, 1, i % 2) for label in range(3) for i in range(6)], parts=True)
    refuse(manifest, "official", "no clip is in 'test'")


@pytest.mark.parametrize("fold", [-1, 0, 6])
def test_a_fold_out_of_range_is_refused(fold):
    refuse(gtzan_like(), "official", f"fold={fold}", "[1, 2, 3, 4, 5]", fold=fold)
    refuse(gtzan_like(), "kfold", f"fold={fold}", fold=fold)


def test_more_folds_than_recordings_are_refused():
    refuse(manifest_of([(i % 2, 5, 1) for i in range(4)], classes=CLASSES[:2]), "kfold", "folds=5", "(4)")


def test_too_few_recordings_for_a_test_part_are_refused():
    refuse(manifest_of([(0, 1, 1), (1, 1, 1)], classes=CLASSES[:2]), "paper", "no test clip", "2 recordings")


def test_too_few_recordings_for_a_validation_part_are_refused():
    refuse(manifest_of([(i % 2, 1, 1) for i in range(6)], classes=CLASSES[:2]), "paper_val", "validation")


def test_an_unknown_protocol_is_refused():
    refuse(gtzan_like(), "random", "'random'", "choose one of: paper, paper_val, kfold", "fault_filtered")


def test_a_published_split_belongs_to_its_data_set():
    refuse(gtzan_like(), "fault_filtered", "GTZAN", "data=gtzan", "/data")


def test_a_rare_tag_may_be_absent_even_where_each_clip_has_one(tmp_path):
    """A tagger's data set in which each clip happens to have one label, as a part of AudioSet may be."""
    labels = [[0], [1], [0], [1]]
    manifest = make_manifest(
        tmp_path, [f"class {i}" for i in range(12)], list("abcd"), labels, [1.0] * 4, [8000] * 4, splits=[0, 0, 2, 2]
    )
    with pytest.raises(UsageError, match=r"'class 6' and 5 more.*objective=tag"):
        split(manifest, "official")
    assert split(manifest, "official", every_class=False).train.tolist() == [0, 1]


def test_fewer_training_clips_are_balanced_and_nested():
    manifest = gtzan_like()
    whole = split(manifest, "kfold", fold=2)
    few, more = (split(manifest, "kfold", fold=2, train_clips=count) for count in (7, 20))
    assert (len(few.train), len(more.train)) == (7, 20)
    assert set(few.train) < set(more.train) < set(whole.train)
    assert sorted(np.bincount(manifest.first_label()[few.train])) == [2, 2, 3]
    assert np.array_equal(few.test, whole.test)
    assert not np.array_equal(few.train, split(manifest, "kfold", fold=2, train_clips=7, seed=1).train)
    with pytest.raises(UsageError, match="there are 3, keep at least that"):
        split(manifest, "kfold", fold=2, train_clips=2)
    with pytest.raises(UsageError, match=f"the training part has {len(whole.train)} clips"):
        split(manifest, "kfold", fold=2, train_clips=1000)
