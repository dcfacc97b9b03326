"""Ablation tables: table files, plans, failing runs, and the written table."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from ablation_runs import executor_of, job_of, write_predictions, write_run
from runs import ROOT, SMALL, environment

from gafx.commands.ablate import _check_data
from gafx.compose import compose_train
from gafx.config import run_id
from gafx.data.protocols import Protocol, comparability
from gafx.data.sources.base import load_manifest
from gafx.errors import UsageError
from gafx.evaluation.predictions import PredictionTable
from gafx.evaluation.result import Result, write_results
from gafx.objectives.tag import Tag
from gafx.stats import compare
from gafx.studies.ablation.collect import collect
from gafx.studies.ablation.drive import drive, read_outcomes
from gafx.studies.ablation.outcome import Outcome, read_outcome
from gafx.studies.ablation.plan import Job, last_wins, plan_table
from gafx.studies.ablation.spec import find_table, read_table
from gafx.studies.ablation.write import write_table

CONFIGS = ROOT / "configs"
TABLES = sorted((CONFIGS / "ablation").glob("*.yaml"))
PUBLISHED = {
    "table3": {"table3_tiny": 61.0, "table3_small": 64.5},
    "table4": {"table4_pretrained": 51.0, "table4_scratch": 47.1},
    "table5": {"table5_segments": 48.67, "table5_whole": 37.0},
    "table6": {"table6_gafx_a": None, "table6_gafx_a_pre": None, "table6_gafx_r": 53.0, "table6_gafx_u": 72.5},
    "table7": {"table6_gafx_u": 72.5, "table3_small": 64.5, "table3_tiny": 61.0},
}  # fmt: skip


def compose(overrides):
    return compose_train(overrides, CONFIGS)


def folds_of(config):
    return list(range(1, config.data.folds + 1)) if config.data.protocol.startswith("kfold") else [None]


def plan_of(table, *overrides, **options):
    return plan_table(table, overrides, compose, folds=folds_of, **options)


def table_of(tmp_path, **values):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return read_table(path)


# -- the files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("small", [False, True], ids=["full", "small"])
def test_every_table_composes(path, small):
    table = read_table(path)
    if small and not table.small:
        with pytest.raises(UsageError, match="has no small budget"):
            plan_of(table, small=True)
        return
    stage = f"{next(iter(table.stages))}:data.root=elsewhere" if table.stages else "workers=0"
    plan = plan_of(table, "data.root=somewhere", stage, small=small, seeds=[0])
    assert [job.error for job in plan.jobs if job.error] == []
    assert len({run_id(job.config) for job in plan.jobs}) == len(plan.jobs)
    if small:
        assert not any(job.config.classifier.get("pretrained") for job in plan.jobs)
        wide = [job.row for job in plan.jobs if job.config.frontend.get("width", 16) > 16]
        assert all(job.config.frontend["codec_width"] == 16 for job in plan.jobs if job.row in wide)


def test_the_published_numbers_and_their_rows():
    for name, rows in PUBLISHED.items():
        table = read_table(find_table(name, CONFIGS / "ablation"))
        assert {row.name: row.published for row in table.rows} == rows
        assert (table.published_protocol, table.published_tracks) == ("paper", 200)
        # Each row is an experiment with the row's name.
        assert all(row.overrides == [f"experiment={row.name}"] for row in table.rows)
    six = read_table(find_table("table6", CONFIGS / "ablation"))
    assert "NaN" in six.rows[0].published_text
    assert [row.name for row in six.rows if not row.unstated] == ["table6_gafx_a_pre"]
    [clmr] = read_table(find_table("table7", CONFIGS / "ablation")).quoted
    assert (clmr.published, clmr.protocol) == (68.6, "fault_filtered")


def test_rows_differ_only_in_the_ablated_setting():
    def differences(table):
        plan = plan_of(read_table(find_table(table, CONFIGS / "ablation")), "data.root=x", seeds=[0])
        first, second = plan.jobs
        flat = [json.loads(json.dumps(vars(job.config), default=vars)) for job in (first, second)]

        def walk(a, b, where=""):
            if isinstance(a, dict) and isinstance(b, dict):
                return [key for k in {*a, *b} for key in walk(a.get(k), b.get(k), f"{where}{k}.")]
            return [] if a == b else [where[:-1]]

        return set(walk(*flat)) - {"name", "seed"}

    assert differences("table3") == {"classifier.size"}
    assert differences("table5") == {"data.segment_seconds", "data.crop"}


def test_text_in_a_grid_is_kept(tmp_path):
    texts = ["1.10", "null", "true", "a,b", "it's", "'q'", "(.*)_x"]
    table = table_of(tmp_path, overrides=["experiment=quickstart", "data=folder"], grid={"data.root": texts})
    roots = [compose_train(row.overrides, CONFIGS).data.root for row in table.rows]
    assert roots == texts
    lists = [["a,b", "1.10"], ["true", "it's"]]
    table = table_of(tmp_path, overrides=["experiment=paper", "data=gtzan"], grid={"data.options.genres": lists})
    assert [
        compose_train(["data=gtzan", *row.overrides], CONFIGS).data.options["genres"] for row in table.rows
    ] == lists
    for number in (1.10, 20):
        with pytest.raises(UsageError, match=r"grid\.data\.root was read as the number"):
            table_of(tmp_path, overrides=["data=folder"], grid={"data.root": [number]})


def test_grid(tmp_path):
    table = table_of(
        tmp_path, title="sweep", overrides=["experiment=quickstart"],
        grid={"frontend": ["mel", "gafx_r_slim"], "augment.mixup_probability": [0.0, 0.5], "seed": [0, 1]},
    )  # fmt: skip
    plan = plan_of(table)
    assert len(table.rows) == 4
    assert len(plan.jobs) == 8
    assert {
        (job.config.frontend["name"], job.config.augment.mixup_probability, job.config.seed) for job in plan.jobs
    } == {(name, fraction, seed) for name in ("mel", "gafx_r") for fraction in (0.0, 0.5) for seed in (0, 1)}
    assert table.rows[0].label == "frontend=mel, mixup_probability=0.0"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows": []}, "has no rows"),
        ({"rows": [{"overrides": ["frontend"]}]}, "is no override"),
        ({"rows": [{"override": ["seed=1"]}]}, "unknown key rows[0].override; did you mean"),
        ({"rows": ["paper", "paper"]}, "two rows are called 'paper'"),
        ({"rows": ["paper"], "seeds": [-1]}, "must be a list of whole numbers"),
        ({"rows": ["paper"], "seeds": [0, 0]}, "each once"),
        ({"rows": ["paper"], "name": "../up"}, "names a folder"),
        ({"grid": {"frontend": "mel"}}, "must be a list of values"),
        ({"rows": [{"overrides": ["experiment=paper"], "stage": "before"}]}, "names the stage 'before'"),
        ({"rowz": ["paper"]}, "unknown key rowz"),
    ],
)
def test_errors_in_a_table_file(tmp_path, values, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        table_of(tmp_path, **values)


def test_unknown_table():
    with pytest.raises(UsageError, match="did you mean 'table5'"):
        find_table("tabel5", CONFIGS / "ablation")


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_overrides_for_one_row_and_for_all(tmp_path):
    table = table_of(tmp_path, rows=["table3_tiny", "table3_small"], seeds=[3])
    plan = plan_of(table, "data.root=x", "table3_small:batch_size=2", "table3_*:epochs=5")
    assert [(job.config.batch_size, job.config.epochs, job.config.seed) for job in plan.jobs] == [(4, 5, 3), (2, 5, 3)]
    with pytest.raises(UsageError, match="addresses no row; rows and stages of mine: table3_tiny, table3_small"):
        plan_of(table, "table4:epochs=5")


def test_last_override_of_a_key_wins():
    assert last_wins(["frontend=mel", "seed=1", "frontend=leaf", "++seed=2"]) == ["frontend=leaf", "++seed=2"]


def test_a_row_with_a_bad_option_does_not_stop_the_plan(tmp_path):
    table = table_of(tmp_path, rows=[{"name": "bad", "overrides": ["optim.rte=1"]}, "quickstart"])
    plan = plan_of(table)
    assert "unknown key optim.rte" in plan.jobs[0].error
    assert plan.jobs[1].config is not None
    with pytest.raises(UsageError, match="no row of mine can be run: .*unknown key optim.b"):
        plan_of(table, "optim.b=2")


def test_two_protocols_are_refused(tmp_path):
    table = table_of(tmp_path, grid={"data.protocol": ["paper", "kfold"]})
    with pytest.raises(UsageError, match="scores of two protocols cannot be compared on one page"):
        plan_of(table)


def test_seeds_and_folds(tmp_path):
    plan = plan_of(table_of(tmp_path, rows=["quickstart"]), "data.protocol=kfold", "data.folds=3", seeds=[0, 1])
    assert [(job.seed, job.fold, job.config.data.fold) for job in plan.jobs] == [
        (s, f, f) for s in (0, 1) for f in (1, 2, 3)
    ]


def test_a_stage_provides_its_folder_to_the_row():
    table = read_table(find_table("table4", CONFIGS / "ablation"))
    plan = plan_of(table, "data.root=genres", "pretraining:data.root=audioset", "output_dir=out", seeds=[0])
    stage, row, scratch = plan.jobs
    assert stage.config.data.name == "audioset"
    assert stage.config.data.root == "audioset"
    assert row.config.frontend["pretrained"] == str(stage.folder)
    assert row.config.data.root == "genres"
    assert row.needs is stage
    assert scratch.needs is None
    given = plan_of(table, "data.root=genres", "table4_pretrained:frontend.pretrained=there", seeds=[0])
    [row] = [job for job in given.jobs if job.row == "table4_pretrained"]
    assert row.needs is None
    assert row.config.frontend["pretrained"] == "there"


def test_stages_build_on_each_other_and_share_the_data(tmp_path):
    table = read_table(find_table("jukebox", CONFIGS / "ablation"))
    given = ["data.root=fma", f"output_dir={tmp_path}"]
    plan = plan_of(table, *given, seeds=[0])
    assert [job.error for job in plan.jobs if job.error] == []
    jobs = {job.row: job for job in plan.jobs}
    assert {job.config.data.root for job in plan.jobs} == {"fma"}
    assert {job.config.data.protocol for job in plan.jobs} == {"official_val"}
    codec, pretraining = jobs["codec"], jobs["tokenformer_pretraining"]
    assert list(jobs)[:4] == [
        "codec",
        *(f"{row}_pretraining" for row in ("spectroformer", "tokenformer", "codebookformer")),
    ]
    assert pretraining.needs is codec
    assert pretraining.config.frontend["pretrained"] == str(codec.folder)
    assert jobs["tokenformer"].config.frontend["pretrained"] == str(codec.folder)
    assert jobs["tokenformer_pretrained"].needs is pretraining
    assert jobs["tokenformer_pretrained"].config.pretrained == str(pretraining.folder)
    assert jobs["spectroformer"].needs is None
    # With another codec the stage is not run; a trained pretraining needs none.
    own = [f"{name}*:frontend.pretrained=mine" for name in ("tokenformer", "codebookformer")]
    assert "codec" not in {job.row for job in plan_of(table, *given, *own, seeds=[0]).jobs}
    for row in ("tokenformer", "codebookformer", "tokenformer_pretraining", "codebookformer_pretraining"):
        (jobs[row].folder / "model").mkdir(parents=True)
    assert "codec" not in {job.row for job in plan_of(table, *given, seeds=[0]).jobs}


def test_a_stage_that_was_trained_on_test_clips_is_refused(tmp_path):
    stages = {"before": {"overrides": ["data=esc"], "gives": "pretrained", "shares_data": True}}
    table = table_of(tmp_path, overrides=["data=esc"], stages=stages, rows=[{"name": "row", "stage": "before"}])
    plan = plan_table(table, ["data.root=esc10"], compose, folds=lambda _: [1, 2])
    assert [(job.fold, "choose --folds 1" in job.error) for job in plan.jobs if job.evaluated] == [
        (1, False),
        (2, True),
    ]
    elsewhere = plan_table(table, ["data.root=esc10", "before:data.root=else"], compose, folds=lambda _: [1, 2])
    assert not any(job.error for job in elsewhere.jobs)
    split = plan_table(table, ["data.root=esc10", "before:data.protocol=official_val"], compose, folds=lambda _: [1])
    assert "data.protocol=official_val, here official" in split.jobs[-1].error


def test_an_optional_stage_is_left_out_with_a_note():
    table = read_table(find_table("table6", CONFIGS / "ablation"))
    plan = plan_of(table, "data.root=genres", seeds=[0])
    assert len(plan.jobs) == 4
    assert "pretraining:data.root=..." in plan.notes["table6_gafx_r"][0]
    with_it = plan_of(table, "data.root=genres", "pretraining:data.root=audioset", seeds=[0])
    assert [job.row for job in with_it.jobs if not job.evaluated] == ["pretraining"]
    assert "table6_gafx_r" not in with_it.notes


def test_a_run_that_another_table_has_finished_is_found(tmp_path):
    overrides = ["experiment=table5_whole", f"output_dir={tmp_path}"]
    other = compose([*overrides, "name=elsewhere"]).folder
    (other / "model").mkdir(parents=True)
    [job] = plan_of(table_of(tmp_path, rows=[{"name": "r", "overrides": overrides}])).jobs
    assert job.folder == other


# -- running it --------------------------------------------------------------------------------------------------------


def test_rows_that_fail_do_not_stop_the_others(tmp_path, caplog):
    caplog.set_level("INFO", "gafx")
    kinds = ["diverge", "refuse", "memory", "crash", "", "eat"]
    jobs = [job_of(tmp_path, kind or "good", kind) for kind in kinds]
    jobs.append(job_of(tmp_path, "after", needs=jobs[0]))
    jobs.append(Job("bad", "bad", [], 0, error="unknown key"))
    found = drive(jobs, executor_of(tmp_path, slots=[{}, {}], max_memory=300_000_000))
    assert {key: outcome.state for key, outcome in found.items()} == {
        "diverge": "diverged", "refuse": "refused", "memory": "out of memory", "crash": "failed", "good": "finished",
        "eat": "out of memory", "after": "not run", "bad": "refused",
    }  # fmt: skip
    assert found["refuse"].message == "optim.rte is no key; did you mean optim.lr?"
    assert found["crash"].message == "ZeroDivisionError: by hand"
    assert "--max-memory" in found["eat"].message
    assert "not finite at step 7" in found["after"].message
    assert Path(found["crash"].log).read_text().startswith("starting")
    assert "good: finished" in caplog.text
    assert read_outcomes(tmp_path / "logs") == found
    # A second call skips finished jobs and runs failed ones again.
    jobs[0].overrides[1] = "behave="
    again = drive(jobs[:1] + jobs[4:5], executor_of(tmp_path))
    assert [outcome.state for outcome in again.values()] == ["finished", "finished"]
    assert (tmp_path / "good" / "began").read_text() == "x"


def test_a_trained_row_is_evaluated_without_its_stage(tmp_path):
    """After a kill between training and evaluation; the stage is not planned any more, or fails now."""
    gone, failing = job_of(tmp_path, "gone"), job_of(tmp_path, "failing", "crash")
    jobs = [job_of(tmp_path, "first", needs=gone), failing, job_of(tmp_path, "second", needs=failing)]
    for job in (jobs[0], jobs[2]):
        (job.folder / "model").mkdir(parents=True)
    found = drive(jobs, executor_of(tmp_path))
    assert {key: outcome.state for key, outcome in found.items()} == {
        "first": "finished", "failing": "failed", "second": "finished",
    }  # fmt: skip
    assert not (tmp_path / "first" / "began").exists()


def test_outcomes(tmp_path):
    log = tmp_path / "log"
    log.write_text("step 3\nTraceback\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n")
    assert read_outcome(1, log).state == "out of memory"
    assert read_outcome(-signal.SIGKILL, log).state == "killed"
    assert read_outcome(-signal.SIGTERM, log) == Outcome("ended", "by signal SIGTERM; the same command continues it")
    log.write_text("")
    assert read_outcome(1, log).message == "it printed nothing"


DRIVER = """
import sys
from pathlib import Path
from ablation_runs import job_of, executor_of
from gafx.log import show_log
from gafx.studies.ablation.drive import drive
show_log()
folder = Path(sys.argv[1])
drive([job_of(folder, "first"), job_of(folder, "second", "sleep"), job_of(folder, "third")], executor_of(folder))
"""


def test_resume_after_a_kill(tmp_path):
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT / "tests")), stdout=subprocess.DEVNULL
    )
    began = tmp_path / "second" / "began"
    for _ in range(400):
        if began.exists() and began.read_text():
            break
        time.sleep(0.1)
    process.kill()
    process.wait()
    time.sleep(0.5)
    running = subprocess.run(["pgrep", "-f", str(tmp_path / "second")], capture_output=True, text=True, check=False)
    assert running.stdout == "", "a run survives its driver"
    assert (tmp_path / "first" / "report.html").is_file()
    assert not (tmp_path / "second" / "model").exists()
    done = subprocess.run(
        command, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT / "tests")), capture_output=True, text=True, check=True
    )
    assert "1 of 3 runs need nothing more" in done.stderr
    assert [(tmp_path / name / "began").read_text() for name in ("first", "second", "third")] == ["x", "xx", "x"]


def test_time_left_counts_remaining_steps(tmp_path, monkeypatch, caplog):
    """A run resumed at step 80 of 100, and one of the same row that has not started."""
    from gafx.studies.ablation import progress

    clock = [1000.0]
    monkeypatch.setattr(progress.time, "time", lambda: clock[0])
    first, second = job_of(tmp_path, "row"), job_of(tmp_path, "other")
    second.row = first.row
    caplog.set_level("INFO", "gafx")
    shown = progress.Progress([first, second], {}, 1)
    first.folder.mkdir()
    (first.folder / "run.json").write_text('{"total_steps": 100}')
    shown.begin(first)
    for seconds, step in ((100, 80), (170, 90)):
        clock[0] += seconds
        (first.folder / "metrics.jsonl").write_text(json.dumps({"step": step, "loss": 1.5}) + "\n")
        shown.show([first])
    # 17 s a step: ten more of the first run, and a hundred of the second.
    assert caplog.messages[-1] == "0/2 done; row step 90/100, loss 1.500; about 31 min 10 s left"


# -- the table ---------------------------------------------------------------------------------------------------------

CLASSES = ["blues", "jazz", "rock"]


@pytest.fixture
def measured(tmp_path, rng):
    """Two rows of two seeds on 60 tracks, the first clearly better; one that diverged; one with a bad option."""
    table = table_of(
        tmp_path, title="Mine <b>", source="a paper", published_data="gtzan", published_protocol="paper",
        published_tracks=200, seeds=[0, 1],
        overrides=[f"output_dir={tmp_path / 'out'}", "experiment=quickstart"], tuning="None for any row.",
        rows=[
            {"name": "good", "overrides": ["batch_size=2"], "published": 61.0, "published_std": 2.0},
            {"name": "poor", "overrides": ["batch_size=4"], "unstated": ["Everything."]},
            {"name": "gone", "overrides": ["batch_size=8"]},
            {"name": "bad", "overrides": ["batch_syze=8"]},
        ],
        quoted=[{"label": "CLMR", "published": 68.6, "protocol": "fault_filtered", "about": "quoted"}],
    )  # fmt: skip
    plan = plan_of(table)
    truth = rng.integers(0, 3, 60)
    for row, wrong in (("good", 6), ("poor", 36)):
        for job in plan.of_row(next(r for r in table.rows if r.name == row)):
            predicted = truth.copy()
            predicted[:wrong] = (truth[:wrong] + 1 + job.seed) % 3 if row == "poor" else (truth[:wrong] + 1) % 3
            write_run(job.folder, predicted, truth, CLASSES)
    gone = {job.key: Outcome("diverged", "the loss is not finite at step 7") for job in plan.jobs if job.row == "gone"}
    return plan, gone, truth


def test_table_contents(measured, tmp_path):
    plan, outcomes, truth = measured
    [sheet] = collect(plan, outcomes, resamples=50)
    good, poor, gone, bad = sheet.lines
    assert good.scores["accuracy"] == pytest.approx([0.9, 0.9])
    assert poor.scores["accuracy"] == pytest.approx([0.4, 0.4 + np.mean((truth[:36] + 2) % 3 == truth[:36]) * 0.6])
    assert compare.sample_std(good.scores["accuracy"]) == 0
    assert good.intervals["accuracy"].low < 0.9 < good.intervals["accuracy"].high
    assert list(good.seeds) == [0, 1]
    assert {outcome.state for outcome in gone.faults.values()} == {"diverged"}
    assert "batch_syze" in next(iter(bad.faults.values())).message
    [test] = sheet.tests
    assert test.paired.difference == pytest.approx(0.5)
    assert test.adjusted < 0.001
    assert (test.seed, test.paired.count) == (0, 60)

    folder = tmp_path / "table"
    text = write_table(plan, [sheet], folder)
    assert re.search(r"\| good \| 61\.00 ± 2\.00 \(54\.1 to 67\.5\) \| 90\.0 ± 0\.0 \(\d\d\.\d to 9\d\.\d\) \|", text)
    assert "| poor † |" in text
    assert "| gone | – | diverged |" in text
    assert "diverged: the loss is not finite at step 7" in text
    assert "unknown key batch_syze" in text
    assert "No row starts from ImageNet weights" in text
    assert "protocol paper (split seed 0)" in text
    assert "68.60 % under fault_filtered" in text
    assert "92.5 %" in text, "the effect of the protocol"
    assert (folder / "table.md").read_text() == text
    page = (folder / "table.html").read_text()
    assert "Mine &lt;b&gt;" in page
    assert "<script" not in page
    for part in ("61.00 ± 2.00", "Learning curves", "Confusion, seed 0", "p (Holm)", "None for any row.", "ImageNet"):
        assert part in page, part
    for link in re.findall(r'href="([^"#]+)"', page):
        assert (folder / link).exists(), link
    rows = json.loads((folder / "table.json").read_text())["sheets"][0]["rows"]
    assert [row["finished"] for row in rows] == [2, 2, 0, 0]
    assert rows[0]["accuracy"] == pytest.approx(0.9)
    assert (folder / "table.csv").read_text().count("\n") == 5
    assert (folder / "runs.csv").read_text().count("\n") == 8


def test_a_seed_that_lacks_a_fold_is_not_counted(tmp_path):
    table = table_of(tmp_path, rows=["quickstart"], overrides=[f"output_dir={tmp_path / 'out'}", "data.protocol=kfold"])
    plan = plan_of(table, "data.folds=2", seeds=[0, 1])
    truth = np.arange(30) % 3
    for job in plan.jobs[:3]:
        write_run(job.folder, truth, truth, CLASSES, protocol="kfold")
    [sheet] = collect(plan, {}, resamples=10)
    [line] = sheet.lines
    assert list(line.seeds) == [0]
    assert len(line.done) == 3
    assert "3 of 4 runs finished" in write_table(plan, [sheet], tmp_path / "table")


def test_incomparable_rows_are_in_separate_tables(tmp_path):
    table = table_of(
        tmp_path, overrides=[f"output_dir={tmp_path / 'out'}", "experiment=quickstart"],
        rows=[{"name": "one", "overrides": ["data.split_seed=1"]}, {"name": "two", "overrides": ["data.split_seed=2"]}],
    )  # fmt: skip
    plan = plan_of(table)
    truth = np.arange(30) % 3
    for job in plan.jobs:
        write_run(job.folder, truth, truth, CLASSES)
    sheets = collect(plan, {}, resamples=10)
    assert [[line.row.name for line in sheet.lines] for sheet in sheets] == [["one"], ["two"]]
    assert not any(sheet.tests for sheet in sheets)
    assert "they cannot be compared" in write_table(plan, sheets, tmp_path / "t")
    page = (tmp_path / "t" / "table.html").read_text()
    assert re.findall(r'<section id="([^"]+)"', page) == ["row-1-1", "row-2-1"]


def test_published_numbers_of_another_protocol_are_marked_as_incomparable(tmp_path):
    values = {"rows": [{"name": "r", "overrides": ["data.protocol=kfold", "data.folds=2"], "published": 50.0}]}
    table = table_of(
        tmp_path,
        published_data="gtzan",
        published_protocol="paper",
        overrides=[f"output_dir={tmp_path / 'out'}"],
        **values,
    )
    plan = plan_of(table)
    for job in plan.jobs:
        write_run(job.folder, np.arange(10) % 3, np.arange(10) % 3, CLASSES, protocol="kfold")
    text = write_table(plan, collect(plan, {}, resamples=10), tmp_path / "t")
    assert "The published numbers were measured under paper, ours under kfold" in text
    assert "not to be compared" in (tmp_path / "t" / "table.html").read_text()


def test_published_numbers_of_other_data_or_an_unknown_protocol():
    assert "measured on gtzan, ours on esc" in comparability("esc", "kfold", "gtzan", "kfold")
    assert "is not known here" in comparability("gtzan", "paper", "gtzan", None)
    assert comparability("gtzan", "paper", "gtzan", "paper") == ""
    assert "50 % of the tracks train and 50 % test" in Protocol.parse("paper").describe(test_fraction=0.5)


def small_table(tmp_path, *rows, classes=CLASSES, **values):
    """A plan of rows (name, predictions of each seed) whose runs are finished."""
    table = table_of(
        tmp_path, overrides=[f"output_dir={tmp_path / 'out'}", "experiment=quickstart"],
        rows=[{"name": name, "overrides": [f"batch_size={2 * number + 2}"]} for number, (name, _) in enumerate(rows)],
        **values,
    )  # fmt: skip
    plan = plan_of(table)
    truth = np.arange(len(rows[0][1][0])) % len(classes)
    for row, (_, predictions) in zip(table.rows, rows, strict=True):
        for job, predicted in zip(plan.of_row(row), predictions, strict=True):
            write_run(job.folder, predicted, truth, classes)
    return plan, truth


def test_a_mean_over_seeds_has_no_interval_of_one_seed(tmp_path, rng):
    truth = np.arange(60) % 3
    good, poor = truth.copy(), rng.integers(0, 3, 60)
    plan, _ = small_table(tmp_path, ("r", [good, poor]), seeds=[0, 1])
    [sheet] = collect(plan, {}, resamples=200)
    line = sheet.lines[0]
    for name, score in line.intervals.items():
        assert score.value == pytest.approx(np.mean(line.scores[name])), name
        assert score.low is None or score.low <= score.value <= score.high, name
    assert line.intervals["macro_f1"].low is not None
    assert line.intervals["calibration_error"].low is None


def test_a_damaged_run_does_not_stop_the_table(tmp_path):
    truth = np.arange(30) % 3
    plan, _ = small_table(tmp_path, ("whole", [truth]), ("cut", [truth]), seeds=[0])
    cut = plan.jobs[1].folder / "predictions.npz"
    cut.write_bytes(cut.read_bytes()[:-40])
    [sheet] = collect(plan, {}, resamples=10)
    assert sheet.lines[0].scores["accuracy"] == [1.0]
    text = write_table(plan, [sheet], tmp_path / "t")
    assert "| cut | damaged |" in text
    assert "remove its result.json, and it is evaluated again" in text


def test_clips_of_one_name_are_distinguished(tmp_path):
    """A manifest may contain several clips of one file: paired tests must align them in order."""
    truth = np.arange(30) % 3
    wrong = (truth + 1) % 3
    half = np.where(np.arange(30) < 15, truth, wrong)
    plan, _ = small_table(tmp_path, ("a", [half]), ("b", [half]), ("c", [truth]), seeds=[0])
    for job in plan.jobs:
        table = PredictionTable.read(job.folder)
        dataclasses.replace(table, clip=np.array(["one.wav"] * 30, object)).write(job.folder / "predictions.npz")
    [sheet] = collect(plan, {}, resamples=10)
    same, other = sheet.tests[0], sheet.tests[1]
    assert (same.paired.count, same.paired.difference) == (30, 0.0)
    assert (other.paired.count, other.paired.difference) == (30, -0.5)


def test_scores_of_small_probabilities_are_those_of_the_evaluation(tmp_path, rng):
    """Tagging logits near -15: six decimals would make ties of them, and another mean average precision."""
    labels = ["a", "b", "c", "d"]
    table = table_of(
        tmp_path, overrides=[f"output_dir={tmp_path / 'out'}", "experiment=quickstart", "objective=tag"],
        rows=[{"name": "r", "overrides": ["batch_size=2"]}],
    )  # fmt: skip
    plan = plan_of(table)
    [job] = plan.jobs
    targets = (rng.random((200, 4)) < 0.1).astype(np.uint8)
    values = 1 / (1 + np.exp(15 - 0.7 * targets - rng.standard_normal((200, 4))))
    write_run(job.folder, np.zeros(200, int), np.zeros(200, int), labels)
    write_predictions(job.folder, values, targets, labels)
    scores = Tag.scores(values, targets, np.arange(200), resamples=50)
    write_results(job.folder, [dataclasses.replace(Result.read(job.folder), objective="tag", scores={"track": scores})])
    [sheet] = collect(plan, {}, resamples=50)
    assert sheet.metric == "mean_average_precision"
    assert sheet.lines[0].intervals == Result.read(job.folder).track_scores
    rounded = Tag.scores(values.round(6), targets, np.arange(200), resamples=50)["mean_average_precision"].value
    assert abs(rounded - scores["mean_average_precision"].value) > 0.01
    write_table(plan, [sheet], tmp_path / "table")
    [row] = json.loads((tmp_path / "table" / "table.json").read_text())["sheets"][0]["rows"]
    assert row["mean_average_precision"] == scores["mean_average_precision"].value


def test_pretraining_is_listed_with_the_budgets(tmp_path):
    truth = np.arange(30) % 3
    plan, _ = small_table(tmp_path, ("pre", [truth]), ("plain", [truth]), seeds=[0])
    path = plan.jobs[0].folder / "run.json"
    record = json.loads(path.read_text())
    record["config"]["frontend"] = {"name": "gafx_r", "pretrained": "somewhere/audioset-tag-0123abcd"}
    path.write_text(json.dumps(record))
    text = write_table(plan, collect(plan, {}, resamples=10), tmp_path / "t")
    assert "pre starts from audioset-tag-0123abcd; its budget is additional and not known here." in text
    assert "No row starts from ImageNet weights." in text, "published rows are not mentioned where there are none"
    result = json.loads((plan.jobs[1].folder / "result.json").read_text())
    result["provenance"]["classifier"] = {"kind": "saved", "name": "lite0.pth"}
    (plan.jobs[1].folder / "result.json").write_text(json.dumps(result))
    text = write_table(plan, collect(plan, {}, resamples=10), tmp_path / "t")
    assert "From the weights named under Start, an additional budget: plain." in text
    assert "No row starts" not in text


def test_a_stage_runs_only_for_rows_that_are_to_be_trained(tmp_path):
    table = read_table(find_table("table4", CONFIGS / "ablation"))
    overrides = ["data.root=genres", "pretraining:data.root=audioset", f"output_dir={tmp_path}"]
    first = plan_of(table, *overrides, seeds=[0])
    assert [job.row for job in first.jobs] == ["pretraining", "table4_pretrained", "table4_scratch"]
    (first.jobs[1].folder / "model").mkdir(parents=True)
    assert [job.row for job in plan_of(table, *overrides, seeds=[0]).jobs] == ["table4_pretrained", "table4_scratch"]


def test_an_override_of_a_key_that_rows_differ_in_is_refused(tmp_path):
    table = table_of(tmp_path, overrides=["experiment=quickstart"], grid={"optim.lr": [1e-4, 1e-3]})
    with pytest.raises(UsageError, match="optim.lr=5: rows set optim.lr themselves"):
        plan_of(table, "optim.lr=5")
    plan = plan_of(table, "optim.lr=0.001:epochs=2")
    assert [job.config.epochs for job in plan.jobs] == [20, 2]


def test_missing_data_stop_only_their_row(tmp_path):
    def folds(config):
        if config.data.root == "nowhere":
            raise UsageError("data.root='nowhere' does not exist")
        return [1, 2]

    rows = [{"name": "here", "overrides": ["batch_size=2"]}, {"name": "gone", "overrides": ["data.root=nowhere"]}]
    table = table_of(tmp_path, overrides=["data=esc", "epochs=1"], rows=rows)
    plan = plan_table(table, [], compose, folds=folds)
    assert [(job.row, bool(job.error)) for job in plan.jobs] == [("here", False), ("here", False), ("gone", True)]


def test_a_run_on_other_data_is_not_reused(tmp_path, wav_factory, rng, caplog):
    """The folder of the data is not part of a run's id: the same clips elsewhere are the same run, others are not."""
    for root, names in (("a", "xyz"), ("moved", "xyz"), ("other", "xyq")):
        for label in ("dog", "rain"):
            for name in names:
                wav_factory(f"{root}/{label}/{name}.wav", rng.uniform(-0.1, 0.1, 2000))
    table = table_of(
        tmp_path,
        overrides=["data=folder", f"output_dir={tmp_path / 'out'}"],
        rows=[{"name": "r", "overrides": ["epochs=2"]}],
    )
    job = plan_of(table, f"data.root={tmp_path / 'a'}").jobs[0]
    write_run(job.folder, np.zeros(2, int), np.zeros(2, int), ["dog", "rain"])
    record = json.loads((job.folder / "run.json").read_text())
    record["data"] = {"root": str(tmp_path / "a"), "fingerprint": load_manifest("folder", tmp_path / "a").fingerprint()}
    (job.folder / "run.json").write_text(json.dumps(record))
    caplog.set_level("INFO", "gafx")
    found = {}
    for root in ("a", "moved", "other"):
        plan = plan_of(table, f"data.root={tmp_path / root}")
        _check_data(plan.jobs)
        found[root] = plan.jobs[0].error
    assert found["a"] == found["moved"] == ""
    assert "contain the same clips" in caplog.text
    assert "was trained on other data" in found["other"]
    both = table_of(
        tmp_path, overrides=["data=folder", f"output_dir={tmp_path / 'new'}"],
        rows=[{"name": root, "overrides": [f"data.root={tmp_path / root}"]} for root in ("a", "other")],
    )  # fmt: skip
    plan = plan_of(both)
    _check_data(plan.jobs)
    assert [bool(job.error) for job in plan.jobs] == [False, True]
    assert "the same run as that of a, on other data" in plan.jobs[1].error


def test_logs_of_long_names_differ(tmp_path):
    keys = [f"{'augment.mixup_probability=0.5 ' * 8}seed {seed}" for seed in (0, 1)] + ["a b", "a-b"]
    jobs = [job_of(tmp_path, f"run{number}") for number in range(4)]
    for job, key in zip(jobs, keys, strict=True):
        job.key = key
    found = drive(jobs, executor_of(tmp_path, slots=[{}, {}]))
    assert {outcome.state for outcome in found.values()} == {"finished"}
    assert len({outcome.log for outcome in found.values()}) == 4


# -- the command -------------------------------------------------------------------------------------------------------


def ablate(*arguments, **more):
    command = [sys.executable, "-m", "gafx.cli", "ablate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**more), timeout=300, check=False)


def test_the_command_lists_its_runs_without_torch(tmp_path):
    done = ablate(
        "table5", "data.root=genres", "--small", f"output_dir={tmp_path}", "--seeds", "0", "--dry-run", "batch_size=2"
    )
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        "table5_segments seed 0",
        "table5_whole seed 0",
    ]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel"], "no table 'tabel'; did you mean 'table"),
        (["table5", "--seeds", "a"], "--seeds 'a' must be whole numbers"),
        (["table5", "--folds", "1"], "protocol 'paper' has no folds"),
        (["table5", "--jobs", "0"], "--jobs 0 must be at least 1"),
        (["table5", "optim.rte=1"], "unknown key optim.rte"),
        (["table5", "seed=3"], "seed=3: every row runs under each seed and fold; choose them with --seeds"),
        (["table5", "data.root=nowhere", "output_dir={out}"], "nowhere"),
    ],
)
def test_errors_on_the_command_line(arguments, message, tmp_path):
    done = ablate(*(item.format(out=tmp_path) for item in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_table_of_trained_runs(tmp_path, synthetic_root):
    """Two rows that are trained and one that diverges, with all files; a second call trains nothing."""
    path = tmp_path / "mine.yaml"
    small = [*SMALL, "epochs=1", f"data.root={synthetic_root}", f"output_dir={tmp_path / 'out'}"]
    rows = [
        {"name": "mel", "overrides": ["frontend=mel"]},
        {"name": "more", "overrides": ["frontend=mel", "batch_size=4"]},
        {"name": "wild", "overrides": ["frontend=mel", "optim.lr=1e30", "optim.warmup_steps=0", "epochs=3"]},
    ]
    path.write_text(yaml.safe_dump({"title": "Mine", "overrides": small, "rows": rows}))
    done = ablate(path, OMP_NUM_THREADS="1")
    assert done.returncode == 1, done.stderr
    assert "| wild | diverged |" in done.stdout
    assert re.search(r"\| mel \| [\d.]+ \([\d.]+ to [\d.]+\) \|", done.stdout)
    folder = next((tmp_path / "out").glob("mine-*"))
    assert (folder / "table.html").is_file()
    before = {p: p.stat().st_mtime for p in (tmp_path / "out").glob("*/model/model.safetensors")}
    assert len(before) == 2
    again = ablate(path, "--no-run")
    assert again.stdout == done.stdout
    assert {p: p.stat().st_mtime for p in before} == before
