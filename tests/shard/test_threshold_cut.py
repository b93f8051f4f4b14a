"""Activations above a threshold: alone, gathered over a mesh, their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from jaxmethods.shard import cut_gather, quantile_threshold, threshold_cut, wire

WORKERS = 4
ROWS = np.random.default_rng(0).standard_normal((WORKERS, 3, 5)).astype(np.float32)


def test_the_cut_and_its_gradient():
    x = jnp.asarray(ROWS)
    mask = np.abs(ROWS) >= 0.7
    np.testing.assert_array_equal(threshold_cut(x, 0.7), np.where(mask, ROWS, 0))
    check_grads(lambda x: jnp.sin(threshold_cut(x, 0.7)), (x,), 1, ("rev",), rtol=2e-2)
    quarter = quantile_threshold(x, 0.25)
    assert (np.abs(ROWS) >= quarter).sum() == 45
    # The threshold takes no gradient, though it depends on x.
    cut = lambda x: threshold_cut(x, quantile_threshold(x, 0.5)).sum()  # noqa: E731
    kept = np.abs(ROWS) >= quantile_threshold(x, 0.5)
    np.testing.assert_array_equal(jax.jit(jax.grad(cut))(x), kept)


def gathered(capacity):
    mesh = Mesh(np.array(jax.devices()[:WORKERS]), ("i",))
    return jax.shard_map(
        lambda x: cut_gather(x[0], 0.7, "i", capacity=capacity)[None],
        mesh=mesh,
        in_specs=P("i"),
        out_specs=P("i"),
    )


def dense(x, capacity):
    """Every worker's view of what all sent, (workers, workers * 3, 5)."""
    flat = x.reshape(WORKERS, -1)
    size = jnp.abs(flat)
    bars = jnp.sort(size, axis=1, descending=True)[:, capacity - 1]
    cut = jnp.where((size >= 0.7) & (size >= bars[:, None]), flat, 0)
    return jnp.broadcast_to(cut.reshape(1, -1, 5), (WORKERS, WORKERS * 3, 5))


@pytest.mark.parametrize("capacity", [15, 4])  # all that pass, and fewer
def test_gathers_what_the_cut_leaves(capacity):
    weight = np.random.default_rng(1).standard_normal((WORKERS, WORKERS * 3, 5))

    def both(run):
        def with_rows(x):
            rows = run(x)
            return (jnp.float32(weight) * jnp.sin(rows)).sum(), rows

        return jax.jit(jax.value_and_grad(with_rows, has_aux=True))(jnp.asarray(ROWS))

    runs = [gathered(capacity)]
    if capacity == 4:
        cut = lambda x: cut_gather(x, 0.7, "i", capacity=capacity)  # noqa: E731
        runs.append(jax.vmap(cut, axis_name="i"))
    (wanted, rows), slope = both(lambda x: dense(x, capacity))
    for run in runs:
        (value, got), gradient = both(run)
        np.testing.assert_array_equal(got, rows)
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
        np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-6)


@pytest.mark.optimized
def test_bytes_of_both_ways():
    run, capacity = gathered(4), 4
    forward = wire(run)(ROWS).total
    assert forward == (WORKERS - 1) * 8 * capacity
    both = wire(jax.grad(lambda x: jnp.sin(run(x)).sum()))(ROWS).total
    assert both == (WORKERS - 1) * 12 * capacity


def test_errors():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"threshold is -1\.0; wanted 0 or more"):
        threshold_cut(x, -1.0)
    with pytest.raises(TypeError, match="int32"):
        threshold_cut(jnp.ones(3, int), 1.0)
    with pytest.raises(ValueError, match=r"sparsity is 1\.0; wanted 0 <= sparsity < 1"):
        quantile_threshold(x, 1.0)
    with pytest.raises(ValueError, match=r"shape \(0,\); wanted at least one entry"):
        quantile_threshold(jnp.zeros(0), 0.5)
    with pytest.raises(NameError, match="'i' is not bound here"):
        cut_gather(x, 0.5, "i", capacity=2)
    with pytest.raises(ValueError, match="capacity is 0; wanted at least 1"):
        jax.vmap(lambda x: cut_gather(x, 0.5, "i", capacity=0), axis_name="i")(x)
