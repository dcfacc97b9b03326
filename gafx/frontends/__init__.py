"""Front-ends: spectrogram-like maps from waves."""
