"""Predictions and the bulk: closed forms, goldens, derivatives."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods.sketch import spectral
from jaxmethods.sketch.spectral import Moments

from .test_spectral_moments import load_golden, moments_of, options


def in_double_precision(test):
    """As the fixture x64, for tests whose arguments hypothesis draws."""

    @functools.wraps(test)
    def run(**drawn):
        with jax.enable_x64(True):
            test(**drawn)

    return run


def differences(fn, point, step=1e-5):
    """The Jacobian of a function of a vector, by central differences."""
    steps = step * np.eye(len(point))
    return np.stack([(fn(point + d) - fn(point - d)) / (2 * step) for d in steps], -1)


def check_derivatives(fn, point, *, second=True):
    point, first = np.array(point), jax.jacrev(fn)
    orders = (fn, first, jax.jacfwd(first)) if second else (fn, first)
    values = jax.jit(lambda v: [order(v) for order in orders])
    assert np.isfinite(values(point)[0]).all()
    for i, got in enumerate(values(point)[1:]):
        want = differences(lambda v, i=i: values(v)[i], point)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------- predictions


@jax.jit
def predicted(a1, nu, c, snr):
    return spectral.predict(Moments(a1, 0.0, nu), c=c, snr=snr)


def test_golden_predictions(shared, x64):
    golden = load_golden(shared)
    a1, nu, c, snr, *want = golden["predict_a1_nu_c_rho_gamma_lambda_align_err"].T
    got = jax.vmap(predicted)(a1, nu, c, snr)
    for one, wanted in zip(got, want, strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-9, atol=1e-10)


def test_predictions_hold_in_single_precision(shared):
    golden = load_golden(shared)
    a1, nu, c, snr, *want = golden["predict_a1_nu_c_rho_gamma_lambda_align_err"].T
    got = jax.vmap(predicted)(*(jnp.float32(v) for v in (a1, nu, c, snr)))
    for one, wanted in zip(got, want, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, wanted, rtol=2e-5, atol=2e-6)


law = dict(
    a1=st.floats(0.05, 2),
    r=st.floats(1, 50),
    c=st.floats(0.02, 5),
    x=st.floats(0.05, 9),
)


def quartic(r, c):
    return [1, 2, 1 - c * r, -2 * c, -c]


@given(**law)
@settings(max_examples=60, deadline=None)
@in_double_precision
def test_predictions_are_those_of_the_quartic(a1, r, c, x):
    got = predicted(a1, r * a1 * a1, c, x)
    roots = np.roots(quartic(r, c))
    gamma = roots.real[np.abs(roots.imag) < 1e-6].max()
    np.testing.assert_allclose(got.transition, gamma, rtol=1e-6)
    at = max(x, gamma)
    noise = (r - 1) * a1 / (1 + at)
    place = a1 / c * (1 + at) + a1 / at + noise
    alignment = np.polyval(quartic(r, c), at) / (at * (1 + at) ** 3)
    np.testing.assert_allclose(got.eigenvalue, place, rtol=1e-6)
    np.testing.assert_allclose(got.alignment, alignment, rtol=1e-6, atol=1e-9)
    assert (got.alignment > 0) == (x > got.transition)
    assert (got.error < 0.5) == (got.alignment > 0)


def test_a_function_without_a1_or_of_negative_a1_knows_nothing():
    blind = predicted(0.0, 1.0, 0.5, 2.0)
    np.testing.assert_allclose(blind, [np.inf, 2 * math.sqrt(2), 0, 0.5], rtol=1e-6)
    negative = predicted(-0.6, 0.5, 0.5, 2.0)
    right = spectral.edges(Moments(-0.6, 0.0, 0.5), c=0.5)[1]
    np.testing.assert_allclose(negative, [np.inf, right, 0, 0.5], rtol=1e-6)


def test_a_signal_beyond_measure_is_found():
    for snr in (1e4, 1e8, 1e12):
        got = predicted(0.8, 0.9, 0.5, snr)
        assert 0.99 < got.alignment <= 1 and 0 <= got.error < 1e-6
        assert np.isfinite(got.eigenvalue)


def test_derivatives_of_predictions(x64):
    def above(v):
        return jnp.stack(predicted(*v))

    check_derivatives(above, (0.8, 0.9, 0.5, 2.0))

    def at_least_noise(v):  # along r = 1 nothing is singular but the left edge
        return jnp.stack(predicted(v[0], v[0] ** 2, *v[1:]))

    check_derivatives(at_least_noise, (1.0, 0.3, 2.0), second=False)


def test_derivatives_below_the_transition_and_at_a1_0_are_numbers():
    grads = jax.jit(jax.jacrev(predicted, (0, 1, 2, 3)))
    for point in ((0.8, 0.9, 0.5, 0.1), (0.0, 0.9, 0.5, 2.0), (1.0, 1.0, 0.5, 0.1)):
        got = grads(*point)
        assert all(np.isfinite(v) for v in jax.tree.leaves((got.alignment, got.error)))
        assert not any(jax.tree.leaves(got.alignment)), "no alignment, no slope"
    assert all(np.isfinite(v) for v in got.eigenvalue)


def test_one_prediction_however_it_is_asked_for():
    snr = jnp.linspace(0.2, 3.0, 8)
    m = spectral.binarize(0.43).moments
    one_by_one = [spectral.predict(m, c=0.25, snr=float(v)) for v in snr]
    at = lambda v: spectral.predict(m, c=0.25, snr=v)  # noqa: E731
    batch = jax.jit(jax.vmap(at))(snr)
    mesh = Mesh(np.array(jax.devices()), ("grid",))
    each = jax.shard_map(
        lambda v: jax.vmap(jax.value_and_grad(lambda s: at(s).error))(v),
        mesh=mesh,
        in_specs=P("grid"),
        out_specs=P("grid"),
    )
    error, derivative = jax.jit(each)(snr)
    for field, column in zip(batch._fields, zip(*one_by_one, strict=True), strict=True):
        np.testing.assert_allclose(getattr(batch, field), column, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(error, batch.error, rtol=1e-6)
    assert (derivative <= 0).all() and derivative[-1] < 0


# -------------------------------------------------------------------------- bulk


@jax.jit
def bulk(grid, a1, nu, c):
    m = Moments(a1, 0.0, nu)
    return spectral.density(grid, m, c=c), jnp.stack(spectral.edges(m, c=c))


def density_by_roots(z, a1, nu, c):
    """Im m / pi of the paper's cubic."""
    rest = nu - a1 * a1
    cubic = [[a1 * rest, c * (nu + v * a1), c * (c * v + a1), c * c] for v in z]
    return np.array([np.roots(row).imag.max() / np.pi for row in cubic])


@given(
    a1=st.floats(0.01, 2),
    sign=st.sampled_from([-1, 1]),
    rest=st.floats(0.01, 3),
    c=st.floats(0.05, 4),
)
@settings(max_examples=30, deadline=None)
@in_double_precision
def test_density_is_that_of_the_cubic(a1, sign, rest, c):
    a1 = sign * a1
    nu = a1 * a1 + rest
    span = 2.5 * (math.sqrt(nu / c) + abs(a1) / c)
    grid = np.linspace(-span, span, 20)
    got, (left, right) = map(np.asarray, bulk(grid, a1, nu, c))
    want = density_by_roots(grid, a1, nu, c)
    clear = np.abs(want) > 1e-4  # at an edge the roots are ill-conditioned
    np.testing.assert_allclose(got[clear], want[clear], rtol=1e-5)
    assert (got[(grid < left) | (grid > right)] == 0).all()
    assert (got[~clear] < 1e-3).all()


@pytest.mark.parametrize("c", [0.25, 3.0])
def test_the_spectrum_of_a_linear_function_is_marchenko_pasturs(c, x64):
    low, high = (1 - c**-0.5) ** 2, (1 + c**-0.5) ** 2
    x = np.linspace(low, high, 50)[1:-1]
    want = c * np.sqrt((high - x) * (x - low)) / (2 * np.pi * x)
    got, (left, right) = bulk(x - 1, 1.0, 1.0, c)
    np.testing.assert_allclose(got, want, rtol=1e-10)
    # A share 1 - c stands in the point -1 where there are fewer features than samples.
    np.testing.assert_allclose(left, low - 1 if c > 1 else -1, atol=1e-7)
    np.testing.assert_allclose(right, high - 1, rtol=1e-10)


@pytest.mark.parametrize(
    "a1, nu, c", [(0.7, 0.8, 0.3), (0.0, 0.5, 1.0), (1, 1.01, 0.2)]
)
def test_mass_mean_and_variance(a1, nu, c):
    angle = (np.arange(4000) + 0.5) / 4000 * np.pi
    left, right = bulk(jnp.zeros(4000), a1, nu, c)[1]
    z = (left + right) / 2 - (right - left) / 2 * np.cos(angle)
    width = (right - left) / 2 * np.sin(angle) * np.pi / 4000
    weight = bulk(z, a1, nu, c)[0] * width
    got = [(weight * v).sum() for v in (1, z, z * z)]
    np.testing.assert_allclose(got, [1, 0, nu / c], rtol=1e-3, atol=1e-3)


def test_the_spectrum_of_minus_f_is_mirrored():
    z = jnp.linspace(-3, 3, 31)
    (there, edges), (mirrored, ends) = (bulk(z, a, 0.9, 0.6) for a in (0.8, -0.8))
    np.testing.assert_allclose(there, mirrored[::-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(edges, -ends[::-1], rtol=1e-6)


def test_golden_bulk(shared, x64):
    golden = load_golden(shared)
    pairs = zip(golden["edges_label"].tolist(), golden["edges_left_right"], strict=True)
    for label, (left, right) in pairs:
        name, o = options(str(label))
        got = spectral.edges(moments_of(golden, name), c=o["c"])
        np.testing.assert_allclose(got[1], right, rtol=1e-7, err_msg=label)
        if not np.isnan(left):
            np.testing.assert_allclose(got[0], left, rtol=1e-7, err_msg=label)
    for name, f in (("binary", spectral.binarize(0.43)), ("relu", spectral.relu())):
        got = spectral.density(golden[f"density_{name}_grid"], f.moments, c=0.25)
        np.testing.assert_allclose(got, golden[f"density_{name}"], rtol=1e-6, atol=1e-8)


def test_golden_spurious_eigenvalues(shared, x64):
    golden = load_golden(shared)
    for label, want in zip(
        *(golden[k] for k in ("spurious_label", "spurious_lambda")), strict=True
    ):
        name, o = options(str(label))
        m = moments_of(golden, name)
        got = spectral.spurious(m, c=o["c"], kurtosis=o["kappa"])
        np.testing.assert_allclose(got, want, rtol=1e-10, err_msg=label)


@given(a1=st.floats(-1, 1), a2=st.floats(-1, 1), c=st.floats(0.05, 3))
@settings(max_examples=40, deadline=None)
@in_double_precision
def test_spurious_eigenvalues_solve_the_law_outside_of_the_bulk(a1, a2, c):
    nu = a1 * a1 + a2 * a2 + 0.1
    got = spectral_pair(a1, a2, nu, c)
    for sign, z in zip((1, -1), got, strict=True):
        if a2 == 0:
            assert np.isnan(z)
        elif not np.isnan(z):
            m = sign * c / a2  # kurtosis 3
            np.testing.assert_allclose(
                z, -1 / m - a1 * a1 * m / (c + a1 * m) - (nu - a1 * a1) * m / c, 1e-9
            )
            assert bulk(jnp.array([z]), a1, nu, c)[0][0] < 1e-6


@jax.jit
def spectral_pair(a1, a2, nu, c):
    return spectral.spurious(Moments(a1, a2, nu), c=c, kurtosis=3.0)


def test_derivatives_of_the_bulk(x64):
    def bulk(v):
        m = Moments(v[0], v[1], v[2])
        z = jnp.stack([v[4] - 1.3, v[4], v[4] + 1.2])
        others = spectral.spurious(m, c=v[3], kurtosis=v[5])[:1]
        edges = jnp.stack(spectral.edges(m, c=v[3]))
        return jnp.concatenate([edges, others, spectral.density(z, m, c=v[3])])

    point = (0.3, 0.5, 0.6, 0.2, 0.3, 3.0)
    check_derivatives(bulk, point)
    m = Moments(0.3, 0.5, 0.6)
    assert jax.jit(jax.grad(lambda z: spectral.density(z, m, c=0.2)))(40.0) == 0


# ------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "call, kind, hint",
    [
        (
            lambda: spectral.predict(Moments(1, 0, 1), c=0.0, snr=1.0),
            ValueError,
            "c is 0.0; wanted a positive number",
        ),
        (
            lambda: spectral.predict(Moments(1, 0, 1), c=1.0, snr=0.0),
            ValueError,
            "snr is 0.0; wanted a positive",
        ),
        (
            lambda: spectral.edges(Moments(1.0, 0.0, 0.5), c=1.0),
            ValueError,
            r"wanted nu > 0 and nu >= a1\^2 \+ a2\^2",
        ),
        (
            lambda: spectral.density(0.0, Moments(0.0, 0.0, 0.0), c=1.0),
            ValueError,
            "not constant",
        ),
        (
            lambda: spectral.spurious(Moments(1, 0, 1), c=1.0, kurtosis=0.5),
            ValueError,
            "kurtosis is 0.5; wanted 1 or more",
        ),
    ],
)
def test_errors_say_what_is_wanted(call, kind, hint):
    with pytest.raises(kind, match=hint):
        call()
