"""Libraries that a command imports although it does not need them: each costs every start of it up to seconds."""

import pytest
import runs
import torch

import gafx

# With the packages that torch imports as soon as something is compiled or decomposed in Python.
NEVER = {
    "demucs", "librosa", "numba", "onnx", "onnxruntime", "onnxscript", "pandas", "pyarrow", "sklearn", "timm",
    "torchaudio", "torchvision", "transformers", "wandb",
}  # fmt: skip
COMPILER = {"torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.distributed.fsdp", "sympy"}
SLOW_SCIPY = {"scipy.stats", "scipy.optimize", "scipy.signal"}
# The model card uses huggingface_hub's metadata classes, which import nothing of its client.
CLIENT = {"huggingface_hub.hf_api", "huggingface_hub.repocard", "httpx", "requests"}


def imported(done):
    """The modules that a process with PYTHONPROFILEIMPORTTIME=1 and its forked workers have imported."""
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert len(lines) > 500
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.fixture(scope="module")
def trained(synthetic_root, tmp_path_factory):
    """Run train.py with one data-loader worker; return its process and its run's folder."""
    arguments = [*runs.MEL, *runs.SMALL, f"data.root={synthetic_root}", "epochs=1", "workers=1"]
    folder = tmp_path_factory.mktemp("out")
    done = runs.script("train.py", *arguments, f"output_dir={folder}", PYTHONPROFILEIMPORTTIME="1")
    return done, done.stdout.strip()


def test_training_and_its_workers(trained):
    found = imported(trained[0])
    assert {"torch", "accelerate", "soundfile"} <= found
    # torch.optim imports torch._dynamo.
    assert not found & (NEVER | CLIENT | {"matplotlib", "PIL", "scipy"})


def test_evaluation(trained):
    done = runs.script("evaluate.py", trained[1], "workers=1", "resamples=10", PYTHONPROFILEIMPORTTIME="1")
    found = imported(done)
    assert {"torch", "accelerate", "jinja2"} <= found
    assert not found & (NEVER | COMPILER | SLOW_SCIPY | CLIENT | {"matplotlib", "PIL"})


@pytest.mark.parametrize("front_end", ["mel", "leaf", "gabor", "gafx_r"])
def test_labelling_one_file(front_end, wav_factory, rng, tmp_path):
    arguments = {"width": 16} if front_end == "gafx_r" else {}
    model = gafx.create_model(
        {"name": front_end, **arguments}, {"name": "ast", "depth": 1}, classes=["a", "b"], segment_seconds=0.5
    )
    if front_end in ("mel", "gabor"):
        model.fit_statistics(torch.rand(4, 1, 11025) - 0.5)
    folder = model.save(tmp_path / "model")
    wave = wav_factory("clip.wav", 0.1 * rng.standard_normal(22050))
    done = runs.command("predict", wave, "--model", folder, PYTHONPROFILEIMPORTTIME="1")
    found = imported(done)
    assert {"torch", "soundfile", "gafx.deploy.predict"} <= found
    assert not found & (NEVER | COMPILER | {"accelerate", "hydra", "matplotlib", "PIL", "scipy", "huggingface_hub"})
