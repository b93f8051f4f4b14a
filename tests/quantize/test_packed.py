"""packed: the same gradients, from codes in place of floats."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.quantize import Policy, fqt, psq, ptq, qat

X = jax.random.normal(jax.random.key(0), (64, 32))
WEIGHTS = jax.random.normal(jax.random.key(1), (3, 32, 32)) / 6
IMAGES = jax.random.normal(jax.random.key(2), (4, 6, 6, 2))


def policy(bits=4):
    return Policy(ptq(bits, zero_aligned=False), ptq(bits), psq(3), psq(3))


def linear(ws, x):
    return jnp.mean(functools.reduce(jnp.matmul, ws, x))


def scanned(ws, x):
    return jnp.mean(
        jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, ws)[0] ** 2
    )


def convolved(w, x):
    out = jax.lax.conv_general_dilated(
        x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.mean(jnp.tanh(out) ** 2)


CASES = {
    "chain": (linear, list(WEIGHTS), X),
    "scan": (scanned, WEIGHTS, X),
    "remat": (jax.checkpoint(scanned), WEIGHTS, X),
    "convolution": (convolved, jnp.ones((3, 3, 2, 4)) / 5, IMAGES),
    "half": (linear, list(WEIGHTS.astype(jnp.bfloat16)), X.astype(jnp.bfloat16)),
}


def kept(fn, params, x, packed, bits):
    """What waits for the gradient of the parameters."""
    quantized = fqt(fn, policy(bits), packed=packed)
    vjp = jax.vjp(lambda p: quantized(jax.random.key(0), p, x), params)[1]
    return [leaf for leaf in jax.tree.leaves(vjp) if leaf.size > 4]


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_same(name):
    fn, params, x = CASES[name]
    keys = jax.random.split(jax.random.key(3), 2)
    for transform, args in ((qat, ()), (fqt, (keys,))):
        found = []
        for packed in (False, True):
            run = transform(fn, policy(), packed=packed)
            gradient = jax.grad(lambda p, *key, run=run: run(*key, p, x))
            if args:
                gradient = jax.vmap(gradient, (None, 0))
            found.append(jax.jit(gradient)(params, *args))
        # Values at the codes are computed anew, in another order in a fused loop.
        eps = 1e-2 if name == "half" else 1e-5
        for a, b in zip(*map(jax.tree.leaves, found), strict=True):
            a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
            np.testing.assert_allclose(b, a, rtol=eps, atol=eps * np.abs(a).max())


@pytest.mark.parametrize(("bits", "per_byte"), [(2, 4), (3, 2), (4, 2), (8, 1)])
def test_no_float_operand_is_kept(bits, per_byte):
    ws = list(WEIGHTS)
    floats = kept(linear, ws, X, False, bits)
    assert sum(leaf.nbytes for leaf in floats) == 4 * 3 * (X.size + ws[0].size)
    codes = kept(linear, ws, X, True, bits)
    assert {leaf.dtype for leaf in codes} == {jnp.dtype(jnp.uint8)}
    assert sum(leaf.nbytes for leaf in codes) == 3 * (X.size + ws[0].size) / per_byte


@pytest.mark.optimized
def test_a_compiled_loop_needs_less_memory():
    ws = jnp.concatenate([WEIGHTS] * 8)
    x = jnp.tile(X, (8, 1))

    def bytes_of(packed):
        step = jax.value_and_grad(fqt(scanned, policy(), packed=packed), argnums=1)
        compiled = jax.jit(step).lower(jax.random.key(0), ws, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # Of 4 bytes an entry for the operand half a byte is left, and the sign of relu.
    saved = bytes_of(False) - bytes_of(True)
    assert saved > 3 * len(ws) * x.size


def test_what_is_not_rounded_is_kept_as_it_is():
    only_weights = Policy(weight=ptq(2), weight_grad=psq(2))
    vjp = jax.vjp(
        lambda w: fqt(linear, only_weights, packed=True)(jax.random.key(0), [w], X),
        WEIGHTS[0],
    )[1]
    sizes = {(leaf.dtype.name, leaf.size) for leaf in jax.tree.leaves(vjp)}
    assert {("float32", X.size), ("uint8", WEIGHTS[0].size // 4)} <= sizes


def test_second_and_forward_derivatives_are_refused():
    run = qat(linear, policy(), packed=True)
    first = lambda w: jnp.sum(jax.grad(run)([w], X)[0] ** 2)  # noqa: E731
    with pytest.raises(NotImplementedError, match=r"wanted packed=False for second"):
        jax.grad(first)(WEIGHTS[0])
    with pytest.raises(TypeError, match=r"forward-mode"):
        jax.jvp(lambda w: run([w], X), (WEIGHTS[0],), (WEIGHTS[0],))
