"""The threshold that loses least, the cheapest function that loses little enough."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...core import check_integer, is_concrete
from ._entrywise import Entrywise, binarize, linear, quantize_entries, sparsify
from ._law import check_arguments
from ._moments import Moments
from ._prediction import Prediction, predict

_POINTS = 65
_HALVINGS = 40
_UPPER = 6.0  # sqrt(2) * 6 standard deviations: nothing lies beyond

Family = Callable[[Any], Entrywise]


def best_threshold(family: Family, *, upper: float = _UPPER) -> tuple[Any, Any]:
    """The threshold s at which a family loses least of the classes.

    It has the least nu / a1^2, on which both the phase transition and the alignment of
    the eigenvector depend, at any c and snr: the least on a grid, then the zero of the
    derivative beside it by bisection.

    Args:
        family: s -> an `Entrywise`, or anything with moments: `binarize`, or
            `lambda s: quantize_entries(2, s)`. It is differentiated in s.
        upper: the end of the interval [0, upper] that is searched.

    Returns:
        (s, nu / a1^2 there), scalars.

    Raises:
        ValueError: upper is not positive.

    Example:
        >>> from jaxmethods.sketch import spectral
        >>> s, ratio = spectral.best_threshold(spectral.binarize)
        >>> round(float(s), 3), round(float(ratio), 4)
        (0.433, 1.2348)
    """
    if not upper > 0:
        raise ValueError(f"upper is {upper}; wanted the end of an interval, above 0.")
    return _best(family, upper)


def _best(family: Family, upper: Any) -> tuple[Any, Any]:
    """`best_threshold`, unchecked."""

    def ratio(s: jax.Array) -> jax.Array:
        a1, _, nu = family(s).moments
        return nu / (a1 * a1)

    grid = jnp.linspace(0.0, upper, _POINTS)
    values = jax.vmap(ratio)(grid)
    i = jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))
    ends = grid[jnp.maximum(i - 1, 0)], grid[jnp.minimum(i + 1, _POINTS - 1)]
    slope = jax.grad(ratio)
    s, _ = _halve(lambda s: slope(s) < 0, *ends)
    return s, ratio(s)


class Choice(NamedTuple):
    """A function and what it costs and does.

    Attributes:
        f: the `Entrywise`.
        cost: bits an entry of the matrix: the share of entries kept times their bits.
        prediction: `Prediction` at the c and snr asked for.
    """

    f: Entrywise
    cost: float
    prediction: Prediction


def cheapest(
    max_error: float, *, c: float, snr: float, value_bits: int = 32, max_bits: int = 8
) -> Choice:
    """The function of fewest bits that tells two classes apart well enough.

    Among `binarize` and `sparsify` of any threshold, `quantize_entries` of any bits at
    their best threshold, and `linear` (`uniform` keeps more than `sparsify` for the
    same error). Bits that say which entries are kept are not counted.

    Args:
        max_error: the largest predicted share of wrong labels, in (0, 1/2).
        c: p / n, positive.
        snr: |mu|^2, positive.
        value_bits: of an entry that is not quantized: 32, or 16.
        max_bits: of `quantize_entries`, 2..16.

    Returns:
        `Choice`. Its threshold is the largest at which the predicted error is at most
        `max_error`.

    Raises:
        ValueError: the entries as they are do not reach this error, or an argument is
            out of its range or traced: which function is chosen is static.

    Example:
        >>> from jaxmethods.sketch import spectral
        >>> choice = spectral.cheapest(0.1, c=0.25, snr=3.0)
        >>> choice.f, round(choice.cost, 4)
        (binarize(1.77), 0.0123)
    """
    for name, value in {"max_error": max_error, "c": c, "snr": snr}.items():
        if not is_concrete(value):
            raise ValueError(f"{name} is traced; wanted a number: call outside of jit.")
    if not 0 < max_error < 0.5:
        raise ValueError(f"max_error is {max_error}; wanted a share in (0, 1/2).")
    check_integer(max_bits, "max_bits", 2, 16)
    with jax.ensure_compile_time_eval():
        return _cheapest(max_error, c, snr, value_bits, max_bits)


def _cheapest(
    max_error: float, c: float, snr: float, value_bits: int, max_bits: int
) -> Choice:
    """Of the functions that are good enough the one of least cost."""
    moments = linear().moments
    check_arguments(moments, c, snr=snr)
    least = _predict(moments, c, snr).error
    if not least <= max_error:
        raise ValueError(
            f"max_error is {max_error}, while with all entries as they are a share of "
            f"{least:.4g} is predicted to be wrong at c={c}, snr={snr}; wanted data "
            f"that tell more: a larger snr, or more samples (a smaller c)."
        )
    costs, makers = [float(value_bits)], [linear]
    for family, bits in ((binarize, 1), (sparsify, value_bits)):
        s, kept, good = _stretch(family, max_error, c, snr, _UPPER)
        if good:
            costs.append(float(kept) * bits)
            makers.append(functools.partial(family, s))
    for bits in range(2, max_bits + 1):
        if bits >= min(costs):
            break
        family = _quantizer(bits)
        s, error = _quantized(family, c, snr, _UPPER)
        if error <= max_error:
            costs.append(float(bits))
            makers.append(functools.partial(family, s))
    cost = min(costs)
    f = makers[costs.index(cost)]()
    return Choice(f, cost, _predict(f.moments, c, snr))


# Jitted, or every call compiled its searches anew; `upper` is an argument, or all that
# does not depend on one were evaluated op by op where `cheapest` calls it.
@functools.partial(jax.jit, static_argnames="family")
def _quantized(family: Family, c: Any, snr: Any, upper: Any) -> tuple[Any, Any]:
    """The best threshold, and the predicted error there."""
    s, _ = _best(family, upper)
    return s, predict(family(s).moments, c=c, snr=snr).error


@jax.jit
def _predict(moments: Moments, c: Any, snr: Any) -> Prediction:
    return predict(moments, c=c, snr=snr)


@functools.partial(jax.jit, static_argnames="family")
def _stretch(
    family: Family, max_error: Any, c: Any, snr: Any, upper: Any
) -> tuple[Any, ...]:
    """The largest threshold that is good, the share kept, whether there is one."""

    def good(s: jax.Array) -> jax.Array:
        return predict(family(s).moments, c=c, snr=snr).error <= max_error

    best, _ = _best(family, upper)
    s, _ = _halve(good, best, jnp.full_like(best, upper))
    return s, family(s).kept, good(best)


@functools.cache  # one function, which jit knows again
def _quantizer(bits: int) -> Family:
    return functools.partial(quantize_entries, bits)


def _halve(
    holds: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The end of the interval up to which something holds, between two numbers."""

    def step(_: Any, ends: Any) -> Any:
        low, high = ends
        middle = (low + high) / 2
        further = holds(middle)
        return jnp.where(further, middle, low), jnp.where(further, high, middle)

    return lax.fori_loop(0, _HALVINGS, step, (low, high))
