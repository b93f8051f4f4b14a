"""Transformed Gram matrices and clustering with them."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods.sketch import spectral

from .derivatives import check_derivatives

FUNCTIONS = {
    "linear": spectral.linear(),
    "sparsify": spectral.sparsify(0.7),
    "binarize": spectral.binarize(0.43),
    "quantize_entries": spectral.quantize_entries(3, 1.1),
    "relu": spectral.relu(),
    "uniform": spectral.uniform(0.4),
    "tanh": jnp.tanh,
}
gram = jax.jit(spectral.transformed_gram)
cluster = jax.jit(spectral.clustering, static_argnames=("num_steps", "stored"))


def data(seed, p, n, snr):
    """Two classes +-mu with |mu|^2 = snr in normal noise, and their labels."""
    r = np.random.default_rng(seed)
    labels = np.where(r.permutation(n) < n // 2, -1, 1)
    mean = r.standard_normal((p, 1))
    mean = mean * np.sqrt(snr) / np.linalg.norm(mean)
    x = r.standard_normal((p, n)) + mean * labels[None, :]
    return jnp.asarray(x, jnp.float32), labels


def callable_of(name):
    return FUNCTIONS[name] if name != "tanh" else jax.tree_util.Partial(jnp.tanh)


def mask_of(name, n):
    key = jax.random.key(0)
    return spectral.uniform_mask(key, n, 0.4) if name == "uniform" else None


def by_definition(x, f, mask=None):
    x = np.asarray(x, np.float64)
    k = np.asarray(f(jnp.asarray(x.T @ x / math.sqrt(len(x)))), np.float64)
    k = k / math.sqrt(len(x)) * (1 if mask is None else np.asarray(mask))
    return k * (1 - np.eye(len(k)))


# ---------------------------------------------------------------------- matrices


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_matrix_is_its_definition(name):
    x, f = data(0, 24, 40, 2.0)[0], callable_of(name)
    mask = mask_of(name, 40)
    k = gram(x, f, mask=mask)
    np.testing.assert_array_equal(k, k.T)
    assert (jnp.diag(k) == 0).all()
    np.testing.assert_allclose(k, by_definition(x, f, mask), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dtypes(dtype, x64):
    x = data(0, 24, 40, 2.0)[0].astype(dtype)
    k = gram(x, spectral.binarize(0.43))
    assert k.dtype == dtype
    # The functions see sums in float32 or wider, even of narrow data.
    want = by_definition(x, spectral.binarize(0.43))
    np.testing.assert_allclose(k, want, rtol=float(jnp.finfo(dtype).eps))
    find = functools.partial(spectral.clustering, f=spectral.binarize(0.43))
    got = jax.eval_shape(find, jax.random.key(0), x)
    assert got.eigenvector.dtype == jnp.promote_types(dtype, jnp.float32)


def test_golden_spectra(shared, x64):
    with np.load(shared / "goldens" / "10-sparse-quantized-spectral.npz") as g:
        x, labels, packed = g["x"], g["labels"].astype(float), g["mask_eps0.3"]
        want = {k: g[k] for k in g.files if k.startswith(("eig", "align", "err"))}
    n = len(labels)
    mask = jnp.asarray(np.unpackbits(packed)[: n * n].reshape(n, n).astype(bool))
    made = {
        "sparse,0.7": spectral.sparsify(0.7),
        "binary,0.43": spectral.binarize(0.43),
        "quant,4,1.0": spectral.quantize_entries(4, 1.0),
        "relu": spectral.relu(),
        "uniform": spectral.uniform(0.3),
    }
    for label, f in made.items():
        k = gram(jnp.asarray(x, float), f, mask=mask if f.random else None)
        values, vectors = np.linalg.eigh(k)
        np.testing.assert_allclose(values[::-1][:10], want[f"eig/{label}"], 1e-6)
        np.testing.assert_allclose(values[:3], want[f"eigmin/{label}"], 1e-6)
        alignment = (vectors[:, -1] @ labels) ** 2 / n
        np.testing.assert_allclose(alignment, want[f"align/{label}"], 1e-6)
        if label == "binary,0.43":
            got = cluster(jax.random.key(0), jnp.asarray(x, float), f)
            np.testing.assert_allclose(got.eigenvalue, values[-1], 1e-10)
            wrong = (got.labels != labels).mean()
            assert min(wrong, 1 - wrong) == want[f"err/{label}"]


def test_the_mask_is_symmetric_and_the_entries_are_independent():
    n, keep = 300, 0.3
    draw = jax.jit(spectral.uniform_mask, static_argnums=1)
    mask = np.asarray(draw(jax.random.key(0), n, keep))
    np.testing.assert_array_equal(mask, mask.T)
    upper = mask[np.triu_indices(n, 1)]
    assert abs(upper.mean() - keep) < 5 * math.sqrt(keep * (1 - keep) / upper.size)
    # Rows share one entry, and no more than that.
    off = mask - keep
    products = (off[:-1] * off[1:]).mean()
    assert abs(products) < 5 * keep * (1 - keep) / n
    part = draw(jax.random.key(0), 20, keep)
    np.testing.assert_array_equal(part, mask[:20, :20])
    other = np.asarray(draw(jax.random.key(1), n, keep))
    assert abs((other == mask).mean() - (keep**2 + (1 - keep) ** 2)) < 0.02
    assert np.asarray(draw(jax.random.key(0), 20, 1.0)).all()


def test_the_lower_triangle_of_a_mask_counts():
    x, f = data(0, 24, 40, 2.0)[0], spectral.linear()
    mask = jax.random.bernoulli(jax.random.key(1), 0.5, (40, 40))
    lower = jnp.tril(mask, -1)
    got, want = (gram(x, f, mask=m) for m in (mask, lower | lower.T))
    np.testing.assert_array_equal(got, want)


def test_scale_and_batches():
    x = data(0, 24, 40, 2.0)[0]
    f = spectral.binarize(0.43)
    thrice = jax.tree_util.Partial(lambda t: 3 * f(t))
    np.testing.assert_allclose(gram(x, thrice), 3 * gram(x, f), rtol=1e-6)
    many = np.stack([x, 2 * x])
    got = jax.jit(jax.vmap(spectral.transformed_gram, (0, None)))(many, f)
    each = np.stack([gram(v, f) for v in many])
    np.testing.assert_allclose(got, each, rtol=1e-5, atol=1e-6)
    families = jax.vmap(lambda s: spectral.transformed_gram(x, spectral.sparsify(s)))
    got = jax.jit(families)(jnp.array([0.2, 0.7]))[1]
    np.testing.assert_allclose(got, gram(x, spectral.sparsify(0.7)), 1e-5, 1e-6)


def test_gradient_in_the_data(x64):
    x = data(0, 4, 5, 2.0)[0].astype(float)
    weight = jnp.arange(25.0).reshape(5, 5)
    fn = lambda x: (spectral.transformed_gram(x, jnp.tanh) * weight).sum()  # noqa: E731
    check_derivatives(fn, (x,), rtol=1e-5)


# -------------------------------------------------------------------- clustering


@pytest.mark.parametrize(
    "name, stored",
    [
        ("linear", True),
        ("quantize_entries", False),
        ("relu", False),
        ("uniform", True),
        ("uniform", False),
        ("tanh", True),
    ],
)
def test_the_top_eigenpair(name, stored):
    n = 304  # two blocks of rows, the last not full
    x, f = data(0, 60, n, 3.0)[0], callable_of(name)
    got = cluster(jax.random.key(1), x, f, stored=stored)
    mask = None
    if name == "uniform":
        mask = spectral.uniform_mask(jax.random.split(jax.random.key(1))[1], n, 0.4)
    values, vectors = np.linalg.eigh(np.asarray(gram(x, f, mask=mask), np.float64))
    np.testing.assert_allclose(got.eigenvalue, values[-1], rtol=1e-5)
    assert abs(vectors[:, -1] @ got.eigenvector) > 1 - 1e-5
    np.testing.assert_allclose(jnp.linalg.norm(got.eigenvector), 1, rtol=1e-6)
    np.testing.assert_array_equal(got.labels, np.where(got.eigenvector < 0, -1, 1))


def test_the_largest_eigenvalue_and_not_the_largest_absolute_one():
    x = data(0, 100, 120, 2.0)[0]
    f = jax.tree_util.Partial(lambda t: t - 3 * (t * t - 1))
    values, vectors = np.linalg.eigh(gram(x, f))
    assert -values[0] > 1.1 * values[-1]
    got = cluster(jax.random.key(0), x, f)
    np.testing.assert_allclose(got.eigenvalue, values[-1], rtol=1e-4)
    assert abs(got.eigenvector @ vectors[:, -1]) > 0.99


@pytest.mark.parametrize("n", [1, 3])
def test_few_samples(n):
    x = data(3, 24, n, 2.0)[0]
    got = cluster(jax.random.key(0), x, spectral.linear())
    top = np.linalg.eigvalsh(gram(x, spectral.linear()))[-1]
    np.testing.assert_allclose(got.eigenvalue, top, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(got.eigenvector), 1, rtol=1e-6)


def test_a_matrix_without_entries_and_one_of_equal_entries():
    x = data(0, 24, 40, 2.0)[0]
    nothing = cluster(jax.random.key(0), x, spectral.binarize(20.0))
    assert nothing.eigenvalue == 0 and jnp.isfinite(nothing.eigenvector).all()
    equal = jax.tree_util.Partial(jnp.ones_like)
    ones = cluster(jax.random.key(0), x, equal)
    np.testing.assert_allclose(ones.eigenvalue, 39 / math.sqrt(24), rtol=1e-5)
    np.testing.assert_allclose(abs(ones.eigenvector), 40**-0.5, rtol=1e-3)


def largest_value(n, **options):
    """The size of the largest array of a clustering of n samples."""
    x, f = jax.ShapeDtypeStruct((8, n), jnp.float32), spectral.uniform(0.5)
    find = functools.partial(spectral.clustering, f=f, **options)
    jaxpr = jax.make_jaxpr(find)(jax.random.key(0), x).jaxpr
    return max(v.aval.size for e in jaxpr_equations(jaxpr) for v in e.outvars)


def test_what_is_not_stored_is_nowhere_in_the_program():
    assert largest_value(1000, stored=True) >= 1000**2
    assert largest_value(1000, stored=False) == 256 * 1000
    # A GiB is the limit where nothing is said.
    assert largest_value(16_000) >= 16_000**2
    assert largest_value(17_000) == 256 * 17_000


def jaxpr_equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from jaxpr_equations(inner)


def test_one_trace_serves_all_thresholds_keys_and_data():
    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(spectral.clustering, n=1))
    for seed, s in ((0, 0.3), (1, 0.9)):
        x, labels = data(seed, 60, 100, 6.0)
        got = once(jax.random.key(seed), x, spectral.binarize(s))
        assert abs(got.labels @ labels) > 60
    again = once(jax.random.key(seed), x, spectral.binarize(s))
    np.testing.assert_array_equal(again.eigenvector, got.eigenvector)


def problems(num, p, n):
    return np.stack([data(seed, p, n, 4.0)[0] for seed in range(num)])


def keys(num):
    return jax.random.split(jax.random.key(0), num)


def test_batches_of_problems():
    x, f = problems(3, 60, 100), spectral.uniform(0.5)
    got = jax.jit(jax.vmap(spectral.clustering, (0, 0, None)))(keys(3), x, f)
    for i in range(3):
        one = cluster(keys(3)[i], x[i], f)
        np.testing.assert_allclose(got.eigenvalue[i], one.eigenvalue, rtol=1e-5)
        assert abs(got.eigenvector[i] @ one.eigenvector) > 0.999


@pytest.mark.parametrize("devices, stored", [(2, False), (8, True)])
def test_samples_split_over_a_mesh(devices, stored):
    x, f = data(0, 60, 304, 3.0)[0], spectral.uniform(0.5)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("samples",))
    find = functools.partial(spectral.clustering, stored=stored, axis_name="samples")
    split = P("samples")
    out_specs = spectral.Clustering(split, P(), split)
    specs = dict(in_specs=(P(), P(None, "samples"), P()), out_specs=out_specs)
    got = jax.jit(jax.shard_map(find, mesh=mesh, **specs))(jax.random.key(0), x, f)
    alone = cluster(jax.random.key(0), x, f, stored=stored)
    np.testing.assert_allclose(got.eigenvalue, alone.eigenvalue, rtol=1e-5)
    np.testing.assert_allclose(got.eigenvector, alone.eigenvector, atol=1e-4)
    assert (got.labels == alone.labels).mean() > 0.99


def test_a_problem_for_each_device():
    x, f = problems(8, 24, 40), spectral.binarize(0.4)
    mesh = Mesh(np.array(jax.devices()), ("problems",))
    own = lambda key, x: jax.vmap(spectral.clustering, (0, 0, None))(key, x, f)  # noqa: E731
    one = P("problems")
    each = jax.shard_map(own, mesh=mesh, in_specs=(one, one), out_specs=one)
    got = jax.jit(each)(keys(8), x)
    for i in (0, 5):
        want = cluster(keys(8)[i], x[i], f)
        np.testing.assert_allclose(got.eigenvalue[i], want.eigenvalue, rtol=1e-5)
        np.testing.assert_allclose(got.eigenvector[i], want.eigenvector, atol=1e-4)


# ------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "call, kind, hint",
    [
        (
            lambda x: spectral.transformed_gram(x[0], spectral.linear()),
            ValueError,
            r"x has shape \(7,\); wanted \(p, n\)",
        ),
        (
            lambda x: spectral.transformed_gram(x > 0, spectral.linear()),
            TypeError,
            "cast it with",
        ),
        (
            lambda x: spectral.transformed_gram(x[:0], spectral.linear()),
            ValueError,
            r"\(0, 7\)",
        ),
        (
            lambda x: spectral.transformed_gram(x, spectral.uniform(0.5)),
            ValueError,
            r"uniform\(0.5\), .* wanted mask=, bool of shape \(7, 7\): .*uniform_mask",
        ),
        (
            lambda x: spectral.transformed_gram(
                x, jnp.tanh, mask=jnp.ones((5, 5), bool)
            ),
            ValueError,
            r"\(5, 5\); wanted \(7, 7\)",
        ),
        (
            lambda x: spectral.transformed_gram(x, jnp.tanh, mask=jnp.ones((7, 7))),
            TypeError,
            "cast with mask != 0",
        ),
        (
            lambda x: spectral.transformed_gram(x, jnp.sum),
            ValueError,
            r"\(7, 7\) to one of shape \(\); wanted a function that works entry by",
        ),
        (
            lambda x: spectral.clustering(jnp.zeros(2, jnp.uint32), x, jnp.tanh),
            TypeError,
            r"typed key: jax.random.key",
        ),
        (
            lambda x: spectral.clustering(jax.random.key(0), x, jnp.tanh, num_steps=0),
            ValueError,
            "num_steps is 0; wanted at least 1",
        ),
        (
            lambda x: spectral.clustering(jax.random.key(0), x, jnp.tanh, stored="no"),
            TypeError,
            "wanted True, False or None",
        ),
        (
            lambda x: spectral.uniform_mask(jnp.zeros(2, jnp.uint32), 3, 0.5),
            TypeError,
            "typed key",
        ),
    ],
)
def test_errors_say_what_is_wanted(call, kind, hint):
    with pytest.raises(kind, match=hint):
        call(jnp.ones((5, 7)))
