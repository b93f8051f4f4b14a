"""Gradient quantizers beside their peers and beside a copy of the matrix.

    python -m benchmarks quantize [--quick]

Every row rounds a float32 matrix to 5 bits (8 beside qwix) by chance and returns it
dequantized. The peer of "by hand" rows is PSQ as one writes it, with
`jax.random.uniform`; that of "qwix" rows is qwix 0.1.8, int8, one scale a row and noise
for every entry, where it is installed: its narrower types leave the noise out. BHQ has
no peer in JAX; the reference, on torch with loops in Python, takes 524 ms for
128 x 32768 where its PSQ takes 417 ms (another machine, busy). The floor reads the
matrix and writes a new one. Seconds are medians of wall time over interleaved rounds;
`ratio` is `ours_s / peer_s`.

Last result (2 cores of an Intel Xeon, jax 0.10.2, others at work on them), in ms:

                                    ours     peer    floor
    ptq 1024 x 1024                 1.04        -     0.44
    psq 1024 x 1024, by hand        1.01    10.23     0.43   ratio 0.10
    psq per feature 1024 x 1024     1.39        -     0.41
    bhq 1024 x 1024                 4.06        -     0.45
    bhq hadamard 1024 x 1024        7.11        -     0.57
    psq 1024 x 1024, qwix           1.05    10.74     0.49   ratio 0.10
    ptq 128 x 32768                 3.79        -     1.55
    psq 128 x 32768, by hand        6.63    71.22     2.46   ratio 0.09
    psq per feature 128 x 32768     5.47        -     1.52
    bhq 128 x 32768                18.42        -     2.44
    bhq hadamard 128 x 32768       40.42        -     2.88
    psq 128 x 32768, qwix           6.74    61.60     1.78   ratio 0.11
"""

import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.quantize import bhq, psq, ptq

from .harness import compare

_ROUNDS = 15
_BITS = 5


def run(quick: bool) -> list[dict]:
    """The rows `{name, ours_s, peer_s, ratio, floor_s}` of this area."""
    shapes = ((256, 256), (64, 4096)) if quick else ((1024, 1024), (128, 32768))
    return [row for shape in shapes for row in rows_of(shape)]


def rows_of(shape: tuple[int, int]) -> list[dict]:
    x = gradient(shape)
    size = f"{shape[0]} x {shape[1]}"
    by_hand = jax.jit(psq_by_hand)
    rows = [
        row(f"ptq {size}", ptq(_BITS), None, x),
        row(f"psq {size}, by hand", psq(_BITS), by_hand, x),
        row(f"psq per feature {size}", psq(_BITS, per="feature"), None, x),
        row(f"bhq {size}", bhq(_BITS), None, x),
        row(f"bhq hadamard {size}", bhq(_BITS, hadamard=True), None, x),
    ]
    if importlib.util.find_spec("qwix"):
        rows.append(row(f"psq {size}, qwix", psq(8), qwix_rows(), x))
    return rows


def gradient(shape: tuple[int, int]) -> jax.Array:
    """Rows of very different size, as gradients of samples have."""
    rng = np.random.default_rng(0)
    rows = np.exp(1.5 * rng.normal(size=(shape[0], 1)))
    return jnp.asarray(rng.normal(size=shape) * rows, jnp.float32)


def psq_by_hand(key: jax.Array, x: jax.Array) -> jax.Array:
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    scale = (2**_BITS - 1) / (high - low)
    levels = jnp.floor((x - low) * scale + jax.random.uniform(key, x.shape))
    return jnp.clip(levels, 0, 2**_BITS - 1) / scale + low


def qwix_rows() -> Callable:
    from qwix._src.core import qarray, stochastic_rounding

    def quantize(key: jax.Array, x: jax.Array) -> jax.Array:
        noise = stochastic_rounding.get_noise_fn("uniform", key, (0, 1))
        how = qarray.HowToQuantize(
            qtype=jnp.int8, channelwise_axes=(0,), noise_fn=noise
        )
        return qarray.dequantize(qarray.quantize(x, how))

    return jax.jit(quantize)


def row(name: str, q: Callable, peer: Callable | None, x: jax.Array) -> dict:
    key, ours, copy = jax.random.key(0), jax.jit(q), jax.jit(lambda x: x + 1)
    contestants = {"ours": lambda: ours(key, x), "floor": lambda: copy(x)}
    if peer is not None:
        contestants["peer"] = lambda: peer(key, x)
    return compare(name, rounds=_ROUNDS, **contestants)
