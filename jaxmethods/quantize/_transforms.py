"""`qat` and `fqt`: any function with its products in few bits."""

import functools
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core import Site, check_key, choose_paths, interpret, leaf_paths
from ._policy import Policy
from ._products import Operand, nearest, noisy_product, sample_axis

_DATA = "data"  # the label of every argument but the parameters
_PRODUCTS = ("dot_general", "conv_general_dilated")


def qat(fn: Callable[..., Any], policy: Policy) -> Callable[..., Any]:
    """Quantization-aware training: low-bit operands forward, exact gradients back.

    Each matrix product and convolution of `fn`, wherever it is (in `jit`, `remat`,
    `scan`, `cond`), takes rounded operands: those that depend on the parameters alone
    by `policy.weight`, those that depend on other arguments by `policy.activation`.
    Rounding is to the nearest, and gradients pass straight through it.

    Products inside a function with derivatives of its own (`custom_jvp`, `custom_vjp`)
    stay exact; a warning names them. `policy`'s gradient quantizers are not used.

    Args:
        fn: `fn(params, *args)`; argument 0 is a pytree of parameters.
        policy: What to quantize.

    Returns:
        `quantized(params, *args)`, of the structure, shapes and dtypes of `fn`. It
        traces `fn` at each call: a few ms, unless under `jit`.

    Raises:
        ValueError: `policy.where` names no parameter; the message lists them.

    Example:
        >>> from jaxmethods.quantize import Policy, ptq
        >>> net = lambda w, x: jax.nn.relu(x @ w)
        >>> w, x = jnp.array([[0.75], [0.2]]), jnp.array([[1.0, 1.0]])
        >>> qat(net, Policy(weight=ptq(2)))(w, x)
        Array([[1.]], dtype=float32)

    References:
        Chen, Gai, Yao, Mahoney, Gonzalez 2020 (arXiv 2010.14298), section 2.
    """

    @functools.wraps(fn)
    def quantized(params, *args, **kwargs):
        return _run(fn, policy, None, params, args, kwargs)

    return quantized


def fqt(fn: Callable[..., Any], policy: Policy) -> Callable[..., Any]:
    """Fully quantized training: low-bit operands forward, low-bit gradients back.

    The values are those of `qat`. Going back, the gradient that enters each product is
    rounded by chance, twice and independently: by `policy.input_grad` on the way to
    operands that depend on data, by `policy.weight_grad` on the way to weights. The
    gradient of the result is therefore an unbiased estimate of `qat`'s.

    Args:
        fn: `fn(params, *args)`; argument 0 is a pytree of parameters.
        policy: What to quantize.

    Returns:
        `quantized(key, params, *args)`: gradients in the parameters are
        `jax.grad(quantized, argnums=1)`. One key, one gradient: split it each step,
        fold in the device's index under `shard_map`. Reverse mode only.

    Raises:
        ValueError: the key is None while a gradient quantizer is given; or
            `policy.where` names no parameter.
        TypeError: the key is no typed key.

    Example:
        >>> from jaxmethods.quantize import Policy, bhq, psq
        >>> policy = Policy(input_grad=bhq(5), weight_grad=psq(8, per="feature"))
        >>> loss = lambda w, x: jnp.sum(jnp.tanh(x @ w) ** 2)
        >>> w, x = jnp.ones((3, 2)), jnp.arange(12.0).reshape(4, 3) / 12
        >>> gradient = jax.grad(fqt(loss, policy), argnums=1)
        >>> bool(jnp.abs(gradient(jax.random.key(0), w, x) - jax.grad(loss)(w, x)).max()
        ...      < 0.05)
        True

    References:
        Chen, Gai, Yao, Mahoney, Gonzalez 2020 (arXiv 2010.14298), section 3.
    """

    @functools.wraps(fn)
    def quantized(key, params, *args, **kwargs):
        noisy = policy.input_grad is not None or policy.weight_grad is not None
        if noisy and key is None:
            raise ValueError(
                "key is None, and the policy rounds gradients by chance; "
                "wanted a key of jax.random.key, another one each step."
            )
        if noisy:
            check_key(key)
        return _run(fn, policy, key if noisy else None, params, args, kwargs)

    return quantized


def _run(
    fn: Callable[..., Any],
    policy: Policy,
    key: jax.Array | None,
    params: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    paths = leaf_paths(params)
    if policy.where is not None:
        choose_paths(policy.where, paths)
    leaves, treedef = jax.tree.flatten((params, args, kwargs))
    labels = [{p} for p in paths] + [{_DATA}] * (len(leaves) - len(paths))
    # Flags and other plain Python values reach `fn` as they are.
    traced = [hasattr(leaf, "dtype") for leaf in leaves]

    def of_arrays(*arrays):
        given = iter(arrays)
        filled = [
            next(given) if t else leaf for t, leaf in zip(traced, leaves, strict=True)
        ]
        params, args, kwargs = treedef.unflatten(filled)
        return fn(params, *args, **kwargs)

    arrays = [leaf for t, leaf in zip(traced, leaves, strict=True) if t]
    jaxpr, shapes = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
    seed = key if key is None else (jax.random.key_data(key), jax.random.key_impl(key))
    rule = functools.partial(_rule, policy, seed)
    outs = interpret(
        jaxpr,
        dict.fromkeys(_PRODUCTS, rule),
        arrays,
        labels=[mark for t, mark in zip(traced, labels, strict=True) if t],
        report=_warn,
    )
    return jax.tree.unflatten(jax.tree.structure(shapes), outs)


def _warn(what: str) -> None:
    warnings.warn(f"quantize: {what}, in full precision", stacklevel=2)


def _rule(
    policy: Policy,
    seed: tuple[jax.Array, Any] | None,
    site: Site,
    lhs: jax.Array,
    rhs: jax.Array,
) -> Any:
    if not all(jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in (lhs, rhs)):
        return NotImplemented
    weights = [bool(marks) and _DATA not in marks for marks in site.labels]
    data = [_DATA in marks for marks in site.labels]
    named = frozenset().union(*(m for m in site.labels if _DATA not in m))
    if policy.where is not None and not any(map(policy.covers, named)):
        return NotImplemented
    left, right = (_operand(policy, w, d) for w, d in zip(weights, data, strict=True))
    if seed is None:
        left, right = Operand(left.forward), Operand(right.forward)
    sides = left, right
    if all(side == Operand() for side in sides):
        return NotImplemented
    lhs, rhs = nearest(left.forward, lhs), nearest(right.forward, rhs)
    if seed is None or not any(side.gradient for side in sides):
        return site.bind(lhs, rhs)
    words, impl = seed
    samples = sample_axis(site.equation, *data)
    product = noisy_product(lambda a, b: site.bind(a, b)[0], sides, samples, impl)
    return [product(_site_words(words, impl, site), lhs, rhs)]


def _operand(policy: Policy, is_weight: bool, is_data: bool) -> Operand:
    if is_weight:
        return Operand(policy.weight, policy.weight_grad)
    return Operand(policy.activation, policy.input_grad) if is_data else Operand()


def _site_words(words: jax.Array, impl: Any, site: Site) -> jax.Array:
    """A key for each product, and for each round of the loops around it, as words."""
    key = jax.random.wrap_key_data(words, impl=impl)
    key = jax.random.fold_in(key, zlib.crc32(repr(site.position).encode()))
    for iteration in site.iterations:
        key = jax.random.fold_in(key, iteration)
    return jax.random.key_data(key)
