"""AdaComp against its rule in numpy, the goldens, and its closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxmethods.shard import adacomp, nbytes
from jaxmethods.shard._ternary import pack_ternary, unpack_ternary

# Multiples of 1/8 add without rounding, so that ties are ties in numpy too.
eighths = hnp.arrays(np.float32, (2, 60), elements=st.integers(-40, 40).map(float))
eighths = eighths.map(lambda x: x / 8)


def rule(r, g, bin_size, slots=None, factor=2.0):
    """Which entries are sent, and the scale, in the words of the paper."""
    total, pushed = r + g, r + factor * g
    sent, tops = np.zeros(total.shape, bool), []
    for start in range(0, total.size, bin_size):
        mine = range(start, min(start + bin_size, total.size))
        top = max(abs(total[j]) for j in mine)
        tops.append(top)
        passed = [j for j in mine if abs(pushed[j]) >= top and total[j] != 0]
        passed.sort(key=lambda j: (-abs(pushed[j]), j))
        sent[passed[:slots]] = True
    return sent, np.mean(tops)


def one_shot(codec, r, g):
    state = codec.init(jnp.asarray(g))._replace(residue=jnp.asarray(r))
    message, state = jax.jit(codec.encode)(state, jnp.asarray(g))
    return np.asarray(codec.decode(message)), state


@pytest.mark.parametrize("slots", [None, 1, 3])
@pytest.mark.parametrize("factor", [1.0, 2.0, 3.0])
def test_rule(slots, factor):
    codec = adacomp(bin_size=16, slots=slots, scale_factor=factor)
    encode = jax.jit(codec.encode)

    @settings(max_examples=30, deadline=None)
    @given(eighths)
    def check(rg):
        r, g = rg
        state = codec.init(g)._replace(residue=jnp.asarray(r))
        message, state = encode(state, g)
        q = np.asarray(codec.decode(message))
        sent, scale = rule(r, g, 16, slots, factor)
        np.testing.assert_array_equal(q != 0, sent)
        np.testing.assert_allclose(q, np.where(sent, np.sign(r + g) * scale, 0), 1e-6)
        np.testing.assert_array_equal(state.residue, (r + g) - q)

    check()


@given(hnp.arrays(np.int8, 13, elements=st.integers(-1, 1)))
@settings(max_examples=30, deadline=None)
def test_ternary_digits_come_back(signs):
    packed = pack_ternary(jnp.asarray(signs))
    assert packed.shape == (3,) and packed.dtype == jnp.uint8
    np.testing.assert_array_equal(unpack_ternary(packed, 13), signs)


def test_scaling_and_sign():
    rng = np.random.default_rng(0)
    r, g = rng.standard_normal((2, 100)).astype("f")
    codec = adacomp(bin_size=30, slots=4)
    q, state = one_shot(codec, r, g)
    for factor in np.float32([0.125, 1024, -1]):  # exact in binary
        scaled, after = one_shot(codec, factor * r, factor * g)
        np.testing.assert_array_equal(scaled, factor * q)
        np.testing.assert_array_equal(after.residue, factor * state.residue)


def test_bins_of_one_entry_are_scaled_sign_sgd():
    g = np.float32([3, -1, 0, 0.5])
    q, _ = one_shot(adacomp(bin_size=1), 0 * g, g)
    np.testing.assert_allclose(q, np.sign(g) * 4.5 / 4)


def test_a_bin_wider_than_the_leaf_is_one_bin():
    g = np.float32([3, -1, 2, 0.5])
    for codec in (adacomp(bin_size=100), adacomp(bin_size=100, slots=99)):
        q, _ = one_shot(codec, 0 * g, g)
        np.testing.assert_array_equal(q, [3, 0, 3, 0])


@pytest.mark.parametrize("shot", "abc")
@pytest.mark.parametrize("slots", [None, 20])
def test_golden_shots(shared, shot, slots):
    z = np.load(shared / "goldens" / "20-adacomp.npz")
    r, g = z[f"{shot}_residue"], z[f"{shot}_grad"]
    q, state = one_shot(adacomp(bin_size=int(z[f"{shot}_T"]), slots=slots), r, g)
    np.testing.assert_array_equal(np.flatnonzero(q), z[f"{shot}_sent_index"])
    np.testing.assert_allclose(q, z[f"{shot}_decoded_hipress"], rtol=4e-6)
    scale = float(z[f"{shot}_scale"])
    np.testing.assert_allclose(
        state.residue, z[f"{shot}_new_residue"], rtol=2e-6, atol=4e-6 * scale
    )


def test_golden_trajectory(shared):
    z = np.load(shared / "goldens" / "20-adacomp.npz")
    codec = adacomp(bin_size=int(z["traj_T"]))
    states = jax.vmap(codec.init)(z["traj_grads"][0])
    step = jax.jit(jax.vmap(codec.encode))
    for grads, update, count in zip(
        z["traj_grads"], z["traj_updates"], z["traj_sent_count"], strict=True
    ):
        messages, states = step(states, grads)
        q = jax.vmap(codec.decode)(messages)
        np.testing.assert_array_equal((q != 0).sum(1), count)
        np.testing.assert_allclose(q.mean(0), update, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(states.residue, z["traj_final_residue"], 2e-6, 3e-6)


def test_default_bins_are_the_papers():
    rng = np.random.default_rng(1)
    shapes = {"conv": (3, 3, 4, 8), "dense": (40, 30), "bias": (30,), "scale": ()}
    g = {k: rng.standard_normal(s).astype("f") for k, s in shapes.items()}
    codec = adacomp()
    message, state = codec.encode(codec.init(g), g)
    q = codec.decode(message)
    for name, bin_size in {"conv": 50, "dense": 500}.items():
        sent, _ = rule(0 * g[name].ravel(), g[name].ravel(), bin_size)
        np.testing.assert_array_equal(np.ravel(q[name]) != 0, sent)
    for name in ("bias", "scale"):
        np.testing.assert_array_equal(q[name], g[name])
        assert not np.any(state.residue[name])


@pytest.mark.parametrize(
    ("bin_size", "slots", "size"),
    [
        (50, None, 4 + 200),  # five entries a byte
        (50, 4, 4 + 20 * 4),
        (64, 4, 4 + 16 * 4),  # the last bin is short
        (65, 4, 4 + 16 * 4 * 2),
        (500, 8, 4 + 2 * 8 * 2),
        (5000, 8, 4 + 8 * 2),
    ],
)
def test_bytes_of_a_message(bin_size, slots, size):
    g = jnp.zeros((10, 100))
    codec = adacomp(bin_size=bin_size, slots=slots)
    assert nbytes(codec.encode(codec.init(g), g)[0]) == size


def test_full_bins_are_counted():
    g = jnp.array([1.0, 1, 1, 0, 1, 1, 0, 0, 1, 0, 0, 0])
    codec = adacomp(bin_size=4, slots=2)
    _, state = codec.encode(codec.init(g), g)
    assert int(state.full_bins) == 2
    np.testing.assert_array_equal(state.residue, [0, 0, 1] + [0] * 9)


@pytest.mark.parametrize("slots", [None, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_leaf_that_is_not_finite_sends_nothing(slots, bad):
    codec = adacomp(bin_size=5, slots=slots)
    fine = {"a": jnp.arange(10.0), "b": jnp.ones((2, 5))}
    _, state = codec.encode(codec.init(fine), fine)
    broken = {"a": fine["a"].at[3].set(bad), "b": fine["b"]}
    message, after = codec.encode(state, broken)
    sent = codec.decode(message)
    assert not np.any(sent["a"]) and np.any(sent["b"])
    np.testing.assert_array_equal(after.residue["a"], state.residue["a"])
    assert int(after.skipped) == 1 and int(state.skipped) == 0


def test_a_dense_leaf_that_is_not_finite_sends_nothing():
    codec = adacomp()
    bias = jnp.array([1.0, jnp.nan])
    message, state = codec.encode(codec.init(bias), bias)
    assert not np.any(codec.decode(message)) and int(state.skipped) == 1


def test_option_errors():
    with pytest.raises(ValueError, match="bin_size is 0; wanted at least 1"):
        adacomp(bin_size=0)
    with pytest.raises(TypeError, match=r"bin_size is float 2.5; wanted a Python int"):
        adacomp(bin_size=2.5)
    with pytest.raises(ValueError, match=r"slots is 9; wanted 1..8"):
        adacomp(bin_size=8, slots=9)
    with pytest.raises(ValueError, match="slots is 0"):
        adacomp(slots=0)
    with pytest.raises(ValueError, match=r"bin_size is 16385; wanted 1..16384"):
        adacomp(bin_size=16385, slots=4)
    with pytest.raises(ValueError, match="scale_factor"):
        adacomp(scale_factor=float("nan"))
