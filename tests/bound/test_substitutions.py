"""Word substitutions: what few words can change, against all sentences one by one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmethods import bound
from jaxmethods.bound._rows import Dense

T, K, D = 4, 2, 3
BUDGETS = (0, 1, 2, T)


def words(seed, budget, junk=jnp.nan, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 3)
    base = jax.random.normal(keys[0], (T, D), dtype)
    candidates = base[:, None] + jax.random.normal(keys[1], (T, K, D), dtype)
    valid = jax.random.bernoulli(keys[2], 0.7, (T, K)).at[1].set(False)
    candidates = jnp.where(valid[:, :, None], candidates, junk)
    return bound.Substitutions(base, candidates, valid, budget)


def sentences(s):
    """All of them: (n, T, D)."""
    found = []
    for pick in itertools.product(range(K + 1), repeat=T):
        changed = [t for t in range(T) if pick[t]]
        usable = all(s.valid[t, pick[t] - 1] for t in changed)
        if usable and len(changed) <= s.budget:
            x = np.array(s.base)
            for t in changed:
                x[t] = s.candidates[t, pick[t] - 1]
            found.append(x)
    return jnp.asarray(np.stack(found))


_LEAST = jax.jit(lambda s, slopes: s.minimum([Dense(slopes)]))


def by_dynamic_programme(s, slope):
    """The least value with j words changed, position by position."""
    base, candidates = np.asarray(s.base), np.asarray(s.candidates)
    least = np.full(s.budget + 1, np.inf)
    least[0] = 0.0
    for t in range(T):
        choices = [candidates[t, k] @ slope[t] for k in range(K) if s.valid[t, k]]
        changed = np.concatenate([[np.inf], least[:-1] + min(choices, default=np.inf)])
        least = np.minimum(least + base[t] @ slope[t], changed)
    return least.min()


@pytest.mark.parametrize("budget", BUDGETS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_least_value_is_that_of_the_dynamic_programme(budget, seed):
    with jax.enable_x64(True):
        s = words(seed, budget, dtype=jnp.float64)
        slopes = jax.random.normal(jax.random.key(seed + 1), (5, T, D))
        want = [by_dynamic_programme(s, np.asarray(a)) for a in slopes]
        np.testing.assert_allclose(_LEAST(s, slopes), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("budget", BUDGETS)
def test_hull_is_that_of_all_sentences(budget):
    s = words(0, budget)
    (ends,), xs = s.hull(), sentences(s)
    np.testing.assert_array_equal(ends.lower, xs.min(0))
    np.testing.assert_array_equal(ends.upper, xs.max(0))


W = jax.random.normal(jax.random.key(7), (T, D, 5))
V = jax.random.normal(jax.random.key(8), (D, 5))


def tower(x):
    """A net for each word, with all kinds of steps that keep words apart."""
    x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 0.1)
    y = jnp.tanh(2 * x @ V + 1) + (V.T @ x.T).T * 0.5
    return jnp.abs(y).reshape(T, 1, 5) + y[:, None]


# Each depends on words one by one, or adds up what they give: intervals are exact.
EXACT = {
    "words": tower,
    "sum over words": lambda x: tower(x).sum(0),
    "sum over all": lambda x: tower(x)[:, 0].sum(),
    "flat layer": lambda x: x.reshape(-1) @ W.reshape(T * D, 5) + 1,
    "contraction": lambda x: jnp.einsum("td,tdn->n", x, W),
    "contraction, other order": lambda x: jnp.einsum("ndt,td->n", W.T, x),
    "pooled": lambda x: jnp.tanh(jnp.exp(x).mean(0)),
    "flat tower": lambda x: tower(x).reshape(-1) @ W.reshape(-1)[: 5 * T],
    "weights of each word": lambda x: jnp.einsum("td,tdn->tn", x, W),
}


def check_holds(bounds, values):
    assert (bounds.lower[None] <= values).all() and (values <= bounds.upper[None]).all()


@pytest.mark.parametrize("name, budget", [*((name, 2) for name in EXACT), ("words", 0)])
def test_intervals_of_single_words_and_of_their_sums_are_exact(name, budget, x64):
    fn, s = EXACT[name], words(3, budget, dtype=jnp.float64)
    run = jax.jit(lambda s, xs: (bound.ibp(fn)(s), jax.vmap(fn)(xs)))
    got, values = run(s, sentences(s))
    check_holds(got, values)
    np.testing.assert_allclose(got.lower, values.min(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got.upper, values.max(0), rtol=1e-6, atol=1e-6)


def attention(x):
    mixed = jax.nn.softmax(x @ x.T, -1)[0] @ x
    return jax.nn.relu(mixed @ V) @ V.T + jnp.cumsum(x, 0)[2]


@jax.jit
def attention_bounds(s):
    return [m(attention)(s) for m in (bound.ibp, bound.crown_ibp, bound.crown)]


def test_no_sentence_escapes_where_words_meet():
    s = words(5, 2)
    values = jax.jit(jax.vmap(attention))(sentences(s))
    for got in attention_bounds(s):
        check_holds(got, values)


def test_no_budget_gives_the_value():
    s = words(5, 0)
    got, value = jax.jit(lambda s: (bound.crown(attention)(s), attention(s.base)))(s)
    assert (got.lower <= value).all() and (value <= got.upper).all()
    np.testing.assert_allclose(got.upper, value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name, budgets", [("forward", (0, 1, T)), ("alpha_crown", (1, T))]
)
def test_the_other_methods_hold_and_grow_with_the_budget(name, budgets):
    fn = lambda x: jax.nn.relu(jnp.einsum("td,tdn->n", x, W)) @ V.T  # noqa: E731
    widths = []
    for budget in budgets:
        s = words(6, budget)
        values = jax.jit(jax.vmap(fn))(sentences(s))
        got = jax.jit(getattr(bound, name)(fn))(s)
        check_holds(got, values)
        widths.append(float((got.upper - got.lower).mean()))
    assert (np.diff(widths) > 0).all() and 1e-3 < widths[-2]
    assert (widths[0] < 1e-3) == (0 in budgets)


def test_what_is_not_valid_never_counts():
    want = attention_bounds(words(2, 2, 0.0))
    for junk in (jnp.nan, jnp.inf, 1e3):
        got = attention_bounds(words(2, 2, junk))
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_gradients_pass_by_what_is_not_valid():
    def width(candidates, s):
        s = bound.Substitutions(s.base, candidates, s.valid, s.budget)
        fn = lambda x: jax.nn.relu(jnp.cumsum(x, 0) @ V).mean(0)  # noqa: E731
        got = bound.crown_ibp(fn)(s)
        return (got.upper - got.lower).sum()

    s = words(2, 2)
    got = jax.jit(jax.grad(width))(s.candidates, s)
    assert bool(jnp.isfinite(got).all())
    assert bool((jnp.where(s.valid[:, :, None], 0, got) == 0).all())
    assert float(jnp.abs(got).max()) > 0


def test_vmap_over_sets_a_leaf_beside_another_set_and_shard_map():
    fn = lambda p, c: jnp.tanh(jnp.einsum("td,tdn->n", p["x"], W) + c)  # noqa: E731
    c = bound.Ball(jnp.zeros(5), 0.1)
    batch = [words(seed, 1) for seed in range(8)]
    one = jax.jit(lambda s: bound.crown(fn)({"x": s}, c).lower)
    want = jnp.stack([one(s) for s in batch])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batch)
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(stacked), want, rtol=1e-4)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    spec = jax.sharding.PartitionSpec("data")
    run = jax.shard_map(jax.vmap(one), mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_allclose(jax.jit(run)(stacked), want, rtol=1e-4)


def test_a_counterexample_is_a_sentence_and_nothing_between_two():
    one = jnp.ones((1, 1), bool)
    s = bound.Substitutions(jnp.zeros((1, 1)), jnp.ones((1, 1, 1)), one, 1)
    between = lambda x: jnp.stack([(x[0, 0] - 0.5) ** 2, 0.01 + 0 * x[0, 0]])  # noqa: E731
    assert bound.verify(between, s, 0, time_limit=1.0).status != "falsified"
    found = bound.verify(lambda x: jnp.stack([0.5 - x[0, 0], x[0, 0]]), s, 0)
    assert found.status == "falsified"
    np.testing.assert_array_equal(found.counterexample, s.candidates[0])


def test_the_reference_sentence_with_all_its_candidates(shared, x64):
    with np.load(shared / "goldens" / "26-auto-lirpa-synonym.npz") as g:
        valid = g["mask"] > 0
        (full,) = np.flatnonzero(valid.any(-1).all(-1))
        x, candidates, slopes = (g[k][full] for k in ("x", "candidates", "A"))
        for budget in (1, 2, 3):
            s = bound.Substitutions(x, candidates, valid[full], budget)
            fn = lambda x: jnp.einsum("std,td->s", slopes, x)  # noqa: E731
            got = jax.jit(bound.crown(fn))(s)
            want = g[f"budget{budget}.lb"][full]
            np.testing.assert_allclose(got.lower, want, rtol=1e-9)


BASE, OTHER, VALID = jnp.ones((T, D)), jnp.ones((T, K, D)), jnp.ones((T, K), bool)


@pytest.mark.parametrize(
    "args, error, hint",
    [
        ((BASE[0], OTHER, VALID, 1), ValueError, r"wanted \(T, d\) and \(T, K, d\)"),
        ((BASE[1:], OTHER, VALID, 1), ValueError, r"wanted \(3, K, 3\)"),
        ((BASE, OTHER, VALID[:1], 1), ValueError, r"shape \(1, 2\); wanted \(4, 2\)"),
        ((BASE, OTHER, 1.0 * VALID, 1), TypeError, "wanted bool: pass mask > 0"),
        ((BASE, OTHER, VALID, -1), ValueError, "budget .* wanted at least 0"),
        ((BASE, OTHER, VALID, 1.0), TypeError, "budget .* wanted a Python int"),
        ((BASE, OTHER / 0, VALID, 1), ValueError, "candidates .* NaN or infinity"),
        ((BASE / 0, OTHER, VALID, 1), ValueError, "base .* NaN or infinity"),
        ((jnp.ones(T, int), OTHER, VALID, 1), TypeError, r"token ids .* table\[ids\]"),
    ],
)
def test_what_is_no_set_is_refused(args, error, hint):
    with pytest.raises(error, match=hint):
        bound.ibp(jnp.sum)(bound.Substitutions(*args))
