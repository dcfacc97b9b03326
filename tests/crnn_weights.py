"""Random weights in the layout of the published crnn, and the front-end that computes its input."""

import torch

MEL = {"name": "mel", "form": "librosa", "n_mels": 64, "win_length": 882, "hop_length": 441, "f_min": 0.0}
MEL["floor"] = 2.0**-52


def published_like(classes=5, seed=0):
    """Random tensors with the names and shapes of the published state dict."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return scale * torch.randn(shape, generator=generator)

    state = {}
    for number, (ins, outs) in {0: (1, 32), 2: (32, 128), 3: (128, 128), 5: (128, 128), 6: (128, 128)}.items():
        norm = f"features.{number}.block.0"
        state |= {
            f"{norm}.weight": 1 + normal(ins, scale=0.1), f"{norm}.bias": normal(ins, scale=0.1),
            f"{norm}.running_mean": normal(ins, scale=0.1), f"{norm}.running_var": 1 + normal(ins).abs(),
            f"{norm}.num_batches_tracked": torch.tensor(7),
            f"features.{number}.block.1.weight": normal(outs, ins, 3, 3, scale=(2 / (9 * ins)) ** 0.5),
        }  # fmt: skip
    state["features.0.block.0.running_mean"] = torch.tensor([-6.3])
    state["features.0.block.0.running_var"] = torch.tensor([71.8])
    for suffix in ("l0", "l0_reverse"):
        for side in ("ih", "hh"):
            state |= {
                f"gru.weight_{side}_{suffix}": normal(384, 128, scale=0.2),
                f"gru.bias_{side}_{suffix}": normal(384, scale=0.1),
            }
    return state | {"outputlayer.weight": normal(classes, 256, scale=0.3), "outputlayer.bias": normal(classes) - 3}
