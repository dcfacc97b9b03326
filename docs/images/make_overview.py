"""Draw the figure at the top of README: `python docs/images/make_overview.py outputs/quickstart-gafx_r-<run_id>`.

It shows a track that the run was not trained on (index 1000 of the synthetic set's own seed): waveform, log-mel map,
map of the run's front-end, and calibrated label probabilities.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

import gafx
from gafx.inference import Probabilities
from gafx.studies.synth import compose, render

GENRE, INDEX = "funk", 1000
SECONDS = 3.0
INK, ACCENT, QUIET = "#26324a", "#3f51b5", "#b9c0d4"


def main(run: str, output: Path) -> None:
    """Draw the figure for a run and write it as PNG."""
    model = gafx.load(run)
    info = model.info
    assert info is not None
    # The whole track is labelled; only its first seconds are shown.
    track = render(compose(GENRE, INDEX, seconds=10.0), info.sample_rate)
    samples = round(info.segment_seconds * info.sample_rate)
    windows = torch.from_numpy(track[: len(track) // samples * samples].reshape(-1, 1, samples))
    shown = track[: round(SECONDS * info.sample_rate)]
    mel = gafx.create_frontend("mel", sample_rate=info.sample_rate)
    with torch.inference_mode():
        probabilities = Probabilities(model)(windows).mean(0).numpy()
        learned = model.features(torch.from_numpy(shown)[None, None])[0, 0].numpy()
        learned -= learned.mean(axis=1, keepdims=True)  # the change over time, without each row's offset
        fixed = mel(torch.from_numpy(shown)[None, None])[0, 0].numpy()

    plt.rcParams.update({"font.size": 10, "text.color": INK, "axes.edgecolor": QUIET, "axes.labelcolor": INK})
    plt.rcParams.update({"xtick.color": INK, "ytick.color": INK, "font.family": "DejaVu Sans"})
    figure = plt.figure(figsize=(11, 4.0), dpi=100, layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=[1, 2], width_ratios=[1, 1, 0.8])
    time = np.arange(len(shown)) / info.sample_rate
    wave = figure.add_subplot(grid[0, :2])
    wave.plot(time, shown, color=ACCENT, linewidth=0.4)
    wave.set(xlim=(0, SECONDS), yticks=[], xticks=[])
    wave.set_title(f"waveform: {SECONDS:g} s of synthetic {GENRE}", loc="left", fontsize=10)
    titles = ("log-mel spectrogram", f"trained {info.frontend['name']} map, row means removed")
    for column, (values, title) in enumerate(zip((fixed, learned), titles, strict=True)):
        axes = figure.add_subplot(grid[1, column])
        low, high = np.percentile(values, [0.5, 99.5])
        axes.imshow(
            values, origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high, interpolation="nearest",
            extent=(0, SECONDS, 0, len(values)),
        )  # fmt: skip
        axes.set(xlabel="seconds", yticks=[0, 64, 128])
        axes.set_title(title, loc="left", fontsize=10)
    order = np.argsort(probabilities)
    bars = figure.add_subplot(grid[:, 2])
    colours = [ACCENT if info.classes[i] == GENRE else QUIET for i in order]
    bars.barh([info.classes[i] for i in order], 100 * probabilities[order], color=colours)
    bars.set_title(f"label probabilities ({len(windows)} windows), %", loc="left", fontsize=10)
    bars.spines[["top", "right", "left"]].set_visible(False)
    bars.tick_params(axis="y", length=0)
    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])  # type: ignore[attr-defined]
    image.quantize(128).save(output, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(__file__).with_name("overview.png"))
