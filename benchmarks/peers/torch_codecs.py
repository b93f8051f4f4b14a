"""Gradient compressors in eager torch on one thread, with error feedback.

    torch from PyPI on PYTHONPATH

Each compresses residue + gradient, decompresses its own message and keeps the new
residue, which is what a worker pays without the wire. `GRACE top-k` does the operations
of GRACE's top-k with its residual memory (github.com/sands-lab/grace), one by one and
in their order: it scales both terms, sorts what top-k finds, and decompresses twice,
once for the memory. The others are written to be quick: residues are updated in place,
top-k is not sorted. Signs and ternary digits take a byte each: torch packs no bits.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
except ImportError as error:
    missing: str | None = f"torch is not measured: {error}"
else:
    missing = None
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "torch.quantize_per_tensor")

Compressor = Callable[[], tuple[Any, ...]]


def compressors(
    residue: np.ndarray, gradient: np.ndarray, *, share: float, threshold: float
) -> dict[str, Compressor]:
    """All of them, of one leaf; each returns what was decompressed and the residue.

    Args:
        residue: (n,) float32.
        gradient: (n,) float32.
        share: Of the entries that top-k sends.
        threshold: Of the threshold compressor.
    """
    r, g = torch.tensor(residue), torch.tensor(gradient)
    k = max(1, int(share * len(r)))
    found: dict[str, Callable[..., Any]] = {
        "GRACE top-k": partial(_grace_top_k, k=k),
        "top-k": partial(_top_k, k=k),
        "threshold": partial(_threshold, threshold=threshold),
        "sampled threshold": partial(_sampled_threshold, share=share),
        "int8": _int8,
        "int8, blocks": partial(_int8_blocks, block=256),
        "sign": _sign,
        "AdaComp, digits": partial(_adacomp_digits, bin_size=500),
    }
    for bin_size, slots in ((500, 4), (500, 16), (50, 4), (50, 8)):
        name = f"AdaComp, {bin_size} x {slots}"
        found[name] = partial(_adacomp_slots, bin_size=bin_size, slots=slots)
    return {name: partial(fn, r, g) for name, fn in found.items()}


def _spread(size: int, index: Any, values: Any) -> Any:
    return torch.zeros(size).scatter_(0, index, values)


def _grace_top_k(r: Any, g: Any, k: int) -> tuple[Any, Any]:
    total = 1.0 * r + 1.0 * g
    _, index = torch.topk(total.abs(), k)
    values = total[index]
    left = total - _spread(len(r), index, values)
    return _spread(len(r), index, values), left


def _sent(total: Any, index: Any) -> tuple[Any, Any]:
    """The decompressed message of some entries, and the others, in place."""
    values = total[index]
    total[index] = 0
    return _spread(len(total), index, values), total


def _top_k(r: Any, g: Any, k: int) -> tuple[Any, Any]:
    total = r + g
    return _sent(total, torch.topk(total.abs(), k, sorted=False).indices)


def _threshold(r: Any, g: Any, threshold: float) -> tuple[Any, Any]:
    total = r + g
    return _sent(total, torch.nonzero(total.abs() >= threshold).squeeze(1))


def _sampled_threshold(r: Any, g: Any, share: float) -> tuple[Any, Any]:
    """The threshold that passes a share of every hundredth entry."""
    total = r + g
    size = total.abs()
    sample = size[::100]
    bar = torch.topk(sample, max(1, int(share * len(sample))), sorted=False).values
    return _sent(total, torch.nonzero(size >= bar.min()).squeeze(1))


def _int8(r: Any, g: Any) -> tuple[Any, Any]:
    """One step for all entries, by torch's own quantized tensors."""
    total = r + g
    step = max(float(total.abs().max()) / 127, 1e-30)
    sent = torch.quantize_per_tensor(total, step, 0, torch.qint8).dequantize()
    return sent, total.sub_(sent)


def _int8_blocks(r: Any, g: Any, block: int) -> tuple[Any, Any]:
    total = _in_rows(r + g, block)
    steps = total.abs().amax(1, keepdim=True).div_(127).clamp_(min=1e-30)
    codes = (total / steps).round_().to(torch.int8)
    sent = codes * steps
    return sent.view(-1)[: len(r)], total.sub_(sent).view(-1)[: len(r)]


def _sign(r: Any, g: Any) -> tuple[Any, Any]:
    total = r + g
    scale = float(total.abs().mean())
    signs = total >= 0
    sent = signs.float().mul_(2 * scale).sub_(scale)
    return sent, total.sub_(sent)


def _adacomp_digits(r: Any, g: Any, bin_size: int) -> tuple[Any, Any]:
    total = _in_rows(r + g, bin_size)
    pushed = (total + _in_rows(g, bin_size)).abs_()
    tops = total.abs().amax(1, keepdim=True)
    digits = (total.sign() * (pushed >= tops)).to(torch.int8)
    sent = digits * tops.mean()
    return sent.view(-1)[: len(r)], total.sub_(sent).view(-1)[: len(r)]


def _adacomp_slots(r: Any, g: Any, bin_size: int, slots: int) -> tuple[Any, Any]:
    total = _in_rows(r + g, bin_size)
    pushed = (total + _in_rows(g, bin_size)).abs_()
    tops = total.abs().amax(1, keepdim=True)
    pushed *= pushed >= tops
    height, place = torch.topk(pushed, slots, dim=1, sorted=False)
    marks = (total.gather(1, place) < 0) + 1
    # The message: 6 or 14 bits of place and 2 bits that say none, plus or minus.
    kind, bits = (torch.uint8, 6) if bin_size <= 64 else (torch.int16, 14)
    codes = torch.where(height > 0, place | (marks << bits), 0).to(kind)
    place, marks = codes.long() & (2**bits - 1), (codes.long() >> bits) & 3
    values = tops.mean() * torch.where(marks == 2, -1.0, marks.float())
    total.scatter_add_(1, place, -values)
    sent = torch.zeros_like(total).scatter_add_(1, place, values)
    return sent.view(-1)[: len(r)], total.view(-1)[: len(r)]


def _in_rows(x: Any, size: int) -> Any:
    short = -len(x) % size
    if short:
        x = torch.nn.functional.pad(x, (0, short))
    return x.view(-1, size)
