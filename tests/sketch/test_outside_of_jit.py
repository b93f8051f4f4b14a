"""Outside of jit: a second call of what loops compiles nothing."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO

from jaxmethods import sketch
from jaxmethods.sketch import spectral

N, D, M = 60, 3, 12


def test_a_second_call_compiles_nothing(caplog):
    r = np.random.default_rng(0)
    A = jnp.asarray(r.standard_normal((N, D)), jnp.float32)
    b, K = A[:, 0], A.T @ A
    sparse = BCOO.fromdense(A)
    gradient = jnp.ones(D)

    def update(key):
        method = sketch.scale_by_newton_sketch(
            key, lambda x: A, M, family="sparse_stack"
        )
        return method.update(gradient, method.init(gradient), gradient)

    def sketches(key):
        product = lambda key: sketch.rademacher(key, M, N) @ A  # noqa: E731
        return jax.vmap(product)(jax.random.split(key, 2))

    calls = (
        sketches,
        update,
        lambda key: sketch.rademacher(key, M, N) @ sparse,
        lambda key: sketch.inverse_gram(key, A, M, family="sparse_stack"),
        lambda key: sketch.approximate_leverage_scores(key, A),
        lambda key: sketch.lstsq(key, A, b),
        lambda key: sketch.svd(key, A, 2),
        lambda key: sketch.nystrom(key, K, 2),
        lambda key: spectral.clustering(key, A, spectral.binarize(0.4), num_steps=2),
    )
    for i, call in enumerate(calls):
        call(jax.random.key(i))
        key = jax.random.key(10 + i)
        with jax.log_compiles():
            call(key)
        assert "Compiling" not in caplog.text, caplog.text


def test_the_log_would_tell(caplog):
    with jax.log_compiles():
        jax.jit(lambda x: x + 1)(jnp.ones(2))
    assert "Compiling" in caplog.text


def test_families_with_equal_fields_are_not_taken_for_each_other():
    # jax's tree structures of different dataclasses are equal where the fields are.
    key, A = jax.random.key(3), jnp.arange(1.0, 5.0)[:, None]
    index, weight = jnp.array([[0, 2, 1, 1]]), jnp.array([[1.0, -1.0, 2.0, 3.0]])
    pairs = (
        (sketch.sparse_stack(key, 4, 4), sketch.srht(key, 4, 4)),
        (sketch.SparseColumns(index, weight, 4), sketch.SparseRows(index, weight, 4)),
    )
    for pair in pairs:
        assert jax.tree.structure(pair[0]) == jax.tree.structure(pair[1])
        for S in pair:
            want = jax.jit(lambda S, A: S @ A)(S, A)
            np.testing.assert_allclose(S @ A, want, rtol=1e-6)
            np.testing.assert_allclose(S.dense() @ A, want, rtol=1e-6)
            many = jax.tree.map(lambda x: x[None], S)
            each = jax.vmap(lambda S: S @ A)(many)
            np.testing.assert_allclose(each[0], want, rtol=1e-6)


def test_without_jit():
    with jax.disable_jit():
        key = jax.random.key(4)
        S = sketch.less(key, jnp.ones(9), 4, s=2)
        assert (S @ jnp.ones((9, 2))).shape == (4, 2)
