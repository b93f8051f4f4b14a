"""Functions of one entry: moments, thresholds, what they look like."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmethods.sketch import spectral
from jaxmethods.sketch.spectral import Moments

FAMILIES = {
    "linear": spectral.linear,
    "sparse": spectral.sparsify,
    "binary": spectral.binarize,
    "quant": lambda bits, s: spectral.quantize_entries(int(bits), s),
    "relu": spectral.relu,
    "uniform": spectral.uniform,
}
WITH_THRESHOLD = {
    "sparse": spectral.sparsify,
    "binary": spectral.binarize,
    "quant2": functools.partial(spectral.quantize_entries, 2),
    "quant4": functools.partial(spectral.quantize_entries, 4),
}


def made(label):
    """The function that a golden label names, or None."""
    name, *arguments = label.split(",")
    known = name in FAMILIES
    return FAMILIES[name](*map(float, arguments)) if known else None


def jumps(name, s):
    steps = 2 ** (int(name[5:]) - 2) if name.startswith("quant") else 1
    ends = [math.sqrt(2) * s * k / steps for k in range(1, steps + 1)]
    return (0.0, *ends, *(-v for v in ends))


def load_golden(shared):
    """The arrays of the golden file."""
    with np.load(shared / "goldens" / "10-sparse-quantized-spectral.npz") as data:
        return {k: data[k] for k in data.files}


def moments_of(golden, label):
    labels = golden["moments_label"].tolist()
    if label.startswith("uniform"):
        return made(label).moments
    return Moments(*golden["moments_a1_a2_nu"][labels.index(label)])


def options(label):
    name, *rest = label.split("|")
    return name, {k: float(v) for k, v in (o.split("=") for o in rest)}


# ---------------------------------------------------------------------- moments


number = st.floats(-2, 2)


@jax.jit
def moments_of_a_cubic(mean, a1, a2, a3):
    def f(t):
        square, cube = (t * t - 1) / math.sqrt(2), (t**3 - 3 * t) / math.sqrt(6)
        return mean + a1 * t + a2 * square + a3 * cube

    return spectral.moments(f)


@given(mean=number, a1=number, a2=number, a3=number)
@settings(max_examples=40, deadline=None)
def test_moments_of_hermite_polynomials_are_their_coefficients(mean, a1, a2, a3):
    want = a1, a2, a1 * a1 + a2 * a2 + a3 * a3
    np.testing.assert_allclose(
        moments_of_a_cubic(mean, a1, a2, a3), want, rtol=2e-5, atol=3e-5
    )


@pytest.mark.parametrize("name", WITH_THRESHOLD)
def test_closed_forms_agree_with_quadrature(name, x64):
    @jax.jit
    def both(s):
        f = WITH_THRESHOLD[name](s)
        return spectral.moments(f, breakpoints=jumps(name, s)), f.moments

    for s in (0.1, 0.9, 2.5):
        np.testing.assert_allclose(*both(s), rtol=1e-11, atol=1e-14)


def test_golden_moments(shared, x64):
    golden = load_golden(shared)
    for label, want in zip(
        *(golden[k] for k in ("moments_label", "moments_a1_a2_nu")), strict=True
    ):
        if (f := made(str(label))) is not None:
            got = [float(v) for v in f.moments]
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12, err_msg=label)


def test_moments_are_differentiable_in_a_breakpoint(x64):
    def by_quadrature(s):
        f = spectral.binarize(jax.lax.stop_gradient(s))
        cut = math.sqrt(2) * s
        return jnp.stack(spectral.moments(f, breakpoints=(-cut, cut)))

    closed = lambda s: jnp.stack([v + 0 * s for v in spectral.binarize(s).moments])  # noqa: E731
    got, want = (jax.jit(jax.jacobian(fn))(0.7) for fn in (by_quadrature, closed))
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_a_threshold_of_zero_is_the_limit():
    np.testing.assert_allclose(spectral.binarize(0.0).moments.nu, 1)
    np.testing.assert_allclose(spectral.sparsify(0.0).moments.a1, 1)
    f = spectral.quantize_entries(4, 0.0)
    signs = [math.sqrt(2 / math.pi), 0, 1]
    np.testing.assert_allclose([*map(float, f.moments)], signs, rtol=1e-6)
    np.testing.assert_array_equal(f(jnp.array([-1.0, 0.0, 1.0])), [-1, 0.125, 1])


def test_share_kept_and_levels():
    t = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)

    @jax.jit
    def values(t):
        zeroing = spectral.sparsify(0.7), spectral.binarize(1.5)
        quantized = {b: spectral.quantize_entries(b, 1.0)(t) for b in (2, 3, 5)}
        return [(f(t), f.kept) for f in zeroing], quantized

    zeroed, quantized = values(t)
    for kept, wanted in zeroed:
        share = (np.asarray(kept) != 0).mean()
        spread = math.sqrt(share * (1 - share) / t.size)
        assert abs(share - wanted) < 5 * spread
    for bits, levels in quantized.items():
        levels = np.unique(levels)
        assert len(levels) == 2 ** (bits - 1) + 2 and 0 not in levels
        np.testing.assert_array_equal(levels, -levels[::-1])


def test_what_the_functions_look_like():
    assert repr(spectral.binarize(0.43)) == "binarize(0.43)"
    assert (
        repr(spectral.quantize_entries(3, jnp.float32(1))) == "quantize_entries(3, 1)"
    )
    many = jax.vmap(spectral.sparsify)(jnp.ones(3))
    assert repr(many) == "sparsify(float32[3])"


# -------------------------------------------------------------------- thresholds


def test_golden_best_thresholds(shared, x64):
    golden = load_golden(shared)
    families = {
        f"quant{m}": functools.partial(spectral.quantize_entries, m) for m in (2, 3, 4)
    }
    families["binary"] = spectral.binarize
    rows = zip(golden["opt_label"].tolist(), golden["opt_s_ratio"], strict=True)
    for label, (s, ratio) in rows:
        got = jax.jit(lambda f=families[label]: spectral.best_threshold(f))()
        np.testing.assert_allclose(got, (s, ratio), rtol=1e-6, err_msg=label)


def test_the_best_threshold_of_a_family_at_hand():
    def ternary(s):  # known by its values only
        cut = math.sqrt(2) * s
        f = spectral.binarize(jax.lax.stop_gradient(s))
        m = spectral.moments(f, breakpoints=(-cut, cut))
        return f.__class__(f.function, f.parameters, m)

    found = jax.jit(lambda: spectral.best_threshold(ternary, upper=2.0))()
    np.testing.assert_allclose(found, (0.432752, 1.234833), rtol=1e-3)
    s, ratio = spectral.best_threshold(spectral.sparsify)
    assert s < 1e-3  # the ratio is flat there
    np.testing.assert_allclose(ratio, 1, rtol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def error_of(family, s):
    return spectral.predict(family(s).moments, c=0.25, snr=3.0).error


@pytest.fixture(scope="module")
def choices():
    errors = (0.3, 0.0509, 0.05043)
    find = functools.partial(spectral.cheapest, c=0.25, snr=3.0, max_bits=4)
    return {error: find(error) for error in errors}


def test_the_cheapest_function_is_good_enough_and_only_just(choices):
    for limit, choice in choices.items():
        assert choice.prediction.error <= limit * (1 + 1e-6)
        f, s = choice.f, choice.f.parameters[-1] if choice.f.parameters else None
        if repr(f).startswith(("binarize", "sparsify")):
            family = spectral.binarize if f.bits == 1 else spectral.sparsify
            assert error_of(family, 1.01 * s + 1e-3) > limit
    costs = [choice.cost for choice in choices.values()]
    assert costs == sorted(costs), "a smaller error for fewer bits"


def test_the_choice_goes_from_few_signs_to_more_bits(choices):
    names = [repr(choice.f) for choice in choices.values()]
    assert names[0].startswith("binarize(") and choices[0.3].cost < 0.05
    assert names[1].startswith("quantize_entries(3") and choices[0.0509].cost == 3
    assert choices[0.05043].cost > 3
    find = functools.partial(spectral.cheapest, 0.1, c=0.25, snr=3.0, value_bits=3)
    inside = jax.jit(lambda: find().prediction.error)()
    np.testing.assert_allclose(inside, find().prediction.error)


# ------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "call, kind, hint",
    [
        (lambda: spectral.sparsify(-0.1), ValueError, "s is -0.1; wanted 0 or more"),
        (lambda: spectral.binarize(jnp.nan), ValueError, "no NaN"),
        (lambda: spectral.binarize(jnp.ones(2)), ValueError, "use jax.vmap"),
        (lambda: spectral.quantize_entries(1, 0.5), ValueError, "bits is 1; wanted 2"),
        (lambda: spectral.quantize_entries(2.0, 0.5), TypeError, "wanted a Python int"),
        (
            lambda: spectral.uniform(0.0),
            ValueError,
            "keep is 0.0; wanted a probability",
        ),
        (lambda: spectral.uniform(1.5), ValueError, "at most 1"),
        (lambda: spectral.linear()(jnp.arange(3)), TypeError, "cast it with"),
        (
            lambda: jax.eval_shape(lambda: spectral.moments(jnp.sum)),
            ValueError,
            "entry by entry",
        ),
        (
            lambda: spectral.moments(jnp.tanh, breakpoints=(0.0, jnp.nan)),
            ValueError,
            "a breakpoint is NaN",
        ),
        (
            lambda: spectral.best_threshold(spectral.binarize, upper=0.0),
            ValueError,
            "upper is 0.0",
        ),
        (lambda: spectral.cheapest(0.5, c=1.0, snr=1.0), ValueError, r"in \(0, 1/2\)"),
        (
            lambda: spectral.cheapest(0.01, c=0.25, snr=3.0),
            ValueError,
            "share of 0.05042 is predicted to be wrong at c=0.25, snr=3.0; wanted data",
        ),
        (
            lambda: jax.jit(lambda c: spectral.cheapest(0.1, c=c, snr=1.0))(1.0),
            ValueError,
            "c is traced; wanted a number",
        ),
    ],
)
def test_errors_say_what_is_wanted(call, kind, hint):
    with pytest.raises(kind, match=hint):
        call()


def test_every_public_name_is_explained():
    for name in vars(spectral):
        if not name.startswith("_"):
            text = getattr(spectral, name).__doc__
            assert ">>>" in text or "Attributes:" in text, name
