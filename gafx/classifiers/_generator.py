"""Base class of the models that write music: distributions over the next token, given the tokens before."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gafx.classifiers.base import Classifier, Shape
from gafx.errors import UsageError
from gafx.midi.tokens import BEGIN, PAD, SPECIAL, UNKNOWN


class Losses(NamedTuple):
    """Negative log-likelihood of the tokens of clips, in nats.

    Attributes:
        nll: `(batch, length)`, of each token given those before it and the latent vector; 0 for padding.
        kl: `(batch, latent)`, divergence of the posterior from N(0, I) by dimension; None without a posterior.
        mean: `(batch, latent)`, of the posterior.
    """

    nll: Tensor
    kl: Tensor | None = None
    mean: Tensor | None = None


class Generator(Classifier):
    """Gives the distribution of every token of a sequence, from those before it and, of a VAE, a latent vector.

    The number of classes is the size of the vocabulary, which begins with `gafx.midi.tokens.SPECIAL`. Before the first
    token the network reads `BEGIN`, also where the sequence is a part of a piece. Ids outside the vocabulary are read
    as `UNKNOWN`.

    As a classifier it gives the logits of the token that follows a clip, and as an embedding the last output of the
    network. `objective=likelihood` trains it, and `start` and `step` write.

    A subclass defines `outputs`, `begin`, `advance` and, with a latent vector, `summarise`.

    Args:
        map_shape: (1, 1, tokens) of the clips in training.
        num_classes: size of the vocabulary.
        width: of an embedded token and of an output of the network.
        latent: size of the latent vector; 0 for none.

    Attributes:
        embedding: of the vocabulary, `(vocabulary, width)`.
        output: linear layer from an output of the network to logits.
        moments: linear layer from a summary of a clip to mean and log-variance of its posterior.
    """

    not_exportable = "it writes tokens"

    @classmethod
    def check_map(cls, map_shape: Shape) -> None:
        if map_shape[:2] != (1, 1):
            raise UsageError(
                f"classifier={cls.__module__.rpartition('.')[2]} reads token ids, not maps of shape {map_shape}: set "
                "frontend=tokens and data=midi"
            )

    def __init__(self, map_shape: Shape, num_classes: int, width: int, latent: int = 0):
        super().__init__()
        self.check_map(map_shape)
        if num_classes < len(SPECIAL):
            raise UsageError(f"a vocabulary of {num_classes} tokens is too small: {', '.join(SPECIAL)} are of each")
        self.map_shape, self.num_classes, self.width, self.latent = map_shape, num_classes, width, latent
        self.embedding, self.output = nn.Embedding(num_classes, width), nn.Linear(width, num_classes)
        if latent:
            self.moments = nn.Linear(width, 2 * latent)

    # -- what a subclass defines ---------------------------------------------------------------------------------------

    def outputs(self, inputs: Tensor, latent: Tensor | None) -> Tensor:
        """Run the network on the ids before each token, `(batch, length)` -> `(batch, length, width)`."""
        raise NotImplementedError

    def begin(self, latent: Tensor | None, batch: int) -> Any:
        """Return the state of the network before the first token."""
        raise NotImplementedError

    def advance(self, state: Any, ids: Tensor, latent: Tensor | None) -> tuple[Tensor, Any]:
        """Run the network on one more id of each sequence, `(batch,)` -> `(batch, width)` and the next state."""
        raise NotImplementedError

    def summarise(self, codes: Tensor, present: Tensor) -> Tensor:
        """Summarise clips for their posterior: `(batch, length)` -> `(batch, width)`.

        Args:
            codes: of the vocabulary.
            present: bool `(batch, length)`, at least one in a row: what is no padding.
        """
        raise NotImplementedError

    # -- likelihood ----------------------------------------------------------------------------------------------------

    def token_losses(
        self, codes: Tensor, *, latent: Tensor | None = None, noise: Tensor | None = None,
        dropped: Tensor | None = None,
    ) -> Losses:  # fmt: skip
        """Compute the negative log-likelihood of clips.

        Args:
            codes: int64 `(batch, length)`, padded with `PAD` at the end.
            latent: `(batch, latent)`, instead of one of the clip's own posterior.
            noise: `(batch, latent)`, standard normal: the latent vector is the mean of the posterior plus its std times
                this; None for the mean.
            dropped: bool `(batch, length)`, tokens that the network reads as `UNKNOWN` before later ones; the posterior
                is that of the whole clip (word dropout, Bowman et al., 2016).
        """
        codes, kl, mean = self.read(codes), None, None
        if self.latent and latent is None:
            mean, log_variance = self.posterior(codes)
            kl = divergence(mean, log_variance)
            latent = mean if noise is None else mean + (0.5 * log_variance).exp() * noise
        heard = codes if dropped is None else codes.masked_fill(dropped, UNKNOWN)
        logits = self.logits_of(self.outputs(self._before(heard), latent))
        losses = nn.functional.cross_entropy(logits.movedim(2, 1), codes, reduction="none")
        return Losses(losses * (codes != PAD), kl, mean)

    def logits(self, codes: Tensor, latent: Tensor | None = None) -> Tensor:
        """Compute the logits of every token from those before it.

        Args:
            codes: int64 `(batch, length)`.
            latent: `(batch, latent)`, of a model that has one; None for the mean of the clip's posterior.

        Returns:
            `(batch, length, vocabulary)`, at least float32.
        """
        codes = self.read(codes)
        return self.logits_of(self.outputs(self._before(codes), self._latent_of(codes, latent)))

    def posterior(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean and log-variance of the latent vector of clips, `(batch, latent)` each, at least float32.

        `codes` is int64 `(batch, length)`, padded with `PAD` at the end.

        Raises:
            UsageError: a model without a latent vector.
        """
        if not self.latent:
            raise UsageError(
                f"classifier={type(self).__module__.rpartition('.')[2]} has no latent vector; vae_lstm and "
                "vae_transformer have"
            )
        codes = self.read(codes)
        present = codes != PAD
        present[:, 0] = True  # a clip of nothing but padding, which does not count, must not give NaN
        mean, log_variance = _in_float32(self.moments, self.summarise(codes, present)).chunk(2, dim=1)
        return mean, log_variance

    def read(self, codes: Tensor) -> Tensor:
        """Replace ids outside the vocabulary by `UNKNOWN`."""
        return codes.where((codes >= 0) & (codes < self.num_classes), UNKNOWN)

    def logits_of(self, outputs: Tensor) -> Tensor:
        """Compute logits of the network's outputs; not in half precision, in which likelihoods are off by percents."""
        return _in_float32(self.output, outputs)

    def _before(self, codes: Tensor) -> Tensor:
        """What the network reads before each token."""
        return nn.functional.pad(codes[:, :-1], (1, 0), value=BEGIN)

    def _latent_of(self, codes: Tensor, latent: Tensor | None) -> Tensor | None:
        return self.posterior(codes)[0] if self.latent and latent is None else latent

    # -- writing -------------------------------------------------------------------------------------------------------

    def start(self, batch: int, latent: Tensor | None = None) -> Any:
        """Begin sequences: return the state for `step`, whose first ids are `BEGIN`.

        Args:
            batch: number of sequences.
            latent: `(batch, latent)`, of a model that has one; None draws none and takes zeros, the mean of N(0, I).
        """
        if self.latent and latent is None:
            latent = self.output.weight.new_zeros(batch, self.latent)
        if latent is not None and latent.shape != (batch, self.latent):
            raise ValueError(f"a latent vector of shape {tuple(latent.shape)} must be ({batch}, {self.latent})")
        return latent, self.begin(latent, batch)

    def step(self, state: Any, ids: Tensor) -> tuple[Tensor, Any]:
        """Read one id of each sequence.

        Args:
            state: of `start` or of the last step; it is not changed, so that several sequences can continue one.
            ids: int64 `(batch,)`.

        Returns:
            logits of the next id, `(batch, vocabulary)`, equal to those of `logits`; and the state after it.
        """
        latent, inner = state
        outputs, inner = self.advance(inner, self.read(ids), latent)
        return self.logits_of(outputs), (latent, inner)

    # -- as a classifier -----------------------------------------------------------------------------------------------

    def embed(self, feature_map: Tensor) -> Tensor:
        """Compute the output after the last token. `(batch, 1, 1, tokens)` -> `(batch, width)`."""
        self.check_input(feature_map)
        if feature_map.shape[2] != 1:
            raise ValueError(
                f"a map of shape {tuple(feature_map.shape)} does not fit: it must be (batch, 1, 1, tokens)"
            )
        codes = self.read(feature_map[:, 0, 0].round().long())
        inputs = nn.functional.pad(codes, (1, 0), value=BEGIN)
        return self.outputs(inputs, self._latent_of(codes, None))[:, -1]

    def head(self, embedding: Tensor) -> Tensor:
        """Compute the logits of the token after the clip. `(batch, width)` -> `(batch, vocabulary)`."""
        return self.logits_of(embedding)

    def head_names(self) -> tuple[str, ...]:
        """Return the name prefixes of the parameters that depend on the vocabulary."""
        return ("output.", "embedding.")


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of N(mean, variance) from N(0, 1) in nats, by element."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def mean_of_present(outputs: Tensor, present: Tensor) -> Tensor:
    """Mean output over the tokens that are no padding: `(batch, length, width)` -> `(batch, width)`."""
    weight = present[..., None].to(outputs.dtype)
    return (outputs * weight).sum(dim=1) / weight.sum(dim=1)


def _in_float32(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer computed in float32, or in float64 if the layer is."""
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(layer.weight.dtype, torch.float32)
        return nn.functional.linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))
