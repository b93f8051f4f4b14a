"""How noisy is each parameter's gradient in `fqt`, and how few bits would do?"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core import check_integer, check_key, describe, vary_together
from ._policy import Policy, check_policy
from ._transforms import fqt, qat, with_key_first

_BITS = range(2, 9)
_MOST_CHUNKS = 16  # relative error of the minibatch's variance at most sqrt(2 / 15)

Leaves = list[jax.Array]


class Noise(NamedTuple):
    """What quantization does to the gradient of one parameter; scalars.

    Attributes:
        bias: squared norm of the mean error, what chance explains taken off, at least
            0. Of the order of `variance / num_samples` where there is none.
        variance: of the gradient over keys, summed over the parameter's entries.
        snr: squared norm of the exact gradient over `variance`; inf without noise.
        bits: int32 in 2..8, the fewest that keep `variance` at or below the variance of
            the exact gradient over minibatches.
    """

    bias: jax.Array
    variance: jax.Array
    snr: jax.Array
    bits: jax.Array


def gradient_noise(fn: Callable[..., Any], policy: Policy) -> Callable[..., Any]:
    """Bias, variance, signal to noise and the bits that suffice, by parameter.

    With g the gradient of `qat(fn, policy)` and g_1, ..., g_n draws of `fqt`'s, all at
    one batch: `variance = sum_i |g_i - mean|^2 / (n - 1)`, `snr = |g|^2 / variance`,
    `bias = max(|mean - g|^2 - variance / n, 0)`.

    `bits` asks when quantization is lost in what the choice of the batch does anyway.
    `fn` is taken for a mean over B examples, those of axis 0 of the arrays among
    `args`, in random order. K = min(B, 16) chunks of b = B // K examples (the rest is
    left out) have gradients c_k, and a batch of B the variance
    `b / B sum_k |c_k - mean|^2 / (K - 1)`. One bit less is about four times the noise,
    `variance ((2^now - 1) / (2^bits - 1))^2`, where `now` is the bits of
    `policy.input_grad`, or else of `policy.weight_grad`; if both are given, the other
    one changes by as many bits.

    Args:
        fn: `fn(params, *args) -> scalar`, a mean over examples. Divide a sum by their
            number first.
        policy: What to quantize. Without a gradient quantizer there is no noise:
            variance 0, snr inf, bits 2.

    Returns:
        `report(key, params, *args, num_samples=64, **kwargs)`: a tree like `params`,
        with a `Noise` for each leaf; float32 (float64 for float64 parameters). A leaf
        that is not floating has no gradient, hence no noise. All arrays among `args`
        and `kwargs` but scalars must agree in axis 0, else (or with one example) the
        minibatch's variance is unknown and counts as 0, so that `bits` is 8 where there
        is noise: close over what has no such axis. Also 8 where 8 do not suffice.

    Raises:
        TypeError: `policy` is no Policy, `key` no typed key, or `num_samples` no int.
        ValueError: `num_samples` is below 2, or `fn` returns no real scalar.

    Complexity:
        `num_samples + 17` gradients, one after the other; memory for three.

    Example:
        >>> from jaxmethods.quantize import psq
        >>> policy = Policy(input_grad=psq(3), weight_grad=psq(3))
        >>> loss = lambda p, x: jnp.mean((jnp.tanh(x @ p["w"]) @ p["v"]) ** 2)
        >>> params = {"w": jnp.eye(4), "v": jnp.ones((4, 2))}
        >>> x = jax.random.normal(jax.random.key(0), (32, 4))
        >>> noise = gradient_noise(loss, policy)(jax.random.key(1), params, x)
        >>> bool(noise["w"].snr > 1), bool(noise["w"].variance > noise["w"].bias)
        (True, True)

    References:
        Chen, Gai, Yao, Mahoney, Gonzalez 2020 (arXiv 2010.14298), section 3.2.
        Welford 1962 (doi 10.1080/00401706.1962.10490022), the running variance.
    """
    check_policy(policy)
    quantizer = policy.input_grad or policy.weight_grad
    now = quantizer.bits if quantizer is not None else _BITS[-1]
    rounded, noisy = qat(fn, policy), fqt(fn, policy)

    @functools.wraps(fn)
    def report(key, /, params, *args, num_samples=64, **kwargs):
        check_key(key)
        num_samples = check_integer(num_samples, "num_samples", 2)
        leaves, rebuild = _floating(params)

        def exact(arguments: Any) -> Leaves:
            args, kwargs = _again(arguments)
            return _gradient(lambda p: rounded(rebuild(p), *args, **kwargs), leaves)

        def draw(key: jax.Array) -> Leaves:
            given, named = _again((args, kwargs))
            return _gradient(lambda p: noisy(key, rebuild(p), *given, **named), leaves)

        gradient = exact((args, kwargs))
        units = _units(gradient)
        keys = jax.random.split(key, num_samples)
        off, variance = _moments(draw, keys, gradient, units)
        batch = _chunked((args, kwargs))
        minibatch = [jnp.zeros_like(v) for v in variance]
        if batch.pieces is not None:
            of_chunk = lambda chunk: exact(batch.arguments(chunk))  # noqa: E731
            spread = _moments(of_chunk, batch.pieces, gradient, units)[1]
            minibatch = [batch.share * v for v in spread]
        found = [
            _noise(unit, _squared(g / unit), b, v, num_samples, m, now)
            for unit, g, b, v, m in zip(
                units, gradient, off, variance, minibatch, strict=True
            )
        ]
        zero, none = jnp.float32(0), jnp.float32(jnp.inf)
        return rebuild(found, Noise(zero, zero, none, jnp.int32(_BITS[0])))

    return with_key_first(report, fn)


def _noise(
    unit: jax.Array,
    signal: jax.Array,
    off: jax.Array,
    variance: jax.Array,
    num_samples: int,
    minibatch: jax.Array,
    now: int,
) -> Noise:
    bias = jnp.maximum(off - variance / num_samples, 0)
    none = variance == 0
    snr = jnp.where(none, jnp.inf, signal / jnp.where(none, 1, variance))
    at = [variance * ((2**now - 1) / (2**bits - 1)) ** 2 for bits in _BITS[:-1]]
    # Not `>`: what is NaN gets the most bits.
    loud = [jnp.int32(~(v <= minibatch)) for v in at]
    square = unit * unit
    return Noise(square * bias, square * variance, snr, sum(loud, jnp.int32(_BITS[0])))


def _floating(params: Any) -> tuple[Leaves, Callable[..., Any]]:
    """The leaves that have a gradient, and what puts others in their place."""
    leaves, treedef = jax.tree.flatten(params)
    chosen = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]

    def rebuild(values: list[Any], rest: Any = None) -> Any:
        given = iter(values)
        return treedef.unflatten(
            next(given) if c else leaf if rest is None else rest
            for c, leaf in zip(chosen, leaves, strict=True)
        )

    kept = zip(chosen, leaves, strict=True)
    return [jnp.asarray(leaf) for c, leaf in kept if c], rebuild


def _gradient(loss: Callable[[Leaves], Any], leaves: Leaves) -> Leaves:
    """The gradient in at least float32, in which it can be summed."""

    def scalar(leaves: Leaves) -> jax.Array:
        value = loss(leaves)
        dtype: Any = getattr(value, "dtype", None)
        scalar = getattr(value, "shape", None) == ()
        if not (scalar and jnp.issubdtype(dtype, jnp.floating)):
            raise ValueError(
                f"fn returns {describe(value)}; wanted a real floating scalar, the "
                "mean loss of the batch, and nothing beside it."
            )
        return value

    found = jax.grad(scalar)(leaves)
    return [g.astype(jnp.promote_types(g.dtype, jnp.float32)) for g in found]


def _units(gradient: Leaves) -> Leaves:
    """For each leaf its largest entry, by which squares neither under- nor overflow.

    For a leaf of zeros the largest entry of all.
    """
    largest = [jnp.max(jnp.abs(g), initial=0) for g in gradient]
    of_all = functools.reduce(jnp.maximum, largest, jnp.float32(0))
    of_all = jnp.where(of_all > 0, of_all, 1)
    return [jnp.where(u > 0, u, of_all).astype(u.dtype) for u in largest]


def _moments(
    gradient: Callable[[Any], Leaves], xs: Any, around: Leaves, units: Leaves
) -> tuple[Leaves, Leaves]:
    """For each leaf the squared norm of the mean error, and the summed variance.

    Args:
        gradient: of one entry of `xs`.
        xs: a pytree stacked on axis 0, of 2 or more entries.
        around: what errors are errors of.
        units: what errors are counted in.
    """

    def step(carry: Any, x: Any) -> tuple[Any, None]:
        count, means, scatters = carry
        count = count + 1
        offs = [
            (g - a) / unit - m
            for g, a, unit, m in zip(gradient(x), around, units, means, strict=True)
        ]
        means = [m + off / count for m, off in zip(means, offs, strict=True)]
        weight = 1 - 1 / count
        scatters = [
            s + weight * _squared(off) for s, off in zip(scatters, offs, strict=True)
        ]
        return (count, means, scatters), None

    # The draws of a shard may differ from those of another where the gradient does not.
    zeros = [jnp.zeros_like(a) for a in around]
    start = 0.0, zeros, [jnp.zeros((), a.dtype) for a in around]
    (count, means, scatters), _ = jax.lax.scan(step, _varying(start, (xs, around)), xs)
    return [_squared(m) for m in means], [s / (count - 1) for s in scatters]


def _varying(start: Any, sources: Any) -> Any:
    return vary_together((jax.tree.map(jnp.asarray, start), sources))[0]


def _squared(x: jax.Array) -> jax.Array:
    return jnp.sum(x * x)


class _Batch(NamedTuple):
    """Arguments in pieces along the axis that counts the examples.

    Attributes:
        pieces: the arrays, K chunks on a new axis 0; None where there is no such axis.
        arguments: `arguments(chunk)` is what `fn` gets for one of the K.
        share: the part of the batch in a chunk.
    """

    pieces: list[jax.Array] | None
    arguments: Callable[[list[jax.Array]], Any]
    share: float


def _chunked(arguments: Any) -> _Batch:
    leaves, treedef = jax.tree.flatten(arguments)
    arrays = [np.ndim(leaf) > 0 for leaf in leaves]

    def filled(chunk: list[jax.Array]) -> Any:
        given = iter(chunk)
        return treedef.unflatten(
            next(given) if a else leaf for a, leaf in zip(arrays, leaves, strict=True)
        )

    split = [leaf for a, leaf in zip(arrays, leaves, strict=True) if a]
    sizes = {np.shape(x)[0] for x in split}
    if len(sizes) != 1 or max(sizes) < 2:
        return _Batch(None, filled, 1.0)
    (batch,) = sizes
    number = min(batch, _MOST_CHUNKS)
    size = batch // number
    pieces = [x[: number * size].reshape(number, size, *x.shape[1:]) for x in split]
    return _Batch(pieces, filled, size / batch)


def _again(arguments: Any) -> Any:
    """The same keys in every draw: what they decide is no noise of the quantizers."""

    def again(x: Any) -> Any:
        dtype: Any = getattr(x, "dtype", None)
        return jax.random.clone(x) if jnp.issubdtype(dtype, jax.dtypes.prng_key) else x

    return jax.tree.map(again, arguments)
