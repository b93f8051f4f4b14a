"""Functions of one entry that zero out or quantize a Gram matrix."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf, erfc

from ...core import (
    check_floating,
    check_integer,
    check_nonnegative,
    describe,
    is_concrete,
)
from ._moments import Moments


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Entrywise:
    """A function of one entry with all that spectra and storage depend on.

    `linear`, `sparsify`, `binarize`, `quantize_entries`, `relu` and `uniform` make it.
    Thresholds may be traced; then so are its moments, differentiably.

    Attributes:
        function: (t, *parameters) -> values of the shape and dtype of t.
        parameters: what the family was called with.
        moments: `Moments`.
        kept: the share of entries that are not zero, where the data have no classes.
        bits: bits of an entry that is kept; None: those of its dtype.
        random: whether entries are dropped at random: then t is returned whole, and
            what remains is the mask's affair.
    """

    function: Callable[..., jax.Array] = field(metadata=dict(static=True))
    parameters: tuple[Any, ...]
    moments: Moments
    kept: Any = 1.0
    bits: int | None = field(default=None, metadata=dict(static=True))
    random: bool = field(default=False, metadata=dict(static=True))

    def __call__(self, t: Any) -> jax.Array:
        """Values of the shape and dtype of a floating t."""
        return self.function(check_floating(t, "t"), *self.parameters)

    def __repr__(self) -> str:
        shown = (
            f"{float(p):.4g}" if is_concrete(p) and np.ndim(p) == 0 else describe(p)
            for p in self.parameters
        )
        return f"{self.function.__name__.strip('_')}({', '.join(shown)})"


def linear() -> Entrywise:
    """f(t) = t: the Gram matrix as it is, less its diagonal.

    Example:
        >>> linear(), tuple(linear().moments)
        (linear(), (1.0, 0.0, 1.0))
    """
    return Entrywise(_linear, (), Moments(1.0, 0.0, 1.0))


def sparsify(s: Any) -> Entrywise:
    """Keeps the entries of large magnitude: t where |t| > sqrt(2) s, else 0.

    a1 = nu = erfc(s) + 2 s exp(-s^2) / sqrt(pi); the share erfc(s) is kept.

    Args:
        s: scalar, 0 or more; the threshold is sqrt(2) s standard deviations.

    Returns:
        `Entrywise`.

    Raises:
        ValueError: s is negative or not a scalar.

    Example:
        >>> f = sparsify(1.5)
        >>> f, round(float(f.kept), 3), f(jnp.array([0.5, 3.0])).tolist()
        (sparsify(1.5), 0.034, [0.0, 3.0])
    """
    s = _threshold(s)
    a1 = erfc(s) + 2 / math.sqrt(math.pi) * s * jnp.exp(-s * s)
    return Entrywise(_sparsify, (s,), Moments(a1, 0.0, a1), kept=erfc(s))


def binarize(s: Any) -> Entrywise:
    """Keeps the signs of the entries of large magnitude: -1, 0 or 1.

    sign(t) where |t| > sqrt(2) s, else 0. a1 = sqrt(2 / pi) exp(-s^2) and
    nu = erfc(s), the share that is kept.

    Args:
        s: scalar, 0 or more; 0 is the sign alone, `best_threshold(binarize)` is best.

    Returns:
        `Entrywise`, of one bit an entry that is kept.

    Raises:
        ValueError: s is negative or not a scalar.

    Example:
        >>> binarize(0.43)(jnp.array([-2.0, 0.3, 1.0])).tolist()
        [-1.0, 0.0, 1.0]
    """
    s = _threshold(s)
    a1, nu = math.sqrt(2 / math.pi) * jnp.exp(-s * s), erfc(s)
    return Entrywise(_binarize, (s,), Moments(a1, 0.0, nu), kept=nu, bits=1)


def quantize_entries(bits: int, s: Any) -> Entrywise:
    """Quantizes the entries to equal steps between -sqrt(2) s and sqrt(2) s.

    2^(2 - bits) (floor(t 2^(bits - 2) / (sqrt(2) s)) + 1/2) inside, sign(t) beyond:
    2^(bits - 1) + 2 levels, none of them 0.

    Args:
        bits: at least 2.
        s: scalar, 0 or more.

    Returns:
        `Entrywise`, which keeps all entries.

    Raises:
        ValueError: bits is below 2 or above 16, or s is negative or not a scalar.
        TypeError: bits is no int.

    Example:
        >>> quantize_entries(2, 0.7)(jnp.array([-2.0, -0.3, 0.0, 1.0])).tolist()
        [-1.0, -0.5, 0.5, 1.0]
    """
    bits, s = check_integer(bits, "bits", 2, 16), _threshold(s)
    steps = 2 ** (bits - 2)
    k = jnp.arange(1, steps, dtype=s.dtype)
    inner = jnp.exp(-((k * s / steps) ** 2)).sum()
    a1 = math.sqrt(2 / math.pi) / (2 * steps) * (1 + jnp.exp(-s * s) + 2 * inner)
    nu = 1 - (2**bits - 1) / 4 ** (bits - 1) * erf(s)
    nu = nu - (k * erf(k * s / steps)).sum() / 2.0 ** (2 * bits - 5)
    return Entrywise(_quantize_entries, (bits, s), Moments(a1, 0.0, nu), bits=bits)


def relu() -> Entrywise:
    """max(t, 0) less its mean; its a2 makes eigenvalues that mean nothing.

    Example:
        >>> round(float(relu()(jnp.array(1.0))), 4)
        0.6011
    """
    a2, nu = 0.5 / math.sqrt(math.pi), 0.5 - 0.5 / math.pi
    return Entrywise(_relu, (), Moments(0.5, a2, nu))


def uniform(keep: Any) -> Entrywise:
    """Keeps each pair of entries with one probability, whatever their values.

    The function is t itself: what is dropped says a symmetric mask, which `clustering`
    draws from its key and `transformed_gram` takes as an argument (`uniform_mask`).

    Args:
        keep: scalar, above 0 and at most 1.

    Returns:
        `Entrywise` of a1 = nu = keep.

    Raises:
        ValueError: keep is outside (0, 1].

    Example:
        >>> tuple(uniform(0.3).moments)
        (0.3, 0.0, 0.3)
    """
    if is_concrete(keep) and not 0 < float(keep) <= 1:
        raise ValueError(f"keep is {keep}; wanted a probability above 0, at most 1.")
    return Entrywise(
        _uniform, (keep,), Moments(keep, 0.0, keep), kept=keep, random=True
    )


def _threshold(s: Any) -> jax.Array:
    check_nonnegative(s, "s")
    if jnp.ndim(s):
        raise ValueError(f"s is {describe(s)}; wanted a scalar: use jax.vmap.")
    return jnp.asarray(s, jnp.result_type(float, s))


def _linear(t: jax.Array) -> jax.Array:
    return t


def _sparsify(t: jax.Array, s: Any) -> jax.Array:
    return jnp.where(jnp.abs(t) > _cut(s, t), t, jnp.zeros_like(t))


def _binarize(t: jax.Array, s: Any) -> jax.Array:
    return jnp.where(jnp.abs(t) > _cut(s, t), _sign(t), jnp.zeros_like(t))


def _quantize_entries(t: jax.Array, bits: Any, s: Any) -> jax.Array:
    cut, steps = _cut(s, t), jnp.asarray(1 << (bits - 2), t.dtype)
    place = t * (steps / jnp.where(cut > 0, cut, 1))
    # A quotient that rounds up to the end stays on the last level inside.
    level = jnp.clip(jnp.floor(place), -steps, steps - 1) + 0.5
    return jnp.where(jnp.abs(t) > cut, _sign(t), level / steps).astype(t.dtype)


def _relu(t: jax.Array) -> jax.Array:
    return jnp.maximum(t, 0) - 1 / math.sqrt(2 * math.pi)


def _uniform(t: jax.Array, keep: Any) -> jax.Array:
    return t


def _cut(s: Any, t: jax.Array) -> jax.Array:
    return jnp.asarray(math.sqrt(2) * s, t.dtype)


def _sign(t: jax.Array) -> jax.Array:
    return jnp.where(t < 0, jnp.full_like(t, -1), jnp.ones_like(t))
