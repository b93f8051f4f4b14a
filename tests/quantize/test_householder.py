"""The transform of rows: its groups, its algebra, and the reference's matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxmethods.quantize._householder import Householder, fit_householder

SIZES = (3, 4, 7, 33)
fit = jax.jit(fit_householder)
sizes = pytest.mark.parametrize("n", SIZES)


def spread(n, seed=0):
    return jnp.exp(2 * jax.random.normal(jax.random.key(seed), (n,)))


apply = jax.jit(Householder.apply)
invert = jax.jit(Householder.invert)


def dense(transform):
    identity = jnp.eye(transform.group.shape[0])
    return np.asarray(apply(transform, identity), np.float64)


def groups_by_hand(ranges):
    """Leader and followers of each group, step by step as the paper's code takes it."""
    order = np.argsort(-ranges, kind="stable")
    v, n = ranges[order].astype(np.float64), len(ranges)
    m = next(m for m in range(1, n) if m * v[n - m - 1] / v[: n - m].sum() > 1)
    ends = [int(m * v[: i + 1].sum() / v[: n - m].sum() + 0.5) for i in range(n - m)]
    starts = [0, *ends[:-1]]
    followers = order[n - m :]
    return {
        int(order[i]): set(followers[starts[i] : ends[i]].tolist())
        for i in range(n - m)
    }


@sizes
def test_groups_are_those_of_the_loop(n):
    for seed in range(5):
        ranges = spread(n, seed)
        plan = jax.tree.map(np.asarray, fit(ranges))
        want = groups_by_hand(np.asarray(ranges))
        assert set(np.flatnonzero(plan.leader).tolist()) == set(want)
        for leader, followers in want.items():
            rows = set(np.flatnonzero(plan.group == plan.group[leader]).tolist())
            assert rows == followers | {leader}
            assert (plan.size[list(rows)] == len(rows)).all()


@sizes
def test_every_plan_is_a_partition_with_one_leader_each(n):
    @settings(max_examples=50, deadline=None)
    @given(hnp.arrays(np.float32, n, elements=st.floats(0, 1e6, width=32)))
    def law(ranges):
        plan = jax.tree.map(np.asarray, fit(ranges))
        ids, counts = np.unique(plan.group, return_counts=True)
        assert len(ids) <= (n - 1) // 2 and ids.max() == len(ids) - 1
        assert (np.bincount(plan.group[plan.leader], minlength=len(ids)) == 1).all()
        assert (plan.size == counts[plan.group]).all()
        assert np.isfinite(plan.scale).all() and (plan.scale > 0).all()

    law()


@sizes
def test_reflection_is_orthogonal_and_its_own_inverse(n):
    plan = fit(spread(n))
    q = dense(plan) / np.asarray(plan.scale, np.float64)
    np.testing.assert_allclose(q, q.T, atol=1e-6)
    np.testing.assert_allclose(q @ q, np.eye(n), atol=2e-6)
    leaders = np.flatnonzero(plan.leader)
    for leader in leaders:
        rows = np.flatnonzero(plan.group == plan.group[leader])
        np.testing.assert_allclose(q[rows, leader], len(rows) ** -0.5, atol=1e-6)


@sizes
def test_inverse_undoes_the_transform(n):
    plan, x = fit(spread(n)), jax.random.normal(jax.random.key(1), (n, 5))
    back = jax.jit(lambda plan, x: plan.invert(plan.apply(x)))(plan, x)
    np.testing.assert_allclose(back, x, atol=2e-6 * jnp.abs(x).max())


@sizes
def test_gain_is_the_squared_length_of_the_inverse_columns(n):
    plan = fit(spread(n))
    inverse = np.asarray(invert(plan, jnp.eye(n)), np.float64)
    want = (inverse**2).sum(0)[:, None]
    np.testing.assert_allclose(plan.gain(jnp.float32), want, rtol=1e-5)


def test_scales_are_the_best_for_one_leader():
    n = 12
    ranges = jnp.full(n, 0.01).at[4].set(1.0)
    plan = fit(ranges)
    ratio = float(plan.scale.max())
    q = np.abs(dense(plan) / np.asarray(plan.scale, np.float64))
    followers = np.arange(n) != 4
    a, b = 1 / np.sqrt(n), 0.01 * q[np.ix_(followers, followers)].max()

    def cost(s):  # |S^-1|^2 for rows of range at most a s_lead + b s
        return (1 + (n - 1) / s**2) * (a + b * s) ** 2

    near = cost(ratio * np.array([0.9, 1.1]))
    assert cost(ratio) < near.min()


def test_a_row_of_zeros_has_a_finite_scale():
    plan = fit(jnp.zeros(6).at[0].set(3.0))
    assert np.isfinite(plan.scale).all()
    assert 10 < float(plan.scale.max()) < 1000


def test_a_group_of_one_is_left_as_it_is():
    plan = Householder(
        group=jnp.array([0, 1, 1, 1], jnp.int32),
        size=jnp.array([1, 3, 3, 3], jnp.int32),
        leader=jnp.array([True, True, False, False]),
        scale=jnp.ones(4),
    )
    x = jnp.arange(8.0).reshape(4, 2)
    np.testing.assert_array_equal(apply(plan, x)[0], x[0])
    np.testing.assert_allclose(invert(plan, apply(plan, x)), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "tensor", ["relu16x24", "conv12x3x4x4", "outlier64x32", "homog32x16", "tiny3x5"]
)
def test_reference_matrices(shared, tensor):
    golden = np.load(shared / "goldens" / "07-fqt-statquant.npz")
    x = golden[f"x/{tensor}"].reshape(len(golden[f"x/{tensor}"]), -1)
    plan = fit(jnp.asarray(np.ptp(x, 1)))
    want = golden[f"bhq_T/{tensor}"].astype(np.float64)
    # The reference scales each group by a factor of its own, without effect.
    leader = np.flatnonzero(plan.leader)[np.argsort(plan.group[plan.leader])]
    factor = np.linalg.norm(want[:, leader], axis=0)[np.asarray(plan.group)]
    np.testing.assert_allclose(
        dense(plan), want / factor, atol=5e-6 * np.abs(want / factor).max()
    )
