"""Inference on CPUs: batches divided among threads, matrix products and attention by oneDNN.

PyTorch computes float32 matrix products on x86 with MKL, which uses AVX-512 on Intel's processors only: on an AMD EPYC
oneDNN, which is part of PyTorch too, is 2.3 times as fast. PyTorch's fused attention in bfloat16 is made for AMX, and
no faster than float32 on processors that have AVX-512 alone. The functions below choose by processor and by size of
the operands, never by timing, so that a command gives the same bits in every run; where they do not apply (training,
GPUs, other processors, exports) they are PyTorch's own.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from gafx.nn.precision import cpu_flags

_SAMPLES = 250_000  # of a part of `by_clips`
# Scores of one step of `attend`: with the softmax in place, about what the level-2 caches of two cores hold.
_SCORES = 300_000
_FEW_TOKENS = 256  # below, fused attention is faster: the calls of `attend` for each head cost more than they save
_FEW_VALUES = 2**16  # of an input: below, the conversion of the weights costs more than it saves
_starting = threading.Lock()  # `_workers` changes the number of threads of every thread that starts meanwhile


def by_clips(run: Callable[..., Any], wave: Tensor, *more: Tensor) -> list[Any]:
    """Run a batch in parts of a few clips, side by side in threads, instead of every operation in all threads.

    What a small part leaves between two operations stays in the caches. Threads that share an operation wait for each
    other at its end, thousands of times a batch: on a machine with other work, whose threads do not all run at once,
    this takes more time than the computation.

    Args:
        run: tensors of a part on the CPU -> any result; called in several threads at once.
        wave: `(batch, ..., samples)` on the CPU.
        more: further arguments of `run`, `(batch, ...)`.

    Returns:
        results for consecutive parts of the batch.
    """
    with _starting:
        threads = torch.get_num_threads()
        parts = max(1, min(max(threads, -(-wave.numel() // _SAMPLES)), wave.shape[0]))
        workers = min(parts, threads)
        pool = _workers(workers, threads // workers, os.getpid()) if workers > 1 else None
    batches = zip(*(tensor.tensor_split(parts) for tensor in (wave, *more)), strict=True)
    if pool is None:
        return [run(*batch) for batch in batches]
    return list(pool.map(run, *zip(*batches, strict=True)))


@cache
def _workers(number: int, threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that compute each operation in `threads` threads. `process`: a fork inherits none of them."""
    started, before = threading.Barrier(number), torch.get_num_threads()

    def start() -> None:
        torch.get_num_threads()  # PyTorch sets the number of a new thread at the first call, over what was set
        torch.set_num_threads(threads)

    pool = ThreadPoolExecutor(number, "gafx-clips", initializer=start)
    list(pool.map(lambda _: started.wait(), range(number)))
    torch.set_num_threads(before)  # the workers have also set the number of threads that start later
    return pool


def in_inference(x: Tensor) -> bool:
    """Tell whether `x` is computed on a CPU without gradients, and not for an export, a compiler or a counter."""
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        # Modes such as counters of operations know PyTorch's own operators only.
        and _get_current_dispatch_mode() is None
    )


def calls_forward_alone(*modules: nn.Module) -> bool:
    """Tell whether a call of each of these modules is its class's `forward` alone: no hook, and no other function."""
    return not any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in modules
    )


def linear(layer: nn.Linear, x: Tensor, *, gelu: bool = False) -> Tensor:
    """Compute a linear layer and, if asked, GELU (not approximated). `(..., in)` -> `(..., out)`.

    A layer of another class (parametrized, quantized, with an adapter) or with hooks is called.
    """
    plain = type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and calls_forward_alone(layer)
    if not (plain and in_inference(x)) or x.numel() < _FEW_VALUES or (dtype := _dtype(x)) not in _faster():
        x = layer(x)
        return nn.functional.gelu(x) if gelu else x
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return _onednn(x.to(dtype), layer.weight.to(dtype), bias, gelu=gelu)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Compute `x` times the transpose of `weight`. `(..., in)` and `(out, in)` -> `(..., out)`."""
    if not in_inference(x) or x.numel() < _FEW_VALUES or x.dtype not in _faster():
        return nn.functional.linear(x, weight)
    return _onednn(x, weight)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute softmax(query key^T / sqrt(head width)) value.

    Every head is computed by itself, in parts of its queries whose scores stay in the cache.

    Args:
        query: `(batch, heads, queries, head width)`.
        key, value: `(batch, heads, tokens, head width)`.

    Returns:
        `(batch, heads, queries, head width)`.
    """
    if not in_inference(query) or query.shape[2] < _FEW_TOKENS or (dtype := _dtype(query)) not in _faster():
        return nn.functional.scaled_dot_product_attention(query, key, value)
    batch, heads, queries, width = query.shape
    query = (query * width**-0.5).to(dtype).contiguous()
    key, value = key.to(dtype).contiguous(), value.to(dtype).transpose(-1, -2).contiguous()
    mixed = query.new_empty(batch, queries, heads, width)
    rows = max(32, _SCORES // key.shape[2])
    for clip in range(batch):
        for head in range(heads):
            for part, into in zip(query[clip, head].split(rows), mixed[clip, :, head].split(rows), strict=True):
                scores = _onednn(part, key[clip, head])
                into.copy_(_onednn(torch.softmax(scores, dim=-1), value[clip, head]))
    return mixed.transpose(1, 2)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """`x` times the transpose of `weight`, plus `bias`: the operator that PyTorch's compiler puts for `nn.Linear`."""
    name, algorithm = ("gelu", "none") if gelu else ("none", "")
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], algorithm)
    return product


def _dtype(x: Tensor) -> torch.dtype:
    """Type that `x` is computed in: that of autocast, if it is on."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


@cache
def _faster() -> tuple[torch.dtype, ...]:
    """Types in which oneDNN is faster than PyTorch's own kernels on this processor."""
    flags = cpu_flags()
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if not known or not {"AuthenticAMD", "avx512f"} <= flags:
        return ()
    return (torch.float32, torch.bfloat16) if "avx512_bf16" in flags else (torch.float32,)
