"""Laws, goldens, composition and errors of every quantizer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods.quantize import bhq, psq, ptq, variance

# name -> (factory of bits, whether aligned to zero, axis that shares a grid)
MEMBERS = {
    "ptq": (ptq, True, (0, 1)),
    "minmax": (partial(ptq, zero_aligned=False), False, (0, 1)),
    "psq": (psq, False, (1,)),
    "psq_aligned": (partial(psq, zero_aligned=True), True, (1,)),
    "psqcol": (partial(psq, per="feature"), False, (0,)),
    "psqcol_aligned": (partial(psq, per="feature", zero_aligned=True), True, (0,)),
    "bhq": (bhq, False, None),
    "bhq_aligned": (partial(bhq, zero_aligned=True), True, None),
    "bhq_hadamard": (partial(bhq, hadamard=True), False, None),
}
GOLDEN = ("ptq", "minmax", "psq", "psqcol", "bhq")
GRIDS = [name for name, (_, _, axes) in MEMBERS.items() if axes]
SHAPE = (8, 6)

members = pytest.mark.parametrize("name", MEMBERS)
grids = pytest.mark.parametrize("name", GRIDS)
matrices = hnp.arrays(
    np.float32, SHAPE, elements=st.floats(-(2.0**20), 2.0**20, width=32)
)


def make(name, bits):
    return MEMBERS[name][0](bits)


@jax.jit
def every(key, x):
    """The result of each member at 4 bits: one compilation for many tests."""
    return {name: make(name, 4)(key, x) for name in MEMBERS}


call = jax.jit(lambda q, key, x: q(key, x), static_argnums=0)
told = jax.jit(variance, static_argnums=0)
stored = jax.jit(lambda q, x: q.quantize(None, x).dequantize(), static_argnums=0)
many = jax.jit(lambda q, keys, x: jax.vmap(q, (0, None))(keys, x), static_argnums=0)


def matrix(seed=0, shape=(12, 10), spread=1.0):
    rng = np.random.default_rng(seed)
    rows = np.exp(spread * rng.normal(size=(shape[0], *[1] * (len(shape) - 1))))
    return jnp.asarray(rng.normal(size=shape) * rows, jnp.float32)


def draws(q, x, n=4000, seed=0):
    return np.asarray(many(q, jax.random.split(jax.random.key(seed), n), x), np.float64)


@pytest.fixture(scope="session")
def golden(shared):
    return np.load(shared / "goldens" / "07-fqt-statquant.npz")


def span(x, axes, aligned):
    low, high = x.min(axes, keepdims=True), x.max(axes, keepdims=True)
    return np.maximum(high, 0) - np.minimum(low, 0) if aligned else high - low


# ------------------------------------------------------------------------------- laws
@grids
def test_result_lies_within_a_step(name):
    _, aligned, axes = MEMBERS[name]
    q, key = make(name, 3), jax.random.key(0)
    both = jax.jit(lambda x: (q(None, x), q(key, x)))

    @settings(max_examples=40, deadline=None)
    @given(matrices)
    def law(x):
        nearest, noisy = (np.asarray(a, np.float64) for a in both(x))
        # Putting zero on a level can double the step, when 1.99 steps lie below it.
        step = span(x.astype(np.float64), axes, aligned) / 7 * (1 + aligned)
        rounding = 1e-6 * np.abs(x).max() + 1e-36
        assert (np.abs(nearest - x) <= 0.5 * step * (1 + 1e-5) + rounding).all()
        assert (np.abs(noisy - x) <= step * (1 + 1e-5) + rounding).all()

    law()


@grids
def test_a_row_has_at_most_as_many_values_as_levels(name):
    axes = MEMBERS[name][2]
    x = matrix(1, (40, 30))
    got = np.asarray(call(make(name, 2), jax.random.key(1), x))
    lines = [got.ravel()] if len(axes) == 2 else got if axes == (1,) else got.T
    assert all(len(np.unique(line)) <= 4 for line in lines)
    assert max(len(np.unique(line)) for line in lines) > 2


def test_multiplying_by_a_power_of_two_changes_nothing():
    x = matrix(2, SHAPE)
    for key in (None, jax.random.key(3)):
        want = every(key, x)
        for c in (2.0**-40, 2.0**40):
            for name, got in every(key, x * c).items():
                np.testing.assert_array_equal(got, want[name] * c, err_msg=name)


@members
def test_draws_have_mean_x_and_the_variance_told(name):
    q, x = make(name, 3), matrix(3)
    d = draws(q, x)
    want = float(told(q, x))
    # A sum over 120 entries of variances of 4000 draws: 3 % is over 6 deviations.
    assert abs(d.var(0).sum() / want - 1) < 0.03
    # The mean's squared error is want / 4000 on average, and 4 times that less than
    # once in 10^6; a bias of an eighth of a step would make it over 100 times.
    assert ((d.mean(0) - np.asarray(x)) ** 2).sum() < 4 * want / 4000


def test_one_bit_less_costs_four_times_the_variance():
    x = matrix(4, (32, 24), spread=0.3)

    @jax.jit
    def both(x):
        pairs = {name: (make(name, 7), make(name, 6)) for name in MEMBERS}
        return {name: [variance(q, x) for q in pair] for name, pair in pairs.items()}

    for more, less in both(x).values():
        assert float(less / more) == pytest.approx((127 / 63) ** 2, rel=0.15)


def test_one_large_row_costs_least_where_it_is_spread():
    x = matrix(5, (128, 256), 0.0) * jnp.where(jnp.arange(128) == 17, 1, 0.01)[:, None]
    coarse, rows, spread = (float(told(q(5), x)) for q in (ptq, psq, bhq))
    # The reference's quantizers measured 44.2, 1.34 and 0.060 on such a matrix.
    assert 15 < coarse / rows < 60
    assert 15 < rows / spread < 40


def test_equal_rows_gain_nothing_from_reflections():
    x = matrix(7, (128, 256), spread=0.0)
    assert float(told(bhq(5), x) / told(psq(5), x)) == pytest.approx(1, abs=0.1)


def test_hadamard_lowers_the_noise_of_rows_with_spikes():
    x = matrix(8, (32, 130), spread=0.5) ** 5
    assert told(bhq(4, hadamard=True), x) < told(bhq(4), x) / 3


@pytest.mark.parametrize("bits", [2, 5, 8])
@grids
def test_values_on_the_grid_never_move(name, bits):
    top = 2**bits - 1
    rng = np.random.default_rng(bits)
    levels = rng.integers(0, top + 1, (50, 50))
    levels[:2], levels[:, :2] = [[0], [top]], [0, top]
    levels[0, 1], levels[1, 0] = top, 0
    x = jnp.asarray((levels - rng.integers(1, top)) * 2.0**-7, jnp.float32)
    got = draws(make(name, bits), x, 20)
    np.testing.assert_allclose(got, np.broadcast_to(x, got.shape), rtol=2e-7)


def test_ties_go_to_the_even_level():
    x = jnp.array([[0.0, 0.5, 1.5, 2.5, 3.0]])
    np.testing.assert_array_equal(call(psq(2), None, x), [[0.0, 0.0, 2.0, 2.0, 3.0]])


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("name", [n for n in GRIDS if MEMBERS[n][1]])
def test_aligned_grids_keep_zeros_whatever_the_signs(name, bits):
    x = np.array(matrix(9)) * (np.arange(10) % 3 > 0)
    x[0], x[1], x[2] = np.abs(x[0]), -np.abs(x[1]), 0
    x[3] = np.where(np.arange(10) == 4, -1e-6, np.abs(x[3]))
    for a in (x, np.abs(x), -np.abs(x)):
        d = draws(make(name, bits), jnp.asarray(a), 50)
        assert (d[:, a == 0] == 0).all()


def test_aligned_reflections_keep_a_column_of_zeros():
    x = matrix(10).at[:, 4].set(0.0)
    assert not draws(bhq(3, zero_aligned=True), x, 50)[:, :, 4].any()


def test_constant_rows_come_back_exactly():
    x = matrix(11).at[2].set(3.7).at[4].set(0.0).at[5].set(-1e5)
    for key in (None, jax.random.key(0)):
        got = call(psq(3), key, x)
        np.testing.assert_array_equal(got[jnp.array([2, 4, 5])], x[(2, 4, 5), :])
    everywhere = jnp.full((7, 9), -2.3)
    for name in ("minmax", "psq", "psqcol", "bhq"):
        got = call(make(name, 3), None, everywhere)
        np.testing.assert_array_equal(got, everywhere)


def test_zeros_and_tiny_values_stay_finite():
    zeros, smallest = jnp.zeros(SHAPE), matrix(12, SHAPE) * jnp.finfo(jnp.float32).tiny
    for key in (None, jax.random.key(0)):
        assert not any(np.any(got) for got in every(key, zeros).values())
        assert all(np.isfinite(got).all() for got in every(key, smallest).values())
    assert [float(told(q(4), zeros)) for q in (ptq, psq, bhq)] == [0, 0, 0]


@pytest.mark.parametrize("rows", [1, 2])
def test_too_few_rows_to_group_are_rounded_one_by_one(rows):
    x, key = matrix(13, (rows, 40)), jax.random.key(0)
    np.testing.assert_array_equal(call(bhq(3), key, x), call(psq(3), key, x))


def test_any_number_of_axes():
    x, key = matrix(14, (8, 3, 2)), jax.random.key(0)
    flat = every(key, x.reshape(SHAPE))
    for name, got in every(key, x).items():
        assert got.shape == x.shape
        want = flat[name].reshape(x.shape)
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    assert call(ptq(8), None, jnp.float32(2.5)) == 2.5
    np.testing.assert_array_equal(call(psq(3), None, x[0, 0]), x[0, 0])


# ---------------------------------------------------------------------------- goldens
@pytest.mark.parametrize("name", GOLDEN)
def test_reference_levels_and_variance(golden, name):
    tensors = ("relu16x24", "conv12x3x4x4", "outlier64x32")
    cases = [(tensor, bits) for tensor in tensors for bits in (4, 5, 8)]

    @jax.jit
    def every(xs):
        qs = [(make(name, bits), xs[tensor]) for tensor, bits in cases]
        return [(q(None, x), variance(q, x)) for q, x in qs]

    results = every({tensor: jnp.asarray(golden[f"x/{tensor}"]) for tensor in tensors})
    for (tensor, bits), (got, var) in zip(cases, results, strict=True):
        tag = f"{tensor}/{name}/{bits}"
        got = np.asarray(got, np.float64).reshape(len(got), -1)
        if name == "bhq":
            got = golden[f"bhq_T/{tensor}"].astype(np.float64) @ got
        level = (got - golden[f"zero_point/{tag}"]) * golden[f"scale/{tag}"]
        # The reference widens each range by 2e-8, which is 0.003 steps of some rows.
        assert np.abs(level - np.rint(level)).max() < 0.02
        scaled = golden[f"scaled/{tag}"].reshape(level.shape)
        assert np.abs(level - scaled).max() < 0.51
        np.testing.assert_allclose(var, golden[f"sr_var_exact/{tag}"], rtol=2e-3)


# -------------------------------------------------------------------------- gradients
def test_derivative_is_zero():
    x = matrix(15, SHAPE)

    def total(x):
        key = jax.random.key(0)
        qs = [make(name, 4) for name in MEMBERS]
        return sum((q(key, x) ** 2).sum() + q(None, x).sum() for q in qs)

    np.testing.assert_array_equal(jax.jit(jax.grad(total))(x), jnp.zeros(SHAPE))


# ------------------------------------------------------------------------ composition
def test_jit_and_vmap_change_nothing():
    x = jnp.stack([matrix(seed, SHAPE) for seed in (16, 17, 18)])
    keys = [jax.random.key(seed) for seed in range(3)]
    alone = [every(key, a) for key, a in zip(keys, x, strict=True)]
    together = jax.vmap(every)(jnp.stack(keys), x)
    for name in MEMBERS:
        want = jnp.stack([results[name] for results in alone])
        # Sums within a group may take another order: that is far below a step of 0.1.
        np.testing.assert_allclose(together[name], want, atol=1e-4)
    eager = psq(4)(jax.random.key(0), x[0])
    np.testing.assert_allclose(eager, alone[0]["psq"], atol=1e-4)


def test_shards_round_their_own_rows():
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    x, key = matrix(19, (4 * SHAPE[0], SHAPE[1])), jax.random.key(5)

    def local(key, x):
        return every(jax.random.fold_in(key, jax.lax.axis_index("data")), x)

    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data")
    )
    got = jax.jit(sharded)(key, x)
    shards = enumerate(jnp.split(x, 4))
    parts = [every(jax.random.fold_in(key, i), rows) for i, rows in shards]
    for name in MEMBERS:
        want = jnp.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(got[name], want, atol=1e-4)


def test_codes_leave_a_shard():
    mesh, q = Mesh(np.array(jax.devices()[:4]), ("data",)), bhq(4)
    x = matrix(19, (4 * SHAPE[0], SHAPE[1]))

    def local(x):
        return jax.tree.map(lambda a: a[None], q.quantize(None, x))

    sharded = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    tensors = jax.jit(sharded)(x)
    back = jax.jit(jax.vmap(lambda tensor: tensor.dequantize()))(tensors)
    want = jnp.stack([every(None, rows)["bhq"] for rows in jnp.split(x, 4)])
    np.testing.assert_allclose(back, want, atol=1e-4)


def test_narrow_dtypes_are_kept_and_computed_in_float32():
    narrow = matrix(20, SHAPE).astype(jnp.bfloat16)
    wide = every(None, narrow.astype(jnp.float32))
    for name, got in every(None, narrow).items():
        assert got.dtype == jnp.bfloat16
        np.testing.assert_array_equal(got, wide[name].astype(jnp.bfloat16))
    assert call(psq(4), None, narrow.astype(jnp.float16)).dtype == jnp.float16


def test_float64_is_computed_in_float64(x64):
    # Levels of a grid that float32 cannot write down.
    level = 4.0 * (np.arange(6 * 16).reshape(6, 16) % 16) / 3
    keys = jax.random.split(jax.random.key(0), 9)
    for name, (_, aligned, axes) in MEMBERS.items():
        if axes != (0,) and not aligned and name != "bhq_hadamard":
            got = many(make(name, 4), keys, jnp.asarray(level))
            assert got.dtype == jnp.float64
            np.testing.assert_allclose(got, np.tile(level, (9, 1, 1)), atol=1e-13)


def test_a_quantizer_is_a_static_argument():
    f = jax.jit(lambda q, x: q(None, x), static_argnums=0)
    x = matrix(21, SHAPE)
    np.testing.assert_array_equal(f(psq(4), x), call(psq(4), None, x))
    assert psq(4) == psq(4) != psq(5) and psq(4) != psq(4, zero_aligned=True)
    assert hash(bhq(4)) == hash(bhq(4)) and ptq(4) != psq(4)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_nan_is_seen_and_kept_to_its_row(value):
    x = matrix(22, SHAPE).at[2, 3].set(value)
    for key in (None, jax.random.key(0)):
        for name, got in every(key, x).items():
            lost = np.isnan(got)
            assert lost[2, 3]
            if MEMBERS[name][2] == (1,):
                assert not np.delete(lost, 2, 0).any()
            if MEMBERS[name][2] == (0,):
                assert not np.delete(lost, 3, 1).any()


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_nan_survives_packing(value):
    x = matrix(22, SHAPE).at[2, 3].set(value)
    for q in (ptq(4), psq(4), bhq(4)):
        assert np.isnan(stored(q, x)[2, 3])


# ----------------------------------------------------------------------------- errors
@pytest.mark.parametrize("factory", [ptq, psq, bhq])
def test_bad_input_is_named(factory):
    for bits in (1, 9, 0, -2):
        with pytest.raises(ValueError, match=rf"bits is {bits}; wanted 2\.\.8"):
            factory(bits)
    with pytest.raises(TypeError, match=r"bits is float 4\.0; wanted a Python int"):
        factory(4.0)
    with pytest.raises(TypeError, match=r"int32\[4,3\].*cast it"):
        factory(8)(None, jnp.ones((4, 3), jnp.int32))
    with pytest.raises(ValueError, match=r"float32\[0,3\].*leave empty arrays out"):
        factory(8).quantize(None, jnp.zeros((0, 3)))
    with pytest.raises(TypeError, match=r"key is int 0; wanted a typed key"):
        factory(8)(0, jnp.ones((4, 3)))


def test_unknown_options_and_foreign_quantizers_are_named():
    with pytest.raises(ValueError, match=r"per is 'row'; wanted one of .*sample"):
        psq(8, per="row")
    with pytest.raises(TypeError, match=r"wanted a quantizer such as psq\(4\)"):
        variance(jnp.round, jnp.ones((4, 3)))


@pytest.mark.parametrize("q", [ptq(2), psq(3), psq(3, zero_aligned=True), bhq(4)])
def test_a_range_too_wide_for_its_step_is_no_number(q):
    x = jnp.full((4, 6), 3e38).at[:, 0].set(-3e38)
    assert jnp.isnan(q(None, x)).all()
    largest = x / 128
    np.testing.assert_allclose(q(None, largest), largest, rtol=0.2)


def test_numbers_of_8_bits_are_refused():
    with pytest.raises(TypeError, match=r"float8_e4m3fn\[2\], which has 8 bits"):
        ptq(4)(None, jnp.ones(2, jnp.float8_e4m3fn))
