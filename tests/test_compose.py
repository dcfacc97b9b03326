"""Composition: recipes with any parts, the user's own YAML files, Hydra's syntax, and the train command."""

import dataclasses
import hashlib
import re
import subprocess
import sys

import pytest
import yaml
from runs import MEL, ROOT, SMALL, environment

from gafx.cli import main
from gafx.commands import train as train_command
from gafx.compose import _RECIPE, compose_train, group_choices, packaged_configs, sweep
from gafx.config import TrainConfig, run_id
from gafx.errors import UsageError
from gafx.registry import CLASSIFIERS, FRONTENDS
from gafx.saving.catalogue import CATALOGUE

CONFIGS = ROOT / "configs"
RECIPES = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
GIVEN = ["frontend.pretrained=run"]  # what the recipe table4_pretrained leaves to the user


class Plain:
    """A part without any argument: a recipe that sets one does not compose with it."""

    def __init__(self, *seam): ...


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's folder of YAML files, with a classifier and a front-end that another package would register."""
    for registry, group in ((CLASSIFIERS, "classifier"), (FRONTENDS, "frontend")):
        monkeypatch.setitem(registry._parts, "plain", Plain)
        write(tmp_path / group / "plain.yaml", {"name": "plain"})
    return tmp_path


def write(path, values, head=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + yaml.safe_dump(values))


@pytest.mark.parametrize("recipe", [*(f"experiment={name}" for name in RECIPES), "budget=small"])
def test_recipes_hold_for_any_classifier_and_front_end(own, recipe):
    if recipe == "experiment=table4_pretrained":  # it is about a pretrained front-end
        config = compose_train([recipe, "classifier=plain", *GIVEN], own)
    else:
        start = ["pretrained=given"] * (recipe == "experiment=jukebox_finetune")
        config = compose_train([recipe, "classifier=plain", "frontend=plain", *start], own)
        assert config.frontend == {"name": "plain"}
    assert config.classifier == {"name": "plain"}


@pytest.mark.parametrize("path", sorted((CONFIGS / "experiment").glob("*")) + sorted((CONFIGS / "budget").glob("*")))
def test_recipes_set_no_argument_of_a_part(path):
    """They select a size or a start under `recipe`, which is defined in the part's own YAML."""
    values = yaml.safe_load(path.read_text())
    assert "classifier" not in values
    assert path.stem == "table4_pretrained" or "frontend" not in values


@pytest.mark.parametrize("classifier", group_choices([CONFIGS])["classifier"])
def test_every_classifier_under_recipes_that_ask_for_something(classifier):
    for recipe in ("experiment=small", "experiment=paper", "experiment=quickstart budget=small"):
        config = compose_train([*recipe.split(), f"classifier={classifier}"])
        small = "paper" not in recipe
        # bert keeps the four layers that it is known for, and is narrow instead.
        assert config.classifier.get("depth", 0) <= (4 if classifier == "bert" else 2 if small else 12)
        if "paper" in recipe and classifier in ("ast_tiny", "ast_small", "ast_base"):
            assert config.classifier["pretrained"] is True
        if "budget" in recipe:
            assert config.classifier.get("pretrained", False) is False


@pytest.mark.parametrize("frontend", group_choices([CONFIGS])["frontend"])
def test_every_front_end_under_the_paper_s_recipes(frontend):
    for recipe in ("table6_gafx_a", "table6_gafx_u"):
        config = compose_train([f"experiment={recipe}", f"frontend={frontend}"])
        assert (config.frontend.get("norm") == "post") == (recipe == "table6_gafx_a" and "gafx_a" in frontend)
        assert (config.frontend.get("pretrained") is True) == (recipe == "table6_gafx_u" and frontend == "gafx_u")


def test_recipes_compose_to_the_runs_of_before():
    """Ids of runs made before (those of paper.yaml since its crops are literal): finished runs must be found again."""
    ids = {
        "experiment=paper": "6394e2a9",
        "experiment=table6_gafx_a": "51d5719f",
        "experiment=table6_gafx_u": "1915db26",
        "experiment=table3_small budget=small": "0746836c",
        "experiment=audioset_tag": "37fe033b",
        "experiment=audioset_mel": "6e3eb322",
        "budget=small": "3278abe8",
        "experiment=inflation_segment": "9b171598",
        "experiment=table5_segments": "19c1d48a",
    }
    assert {text: run_id(compose_train(text.split())) for text in ids} == ids


def test_lengths_in_milliseconds():
    """Rounded to 16 samples, so that the filters of gabor move by whole samples."""
    for rate, window, hop in ((44100, 1024, 880), (22050, 512, 448), (8000, 192, 160)):
        given = compose_train(["frontend=gabor", f"recipe.sample_rate={rate}"]).frontend
        assert (given["sample_rate"], given["window_length"], given["hop_length"]) == (rate, window, hop)
    fused = compose_train(["frontend=gabor_multi", "recipe.sample_rate=8000", "recipe.frame_ms=10"]).frontend
    assert {part["hop_length"] for part in fused["parts"].values()} == {80}


def test_a_recipe_s_wish_can_be_overridden():
    assert compose_train(["experiment=small", "classifier=ast_slim", "classifier.depth=3"]).classifier["depth"] == 3
    assert compose_train(["recipe.size=small"]).classifier["depth"] == 2
    with pytest.raises(UsageError, match=r"recipe\.szie"):
        compose_train(["recipe.szie=small"])


def test_the_user_s_folder_comes_first(own):
    write(own / "experiment" / "mine.yaml", {"epochs": 7, "optim": {"lr": 0.5}}, "# @package _global_\n")
    write(own / "experiment" / "small.yaml", {"epochs": 6}, "# @package _global_\n")
    write(own / "mood" / "brave.yaml", {"optim": {"lr": 9}}, "# @package _global_\n")
    mine = compose_train(["experiment=mine"], own)
    assert (mine.epochs, mine.optim.lr) == (7, 0.5)
    assert compose_train(["experiment=small"], own).epochs == 6
    assert compose_train(["experiment=small"]).epochs == 400
    assert compose_train(["experiment=quickstart"], own).epochs == 20  # gafx's own are still there
    assert compose_train(["mood=brave"], own).optim.lr == 9  # a group that gafx does not have
    with pytest.raises(UsageError, match="did you mean 'mine'"):
        compose_train(["experiment=mnie"], own)
    with pytest.raises(UsageError, match="is no folder"):
        compose_train([], own / "none")


def test_a_table_in_the_user_s_folder(own, capsys):
    write(own / "experiment" / "mine.yaml", {"epochs": 7}, "# @package _global_\n")
    rows = [
        {"name": "a", "overrides": ["experiment=mine"]},
        {"name": "b", "overrides": ["experiment=mine", "frontend=mel"]},
    ]
    write(own / "ablation" / "mine.yaml", {"rows": rows})
    main(["ablate", "mine", "--config-dir", str(own), "--dry-run", f"output_dir={own}"])
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["a seed 0", "b seed 0"]
    with pytest.raises(SystemExit):
        main(["ablate", "mine", "--dry-run"])
    assert "choose one of esc10, example," in capsys.readouterr().err


def test_names_of_folders_that_are_no_hydra_grammar(own):
    folder = own / "my configs, 'new' (x)=[1]"
    write(folder / "experiment" / "mine.yaml", {"epochs": 7}, "# @package _global_\n")
    assert compose_train(["experiment=mine"], folder).epochs == 7


def test_removed_keys_are_at_their_defaults():
    defaults = TrainConfig()
    config = compose_train(
        ["experiment=scratch", "data=folder", "~optim.clip_norm", "~classifier.depth", "~augment", "~data.protocol"]
    )
    assert config.optim.clip_norm is None
    assert config.classifier["depth"] == 12
    assert config.augment == defaults.augment
    assert config.data.protocol == defaults.data.protocol
    assert config.optim.schedule == "cosine"  # the rest of the recipe stays
    assert run_id(compose_train(["~optim.ema_decay"])) == run_id(compose_train([]))  # at its default already
    assert compose_train(["experiment=small", "~experiment"]).epochs == defaults.epochs
    assert compose_train(["~classifier"]).classifier["name"] == "ast"
    assert compose_train(["~augment", "augment.time_masks=1"]).augment.time_masks == 1
    assert compose_train(["experiment=scratch", "~optim.clip_norm=1.0"]).optim.clip_norm is None
    for wrong, hint in (("~optim.clip_nrm", "optim.clip_norm"), ("~classifier.dept", "classifier.depth")):
        with pytest.raises(UsageError, match=f"did you mean '{hint}'"):
            compose_train([wrong])
    with pytest.raises(UsageError, match="cannot be composed"):
        compose_train(["experiment=scratch", "~optim.clip_norm=3"])


def test_sweeps_are_expanded():
    assert sweep(["seed=0,1", "frontend=mel,gafx_r", "data.root=/x"]) == [
        [f"seed={seed}", f"frontend={name}", "data.root=/x"] for seed in (0, 1) for name in ("mel", "gafx_r")
    ]
    assert sweep(["seed=range(1,4)"]) == [["seed=1"], ["seed=2"], ["seed=3"]]
    assert sweep(["seed=choice(3,5)", "~augment"]) == [["seed=3", "~augment"], ["seed=5", "~augment"]]
    assert sweep(["classifier=glob(ast_s*)"]) == [["classifier=ast_slim"], ["classifier=ast_small"]]
    assert sweep(["data.root=My Music (live)"]) == [["data.root=My Music (live)"]]
    with pytest.raises(UsageError, match="no list of values"):
        sweep(["optim.lr=interval(0,1)"])


@pytest.mark.parametrize("override", ["seed=0,1", "frontend=mel,leaf"])
def test_a_sweep_without_multirun_names_it(override):
    with pytest.raises(UsageError, match="add -m"):
        compose_train([override])


@pytest.mark.parametrize("override", ["hydra/sweeper=optuna", "hydra.run.dir=x", "hydra/launcher=joblib"])
def test_plugins_are_refused_with_what_to_use(override):
    with pytest.raises(UsageError, match="gafx ablate"):
        compose_train([override])


def test_cfg_prints_a_configuration_that_gives_the_same_run(capsys):
    overrides = ["experiment=quickstart", "seed=3"]
    main(["train", *overrides, "--cfg", "job"])
    values = yaml.safe_load(capsys.readouterr().out)
    assert (values["seed"], values["optim"]["lr"], values["classifier"]["name"]) == (3, 2e-3, "cnn")
    main(["train", "--cfg", "all", *overrides])
    more = yaml.safe_load(capsys.readouterr().out)
    assert more.pop("hydra") == {
        "overrides": overrides, "searchpath": [str(packaged_configs())],
        "choices": {"frontend": "gabor", "classifier": "cnn", "objective": "classify", "data": "synthetic",
                    "experiment": "quickstart"},
    }  # fmt: skip
    assert more == values
    main(["evaluate", "--cfg", "job", "batch_size=3"])
    assert yaml.safe_load(capsys.readouterr().out)["batch_size"] == 3


def test_multirun_composes_all_before_it_starts_one(monkeypatch):
    monkeypatch.setattr(train_command, "_run", lambda command: pytest.fail("a run was started"))
    with pytest.raises(SystemExit) as end:
        main(["train", "-m", "optim.lr=0.1,-1"])
    assert end.value.code == 2


def test_multirun_reports_failures_at_the_end(monkeypatch, capsys):
    started = []

    def run(command):
        started.append(command)
        return 3 if "seed=1" in command else 0

    monkeypatch.setattr(train_command, "_run", run)
    with pytest.raises(SystemExit) as end:
        main(["train", "--multirun", "seed=0,1,2", "frontend=mel", "workers=0,0"])  # equal runs are one
    assert end.value.code == 1
    assert [command[-3:] for command in started] == [[f"seed={i}", "frontend=mel", "workers=0"] for i in range(3)]
    printed = capsys.readouterr().err
    assert "run 3 of 3: seed=2 frontend=mel workers=0" in printed
    assert "1 of 3 runs failed: seed=1 frontend=mel workers=0 (status 3)" in printed


@pytest.mark.slow
def test_multirun_trains_and_skips_what_is_finished(synthetic_root, tmp_path):
    given = [*SMALL, *MEL, f"data.root={synthetic_root}", f"output_dir={tmp_path / 'out'}", "max_steps=1", "seed=0,1"]
    command = [sys.executable, "-m", "gafx", "train", "-m", *given]
    texts = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout)
    assert texts[0] == texts[1]
    assert len(set(texts[0].split())) == 2
    assert all((tmp_path / folder / "model").is_dir() for folder in texts[0].split())


def test_where_small_starts(tmp_path, monkeypatch, caplog):
    """From the published model if it is in the cache, and a run goes on as it was started."""
    caplog.set_level("INFO", "gafx")
    small = ["experiment=small", f"output_dir={tmp_path / 'runs'}"]
    scratch = compose_train(small)
    assert "starts at random, not from audioset-crnn, which is not in the cache" in caplog.text
    weights = tmp_path / "cache" / "models" / "audioset-crnn" / "model.pth"
    weights.parent.mkdir(parents=True)
    weights.touch()
    monkeypatch.setenv("GAFX_CACHE", str(tmp_path / "cache"))
    assert compose_train(small) == scratch
    assert f"not from audioset-crnn, which is damaged in the cache: delete {weights}" in caplog.text
    entry = dataclasses.replace(CATALOGUE["audioset-crnn"], sha256=hashlib.sha256(b"").hexdigest())
    monkeypatch.setitem(CATALOGUE, "audioset-crnn", entry)
    tuned = compose_train(small)
    assert "starts from audioset-crnn, which is in the cache" in caplog.text
    assert tuned.classifier == {"name": "crnn", "pretrained": "audioset-crnn", "dropout": 0.3}
    assert tuned == compose_train([_as_pretrained(each) for each in small])
    assert scratch.folder != tuned.folder
    for random in ("recipe.start=random", "frontend=gabor", "classifier=cnn", "recipe.sample_rate=44100"):
        assert compose_train([*small, random]).classifier["name"] == "cnn"
    assert f"starts at random, since {random} is given" in caplog.text
    assert compose_train([*small, "recipe.start=random"]).folder == scratch.folder
    assert compose_train([*small, "recipe.start=audioset"]) == tuned
    assert "is experiment=small_pretrained, since recipe.start=audioset is given" in caplog.text
    scratch.folder.mkdir(parents=True)  # begun before the weights were there
    assert compose_train(small) == scratch
    assert f"starts at random, not from audioset-crnn, as {scratch.folder.name} did" in caplog.text
    tuned.folder.mkdir(parents=True)
    assert compose_train(small) == tuned
    scratch.folder.rmdir()
    weights.unlink()  # and the other way round: weights that are gone by now
    assert compose_train(small) == tuned


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("recipe.start=audioset-crnn", "unknown recipe.start=audioset-crnn; did you mean 'audioset'.* own, imagenet"),
        ("recipe.size=huge", "unknown recipe.size=huge; choose one of: full, small"),
        ("recipe.gafx_u=true", "unknown recipe.gafx_u=True; .*random, released"),
        ("recipe.gafx_a=null", "unknown recipe.gafx_a=None"),
    ],
)
def test_an_unknown_value_of_a_recipe(override, match):
    for experiment in ([], ["experiment=small"]):
        with pytest.raises(UsageError, match=match):
            compose_train([*experiment, override])


def test_the_values_of_a_recipe_are_those_that_parts_tell_apart():
    used = {
        (key, value)
        for path in packaged_configs().rglob("*.yaml")
        for key, value in re.findall(r"choose:\$\{recipe\.(\w+)\},(\w+),", path.read_text())
    }
    assert {key for key, _ in used} == set(_RECIPE)
    assert all(value in _RECIPE[key] for key, value in used)


def _as_pretrained(override):
    return "experiment=small_pretrained" if override == "experiment=small" else override


@pytest.mark.parametrize("seconds", [1, 3, 4, 10, 29.7, 30])
def test_a_mel_image_has_256_frames_whatever_the_length(seconds):
    config = compose_train(["frontend=mel_image", "data=gtzan", f"data.segment_seconds={seconds}"])
    frontend = FRONTENDS.create(**config.frontend)
    _, bands, frames = frontend.output_shape(round(seconds * frontend.sample_rate))
    assert bands == 256
    assert 253 <= frames <= 256
