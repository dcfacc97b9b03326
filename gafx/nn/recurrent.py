"""Recurrent layers, also step by step: torch.export traces neither `nn.GRU` nor `nn.LSTM` with a dynamic batch size."""

import torch
from torch import Tensor, nn

UNROLLED = "its recurrent layer is written out step by step"  # `Part.fixed_length` of a part that uses them


def last_output(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """Compute the output after the last frame, in the type of the weights.

    `(batch, frames, inputs)` -> `(batch, hidden)`, of a layer or several with `batch_first`, in one direction.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(next(lstm.parameters()).dtype)
        return (unrolled_lstm(lstm, x) if torch.compiler.is_exporting() else lstm(x)[0])[:, -1]


def unrolled_lstm(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """Compute layers of one direction step by step. `(batch, frames, inputs)` -> `(batch, frames, hidden)`."""
    for layer in range(lstm.num_layers):
        weight_ih, weight_hh, bias_ih, bias_hh = (
            getattr(lstm, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        hidden = cell = x.new_zeros(x.shape[0], lstm.hidden_size)
        outputs = []
        for step in nn.functional.linear(x, weight_ih, bias_ih + bias_hh).unbind(dim=1):
            enter, forget, new, leave = (step + nn.functional.linear(hidden, weight_hh)).chunk(4, dim=1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
            hidden = leave.sigmoid() * cell.tanh()
            outputs.append(hidden)
        x = torch.stack(outputs, dim=1)
    return x


def unrolled_gru(gru: nn.GRU, x: Tensor) -> Tensor:
    """Compute one bidirectional layer step by step. `(batch, frames, inputs)` -> `(batch, frames, 2 * hidden)`."""
    both = []
    for suffix in ("_l0", "_l0_reverse"):
        gates = nn.functional.linear(x, getattr(gru, f"weight_ih{suffix}"), getattr(gru, f"bias_ih{suffix}"))
        weight, bias = getattr(gru, f"weight_hh{suffix}"), getattr(gru, f"bias_hh{suffix}")
        hidden, outputs = x.new_zeros(x.shape[0], gru.hidden_size), []
        steps = gates.unbind(dim=1)
        for step in steps[::-1] if suffix.endswith("reverse") else steps:
            reset, update, new = step.chunk(3, dim=1)
            own_reset, own_update, own_new = nn.functional.linear(hidden, weight, bias).chunk(3, dim=1)
            update = (update + own_update).sigmoid()
            new = (new + (reset + own_reset).sigmoid() * own_new).tanh()
            hidden = new + update * (hidden - new)
            outputs.append(hidden)
        both.append(torch.stack(outputs[::-1] if suffix.endswith("reverse") else outputs, dim=1))
    return torch.cat(both, dim=2)
