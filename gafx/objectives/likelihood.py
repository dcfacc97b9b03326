"""Likelihood of token sequences: training of the models that write music, and of their latent vectors."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gafx.classifiers._generator import Generator, divergence
from gafx.errors import UsageError
from gafx.midi.tokens import PAD
from gafx.model import GAFX
from gafx.nn.precision import float64
from gafx.objectives.base import Objective
from gafx.registry import OBJECTIVES
from gafx.report.format import number
from gafx.stats.scores import Score, mean_score

_COLUMNS = ("nll", "nll_elbo", "reconstruction", "reconstruction_shuffled", "kl")
_ACTIVE = 0.01  # variance of a posterior mean over clips above which a dimension counts as active
_NOISE, _WORDS = range(2)  # random streams of a clip's number


@OBJECTIVES.register
class Likelihood(Objective):
    """Maximise the likelihood of tokens; validation metric: negative log-likelihood in nats per token.

    The loss of a clip is the negative log-likelihood of its tokens, each given those before it (and, of a VAE, a draw
    of the latent vector from the posterior), plus beta times the Kullback-Leibler divergence of the posterior from
    N(0, I), divided by the number of tokens. Padding counts for nothing. With beta=1 it is the negative evidence lower
    bound, ELBO (Kingma and Welling, 2014).

    Where the decoder sees all earlier tokens it can do without the latent vector, and the posterior then collapses to
    the prior. Three settings against it: beta rises from 0 over the first steps (`kl_steps`; Bowman et al., 2016), some
    nats of each dimension cost nothing (`free_bits`; Kingma et al., 2016), and tokens are hidden from the decoder
    (`word_dropout`; Bowman et al.). The thesis has none of them (`kl_steps=0 free_bits=0 word_dropout=0`).

    Draws are functions of (seed, epoch, index) of a clip; in evaluation they are the same every time. Scores are means
    over pieces of the means over their clips:

    - `nll`: per token; of a VAE an upper bound: the ELBO or, with `samples` above 1, the importance-weighted one (Burda
      et al., 2016), which is at least as tight.
    - `nll_elbo`: the bound by the ELBO; `reconstruction`: its part without the divergence.
    - `reconstruction_shuffled`: with the latent vector of another clip of the same part, of another piece. Equal to
      `reconstruction` if the decoder ignores the latent vector.
    - `kl`: divergence of a clip in nats, the sum over the dimensions. `active_units`: dimensions whose posterior mean
      has a variance over the clips above 0.01 (Burda et al.); `kl_largest`: the dimension with the largest mean.

    Args:
        model: what is trained; its classifier must be one that writes, e.g. `decoder`.
        class_counts: ignored.
        beta: weight of the divergence at the end.
        kl_steps: optimiser steps over which the weight rises from 0 to beta; 0: it is beta from the start.
        free_bits: divergence of each dimension of a clip that costs nothing, in nats.
        word_dropout: probability in training that the decoder reads `<unknown>` in place of a token, in [0, 1].
        samples: draws of the latent vector in evaluation; training takes one.

    Raises:
        UsageError: a classifier that does not write, or an argument out of range.
    """

    multi_label = True
    reads_labels = False
    takes_masks = False
    takes_numbers = True
    takes_others = True
    metric = "nll"
    higher_is_better = False

    def __init__(
        self,
        model: GAFX,
        class_counts: npt.NDArray[np.int64],
        /,
        *,
        beta: float = 1.0,
        kl_steps: int = 0,
        free_bits: float = 0.0,
        word_dropout: float = 0.0,
        samples: int = 1,
    ):
        super().__init__(model, class_counts)
        if not isinstance(model.classifier, Generator):
            raise UsageError(
                "objective=likelihood trains a model that writes tokens: choose classifier=decoder, vae_lstm or "
                "vae_transformer, with frontend=tokens"
            )
        for name, value in (("beta", beta), ("kl_steps", kl_steps), ("free_bits", free_bits)):
            if not 0 <= value < float("inf"):
                raise UsageError(f"objective.{name}={value} must be at least 0")
        if not 0 <= word_dropout <= 1:
            raise UsageError(f"objective.word_dropout={word_dropout} must be between 0 and 1")
        if samples < 1:
            raise UsageError(f"objective.samples={samples} must be at least 1")
        self.beta, self.kl_steps, self.free_bits = beta, kl_steps, free_bits
        self.word_dropout, self.samples = word_dropout, samples
        self.step = 0

    @property
    def generator(self) -> Generator:
        """The model's classifier."""
        assert isinstance(self.model.classifier, Generator)
        return self.model.classifier

    def at_step(self, step: int) -> None:
        self.step = step

    def kl_weight(self) -> float:
        """Weight of the divergence at the present step."""
        return self.beta * min(1.0, (self.step + 1) / self.kl_steps) if self.kl_steps else self.beta

    def forward(
        self, wave: Tensor, target: Tensor, weight: Tensor, masks: Tensor, time_masks: int,
        numbers: Tensor | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """See `Objective.forward`; `logits` is the negative log-likelihood of each token, `(batch, tokens)`."""
        codes = self.model.frontend.codes(wave)
        drawn = _numbers(numbers, codes)
        losses = self.generator.token_losses(
            codes,
            noise=self._noise(drawn, 1, codes.device)[:, 0],
            dropped=_draw_words(drawn, codes, self.word_dropout) if self.word_dropout else None,
        )
        total = losses.nll.sum(dim=1)
        if losses.kl is not None:
            total = total + self.kl_weight() * losses.kl.clamp(min=self.free_bits).sum(dim=1)
        return {"loss": (total / _count(codes) * weight).sum(), "logits": losses.nll}

    def predict(self, wave: Tensor, numbers: Tensor | None = None, others: Tensor | None = None) -> Tensor:
        """Compute the bounds and their parts, see the class.

        Args:
            wave: `(batch, 1, tokens)`.
            numbers: `(batch,)`, of the clips.
            others: of the shape of `wave`, a clip of another piece for each; None: the clip itself.

        Returns:
            float64 `(batch, 5 + 3 * latent)`: the named columns, then of each dimension the mean of the posterior, its
            square, and the divergence.
        """
        codes, model = self.model.frontend.codes(wave), self.generator
        count = _count(codes)
        if not model.latent:
            nll = float64(model.token_losses(codes).nll).sum(dim=1) / count
            none = torch.zeros_like(nll)
            return torch.stack([nll, nll, nll, none, none], dim=1)
        mean, log_variance = model.posterior(codes)
        noise = self._noise(_numbers(numbers, codes), self.samples + 1, codes.device)
        other = (mean, log_variance) if others is None else model.posterior(self.model.frontend.codes(others))
        shuffled = self._reconstruct(codes, *other, noise[:, self.samples])
        mean_, spread = float64(mean), float64(log_variance)
        kl = divergence(mean_, spread)
        found, weights = [], []
        for draw in noise[:, : self.samples].unbind(dim=1):
            found.append(self._reconstruct(codes, mean, log_variance, draw))
            wide = float64(draw)
            latent = mean_ + (0.5 * spread).exp() * wide
            # log q(z | x) - log p(z)
            weights.append(found[-1] + 0.5 * (latent.square() - wide.square() - spread).sum(dim=1))
        reconstruction = torch.stack(found).mean(dim=0)
        elbo = reconstruction + kl.sum(dim=1)
        # Of a single draw the divergence in closed form has the same mean and less variance.
        bound = elbo if self.samples == 1 else math.log(self.samples) - torch.logsumexp(-torch.stack(weights), dim=0)
        named = [bound / count, elbo / count, reconstruction / count, shuffled / count, kl.sum(dim=1)]
        return torch.cat([torch.stack(named, dim=1), mean_, mean_.square(), kl], dim=1)

    def _reconstruct(self, codes: Tensor, mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
        """Negative log-likelihood of clips given a draw of the latent vector, float64 `(batch,)`."""
        latent = mean + (0.5 * log_variance).exp() * noise
        return float64(self.generator.token_losses(codes, latent=latent).nll).sum(dim=1)

    def _noise(self, numbers: Sequence[int], draws: int, device: torch.device) -> Tensor:
        """Standard normal numbers of each clip, float32 `(batch, draws, latent)`."""
        shape = (draws, self.generator.latent)
        drawn = [_random(number, _NOISE).standard_normal(shape, np.float32) for number in numbers]
        return torch.from_numpy(np.stack(drawn)).to(device)

    @classmethod
    def columns(cls, classes: Sequence[str]) -> list[str]:
        return list(_COLUMNS)

    @classmethod
    def describe(cls, values: npt.NDArray[Any], classes: Sequence[str]) -> str:
        return f"{number(float(values[0]), cls.metric)} per token"

    @classmethod
    def scores(
        cls, values: npt.NDArray[Any], targets: npt.NDArray[Any], groups: npt.NDArray[Any], *, resamples: int
    ) -> dict[str, Score]:  # fmt: skip
        """See the class. The last two depend on the number of clips and have no interval."""
        if values.shape[1] == len(_COLUMNS):
            return {cls.metric: mean_score(values[:, 0], groups, resamples=resamples)}
        scores = {
            name: mean_score(column, groups, resamples=resamples)
            for name, column in zip(_COLUMNS, values.T, strict=False)
        }
        mean, square, kl = np.split(values[:, len(_COLUMNS) :], 3, axis=1)
        # A piece's values are means over its clips: with the squares the variance is that over clips all the same.
        variance = square.mean(axis=0) - mean.mean(axis=0) ** 2
        return scores | {
            "active_units": Score(float((variance > _ACTIVE).sum())),
            "kl_largest": Score(float(kl.mean(axis=0).max())),
        }


def _count(codes: Tensor) -> Tensor:
    """Number of tokens of each clip that are no padding, at least 1."""
    return (codes != PAD).sum(dim=1).clamp(min=1)


def _numbers(numbers: Tensor | None, codes: Tensor) -> list[int]:
    """The clips' random numbers; without them their places in the batch."""
    return list(range(len(codes))) if numbers is None else numbers.tolist()


def _random(number: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[number, stream]))


def _draw_words(numbers: Sequence[int], codes: Tensor, probability: float) -> Tensor:
    """Draw the tokens of each clip that the decoder does not read: bool, of the shape of `codes`."""
    drawn = [_random(number, _WORDS).random(codes.shape[1]) < probability for number in numbers]
    return torch.from_numpy(np.stack(drawn)).to(codes.device)
