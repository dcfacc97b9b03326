"""Small models of tokens with random weights, and songs for them."""

import numpy as np
import torch

from gafx.midi.song import Song, make_notes
from gafx.midi.tokens import collect
from gafx.model import create_model


def make_song(seed=0, notes=60, name="", *, programs=(0,), drums=False, chords=True):
    """A song of random notes in a scale, a chord now and then, a part for each program."""
    rng = np.random.default_rng(seed)
    rows = []
    for track, program in enumerate(programs):
        pitch, beat = 60 - 7 * track, 0.0
        for _ in range(notes // len(programs)):
            pitch = int(np.clip(pitch + rng.choice([-4, -3, -2, -1, 1, 2, 3, 4]), 40, 80))
            length = float(rng.choice([0.25, 0.5, 1.0]))
            velocity = int(rng.choice([48, 80, 112]))
            rows.append((beat, length, pitch, velocity, program, False, track))
            if chords and rng.random() < 0.2:
                rows += [(beat, length, pitch + step, velocity, program, False, track) for step in (4, 7)]
            beat += length
    if drums:
        rows += [(float(beat), 0.25, 36 if beat % 2 else 38, 100, 0, True, len(programs)) for beat in range(16)]
    return Song(make_notes(rows), name=name)


def make_writer(kind="decoder", scheme="events", songs=None, *, seed=0, context=24):
    """A model that writes, with random weights, large enough that its distributions are not flat."""
    torch.manual_seed(seed)
    vocabulary = collect(songs or [make_song(seed) for seed in range(4)], scheme)
    sizes = {"decoder": {"width": 32, "depth": 2, "heads": 2}}
    sizes["vae_transformer"] = {**sizes["decoder"], "latent": 8}
    sizes["vae_lstm"] = {"width": 32, "latent": 8}
    model = create_model(
        {"name": "tokens", "scheme": scheme}, {"name": kind, **sizes[kind]}, classes=list(vocabulary),
        segment_seconds=float(context),
    )  # fmt: skip
    with torch.no_grad():
        model.classifier.output.weight.mul_(8)
    model.info.objective = "likelihood"
    return model.eval()
