"""Golden values: 20 losses of a run for each objective, checksums of each front-end's map, logits of each classifier.

They were computed before the package was reorganised, and guard what the code computes: data order, crops, masks,
mixup, loss, optimiser, schedule. All weights are set from seeds of their names, so that another order of random draws
when a model is built does not matter. Where a change of the computation is intended, `python tests/test_golden.py`
prints the new values; commit them with the reason.
"""

import json
import os
import sys
import wave
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tunes import write_tunes

RATE = 22050
# Loss of each step of a run, and the norm of the first step's gradient.
LOSSES: dict[str, list[float]] = {
    "classify": [
        1.11124, 0.8624571, 1.236711, 1.066702, 0.9057519, 1.152676, 2.061029, 1.180119, 1.078252, 0.8178822,
        1.655255, 1.534967, 0.8824191, 0.9095637, 1.103336, 0.6458042, 0.6492044, 0.8547018, 0.8647351, 0.8069532,
    ],
    "tag": [
        1.045463, 0.7617384, 0.6173174, 0.8531123, 0.7608551, 0.6891584, 1.320338, 0.6629502, 0.7246529, 0.9082892,
        0.7758076, 0.5349501, 0.6381231, 0.7826306, 0.635494, 0.6593307, 0.6984815, 0.8454032, 0.6085985, 0.5907066,
    ],
    "mel_regression": [
        0.2021355, 0.1985222, 0.1949647, 0.1867623, 0.1813887, 0.1712751, 0.162464, 0.1556102, 0.1486782, 0.1468768,
        0.1436817, 0.1394346, 0.1386345, 0.1350606, 0.1311707, 0.1261816, 0.125528, 0.1229586, 0.1206034, 0.1196775,
    ],
    "codec": [
        4.805804, 4.786709, 4.775703, 4.762633, 4.749014, 4.795669, 4.768899, 4.702529, 4.726514, 4.702213,
        4.694105, 4.659317, 4.718825, 4.743876, 4.68369, 4.679963, 4.646418, 4.660446, 4.693081, 4.625166,
    ],
    "masked": [
        0.5034645, 0.4815686, 0.5207832, 0.4875209, 0.4866859, 0.488906, 0.524461, 0.4692346, 0.4790544, 0.4843209,
        0.4669965, 0.4470643, 0.4459121, 0.4641293, 0.4627296, 0.4724246, 0.4619065, 0.4688148, 0.4731142, 0.4788397,
    ],
    "likelihood": [
        6.237965, 6.01181, 6.646967, 6.234957, 6.13009, 6.156992, 6.183475, 6.074977, 6.041838, 6.2214,
        6.191882, 6.319615, 5.903048, 5.88747, 6.083826, 6.286733, 6.312169, 5.926336, 5.696204, 6.329155,
    ],
}  # fmt: skip
NORMS: dict[str, float] = {
    "classify": 13.44865,
    "tag": 16.39435,
    "mel_regression": 0.8724385,
    "codec": 192.5217,
    "masked": 61.30951,
    "likelihood": 3.471045,
}
# Mean, std and four values of a front-end's map of half a second.
MAPS: dict[str, list[float]] = {
    "mel": [
        -4.225026, 1.51546, -4.48337, -4.509222, -3.724618, -4.212945,
    ],
    "mfcc": [
        -13.713, 46.47077, -8.867632, -13.30844, 1.659875, -0.8693671,
    ],
    "leaf": [
        0.1205947, 0.09618126, 0.05523862, 0.1126823, 0.06296039, 0.2507126,
    ],
    "gabor": [
        -10.68406, 0.5502666, -11.2677, -11.1741, -11.10057, -10.26929,
    ],
    "gafx_r": [
        0.1237446, 0.1462583, 0.1555062, 0.1505606, 0.04556603, 0.03452937,
    ],
    "gafx_a": [
        0.005672253, 0.5016762, 0.1747127, 0.1749192, -0.3992386, -0.1868221,
    ],
    "gafx_u": [
        2.372069, 0.3231486, 2.340868, 1.938288, 2.489461, 2.23819,
    ],
    "handcrafted": [
        12933.65, 111823.2, 15.71222, -12.1456, 2.440627, 4.517602,
    ],
    "fused": [
        -2.052216, 2.423693, -4.686214, -4.09808, 0.05523862, 0.06296039,
    ],
    "vq": [
        -0.006554587, 0.05059786, -0.015385, 0.08986114, -0.0007474203, 0.002256018,
    ],
}  # fmt: skip
# Logits of a map of each classifier with three classes.
LOGITS: dict[str, list[float]] = {
    "ast": [1.105744, -0.5578614, -0.6018836],
    "bert": [0.124158, 0.1951314, -0.1640193],
    "cnn": [-0.06793658, -0.03684424, 0.02399497],
    "cnn_dense": [0.02332767, -0.3211202, -0.311529],
    "cnn_lstm": [0.1644087, 0.2600041, -0.078903],
    "crnn": [-0.2489324, 0.4029386, 0.2212975],
    "linear_probe": [-0.008096446, -0.02561397, 0.02565359],
    "lstm": [-0.08038364, -0.02880608, 0.02397178],
    "mlp": [-0.1977449, 0.07043867, 0.2557464],
    "timm": [0.0004530428, 0.0009280957, 0.0004000519],
}

RUNS = {
    "classify": {
        "frontend": {"name": "mel"},
        "objective": {"name": "classify", "label_smoothing": 0.1, "class_weights": "balanced"},
        "optim": {"name": "adamw", "weight_decay": 0.01, "clip_norm": 1.0, "schedule": "cosine", "ema_decay": 0.9},
        "augment": {"mixup_probability": 0.5, "time_masks": 1, "frequency_masks": 1},
        "grad_accumulation": 2,
        "segment_seconds": 0.4,
    },
    "tag": {
        "frontend": {"name": "leaf"},
        "objective": {"name": "tag", "label_smoothing": 0.1},
        "optim": {"name": "adam", "frontend": {"lr_scale": 0.5}, "classifier": {"frozen_epochs": 1}},
        "augment": {"mixup_probability": 0.5},
        "segment_seconds": 0.2,
    },
    "mel_regression": {
        # Group norm, a smooth loss and a low rate: otherwise Adam turns rounding into differences of 1 %.
        "frontend": {"name": "gafx_r", "width": 16, "norm": "group"},
        "objective": {"name": "mel_regression", "loss": "huber", "delta": 0.5},
        "optim": {"name": "adam", "milestones": [2, 4]},
        "segment_seconds": 0.2,
    },
    "codec": {
        # Few codes, none of which restarts: otherwise rounding chooses another vector now and then.
        "frontend": {"name": "vq", "codec_width": 8, "codec_depth": 2, "num_codes": 8, "restart_below": 0.0},
        "objective": {"name": "codec"},
        "optim": {"name": "adam"},
        "segment_seconds": 0.2,
    },
    # Without dropout, whose random numbers are torch's.
    "masked": {
        "frontend": {"name": "mel"},
        "classifier": {"name": "bert", "width": 32, "heads": 2, "depth": 1, "dropout": 0.0},
        "objective": {"name": "masked", "span": 4},
        "optim": {"name": "adamw", "weight_decay": 0.01, "schedule": "linear", "ema_decay": 0.9},
        "grad_accumulation": 2,
        "segment_seconds": 0.4,
    },
    # Without dropout, and with an encoder and a decoder that share their blocks with `decoder`.
    "likelihood": {
        "frontend": {"name": "tokens"},
        "classifier": {"name": "vae_transformer", "latent": 4, "width": 32, "heads": 2, "depth": 1, "dropout": 0.0},
        "objective": {"name": "likelihood", "kl_steps": 10, "free_bits": 0.01, "word_dropout": 0.3},
        "optim": {"name": "adamw", "weight_decay": 0.01, "schedule": "cosine", "ema_decay": 0.9},
        "augment": {"transpose": 5},
        "grad_accumulation": 2,
        "segment_seconds": 24.0,
    },
}
FRONT_ENDS = {
    "mel": {},
    "mfcc": {},
    "leaf": {},
    "gabor": {},
    "gafx_r": {"width": 16},
    "gafx_a": {"width": 16},
    "gafx_u": {"width": 16},
    "handcrafted": {"window_seconds": 0.25},
    "fused": {"parts": {"mel": {"name": "mel"}, "leaf": {"name": "leaf"}}},
    "vq": {"num_codes": 8},
}
# What reads tokens has no map of a sound: the run of `likelihood` guards it, and tests/test_generators.py.
OF_TOKENS = {"tokens", "decoder", "vae_lstm", "vae_transformer"}
# All but `estimator`, whose outputs are those of what it is given (tests/test_estimator.py).
NETWORKS = {
    "ast": {"depth": 1},
    "bert": {"width": 32, "depth": 1, "heads": 4},
    "cnn": {},
    "cnn_dense": {},
    "cnn_lstm": {},
    "crnn": {},
    "linear_probe": {"base": {"name": "cnn"}, "base_classes": 5},
    "lstm": {},
    "mlp": {},
    "timm": {"hidden": [8]},
}


def set_weights(model):
    """Set matrices, kernels and codebooks from seeds of their names, biases to 0."""
    codebooks = [(name, buffer) for name, buffer in model.named_buffers() if name.endswith("_codebook.embed")]
    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *codebooks]:
            if parameter.ndim >= 2:
                values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(parameter.shape))
                parameter.copy_(torch.from_numpy(values / np.sqrt(parameter[0].numel())))
            elif name.endswith("bias"):
                parameter.zero_()
    return model


def set_own_weights(objective):
    """Set what an objective adds to its model, e.g. a prediction head."""
    for name, module in objective.named_children():
        if name != "model":
            set_weights(module)
    return objective


def sound(seed, seconds):
    """A chord of three decaying tones in noise, `(samples,)` in [-1, 1]."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * f * time) * np.exp(-3 * time) for f in rng.uniform(80, 6000, 3))
    return 0.2 * tones + 0.02 * rng.standard_normal(len(time))


def write_data(root):
    """18 clips of 0.6 s of three classes and a CSV that gives every third clip a second label."""
    rows = ["path,label"]
    for number in range(18):
        name = f"{number:02}.wav"
        with wave.open(str(root / name), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes(np.round(32767 * sound(number, 0.6)).astype("<i2").tobytes())
        rows.append(f"{name},{'abc'[number % 3]}")
    (root / "one.csv").write_text("\n".join(rows) + "\n")
    several = [f"{row};{'bca'[number % 3]}" if number % 4 == 0 else row for number, row in enumerate(rows[1:])]
    (root / "several.csv").write_text("\n".join([rows[0], *several]) + "\n")
    write_tunes(root / "midi")


def run(name, root, folder, lr="lr"):
    """Loss of each of 20 steps, and the first gradient norm."""
    from gafx.config import TrainConfig
    from gafx.config import build as build_config
    from gafx.training import build
    from gafx.training.trainer import Trainer

    values = json.loads(json.dumps(RUNS[name]))
    values["optim"] |= {lr: 2e-4 if name in ("classify", "tag") else 2e-5, "warmup_steps": 4}
    values["data"] = {
        "name": "folder", "root": str(root), "segment_seconds": values.pop("segment_seconds"), "leak_check": False,
        "options": {"csv": "several.csv" if name == "tag" else "one.csv"},
    }  # fmt: skip
    if name == "likelihood":
        values["data"] |= {"name": "midi", "root": str(root / "midi"), "short_clips": "pad", "options": {}}
    config = build_config(TrainConfig, {"classifier": {"name": "ast", "depth": 1}} | values | {
        "batch_size": 4, "epochs": 9, "max_steps": 20, "workers": 0,
        "precision": "fp32", "device": "cpu", "output_dir": str(folder), "name": name,
        "tracking": {"log_steps": 1},
    })  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        create, around = build.create_model, build.create_objective
        patch.setattr(build, "create_model", lambda *arguments, **options: set_weights(create(*arguments, **options)))
        patch.setattr(build, "create_objective", lambda *arguments: set_own_weights(around(*arguments)))
        done = Trainer(config).fit()
    records = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records], records[0].get("grad_norm", records[0].get("gradient_norm"))


def checksum(name):
    """Mean, std and four values of a map."""
    from gafx.frontends.base import match_channels
    from gafx.model import create_frontend

    front_end = set_weights(create_frontend(name, **FRONT_ENDS[name])).eval()
    samples = torch.from_numpy(sound(99, 0.5)).float()[None, None]
    with torch.no_grad():
        feature_map = front_end(match_channels(samples, front_end.channels)).double()
    values = feature_map.flatten()
    chosen = values[torch.linspace(0, len(values) - 1, 6).long()[1:-1]]
    return [float(feature_map.mean()), float(feature_map.std()), *chosen.tolist()]


def logits(name):
    """Three logits of a map of 64 bands and 96 frames."""
    from gafx.registry import CLASSIFIERS

    classifier = set_weights(CLASSIFIERS.create(name, (1, 64, 96), 3, **NETWORKS[name])).eval()
    feature_map = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, 64, 96)) / 2).float()
    with torch.no_grad():
        for layer in classifier.modules():  # whose biases are not named so that `set_weights` finds them
            if isinstance(layer, torch.nn.RNNBase):
                for name, parameter in layer.named_parameters():
                    if name.startswith("bias"):
                        parameter.zero_()
        return classifier(feature_map)[0].tolist()


@pytest.fixture
def one_thread():
    from accelerate.state import AcceleratorState

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", RUNS)
def test_losses_of_a_run(name, tmp_path, one_thread):
    write_data(tmp_path)
    losses, norm = run(name, tmp_path, tmp_path / "out")
    assert norm == pytest.approx(NORMS[name], rel=1e-4)
    assert losses == pytest.approx(LOSSES[name], rel=1e-4)
    assert losses[-1] != losses[0]


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_checksums_of_a_map(name, one_thread):
    assert checksum(name) == pytest.approx(MAPS[name], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_of_a_map(name, one_thread):
    assert logits(name) == pytest.approx(LOGITS[name], rel=1e-4, abs=1e-5)


def test_every_part_has_golden_values():
    from gafx.registry import CLASSIFIERS, FRONTENDS, OBJECTIVES

    assert set(RUNS) == set(OBJECTIVES.names())
    assert {*FRONT_ENDS, *NETWORKS, *OF_TOKENS, "estimator"} == {*FRONTENDS.names(), *CLASSIFIERS.names()}


if __name__ == "__main__":
    import tempfile

    from accelerate.state import AcceleratorState

    torch.set_num_threads(int(os.environ.get("THREADS", "1")))
    found = {"LOSSES": {}, "NORMS": {}, "MAPS": {}, "LOGITS": {}}
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            AcceleratorState._reset_state(True)
            write_data(Path(folder))
            losses, norm = run(name, Path(folder), Path(folder, "out"), *sys.argv[1:])
            found["LOSSES"][name] = [float(f"{loss:.7g}") for loss in losses]
            found["NORMS"][name] = float(f"{norm:.7g}")
    for name in FRONT_ENDS:
        found["MAPS"][name] = [float(f"{value:.7g}") for value in checksum(name)]
    for name in NETWORKS:
        found["LOGITS"][name] = [float(f"{value:.7g}") for value in logits(name)]
    for key, values in found.items():
        print(f"{key} = {json.dumps(values)}")
