"""Sound for a page: MP3, which every browser plays."""

import io

import soundfile

from gafx.audio.read import Samples, resample

_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # of MP3


def mp3(wave: Samples, sample_rate: int) -> bytes:
    """Encode a wave `(channels, samples)` as mono MP3, at its rate or the next of MP3."""
    rate = next((rate for rate in _RATES if rate >= sample_rate), _RATES[-1])
    mono = wave.mean(axis=0)
    mono = mono if rate == sample_rate else resample(mono[:, None], sample_rate, rate)[:, 0]
    buffer = io.BytesIO()
    soundfile.write(buffer, mono, rate, format="MP3", subtype="MPEG_LAYER_III")
    return buffer.getvalue()
