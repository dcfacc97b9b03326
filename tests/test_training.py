"""Options of a training run, each compared with a result computed another way."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from runs import records, weights

from gafx.config import OptimConfig, TrainConfig, build
from gafx.data.augment import draw_masks, draw_mixup
from gafx.data.batches import TrainingOrder, class_balance
from gafx.data.manifest import make_manifest
from gafx.errors import UsageError
from gafx.model import create_model
from gafx.objectives.classify import Classify
from gafx.training.ema import EMA
from gafx.training.optim import build_optimizer, lr_factor


@pytest.fixture(autouse=True)
def fresh_accelerator():
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def run(synthetic_root, tmp_path):
    """`run(optim={...}, epochs=2, ...)` trains a small mel model and returns the trainer and its folder."""

    def go(**changes):
        from gafx.training.trainer import Trainer

        data = {
            "root": str(synthetic_root),
            "segment_seconds": 0.8,
            "options": {"tracks": 4, "seconds": 1.5},
        } | changes.pop("data", {})
        values = {
            "frontend": {"name": "mel"},
            "classifier": {"name": "ast", "depth": 1},
            "data": data,
            "batch_size": 8,
            "epochs": 2,
            "workers": 0,
            "precision": "fp32",
            "output_dir": str(tmp_path),
            "tracking": {"log_steps": 1},
            "optim": {"lr": 1e-3, "warmup_steps": 0},
        } | changes
        trainer = Trainer(build(TrainConfig, values))
        return trainer, trainer.fit()

    return go


def losses(folder):
    return [record["loss"] for record in records(folder) if "loss" in record]


def test_the_loss_falls(run):
    _, folder = run(epochs=8)
    found = losses(folder)
    assert np.mean(found[-4:]) < np.mean(found[:4]) - 0.2


def test_accumulation_changes_nothing(run):
    (_, whole), (_, parts) = run(name="whole", batch_size=12), run(name="parts", batch_size=12, grad_accumulation=4)
    assert losses(whole) == pytest.approx(losses(parts), rel=1e-4)
    ours, theirs = weights(whole), weights(parts)
    assert all(torch.allclose(ours[k], theirs[k], atol=5e-3) for k in ours)  # Adam magnifies rounding of zero gradients


def test_frozen_parts_stay_and_then_learn(run):
    settings = {
        "optim": {"lr": 1e-3, "warmup_steps": 0, "frontend": {"frozen_epochs": 1}},
        "frontend": {"name": "gafx_r", "width": 16},
        "data": {"segment_seconds": 0.4},
    }
    torch.manual_seed(0)
    start = create_model(
        {"name": "gafx_r", "width": 16}, {"name": "ast", "depth": 1}, num_classes=10, segment_seconds=0.4
    ).state_dict()
    _, frozen = run(name="frozen", epochs=1, **settings)
    _, freed = run(name="freed", epochs=2, **settings)
    front = [name for name in start if name.startswith("frontend.")]
    assert front
    assert all(
        torch.equal(weights(frozen)[name], start[name]) for name in front
    )  # running statistics too: it was in eval
    assert any(not torch.equal(weights(freed)[name], start[name]) for name in front)
    assert not torch.equal(weights(frozen)["classifier.output.weight"], start["classifier.output.weight"])


def test_a_front_end_built_frozen_never_learns(run):
    """Though the run freezes nothing: its weights are those of the start, its map's statistics those of the data."""
    front_end = {"name": "gafx_u", "width": 16, "frozen": True}
    trainer, folder = run(frontend=front_end, epochs=1, max_steps=3, data={"segment_seconds": 0.8})
    ours = weights(folder)
    torch.manual_seed(0)
    start = create_model(front_end, {"name": "ast", "depth": 1}, num_classes=10, segment_seconds=0.8).state_dict()
    assert all(torch.equal(ours[name], start[name]) for name in start if name.startswith("frontend."))
    assert not torch.equal(ours["classifier.output.weight"], start["classifier.output.weight"])
    assert ours["map_norm.std"] != 1
    assert not any(parameter.requires_grad for parameter in trainer.objective.model.frontend.parameters())


def test_the_fixed_part_of_a_fused_map_has_the_statistics_of_the_data(run):
    parts = {"a": {"name": "mel"}, "b": {"name": "gafx_r", "width": 16}}
    _, fused = run(frontend={"name": "fused", "parts": parts}, epochs=1, max_steps=1, data={"segment_seconds": 0.4})
    _, plain = run(epochs=1, max_steps=1, data={"segment_seconds": 0.4})
    for name in ("mean", "std"):
        assert torch.allclose(weights(fused)[f"map_norm.norms.0.{name}"], weights(plain)[f"map_norm.{name}"])
    assert "map_norm.norms.1.mean" not in weights(fused)


def test_everything_frozen_is_refused(run):
    part = {"frozen_epochs": 1}
    with pytest.raises(UsageError, match=r"no parameter is trained in epoch 1.*frozen_epochs"):
        run(optim={"frontend": part, "classifier": part})


def test_rate_scales_per_part():
    model = create_model({"name": "gafx_r", "width": 16}, {"name": "ast", "depth": 1}, num_classes=3, segment_seconds=1)
    config = build(OptimConfig, {"lr": 0.1, "weight_decay": 0.5, "frontend": {"lr_scale": 0.25}})
    optimizer = build_optimizer(Classify(model, np.ones(3, int)), config, fused=False)
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decay_of = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {rate_of[id(p)] for p in model.frontend.parameters()} == {0.025}
    assert {rate_of[id(p)] for p in model.classifier.parameters()} == {0.1}
    assert decay_of[id(model.classifier.pos_embed)] == 0
    assert decay_of[id(model.classifier.output.bias)] == 0
    assert decay_of[id(model.classifier.output.weight)] == 0.5
    assert len(rate_of) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["mel", "leaf", "gafx_r", "gafx_a", "gafx_u", "fused"])
def test_parts_declare_what_training_must_know(name):
    """FSDP units are classes of modules that are there, and exempt names are those of matrices that learn."""
    frontend = {"name": name, **({"width": 16} if name.startswith("gafx") else {})}
    model = create_model(frontend, {"name": "ast", "depth": 1}, num_classes=3, segment_seconds=1)
    kinds = {type(module) for module in model.modules()}
    assert model.fsdp_units() <= kinds
    assert type(model.classifier.blocks[0]) in model.fsdp_units()
    found = {kind.__name__ for kind in kinds} & {"BasicBlock", "AttentionLayer", "HEncLayer", "HDecLayer"}
    assert found <= {unit.__name__ for unit in model.fsdp_units()}
    parameters = dict(model.named_parameters())
    assert all(parameters[name].ndim >= 2 for name in model.no_weight_decay())
    # Positions are left alone, wherever they are learned.
    tables = {f"{key}.weight" for key, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}
    positions = {key for key in parameters if "pos_embed" in key or key.endswith("_token")}
    assert tables | positions <= model.no_weight_decay()


def test_the_papers_schedule():
    config = OptimConfig()
    per_epoch = 200  # 800 clips in batches of 4
    factor = [lr_factor(config, step, per_epoch, 80 * per_epoch) for step in range(80 * per_epoch)]
    assert factor[0] == pytest.approx(1 / 800)
    assert factor[399] == pytest.approx(0.5)
    assert factor[799] == factor[12 * per_epoch - 1] == 1.0
    for epoch, value in ((12, 0.5), (23, 0.5), (24, 0.25), (50, 0.125), (65, 0.0625), (79, 0.0625)):
        assert factor[epoch * per_epoch] == value


def test_cosine_and_constant():
    cosine = OptimConfig(schedule="cosine", warmup_steps=10)
    assert lr_factor(cosine, 9, 10, 110) == 1.0
    assert lr_factor(cosine, 60, 10, 110) == pytest.approx(0.5)
    linear = OptimConfig(schedule="linear", warmup_steps=10)
    assert [lr_factor(linear, step, 10, 110) for step in (4, 9, 10, 60, 109)] == pytest.approx([0.5, 1, 1, 0.5, 0.01])
    assert lr_factor(cosine, 109, 10, 110) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))
    assert lr_factor(OptimConfig(schedule="constant", warmup_steps=0), 5000, 10, 110) == 1.0


def test_moving_average_is_what_is_kept(run):
    (_, plain), (trainer, averaged) = (
        run(name="plain"),
        run(name="average", optim={"lr": 1e-3, "warmup_steps": 0, "ema_decay": 0.5}),
    )
    assert losses(plain) == losses(averaged)  # averaging does not change the training
    assert not torch.equal(weights(plain)["classifier.output.weight"], weights(averaged)["classifier.output.weight"])
    assert trainer.ema is not None
    # After the swap in `fit` the average object holds the weights that were trained.
    assert torch.equal(trainer.ema.values["classifier.output.weight"], weights(plain)["classifier.output.weight"])


def test_moving_average_by_hand():
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(layer.weight, 1.0)
    average = EMA(layer.state_dict(), 0.5)
    torch.nn.init.constant_(layer.weight, 2.0)
    average.update(layer.state_dict(), 0)  # the early decay is (1 + 0) / (10 + 0)
    assert average.values["weight"].item() == pytest.approx(0.1 * 1 + 0.9 * 2)
    torch.nn.init.constant_(layer.weight, 4.0)
    average.update(layer.state_dict(), 10**6)
    assert average.values["weight"].item() == pytest.approx(0.5 * 1.9 + 0.5 * 4)


def test_loss_with_smoothing_and_class_weights_is_torchs():
    model = create_model("mel", {"name": "ast", "depth": 1}, num_classes=3, segment_seconds=0.5).eval()
    objective = Classify(model, np.array([6, 3, 1]), label_smoothing=0.1, class_weights="balanced")
    wave, labels = torch.randn(4, 1, 11025) * 0.1, torch.tensor([0, 1, 2, 0])
    target, weight = torch.eye(3)[labels], torch.ones(4)
    output = objective(wave, target, weight, torch.zeros(4, 0, 2), 0)
    ours = output["loss"] / objective.loss_weight(target, weight).sum()
    balanced = torch.tensor([10 / 18, 10 / 9, 10 / 3])
    theirs = torch.nn.functional.cross_entropy(output["logits"], labels, weight=balanced, label_smoothing=0.1)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    # A clip of weight 0 (an unreadable one) changes neither loss nor gradient.
    broken = objective(wave, target, torch.tensor([1.0, 1, 1, 0]), torch.zeros(4, 0, 2), 0)["loss"]
    three = objective(wave[:3], target[:3], weight[:3], torch.zeros(3, 0, 2), 0)["loss"]
    assert broken.item() == pytest.approx(three.item(), rel=1e-5)


def test_order_sees_every_clip_once_however_it_is_divided():
    for clips, batch, accumulate, world in ((37, 8, 1, 1), (37, 8, 2, 2), (5, 4, 1, 2), (64, 16, 4, 1)):
        keys = []
        for rank in range(world):
            order = TrainingOrder(
                clips, batch_size=batch, epochs=3, seed=1, grad_accumulation=accumulate, rank=rank, world=world
            )
            batches = list(order)
            assert len(batches) == len(order) == 3 * -(-clips // batch) * accumulate
            keys += [key for one in batches for key in one if key[1] >= 0]
        for epoch in range(3):
            assert sorted(index for e, index in keys if e == epoch) == list(range(clips))
    whole = list(TrainingOrder(37, batch_size=8, epochs=3, seed=1))
    assert list(TrainingOrder(37, batch_size=8, epochs=3, seed=1, start_step=7)) == whole[7:]
    assert list(TrainingOrder(37, batch_size=8, epochs=3, seed=2)) != whole


def test_balanced_and_weighted_sampling(run):
    labels = np.array([0] * 80 + [1] * 15 + [2] * 5)
    manifest = make_manifest(
        Path(), "abc", [f"{i}.wav" for i in range(100)], labels[:, None].tolist(), [1.0] * 100, [8000] * 100
    )
    weights = class_balance(manifest, np.arange(100))
    assert weights == pytest.approx(1 / np.bincount(labels)[labels])
    order = TrainingOrder(100, batch_size=10, epochs=200, seed=0, weights=weights)
    drawn = np.concatenate([order.order(epoch) for epoch in range(200)])
    fractions = np.bincount(labels[drawn], minlength=3) / len(drawn)
    assert fractions == pytest.approx([1 / 3] * 3, abs=0.02)
    run(data={"sampling": "balanced"}, max_steps=1)


def test_draws_are_functions_of_seed_epoch_and_index():
    from gafx.config import AugmentConfig

    config = AugmentConfig(
        mixup_probability=0.5, mixup_alpha=2.0, time_masks=2, time_mask_fraction=0.3, frequency_masks=1
    )
    assert draw_mixup(config, 50, 1, 2, 3) == draw_mixup(config, 50, 1, 2, 3)
    drawn = [draw_mixup(config, 50, 0, epoch, index) for epoch in range(20) for index in range(50)]
    mixed = [mixup for mixup in drawn if mixup]
    assert len(mixed) / len(drawn) == pytest.approx(0.5, abs=0.05)
    assert np.mean([mixup.weight for mixup in mixed]) == pytest.approx(0.5, abs=0.03)
    assert np.var([mixup.weight for mixup in mixed]) == pytest.approx(0.05, abs=0.01)  # of Beta(2, 2)
    assert len({mixup.partner for mixup in mixed}) > 45
    masks = np.stack([draw_masks(config, 0, epoch, 0) for epoch in range(300)])
    assert masks.shape == (300, 3, 2)
    assert masks[:, :2, 1].max() <= 0.3
    assert masks[:, :2, 1].mean() == pytest.approx(0.15, abs=0.02)
    assert (masks.sum(axis=2) <= 1 + 1e-6).all()


def test_the_moving_average_covers_the_statistics_of_batch_norm():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    average = EMA(module.state_dict(), 0.9)
    expected = {name: tensor.double() for name, tensor in module.state_dict().items()}
    for step in range(30):
        module(torch.randn(8, 3) + 5)
        with torch.no_grad():
            module[0].weight.add_(0.1)
        average.update(module.state_dict(), step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, tensor in module.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
    expected["1.num_batches_tracked"] = torch.tensor(30.0)
    for name, tensor in average.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name].double(), rtol=1e-5, atol=1e-6)


def test_segments_are_as_many_as_fit(run):
    trainer, _ = run(data={"crop": "segments", "segment_seconds": 0.5}, max_steps=1)
    assert len(trainer.clips) == 3 * 30  # tracks of 1.5 s
    trainer, _ = run(data={"crop": "segments", "segment_seconds": 0.8}, max_steps=1)
    assert len(trainer.clips) == 30


@pytest.mark.parametrize("short_clips", ["repeat", "pad"])
@pytest.mark.parametrize("seconds", [0.8, 2.2])
def test_the_literal_crop_is_the_start_of_a_track_padded_or_repeated(run, seconds, short_clips):
    trainer, _ = run(data={"crop": "start", "short_clips": short_clips, "segment_seconds": seconds}, max_steps=1)
    clips = trainer.clips
    length, whole = round(seconds * 22_050), round(1.5 * 22_050)
    assert len(clips) == 30
    for epoch, index in ((0, 0), (1, 0), (5, 17)):
        wave = clips[epoch, index].wave
        track = clips.reader.read(int(clips.segments.row[index]), 0, whole)
        expected = np.tile(track, 2) if short_clips == "repeat" else np.pad(track, ((0, 0), (0, whole)))
        assert np.array_equal(wave.numpy(), expected[:, :length])


def test_validation_keeps_the_best_epoch(run):
    trainer, folder = run(data={"protocol": "paper_val", "val_fraction": 0.3}, epochs=4)
    scores = [(r["validation_accuracy"], r["epoch"]) for r in records(folder) if "validation_accuracy" in r]
    assert len(scores) == 4
    assert trainer.best["epoch"] == max(scores)[1]  # of equal scores the later one
    assert json.loads((folder / "run.json").read_text())["best"]["step"] == trainer.best["step"]


def test_a_nonfinite_loss_names_step_clips_and_culprit(run, monkeypatch):
    from gafx.frontends.mel import MelFrontEnd

    forward, calls = MelFrontEnd.forward, []

    def broken(self, wave):
        calls.append(len(wave))
        return forward(self, wave) * (float("nan") if len(calls) > 4 + 3 else 1.0)

    monkeypatch.setattr(MelFrontEnd, "forward", broken)
    with pytest.raises(
        UsageError,
        match=r"not finite at step \d+ \(first: activation of model.frontend \(MelFrontEnd\); clips: \w+/\w+",
    ):
        run()
    calls.clear()
    trainer, _ = run(name="skipping", stop_on_nonfinite=False)
    assert trainer.nonfinite_steps > 0


def test_a_skipped_step_leaves_no_trace_in_batch_norm(run, monkeypatch):
    from gafx.frontends.gafx_r import GAFXR

    forward, calls = GAFXR.forward, []

    def broken(self, wave):
        calls.append(len(wave))
        return forward(self, wave * float("nan") if len(calls) == 2 else wave)

    monkeypatch.setattr(GAFXR, "forward", broken)
    settings = {"frontend": {"name": "gafx_r", "width": 16}, "data": {"segment_seconds": 0.4}, "max_steps": 3}
    trainer, folder = run(stop_on_nonfinite=False, **settings)
    assert trainer.nonfinite_steps == 1
    assert all(torch.isfinite(tensor.float()).all() for tensor in weights(folder).values())
    calls.clear()
    monkeypatch.setattr(
        GAFXR, "forward", lambda self, wave: broken(self, wave) if len(calls) < 2 else broken_again(self, wave)
    )

    def broken_again(self, wave):  # the diagnosis repeats the step, and it fails in the same way
        return forward(self, wave * float("nan"))

    with pytest.raises(UsageError, match=r"step 2 \(first: input of model\.frontend\.resnet\.conv1 \(Conv2d\)"):
        run(name="stopped", **settings)


def test_fp16_needs_a_gpu(run):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match="precision=fp16 needs a GPU.*precision=bf16"):
        run(precision="fp16")


def test_other_data_under_the_same_name_are_refused(run, tmp_path):
    from gafx.data.sources.synthetic import synthesize

    run(max_steps=1, data={"max_unreadable": 0.5})
    other = synthesize(tmp_path / "other", tracks=4, seconds=1.5, seed=3)
    (other / "synthetic.json").write_text((other / "synthetic.json").read_text().replace('"seed": 3', '"seed": 0'))
    (next(other.glob("*/*.flac"))).unlink()
    with pytest.raises(UsageError, match="belongs to a run on other data"):
        run(max_steps=1, data={"root": str(other), "max_unreadable": 0.5})


def test_a_run_in_progress_is_locked(run):
    from gafx.training.build import claim_folder

    _trainer, folder = run(max_steps=1)
    shutil.rmtree(folder / "model")  # not finished
    with claim_folder(folder), pytest.raises(UsageError, match="being written by another process"):
        run(max_steps=1)


def test_trackers_stay_on_this_machine(run):
    pytest.importorskip("tensorboard")
    _, folder = run(tracking={"trackers": ["tensorboard"], "log_steps": 1}, max_steps=2)
    assert list(folder.rglob("events.out.tfevents*"))


VALIDATED = {"protocol": "paper_val", "val_fraction": 0.3}


def test_media_of_validation_clips(run):
    """Sound and prediction in TensorBoard's files are those of the clips and of the saved model."""
    pytest.importorskip("tensorboard")
    from io import BytesIO

    import soundfile
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from gafx import load, predict
    from gafx.data.readers import FileReader

    trainer, folder = run(tracking={"trackers": ["tensorboard"], "media": 12}, data=VALIDATED)
    events = min(folder.rglob("events.out.tfevents*"), key=lambda path: len(path.parts))  # others hold the settings
    log = EventAccumulator(str(events), size_guidance={"audio": 0, "images": 0, "tensors": 0})
    log.Reload()
    sounds = [tag for tag in log.Tags()["audio"] if tag.startswith("validation/")]
    model = load(folder / "model")
    rows = {trainer.manifest.relative_path(row): row for row in trainer.parts.val.tolist()}
    assert len(sounds) == len(rows) == 10  # as many as there are: `media` is the most
    reader = FileReader(trainer.manifest, model.frontend.sample_rate, 1)
    for tag in sounds:
        clip = tag.removeprefix("validation/").removesuffix("/sound")
        row = rows[clip]
        (sound,), (image,) = log.Audio(tag), log.Images(f"validation/{clip}/map")
        samples, rate = soundfile.read(BytesIO(sound.encoded_audio_string), dtype="float32")
        assert rate == model.frontend.sample_rate
        wave = torch.from_numpy(np.asarray(reader.read(row, 0, len(samples)))).reshape(1, 1, -1)
        np.testing.assert_allclose(samples, wave[0, 0], atol=2**-14)
        pixels = np.asarray(Image.open(BytesIO(image.encoded_image_string)))
        assert pixels.shape[:2] == model.features(wave).shape[2:]
        (text,) = log.Tensors(f"validation/{clip}/prediction/text_summary")
        (found,) = predict(trainer.manifest.root / clip, model, overlap=0)
        label = trainer.manifest.classes[int(trainer.manifest.first_label()[row])]
        said = text.tensor_proto.string_val[0].decode()
        assert said.startswith(f"{label}: predicted {found.top(1)[0][0]} (")
    for tracking, data in (({"media": 2}, VALIDATED), ({"media": 2, "trackers": ["tensorboard"]}, {})):
        with pytest.raises(UsageError, match="logs validation clips to a tracker"):
            run(tracking=tracking, data=data)


@pytest.mark.slow
def test_wandb_offline(run):
    # Characters that wandb refuses in the id of a run are replaced in it.
    tracking = {"trackers": ["wandb"], "log_steps": 1, "media": 2}
    _, folder = run(name="50% (a:b;c,d#e?f')", tracking=tracking, data=VALIDATED, max_steps=2)
    assert list(folder.glob("wandb/offline-run-*"))
    for suffix in ("wav", "png"):
        assert len(list(folder.glob(f"wandb/offline-run-*/files/media/**/*.{suffix}"))) == 2


def test_patience(run, monkeypatch):
    """Training ends `patience` epochs after the last rise; equal scores are kept but end it no later."""
    from gafx.training import trainer as module

    scores = iter([0.2, 0.5, 0.4, 0.5, 0.1, 0.9])
    whole = module.validate

    def scripted(*arguments, **keywords):
        values, segments = whole(*arguments, **keywords)
        return values | {"validation_accuracy": next(scores)}, segments

    monkeypatch.setattr(module, "validate", scripted)
    trainer, folder = run(patience=3, data=VALIDATED, epochs=20)
    validated = [r for r in records(folder) if "validation_accuracy" in r]
    assert [r["validation_accuracy"] for r in validated] == [0.2, 0.5, 0.4, 0.5, 0.1]
    best = json.loads((folder / "run.json").read_text())["best"]
    assert (best["epoch"], best["improved"]) == (3, 1)
    assert best["step"] == validated[3]["step"]
    # A run that was killed between its last checkpoint and its end stops at the same epoch.
    shutil.move(folder / "model", folder / "checkpoints" / "best")
    assert run(patience=3, data=VALIDATED, epochs=20)[0].best == trainer.best
    assert next(scores) == 0.9  # no further epoch was validated
    with pytest.raises(UsageError, match="patience=3 needs a validation part"):
        run(patience=3)


def test_frozen_batch_norm_and_head_rate(run):
    """Frozen batch norm keeps its statistics while other weights change; the head has a rate of its own."""
    trainer, _ = run(
        classifier={"name": "cnn", "stem": 8, "widths": [8]},
        optim={"lr": 1e-3, "warmup_steps": 0, "classifier": {"frozen_batch_norm": True, "head_lr_scale": 10.0}},
    )
    classifier = trainer.objective.model.classifier
    means = [tensor for name, tensor in classifier.state_dict().items() if name.endswith("running_mean")]
    assert means
    assert all((mean == 0).all() for mean in means)
    scales = {
        id(p): group["lr_scale"] for group in trainer.learner._bare_optimizer().param_groups for p in group["params"]
    }
    assert {name: scales[id(p)] for name, p in classifier.named_parameters()} == {
        name: 10.0 if name.startswith("output.") else 1.0 for name, _ in classifier.named_parameters()
    }


@pytest.mark.slow
def test_compilation_changes_nothing_but_speed(run):
    (_, eager), (_, compiled) = run(name="eager", max_steps=3), run(name="compiled", compile=True, max_steps=3)
    assert losses(eager) == pytest.approx(losses(compiled), rel=1e-3)


def test_unreadable_files_are_skipped_and_counted(run, synthetic_root, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(synthetic_root, root)
    broken = sorted(root.glob("*/*.flac"))[7]
    broken.write_bytes(broken.read_bytes()[:3000])  # a good header, a body that ends early
    empty = sorted(root.glob("*/*.flac"))[11]
    empty.write_bytes(b"")
    settings = {"data": {"root": str(root), "max_unreadable": 0.1}}
    _, folder = run(name="broken", **settings)
    skipped = {entry["path"]: entry["reason"] for entry in json.loads((folder / "run.json").read_text())["skipped"]}
    assert "0 bytes" in skipped[str(empty.relative_to(root))]
    assert str(broken.relative_to(root)) in skipped
    assert len(skipped) == 2
    with pytest.raises(UsageError, match="data.strict is set"):
        run(name="strict", data={"root": str(root), "strict": True})
    with pytest.raises(UsageError, match=r"more than data.max_unreadable=0.01"):
        run(name="few", data={"root": str(root), "max_unreadable": 0.01})


def test_a_refused_command_leaves_no_folder(run, tmp_path):
    root = tmp_path / "one class"
    (root / "only").mkdir(parents=True)
    soundfile.write(root / "only" / "a.wav", np.zeros(8000), 8000)
    with pytest.raises(UsageError, match="at least two"):
        run(data={"name": "folder", "root": str(root), "options": {}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one class"]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(run, caplog):
    _, whole = run(name="whole", epochs=3)
    _, folder = run(name="damaged", epochs=3)
    shutil.rmtree(folder / "model")
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    (newest / "state.pt").write_bytes((newest / "state.pt").read_bytes()[:100])
    (folder / "checkpoints" / "step-abc").mkdir()
    run(name="damaged", epochs=3)
    assert "is damaged" in caplog.text
    assert all(torch.equal(weights(whole)[name], tensor) for name, tensor in weights(folder).items())


def test_clips_of_weight_zero_do_not_reach_batch_norm():
    from gafx.data.batches import Batch

    batch = Batch(
        torch.arange(4.0)[:, None, None],
        torch.eye(4),
        torch.zeros(4, 0, 2),
        torch.tensor([1.0, 0, 1, 0]),
        torch.arange(4),
        {},
    )
    assert batch.without_weightless().index.tolist() == [0, 2]
    batch.weight.zero_()
    assert batch.without_weightless().index.tolist() == [0]  # every rank must make a forward pass


def test_very_short_clips_train_and_are_evaluated(run, tmp_path):
    root, rng = tmp_path / "short", np.random.default_rng(0)
    for label in "ab":
        (root / label).mkdir(parents=True)
        for number in range(6):
            seconds = (0.03, 0.5, 1.0)[number % 3]
            soundfile.write(root / label / f"{number}.wav", 0.1 * rng.normal(size=int(seconds * 8000)), 8000)
    data = {
        "name": "folder",
        "root": str(root),
        "options": {},
        "protocol": "kfold_val",
        "folds": 2,
        "val_fraction": 0.4,
    }
    trainer, folder = run(data=data, epochs=1)
    assert trainer.objective.model.min_samples() == 15 * 200 + 1
    assert any("validation_accuracy" in entry for entry in records(folder))
