"""Training of a codec: the wave is coded and decoded (VQ-VAE as in Jukebox, arXiv 2005.00341, section 3)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gafx.errors import UsageError
from gafx.frontends.vq import VQ
from gafx.model import GAFX
from gafx.nn.spectral import hann_window
from gafx.nn.vqvae import VQVAE
from gafx.objectives.base import Objective
from gafx.registry import OBJECTIVES
from gafx.report.format import number
from gafx.stats.scores import Score, mean_score

# (n_fft, hop, window) of the transforms, those of Jukebox's spectral loss.
RESOLUTIONS = ((2048, 240, 1200), (1024, 120, 600), (512, 50, 240))
# Magnitudes are those of white noise of this rms: anything softer, -80 dBFS, counts as equally soft.
_FLOOR = 1e-4
# Errors are relative to the rms of a clip plus this one, -40 dBFS, so that silent clips do not outweigh the others.
_SOFT = 1e-2
_COLUMNS = ("spectral_error_db", "spectral_convergence", "squared_error", "power")


@OBJECTIVES.register
class CodecTraining(Objective):
    """Train the codec of the front-end `vq`; validation metric: spectral error in dB.

    Loss: squared error of the decoded wave over the power of the clip; a spectral term, the mean over three resolutions
    of the norm of the difference of magnitudes over that of the clip's, and of the mean absolute difference of
    log-magnitudes, for the soft parts of the spectrum (Yamamoto et al. 2020, arXiv 1910.11480, equations 4 to 6); and
    the commitment of the encoder to the codebook. Jukebox divides by statistics of its training set instead, and has
    no term of log-magnitudes. The power of a clip is taken to be at least that of -40 dBFS.

    Labels are not used, and the classifier is not trained: only the codec of such a run is of use
    (`frontend.pretrained=<run>`).

    Scores, of the wave that is decoded from the codes: `spectral_error_db`, the log-spectral distance: the rms over
    frequencies of the difference of levels in dB, mean over frames and resolutions, levels below that of white noise of
    -80 dBFS raised to it; `spectral_convergence`, the first part of the spectral term; `signal_to_noise_db` of
    the wave; and, over all clips together, `codes_used`, how many codes occur, and `perplexity` of their distribution.
    The last two grow with the number of clips and have no interval.

    Args:
        model: what is trained; its front-end must be `vq` with a VQ-VAE.
        class_counts: ignored.
        waveform_weight: of the squared error.
        spectral_weight: of the spectral term.
        commitment_weight: of the mean squared distance of the encoder's vectors to their codes: 0.25 as in van den Oord
            et al. (2017). With Jukebox's 0.02 the vectors outgrow the codebook at learning rates as high as 1e-3.

    Raises:
        UsageError: another front-end, or a weight that is negative.
    """

    multi_label = True
    reads_labels = False
    trains_classifier = False
    takes_masks = False
    metric = "spectral_error_db"
    higher_is_better = False

    def __init__(
        self,
        model: GAFX,
        class_counts: npt.NDArray[np.int64],
        /,
        *,
        waveform_weight: float = 1.0,
        spectral_weight: float = 1.0,
        commitment_weight: float = 0.25,
    ):
        super().__init__(model, class_counts)
        weights = {"waveform": waveform_weight, "spectral": spectral_weight, "commitment": commitment_weight}
        for name, value in weights.items():
            if not 0 <= value < float("inf"):
                raise UsageError(f"objective.{name}_weight={value} must be at least 0")
        self.weights = weights
        if not (isinstance(model.frontend, VQ) and isinstance(model.frontend.codec, VQVAE)):
            raise UsageError("objective=codec trains the VQ-VAE of the front-end vq: set frontend=vq, codec=vqvae")
        model.requires_grad_(False)
        self.codec.requires_grad_(True)
        for number_, (n_fft, _, length) in enumerate(RESOLUTIONS):
            window = hann_window(length, n_fft=n_fft)
            # White noise of rms 1 has magnitudes of rms 1.
            self.register_buffer(f"window_{number_}", window / window.square().sum().sqrt(), persistent=False)

    @property
    def codec(self) -> VQVAE:
        """The codec of the model's front-end."""
        codec = self.model.frontend.codec
        assert isinstance(codec, VQVAE)
        return codec

    def forward(
        self, wave: Tensor, target: Tensor, weight: Tensor, masks: Tensor, time_masks: int
    ) -> dict[str, Tensor]:
        """See `Objective.forward`; `logits` is the decoded wave, `(batch, samples)`."""
        self.model.frontend.check_wave(wave)
        quantized = self.codec.quantize(self.codec.encode(wave))
        decoded = self.codec.decode_vectors(quantized.vectors)
        with torch.autocast(wave.device.type, enabled=False):
            heard, made = self.codec.pad(wave).squeeze(1).float(), decoded.squeeze(1).float()
            terms = {
                "waveform": (made - heard).square().mean(dim=1) / (heard.square().mean(dim=1) + _SOFT**2),
                "spectral": self._spectral_loss(heard, made),
                "commitment": quantized.commitment,
            }
            loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum(dim=0)
        return {"loss": (loss * weight).sum(), "logits": made}

    def predict(self, wave: Tensor) -> Tensor:
        """Compute the errors of the decoded wave, and the fraction of the frames that have each code.

        `(batch, channels, samples)` -> `(batch, 4 + codes)`.
        """
        codes = self.codec.codes(wave)
        with torch.autocast(wave.device.type, enabled=False):
            heard, made = self.codec.pad(wave).squeeze(1).float(), self.codec.decode(codes).squeeze(1).float()
            distances, convergences = [], []
            for here, there in self._magnitudes(heard, made):
                levels = 20 * (there / here).log10()
                distances.append(levels.square().mean(dim=1).sqrt().mean(dim=1))
                convergences.append(_relative_error(here, there))
            errors = [
                torch.stack(distances).mean(dim=0),
                torch.stack(convergences).mean(dim=0),
                (made - heard).square().mean(dim=1),
                heard.square().mean(dim=1),
            ]
            counts = torch.zeros(len(wave), self.codec.num_codes, device=wave.device)
            counts.scatter_add_(1, codes[:, 0], torch.ones_like(codes[:, 0], dtype=counts.dtype))
            return torch.cat([torch.stack(errors, dim=1), counts / codes.shape[-1]], dim=1)

    def _spectral_loss(self, heard: Tensor, made: Tensor) -> Tensor:
        terms = [
            _relative_error(here, there) + (there / here).log().abs().mean(dim=(1, 2))
            for here, there in self._magnitudes(heard, made)
        ]
        return torch.stack(terms).mean(dim=0)

    def _magnitudes(self, *waves: Tensor) -> list[list[Tensor]]:
        """Of each resolution the magnitudes of the waves `(batch, samples)`: `(batch, frequencies, frames)` each."""
        found = []
        for index, (n_fft, hop, _) in enumerate(RESOLUTIONS):
            window = getattr(self, f"window_{index}")
            spectra = torch.stft(
                torch.cat(waves), n_fft, hop, n_fft, window, center=True, pad_mode="constant", return_complex=True
            )
            power = spectra.real.square() + spectra.imag.square()
            found.append(list((power + _FLOOR**2).sqrt().chunk(len(waves))))
        return found

    @classmethod
    def columns(cls, classes: Sequence[str]) -> list[str]:
        return list(_COLUMNS)

    @classmethod
    def describe(cls, values: npt.NDArray[Any], classes: Sequence[str]) -> str:
        used = int((values[len(_COLUMNS) :] > 0).sum())
        return f"spectral error {number(float(values[0]), cls.metric)}, {used} codes in use"

    @classmethod
    def scores(
        cls, values: npt.NDArray[Any], targets: npt.NDArray[Any], groups: npt.NDArray[Any], *, resamples: int
    ) -> dict[str, Score]:  # fmt: skip
        """See the class: errors are means over clips, the signal-to-noise ratio that of all clips together."""
        noise = mean_score(values[:, 2], groups, resamples=resamples, ratio_to=values[:, 3])
        bounds = [None if bound is None else _decibels(bound) for bound in (noise.high, noise.low)]
        share = values[:, len(_COLUMNS) :].mean(axis=0)
        used = share[share > 0]
        return {
            cls.metric: mean_score(values[:, 0], groups, resamples=resamples),
            "spectral_convergence": mean_score(values[:, 1], groups, resamples=resamples),
            "signal_to_noise_db": Score(_decibels(noise.value), bounds[0], bounds[1], noise.interval),
            "codes_used": Score(float(len(used))),
            "perplexity": Score(float(np.exp(-(used * np.log(used)).sum()))),
        }  # fmt: skip


def _relative_error(here: Tensor, there: Tensor) -> Tensor:
    """Spectral convergence: norm of the difference of magnitudes `(batch, frequencies, frames)` over that of `here`."""
    error, power = (x.square().mean(dim=(1, 2)) for x in (there - here, here))
    return ((error + _FLOOR**2) / (power + _SOFT**2)).sqrt()


def _decibels(noise: float) -> float:
    with np.errstate(divide="ignore"):
        return float(-10 * np.log10(noise))
