"""Every YAML file, recursively, composes and fits the dataclasses and signatures; every mistake has a message."""

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gafx.compose import GROUPS, compose_evaluate, compose_train, sweep
from gafx.config import TrainConfig, build, parse_values, run_id, to_dict
from gafx.errors import UsageError
from gafx.registry import CLASSIFIERS, FRONTENDS, OBJECTIVES, SOURCES

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
REGISTRIES = {"frontend": FRONTENDS, "classifier": CLASSIFIERS, "objective": OBJECTIVES}
NO_CHOICES = ("ablation", "accelerate", "slurm")  # tables of runs (test_ablate.py), and what launchers read
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name not in NO_CHOICES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_file_composes(path):
    group = path.parent.name
    if path.parent == CONFIGS:
        assert path.stem in ("train", "evaluate")
        return
    assert group in GROUPS, f"{path} is in no group of train.yaml"
    values = yaml.safe_load(path.read_text())
    left = [f"{key}.{inner}=given" for key in REGISTRIES for inner, value in (values.get(key) or {}).items()
            if group == "experiment" and value == "???"]  # fmt: skip
    left += [f"{key}=given" for key, value in values.items() if value == "???"]
    if left:
        with pytest.raises(UsageError, match="is missing and has no default"):
            compose_train([f"{group}={path.stem}"], CONFIGS)
    config = compose_train([f"{group}={path.stem}", *left], CONFIGS)
    if group in REGISTRIES:
        part = getattr(config, group)
        assert part["name"] == values["name"]
        signature = inspect.signature(REGISTRIES[group].get(part["name"]))
        keywords = {name for name, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}
        assert set(part) - {"name"} == keywords
        part = {key: list(value) if isinstance(value, tuple) else value for key, value in part.items()}
        assert {key: part[key] for key in values if "${" not in str(values[key])} == {
            key: value for key, value in values.items() if "${" not in str(value)
        }
    elif group == "data":
        assert config.data.name == values["name"]
        options = values.pop("options", {})
        assert {key: config.data.options[key] for key in options} == options
        assert {key: getattr(config.data, key) for key in values} == values


def test_every_part_has_a_file():
    for group, registry in REGISTRIES.items():
        named = {yaml.safe_load(path.read_text())["name"] for path in (CONFIGS / group).glob("*.yaml")}
        assert named == set(registry.names())
    data = {path.stem: yaml.safe_load(path.read_text())["name"] for path in (CONFIGS / "data").glob("*.yaml")}
    assert set(data.values()) == set(SOURCES.names()) <= set(data)


def test_the_paper_recipe():
    config = compose_train(["experiment=paper"], CONFIGS)
    optim = config.optim
    assert (optim.name, optim.lr, optim.warmup_steps, optim.schedule) == ("adam", 5e-5, 800, "halving")
    assert (tuple(optim.milestones), optim.lr_gamma) == ((12, 24, 50, 65), 0.5)
    assert (config.epochs, config.batch_size, config.classifier["pretrained"], config.classifier["stem"]) == (
        80,
        4,
        True,
        "mean",
    )
    assert (config.frontend["name"], config.frontend["width"], config.data.protocol) == ("gafx_r", 64, "paper")


def test_a_command_line_choice_beats_the_experiment():
    config = compose_train(["experiment=quickstart", "frontend=mel", "optim.lr=0.5", "data.split_seed=2"], CONFIGS)
    assert config.frontend["name"] == "mel"
    assert config.name == "quickstart-mel"
    assert (config.optim.lr, config.data.split_seed) == (0.5, 2)


ROOTS = [
    "My Music (live)",
    "a,b",
    "it's",
    "/x/[1]",
    "k=v",
    "ü/ö",
    "C:\\x",
    "~/music",
    "a b",
    "{x}",
    "$HOME",
    "2024",
    "a-b.c",
]


@pytest.mark.parametrize("root", ROOTS)
def test_values_that_are_no_hydra_grammar(root):
    assert compose_train([f"data.root={root}"], CONFIGS).data.root == root


TYPED = [
    "1.10", "2024_11", "1e3", ".5", "+5", "NaN", "0x10", "010", "1_000.50", "str(1)", "'", "\\'x", "a\\\\b",
    "trailing\\", r"(.*)_part\d+", "it's (live)", '"', " space ", "x #1", "~", "no", "!tag", "a: b",
]  # fmt: skip


@pytest.mark.parametrize("text", TYPED)
def test_text_keeps_what_was_typed(text):
    given = ["data=folder", f"data.root={text}", f"data.options.group_pattern={text}", f"frontend.pretrained={text}"]
    config = compose_train([*given, f"++output_dir={text}"], CONFIGS)
    assert (config.data.root, config.data.options["group_pattern"], config.output_dir) == (text, text, text)
    assert config.frontend["pretrained"] == text
    assert parse_values([f"group_pattern={text}"], "--option", "", SOURCES.keywords("folder")) == {
        "group_pattern": text
    }


def test_text_in_quotes_null_and_interpolation(monkeypatch):
    monkeypatch.setenv("MUSIC", "/m")

    def root(text):
        return compose_train([f"data.root={text}"], CONFIGS).data.root

    assert root("'1.10'") == root('"1.10"') == "1.10"
    assert root("null") is None
    assert root("'null'") == "null"
    assert root("${oc.env:MUSIC}/x") == "/m/x"
    assert root(r"\${oc.env:MUSIC}/x") == "${oc.env:MUSIC}/x"
    with pytest.raises(UsageError, match=r"write \\\$\{"):
        root("${nothing}")
    assert compose_train(["frontend.pretrained=false"], CONFIGS).frontend["pretrained"] is False
    for sweeping in ("1.10,2_0", "choice(1.10, 2_0)"):
        assert sweep([f"data.root={sweeping}"], CONFIGS) == [["data.root=1.10"], ["data.root=2_0"]]


def test_text_in_yaml_needs_quotes_if_it_looks_like_a_number(tmp_path):
    folder = tmp_path / "configs" / "experiment"
    folder.mkdir(parents=True)

    def root(text):
        (folder / "mine.yaml").write_text(f"# @package _global_\ndata:\n  root: {text}\n")
        return compose_train(["experiment=mine"], tmp_path / "configs").data.root

    assert [root('"1.10"'), root("'2024_11'"), root("1.10.2")] == ["1.10", "2024_11", "1.10.2"]
    for text in ("1.10", "2024_11", "1e3", ".nan"):
        with pytest.raises(UsageError, match=r"data\.root was read as the number .* put quotes"):
            root(text)


def test_items_of_lists_that_look_like_numbers_need_quotes():
    with pytest.raises(UsageError, match=r"put quotes around items .*\['1.10','on'\]"):
        compose_train(["data=gtzan", "data.options.genres=[1.10,on]"], CONFIGS)
    quoted = compose_train(["data=gtzan", "data.options.genres=['1.10','on']"], CONFIGS)
    assert quoted.data.options["genres"] == ["1.10", "on"]


def test_run_id_is_about_results_only():
    base = compose_train(["data.protocol=kfold"], CONFIGS)
    places = [
        "data.root=/elsewhere",
        "workers=7",
        "device=cpu",
        "tracking.trackers=[wandb]",
        "output_dir=x",
        "name=y",
        "checkpoint_steps=3",
        "data.strict=true",
        "data.max_unreadable=0.5",
    ]
    assert run_id(compose_train([*places, "data.protocol=kfold"], CONFIGS)) == run_id(base)
    for change in (
        "seed=1",
        "frontend.width=16",
        "data.fold=2",
        "optim.lr=1",
        "objective.label_smoothing=0.1",
        "precision=fp32",
    ):
        assert run_id(compose_train([change, "data.protocol=kfold"], CONFIGS)) != run_id(base), change
    # A default written out is the same run.
    assert run_id(
        compose_train(["frontend.norm=batch", "classifier.depth=12", "data.protocol=kfold"], CONFIGS)
    ) == run_id(base)


def test_a_run_that_weights_come_from_counts_by_its_id():
    def id_of(*overrides):
        return run_id(compose_train([*overrides], CONFIGS))

    there = id_of("frontend.pretrained=outputs/audioset-tag-gafx_r-0123abcd")
    for same in ("/data/outputs/audioset-tag-gafx_r-0123abcd", "renamed-0123abcd", "outputs/x-0123abcd/model/"):
        assert id_of(f"frontend.pretrained={same}") == there, same
    for other in ("outputs/audioset-tag-gafx_r-0123abce", "owner/name", "true"):
        assert id_of(f"frontend.pretrained={other}") != there, other
    assert id_of("frontend.pretrained=a/weights.safetensors") != id_of("frontend.pretrained=b/weights.safetensors")
    fused = "frontend.parts={a:{name:mel},b:{name:gafx_r,pretrained:%s-0123abcd}}"
    assert id_of("frontend=fused", fused % "x") == id_of("frontend=fused", fused % "y")


def test_a_configuration_survives_yaml():
    config = compose_train(["experiment=scratch", "optim.ema_decay=0.5"], CONFIGS)
    again = build(TrainConfig, yaml.safe_load(yaml.safe_dump(to_dict(config))))
    assert dataclasses.asdict(again) == dataclasses.asdict(config)


MISTAKES = {
    "epohcs=3": ["epohcs", "did you mean 'epochs'"],
    "optim.rtae=3": ["optim.rtae", "did you mean 'optim.lr'"],
    "rate=3": ["unknown key rate", "did you mean 'optim.lr'"],
    "optim.rate=3": ["unknown key optim.rate", "did you mean 'optim.lr'"],
    "optim.frontend.rate_scale=3": ["did you mean 'optim.frontend.lr_scale'"],
    "accumulate=2": ["did you mean 'grad_accumulation'"],
    "acumulate=2": ["did you mean 'grad_accumulation'"],
    "data.test_share=0.3": ["did you mean 'data.test_fraction'"],
    "augment.time_mask_share=0.3": ["did you mean 'augment.time_mask_fraction'"],
    "augment.speed=0.9": ["augment.speed=0.9", "between 1 and 2"],
    "augment.gain_db=-3": ["augment.gain_db=-3", "at least 0"],
    "augment.noise_snr_db=[30,10]": ["augment.noise_snr_db", "two numbers, the first at most the second"],
    "augment.noise_snr_db=[10]": ["augment.noise_snr_db", "two numbers"],
    "data.crop=pieces": ["data.crop='pieces'", "did you mean 'segments'"],
    "data.group_by=piece": ["data.group_by='piece'", "did you mean 'segment'"],
    "name=a/b": ["name=a/b", "without /"],
    "name= ": ["not beginning with a dot or a space"],
    "name=..": ["name=..", "not beginning with a dot"],
    "name=": ["name=", "1 to 150 characters"],
    "name=a\nb": ["control characters"],
    "tracking.project=a/b": ["tracking.project=a/b", "without / "],
    "tracking.project=50%": ["tracking.project=50%", "% :"],
    "tracking.project=a:b": ["tracking.project=a:b"],
    f"tracking.project={'x' * 129}": ["1 to 128 characters"],
    "output_dir=caf\udce9": ["output_dir (caf", "no UTF-8"],
    "data.root=\udcff": ["data.root", "no UTF-8"],
    "device=gpu": ["device=gpu", "cuda:<index>", "mps"],
    "device=cuda:x": ["device=cuda:x"],
    "frontend=gafx_rr": ["unknown frontend 'gafx_rr'", "did you mean 'gafx_r'", "mel"],
    "frontend.name=mell": ["unknown front-end 'mell'", "did you mean 'mel'"],
    "frontend.widht=16": ["frontend.widht", "did you mean 'width'"],
    "frontend.norm=layer": ["frontend.norm='layer'", "'batch', 'group'"],
    "classifier.size=tinny": ["classifier.size='tinny'", "did you mean 'tiny'"],
    "data=esk": ["unknown data 'esk'", "did you mean 'esc'"],
    "data.options.traks=3": ["data.options.traks", "did you mean 'tracks'"],
    "objective=clasify": ["did you mean 'classify'"],
    "epochs=many": ["epochs='many'", "expected int"],
    "epochs=2.5": ["epochs=2.5", "expected int"],
    "seed=true": ["seed=True", "expected int"],
    "optim=3": ["optim=3", "group of keys"],
    "precision=half": ["precision='half'", "'bf16'"],
    "data.protocol=papper": ["did you mean 'paper'"],
    "grad_accumulation=3": ["grad_accumulation=3", "batch_size=4"],
    "epochs=0": ["epochs=0", "at least 1"],
    "optim.lr=-1": ["optim.lr=-1", "above 0"],
    "data.val_fraction=2": ["data.val_fraction=2", "between 0 and 1"],
    "epochs": ["'epochs' is no override", "key=value"],
    "optim.betas=[1]": ["optim.betas"],
    "optim.betas=[1.0,2]": ["optim.betas"],
    "optim.lr=inf": ["optim.lr=inf", "finite"],
    "seed=4294967295": ["seed=4294967295", "below"],
    "data.fold=2": ["data.fold=2", "'paper'", "data.split_seed"],
}


@pytest.mark.parametrize("override", MISTAKES)
def test_mistakes_name_value_and_cure(override):
    with pytest.raises(UsageError) as caught:
        compose_train([override], CONFIGS)
    for part in MISTAKES[override]:
        assert part in str(caught.value), str(caught.value)


def test_evaluate_keys():
    assert compose_evaluate(["batch_size=3"], CONFIGS).batch_size == 3
    with pytest.raises(UsageError, match="did you mean 'resamples'"):
        compose_evaluate(["resample=3"], CONFIGS)


@pytest.mark.parametrize("name", ["train.py", "evaluate.py"])
def test_help_lists_keys_and_choices(name):
    done = subprocess.run([sys.executable, ROOT / name, "--help"], capture_output=True, text=True, check=True)
    assert "batch_size" in done.stdout
    assert name != "train.py" or ("optim.warmup_steps = 800" in done.stdout and "gafx_r_slim" in done.stdout)


def test_gafx_list_shows_every_part_and_keyword():
    done = subprocess.run([sys.executable, "-m", "gafx.cli", "list"], capture_output=True, text=True, check=True)
    for registry in (*REGISTRIES.values(), SOURCES):
        for name in registry.names():
            assert f"  {name}\n" in done.stdout
            for keyword in registry.keywords(name):
                assert f"    {keyword} " in done.stdout


def test_the_order_of_fused_parts_counts():
    """It is the order of the channels. Ids are written out here: where one changes, finished runs are found no more."""
    mel, wave = {"name": "mel"}, {"name": "gafx_r", "width": 16}
    ids = {
        run_id(build(TrainConfig, {"frontend": {"name": "fused", "parts": parts}}))
        for parts in (
            {"a": mel, "b": wave},
            {"b": wave, "a": mel},
            {"a": {"name": "fused", "parts": {"a": mel, "b": wave}}},
            {"a": {"name": "fused", "parts": {"b": wave, "a": mel}}},
        )
    }
    assert len(ids) == 4
    assert run_id(build(TrainConfig, {"frontend": {"name": "mel"}, "seed": 3})) == "459b5d69"
    assert run_id(compose_train(["data.protocol=kfold"], CONFIGS)) == "8f9b372d"
    assert run_id(compose_train(["frontend=fused"], CONFIGS)) == "dfeccc84"


def test_a_name_that_yaml_takes_for_a_number():
    assert compose_train(["name=nan"], CONFIGS).name == "nan"
    with pytest.raises(UsageError, match="must be a finite number"):
        compose_train(["optim.lr=nan"], CONFIGS)
