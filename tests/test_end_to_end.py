"""Train, evaluate, look at every file of a run; on synthetic audio, through the scripts, as a user would."""

import base64
import csv
import io
import json
import re
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
from runs import MEL, SLIM, SMALL, script, train

from gafx import load
from gafx.evaluation.predictions import PredictionTable
from gafx.evaluation.result import read_results
from gafx.objectives.classify import Classify
from gafx.stats.scores import wilson
from gafx.studies.ablation.tracks import pool


@pytest.fixture(scope="module")
def folds(synthetic_root, tmp_path_factory):
    """Two folds of a mel model and one of GAFX-R, evaluated in one call; returns the call and the folders."""
    out = tmp_path_factory.mktemp("outputs")
    common = [*SMALL, f"data.root={synthetic_root}", f"output_dir={out}", "data.protocol=kfold", "data.folds=2"]
    folders = [
        train(*common, *MEL, "data.fold=1", "name=mel"),
        train(*common, *MEL, "data.fold=2", "name=mel"),
        train(*common, *SLIM, "data.segment_seconds=0.8", "data.fold=1", "name=slim", "max_steps=3"),
        train(*common, *SLIM, "data.segment_seconds=0.8", "data.fold=2", "name=slim", "max_steps=3"),
    ]
    done = script("evaluate.py", *folders, "resamples=50", "workers=0", "pictures=2")
    assert done.returncode == 0, done.stderr
    (joint,) = out.glob("evaluation-*")
    return done, folders, joint


def test_the_table_states_protocol_and_sample_size(folds):
    done, _, joint = folds
    assert (
        "synthetic, protocol kfold (split seed 0), folds 1, 2, test part, 40 recordings, 10 classes, chance 10.0 %"
        in done.stdout
    )
    rows = [line for line in done.stdout.splitlines() if line.startswith(("mel ", "slim "))]
    assert len(rows) == 2
    assert all("random start" in row and " 40 " in row and " to " in row for row in rows)
    assert f"report: {joint / 'report.html'}" in done.stdout


def test_results_agree_with_predictions(folds):
    _, folders, _joint = folds
    result = json.loads((folders[0] / "result.json").read_text())
    with (folders[0] / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result["tracks"] == 20
    right = sum(row["label"] == row["prediction"] for row in rows)
    accuracy = result["scores"]["track"]["accuracy"]
    assert accuracy["value"] == pytest.approx(right / 20)
    assert accuracy["low"] == pytest.approx(wilson(right, 20).low)
    assert np.trace(result["confusion"]) == right
    for row in rows:
        probabilities = [float(row[name]) for name in result["classes"]]
        assert sum(probabilities) == pytest.approx(1, abs=1e-4)
        assert result["classes"][int(np.argmax(probabilities))] == row["prediction"]
        assert row["fold"] == "1"
    with (folders[0] / "segments.csv").open() as file:
        segments = list(csv.DictReader(file))
    assert len(segments) == result["segments"] == 40  # 1.5 s in segments of 0.8 s: the last is moved back
    mean = np.mean([float(p[result["classes"][0]]) for p in segments if p["clip"] == rows[0]["clip"]])
    assert float(rows[0][result["classes"][0]]) == pytest.approx(mean, abs=1e-5)
    for key in ("protocol", "frontend", "cost", "per_class", "skipped"):
        assert key in result
    assert result["cost"]["flops_per_clip"] > 1e6
    assert result["cost"]["parameters"] == sum(p.numel() for p in load(folders[0]).parameters())


def test_folds_are_pooled(folds):
    _, folders, joint = folds
    both = json.loads((joint / "result.json").read_text())["models"]
    assert [model["tracks"] for model in both] == [40, 40]
    assert [model["folds"] for model in both] == [[1, 2], [1, 2]]
    singles = [json.loads((folder / "result.json").read_text()) for folder in folders[:2]]
    hits = sum(np.trace(single["confusion"]) for single in singles)
    assert both[0]["scores"]["track"]["accuracy"]["value"] == pytest.approx(hits / 40)
    with (joint / "predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 80
    # Scoring again from the folds' predictions, as `gafx ablate` does, gives the same scores to the last digit.
    table = pool([PredictionTable.read(folder) for folder in folders[:2]])
    again = Classify.scores(table.values, table.targets, table.group, resamples=50)
    again["calibration_error"] = table.calibration_score(50)
    assert again == read_results(joint)[0].track_scores


def test_misjudged_tracks_are_listed_with_their_sound(folds):
    """In the page of a run: every track whose prediction is wrong, the most confident first, with its own samples."""
    _, folders, joint = folds
    table = PredictionTable.read(folders[0])
    wrong = np.flatnonzero(~table.correct())
    wrong = wrong[np.argsort(-table.values[wrong].max(axis=1), kind="stable")]
    page = (folders[0] / "report.html").read_text()
    rows = re.findall(
        r'<tr data-cell="(\d+)-(\d+)" data-suspect="(\d*)">\s*<th[^>]*>([^<]+)(.*?)</tr>', page, re.DOTALL
    )
    assert len(rows) > 5
    assert [row[3].strip() for row in rows] == table.clip[wrong].tolist()
    assert [int(row[0]) for row in rows] == table.targets[wrong].argmax(axis=1).tolist()
    assert [int(row[1]) for row in rows] == table.values[wrong].argmax(axis=1).tolist()
    cells = re.findall(r'<a href="#misjudged-1" data-cell="([\d-]+)"', page)
    assert set(cells) == {f"{row[0]}-{row[1]}" for row in rows}
    root = json.loads((folders[0] / "run.json").read_text())["data"]["root"]
    clip, more = rows[0][3].strip(), rows[0][4]
    start = float(re.search(r"from ([\d.]+) s", more)[1])
    mp3 = base64.b64decode(re.search(r'src="data:audio/mpeg;base64,([^"]+)"', more)[1])
    heard, rate = soundfile.read(io.BytesIO(mp3))
    whole, own_rate = soundfile.read(f"{root}/{clip}")
    assert abs(len(heard) / rate - (len(whole) / own_rate - start)) < 0.1
    # Loud where the file is loud: the envelopes agree, whatever the codec did to the samples.
    envelopes = []
    for wave, hertz in ((heard, rate), (whole[round(start * own_rate) :], own_rate)):
        length = hertz // 20
        frames = wave[: len(wave) // length * length].reshape(-1, length)
        envelopes.append(np.sqrt((frames**2).mean(axis=1)))
    shorter = min(map(len, envelopes))
    assert np.corrcoef(envelopes[0][:shorter], envelopes[1][:shorter])[0, 1] > 0.8
    # Suspected label errors are among them; both models of the joint page have theirs.
    with (folders[0] / "label_errors.csv").open() as file:
        errors = list(csv.DictReader(file))
    by_rank = {int(row[2]): row[3].strip() for row in rows if row[2]}
    assert [by_rank[rank] for rank in sorted(by_rank)] == [error["clip"] for error in errors]
    with (joint / "label_errors.csv").open() as file:
        assert {error["model"] for error in csv.DictReader(file)} <= {"mel", "slim"}
    assert 'id="misjudged-2"' in (joint / "report.html").read_text()


def test_no_audio_on_request(folds, tmp_path):
    from gafx.config import EvaluateConfig
    from gafx.evaluation.evaluate import evaluate_runs
    from gafx.report.evaluation import write_report

    _, folders, _ = folds
    [evaluation] = evaluate_runs([folders[0]], EvaluateConfig(resamples=50, workers=0, pictures=0, audio_mb=0))
    page = write_report(tmp_path / "report.html", evaluation.sections, title="t").read_text()
    assert "data:audio" not in page
    links = re.findall(r'<td class="player"><a href="([^"]+)">', page)
    assert len(links) == evaluation.sections[0].misjudged.count
    assert all((tmp_path / unquote(link)).is_file() for link in links)


def test_scores_travel_with_the_model(folds):
    """Scores of the run's fold, though folds were pooled: the weights of the other fold are another model."""
    _, folders, _ = folds
    for fold, folder in enumerate(folders[:2], start=1):
        single = json.loads((folder / "result.json").read_text())
        info = load(folder).info
        assert info.scores == single["scores"]["track"]
        assert (info.evaluated_on["tracks"], info.evaluated_on["fold"], info.evaluated_on["folds"]) == (20, fold, 2)
        assert (
            info.provenance.as_dict()
            == single["provenance"]
            == {"frontend": {"kind": "fixed"}, "classifier": {"kind": "random"}}
        )
        card = (folder / "model" / "README.md").read_text()
        assert f"On 20 tracks (20 recordings) of the test part of synthetic, protocol `kfold`, fold {fold} of 2" in card


def test_evaluating_again_changes_nothing_and_needs_no_right_to_write_the_model(folds, monkeypatch, caplog):
    from gafx.config import EvaluateConfig
    from gafx.evaluation import evaluate
    from gafx.report.evaluation import write_reports

    _, folders, _ = folds
    model = folders[0] / "model"
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    config = EvaluateConfig(resamples=50, workers=0, pictures=0)
    evaluate.evaluate_runs([folders[0]], config)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before

    def denied(*_):
        raise PermissionError(13, "Permission denied", str(model))

    monkeypatch.setattr(evaluate, "write_scores", denied)
    with caplog.at_level("WARNING", "gafx"):
        assert "mel (random start)" in write_reports(evaluate.evaluate_runs([folders[0]], config))
    assert "the scores are not saved with the model" in caplog.text


def test_reports_are_whole_pages(folds):
    _, folders, joint = folds
    for path in [joint / "report.html", *(folder / "report.html" for folder in folders)]:
        page = path.read_text(encoding="utf-8")
        assert page.rstrip().endswith("</html>")
        assert "kfold" in page


def test_a_run_folder_holds_what_it_promises(folds):
    _, folders, _ = folds
    names = {path.name for path in folders[0].iterdir()}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "run.json",
        "result.json",
        "predictions.csv",
        "report.html",
    } <= names
    assert {path.name for path in (folders[0] / "model").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    config = json.loads((folders[0] / "model" / "config.json").read_text())
    assert config["training"]["protocol"] == "kfold"
    assert len(config["classes"]) == 10


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["no run given"]),
        (["outputs/nothing"], ["is no run folder"]),
        (["{0}", "{0}/../joint"], ["is no run folder", "mel-"]),
        (["{0}", "resamples=few"], ["resamples='few'", "expected int"]),
        (["{0}", "root={0}"], ["exists and is no synthetic data set"]),
    ],
)
def test_mistakes(folds, arguments, parts):
    _, folders, _ = folds
    done = script("evaluate.py", *(argument.format(*folders) for argument in arguments))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert all(part in done.stderr for part in parts), done.stderr


def test_another_protocol_is_refused_in_one_table(folds, synthetic_root, tmp_path):
    _, folders, _ = folds
    other = train(
        *SMALL, *MEL, f"data.root={synthetic_root}", f"output_dir={tmp_path}", "data.protocol=paper", "max_steps=1"
    )
    done = script("evaluate.py", folders[0], other)
    assert done.returncode == 2
    assert "different protocols" in done.stderr
    assert "evaluate them separately" in done.stderr


def test_labels_that_do_not_match_the_model(folds, tmp_path):
    import shutil

    _, folders, _ = folds
    copy = tmp_path / folders[0].name
    shutil.copytree(folders[0], copy)
    config = json.loads((copy / "model" / "config.json").read_text())
    config["classes"][3] = "polka"
    (copy / "model" / "config.json").write_text(json.dumps(config))
    done = script("evaluate.py", copy)
    assert done.returncode == 2
    assert "do not match the model" in done.stderr
    assert "polka" in done.stderr


def test_an_unfinished_run(folds, tmp_path):
    import shutil

    _, folders, _ = folds
    copy = tmp_path / folders[0].name
    shutil.copytree(folders[0], copy)
    shutil.rmtree(copy / "model")
    done = script("evaluate.py", copy)
    assert done.returncode == 2
    assert "is not finished" in done.stderr


def test_several_labels_a_clip(synthetic_root, tmp_path):
    manifest = sorted(path.relative_to(synthetic_root) for path in synthetic_root.glob("*/*.flac"))
    rows = [["path", "labels"]] + [
        [path, f"{path.parent};{'early' if path.parent.name < 'f' else 'late'}"] for path in manifest
    ]
    with (tmp_path / "tags.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    recipe = [
        "frontend=mel",
        "classifier=ast_slim",
        "classifier.depth=1",
        "data=folder",
        f"data.root={synthetic_root}",
        "data.segment_seconds=0.8",
        f"data.options.csv={tmp_path / 'tags.csv'}",
        "batch_size=8",
        "epochs=2",
        "workers=0",
        "precision=fp32",
        f"output_dir={tmp_path}",
    ]
    refused = script("train.py", *recipe)
    assert refused.returncode == 2
    assert "objective=tag" in refused.stderr
    folder = train(*recipe, "objective=tag")
    done = script("evaluate.py", folder, "resamples=20", "pictures=1")
    assert done.returncode == 0, done.stderr
    assert "mean average precision" in done.stdout
    result = json.loads((folder / "result.json").read_text())
    assert result["scores"]["track"]["mean_average_precision"]["value"] > 0.2
    assert result["confusion"] is None


@pytest.mark.parametrize("cache", [pytest.param(False, marks=pytest.mark.slow), True], ids=["files", "cache"])
def test_a_thousand_files_of_which_ten_are_broken(tmp_path, cache):
    """The run finishes, and run and evaluation list the ten with their reasons."""
    root = tmp_path / "music"
    for number in range(990):
        path = root / ("high" if number % 2 else "low") / f"{number:04d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        pitch = (0.6 if number % 2 else 0.06) * (1 + number / 2000)
        soundfile.write(path, 0.3 * np.sin(pitch * np.arange(4410)), 22050)
    sound = np.sin(np.arange(9000) / 9)
    broken = {
        "high/empty.wav": "is empty",
        "high/text.mp3": "cannot be decoded",
        "high/cut.wav": "is truncated",
        "high/cut.flac": "",
        "high/nan.wav": "NaN",
        "low/folder.wav": "is a folder",
        "low/gone.wav": "does not exist",
        "low/loop.wav": "loop",
        "low/song.m4a": "convert it",
        "low/new\nline.wav": "is empty",
    }
    for name in ("high/empty.wav", "low/new\nline.wav"):
        (root / name).write_bytes(b"")
    (root / "high/text.mp3").write_text("<html>404</html>")
    for name in ("high/cut.wav", "high/cut.flac"):
        soundfile.write(root / name, sound, 22050)
        (root / name).write_bytes((root / name).read_bytes()[:1000])
    soundfile.write(root / "high/nan.wav", np.where(np.arange(4410) == 700, np.nan, 0.1), 22050, subtype="FLOAT")
    (root / "low/folder.wav").mkdir()
    (root / "low/gone.wav").symlink_to("nowhere.wav")
    (root / "low/loop.wav").symlink_to("loop.wav")
    (root / "low/song.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    more = [f"data.cache={tmp_path / 'cache'}"] if cache else []
    folder = train(
        "data=folder", f"data.root={root}", *MEL, "classifier=ast_slim", "classifier.depth=1", "epochs=1",
        "batch_size=32", "data.segment_seconds=0.2", "optim.warmup_steps=0", "workers=2", "precision=fp32",
        f"output_dir={tmp_path / 'outputs'}", *more,
    )  # fmt: skip
    done = script("evaluate.py", folder, "resamples=10", "workers=0", "pictures=1")
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "run.json").read_text())
    result = json.loads((folder / "result.json").read_text())
    assert record["data"]["clips"] == 1000 - len(broken) + 1  # what is wrong with nan.wav, its header does not tell
    listed = {clip["path"]: clip["reason"] for clip in result["skipped"]}
    assert listed.keys() == {name.replace("\n", "\\n") for name in broken}
    for name, reason in broken.items():
        assert reason in listed[name.replace("\n", "\\n")], (name, listed)
    if cache:  # packing reads every clip, so the run itself lists all ten
        assert {clip["path"] for clip in record["skipped"]} == listed.keys()
    report = (folder / "report.html").read_text()
    assert all(name.replace("\n", "\\n") in report for name in broken)
    assert "10 unreadable files skipped" in done.stdout


def test_a_damaged_test_track_is_left_out_whole_and_ends_no_evaluation(synthetic_root, tmp_path):
    """One of ten test tracks cannot be read to its end: nine are scored, whatever fraction of the test part that is."""
    root = tmp_path / "music"
    for path in sorted(synthetic_root.glob("*/*.flac")):
        samples, rate = soundfile.read(path)
        copy = root / path.parent.name / f"{path.stem}.wav"
        copy.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(copy, samples, rate, subtype="FLOAT")
    keys = [*[key for key in SMALL if "options" not in key], *MEL, "data=folder", f"data.root={root}", "max_steps=2"]
    folder = train(*keys, f"output_dir={tmp_path}")
    done = script("evaluate.py", folder, "resamples=10", "workers=0", "pictures=0")
    before = json.loads((folder / "result.json").read_text())
    with (folder / "predictions.csv").open() as file:
        first = next(csv.DictReader(file))["clip"]
    samples, rate = soundfile.read(root / first)
    samples[-2000] = np.nan
    soundfile.write(root / first, samples, rate, subtype="FLOAT")
    done = script("evaluate.py", folder, "resamples=10", "workers=0", "pictures=0")
    assert done.returncode == 0, done.stderr
    after = json.loads((folder / "result.json").read_text())
    assert (before["tracks"], after["tracks"]) == (10, 9)
    assert after["segments"] == before["segments"] - 2
    assert [clip["path"] for clip in after["skipped"]] == [first]
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("max_unreadable: 0.05", "max_unreadable: 0.01"))
    done = script("evaluate.py", folder, "resamples=10", "workers=0", "pictures=0")
    assert done.returncode == 2
    assert "1 of 40 files" in done.stderr
    done = script("evaluate.py", folder, "resamples=10", "workers=0", "pictures=0", "max_unreadable=0.1")
    assert done.returncode == 0, done.stderr
