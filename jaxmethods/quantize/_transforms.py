"""`qat` and `fqt`: any function with its products in few bits."""

import functools
import inspect
import warnings
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core import (
    Site,
    check_key,
    choose_paths,
    describe,
    interpret,
    leaf_paths,
    source_line,
)
from ._integer import integer_product
from ._policy import Policy, check_policy
from ._products import Operand, low_bit_product, nearest, sample_axis

_DATA = "data"  # the label of every argument but the parameters
_PRODUCTS = ("dot_general", "conv_general_dilated")
_UNKNOWN_PRODUCTS = ("ragged_dot_general",)

Seed = tuple[jax.Array, Any] | None  # the words of the key and its implementation


class _Setting(NamedTuple):
    """What products are rewritten by."""

    policy: Policy
    seed: Seed = None
    packed: bool = False
    integer: bool = False
    empty: bool = False  # whether an argument is


def qat(
    fn: Callable[..., Any],
    policy: Policy,
    *,
    packed: bool = False,
    integer: bool = False,
) -> Callable[..., Any]:
    """Quantization-aware training: low-bit operands forward, exact gradients back.

    Each matrix product and convolution of `fn`, wherever it is (in `jit`, `remat`,
    `scan`, `cond`), takes rounded operands: those that depend on the parameters alone
    by `policy.weight`, those that depend on other arguments by `policy.activation`.
    Rounding is to the nearest, and gradients pass straight through it. `policy`'s
    gradient quantizers are not used.

    Inside a `custom_jvp` products take rounded operands too, and the derivative is the
    function's own. A warning names each product that stays exact: one inside a
    `custom_vjp`, a `shard_map` or a kernel, one of groups (`ragged_dot`), of complex
    numbers or of 8-bit floats. Products of integers stay what they are.

    Args:
        fn: `fn(params, *args)`; argument 0 is a pytree of parameters.
        policy: What to quantize.
        packed: Whether the rounded operands of each product wait for its gradient as
            codes of 2, 4 or 8 bits, not as floats. The gradients are the same; reverse
            mode only, and once. What other operations keep for their gradients (the
            sign of `relu`, the result of `tanh`) stays as it is. On CPUs only loops
            and `jax.vjp` outside `jit` profit: XLA merges both computations of a value
            within one program there, as it does with `jax.checkpoint`.
        integer: Whether to multiply codes of 8 bits instead of floats where both
            operands are rounded, on TPUs and NVIDIA GPUs: in matrix products, not in
            convolutions, by `ptq`, or by `psq` along an axis that is not summed over.
            Values are the same to rounding, derivatives the same. It pays for large
            products alone (4096 cubed on a TPU v5e, by the compiler's estimate; it has
            been measured on none), so it has to be asked for.

    Returns:
        `quantized(params, *args)`, of the structure, shapes and dtypes of `fn`. It
        traces `fn` at each call: a few ms, unless under `jit`.

    Raises:
        TypeError: `policy` is no Policy.
        ValueError: `policy.where` names no parameter, and the message lists them; or a
            product has an empty operand, and the message says where.

    Example:
        >>> from jaxmethods.quantize import Policy, ptq
        >>> net = lambda w, x: jax.nn.relu(x @ w)
        >>> w, x = jnp.array([[0.75], [0.2]]), jnp.array([[1.0, 1.0]])
        >>> qat(net, Policy(weight=ptq(2)))(w, x)
        Array([[1.]], dtype=float32)

    References:
        Chen, Gai, Yao, Mahoney, Gonzalez 2020 (arXiv 2010.14298), section 2.
    """
    check_policy(policy)

    @functools.wraps(fn)
    def quantized(params, *args, **kwargs):
        setting = _Setting(policy, None, packed, integer)
        return _run(fn, setting, params, args, kwargs)

    return quantized


def fqt(
    fn: Callable[..., Any],
    policy: Policy,
    *,
    packed: bool = False,
    integer: bool = False,
) -> Callable[..., Any]:
    """Fully quantized training: low-bit operands forward, low-bit gradients back.

    The values are those of `qat`. Going back, the gradient that enters each product is
    rounded by chance, twice and independently: by `policy.input_grad` on the way to
    operands that depend on data, by `policy.weight_grad` on the way to weights. The
    gradient of the result is therefore an unbiased estimate of `qat`'s. Where a
    function has a `custom_jvp`, its own derivative is taken, without noise.

    Args:
        fn: `fn(params, *args)`; argument 0 is a pytree of parameters.
        policy: What to quantize.
        packed: Whether rounded operands wait for the gradient as codes, as in `qat`.
        integer: Whether to multiply codes on the way forward, as in `qat`.

    Returns:
        `quantized(key, params, *args)`: gradients in the parameters are
        `jax.grad(quantized, argnums=1)`. One key, one gradient: split it each step,
        fold in the device's index under `shard_map`. Reverse mode only; in a
        derivative of the gradient rounding passes straight through as well.

    Raises:
        ValueError: the key is None while a gradient quantizer is given;
            `policy.where` names no parameter; or a product has an empty operand.
        TypeError: the key is no typed key, or `policy` no Policy.

    Example:
        >>> from jaxmethods.quantize import Policy, bhq
        >>> policy = Policy(input_grad=bhq(5), weight_grad=bhq(8))
        >>> loss = lambda w, x: jnp.sum(jnp.tanh(x @ w) ** 2)
        >>> w, x = jnp.ones((3, 2)), jnp.arange(12.0).reshape(4, 3) / 12
        >>> gradient = jax.jit(jax.grad(fqt(loss, policy), argnums=1))
        >>> bool(jnp.abs(gradient(jax.random.key(0), w, x) - jax.grad(loss)(w, x)).max()
        ...      < 0.05)
        True

    References:
        Chen, Gai, Yao, Mahoney, Gonzalez 2020 (arXiv 2010.14298), section 3.
    """
    check_policy(policy)

    @functools.wraps(fn)
    def quantized(key, /, params, *args, **kwargs):
        noisy = policy.input_grad is not None or policy.weight_grad is not None
        if noisy and key is None:
            raise ValueError(
                "key is None, and the policy rounds gradients by chance; "
                "wanted a key of jax.random.key, another one each step."
            )
        seed: Seed = None
        if noisy:
            check_key(key)
            if key.shape:
                raise ValueError(
                    f"key is {describe(key)}, a batch; wanted one key: use jax.vmap."
                )
            seed = jax.random.key_data(key), jax.random.key_impl(key)
        setting = _Setting(policy, seed, packed, integer)
        return _run(fn, setting, params, args, kwargs)

    return with_key_first(quantized, fn)


def _run(
    fn: Callable[..., Any],
    setting: _Setting,
    params: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    paths = leaf_paths(params)
    if setting.policy.where is not None:
        choose_paths(setting.policy.where, paths)
    leaves, treedef = jax.tree.flatten((params, args, kwargs))
    labels = [{p} for p in paths] + [{_DATA}] * (len(leaves) - len(paths))
    # Flags, dtypes and other plain Python values reach `fn` as they are.
    traced = [isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in leaves]

    def of_arrays(*arrays):
        given = iter(arrays)
        filled = [
            next(given) if t else leaf for t, leaf in zip(traced, leaves, strict=True)
        ]
        params, args, kwargs = treedef.unflatten(filled)
        return fn(params, *args, **kwargs)

    arrays = [leaf for t, leaf in zip(traced, leaves, strict=True) if t]
    jaxpr, shapes = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
    names = (*_PRODUCTS, *_UNKNOWN_PRODUCTS)
    setting = setting._replace(empty=any(x.size == 0 for x in arrays))
    rule = functools.partial(_rule, setting)
    # Nothing traced, and no noise: the derivative is not ours.
    inside = functools.partial(_rule, _Setting(setting.policy))
    outs = interpret(
        jaxpr,
        dict.fromkeys(names, rule),
        arrays,
        labels=[mark for t, mark in zip(traced, labels, strict=True) if t],
        report=_warn,
        # Nothing traced, and no noise: the derivative is not ours.
        through=dict.fromkeys(names, inside),
    )
    return jax.tree.unflatten(jax.tree.structure(shapes), outs)


def _warn(what: str) -> None:
    warnings.warn(f"quantize: {what}, in full precision", stacklevel=2)


def _rule(setting: _Setting, site: Site, *operands: jax.Array) -> Any:
    policy, seed, packed, integer, _ = setting
    weights = [bool(marks) and _DATA not in marks for marks in site.labels]
    data = [_DATA in marks for marks in site.labels]
    named = frozenset().union(*(m for m in site.labels if _DATA not in m))
    if policy.where is not None and not any(map(policy.covers, named)):
        return NotImplemented
    sides = [_operand(policy, w, d) for w, d in zip(weights, data, strict=True)]
    if seed is None:
        sides = [Operand(side.forward) for side in sides]
    if all(side == Operand() for side in sides) or not _can_round(
        site, operands, setting.empty
    ):
        return NotImplemented
    left, right = sides

    def product(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return site.bind(lhs, rhs)[0]

    def in_floats(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return product(nearest(left.forward, lhs), nearest(right.forward, rhs))

    quantizers, value = (left.forward, right.forward), None
    if integer:
        value = integer_product(site.equation, quantizers, in_floats)
    noisy = left.gradient is not None or right.gradient is not None
    if not noisy and not packed:
        return [(value or in_floats)(*operands)]
    words, impl = (None, None) if seed is None else seed
    if words is not None:
        words = _site_words(words, impl, site)
    samples = sample_axis(site.equation, *data)
    of_words = low_bit_product(
        product, (left, right), samples, impl, packed=packed, value=value
    )
    return [of_words(words, *operands)]


def _can_round(site: Site, operands: tuple[jax.Array, ...], empty: bool) -> bool:
    """Whether the quantizers can take a product; a warning or an error says if not."""
    dtypes = [jnp.result_type(x) for x in operands]
    if all(not jnp.issubdtype(d, jnp.inexact) for d in dtypes):
        return False
    name = site.equation.primitive.name
    types = " and ".join(describe(x) for x in operands[:2])
    what = f"{name} of {types} at {source_line(site.equation)}"
    real = all(jnp.issubdtype(d, jnp.floating) and d.itemsize > 1 for d in dtypes)
    if name not in _PRODUCTS or not real:
        _warn(f"{what} is left as it is")
        return False
    if any(x.size == 0 for x in operands):
        out: Any = site.equation.outvars[0].aval
        if out.size == 0 and not empty:
            return False  # jax's own, as in `associative_scan`
        raise ValueError(
            f"{what} has an empty operand, which has no range to quantize; wanted at "
            "least one entry in each: leave empty batches and layers out."
        )
    return True


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


def with_key_first(keyed: Callable[..., Any], fn: Callable[..., Any]) -> Any:
    """Says in the signature of `keyed` that it takes a key before what `fn` takes.

    `jax.jit` finds the places of static and donated arguments by it.
    """
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # a callable without one
        return keyed
    taken = "key" in signature.parameters
    name = "rounding_key" if taken else "key"
    first = inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY)
    several = [first, *signature.parameters.values()]
    keyed.__signature__ = signature.replace(parameters=several)  # pyrefly: ignore
    return keyed
