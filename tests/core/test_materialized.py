"""The identity that CPUs may not fuse across: values, derivatives, batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.core import materialized

NAN = jnp.array([jnp.nan, 1.0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint32", "int8"])
def test_any_numbers_come_back(dtype):
    for size in (0, 1, 5):
        x = jnp.arange(size).astype(dtype)
        for run in (materialized, jax.jit(materialized), jax.vmap(materialized)):
            rows = jnp.stack([x, x + x]) if run is not materialized else x
            got = run(rows)
            assert got.dtype == dtype
            np.testing.assert_array_equal(got, rows)


def test_trees_of_both_kinds_even_with_a_nan_in_front():
    tree = {"a": NAN, "b": jnp.array([-7, 3]), "c": jnp.uint32(2**32 - 1)}
    got = jax.jit(materialized)(tree)
    for name, leaf in tree.items():
        np.testing.assert_array_equal(got[name], leaf)


def test_the_derivative_is_the_identity():
    def fn(x):
        kept, places = materialized((x**2, jnp.array([1, 0])))
        return kept[places]

    x = jnp.array([2.0, 3.0])
    np.testing.assert_array_equal(jax.jacrev(fn)(x), [[0, 6], [4, 0]])
    np.testing.assert_array_equal(jax.jacfwd(fn)(x), [[0, 6], [4, 0]])


@pytest.mark.optimized
def test_cpus_have_it_as_a_branch():
    run = jax.jit(lambda x: materialized(x + 1) * 2)
    for x in (jnp.ones(4), jnp.ones(4, jnp.int32)):
        assert "conditional" in run.lower(x).compile().as_text()
