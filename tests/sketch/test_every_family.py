"""Laws that every sketching operator obeys, over the table of families."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmethods import sketch

from .families import FAMILIES, whole_numbers

M, N = 16, 37
every_family = pytest.mark.parametrize("family", FAMILIES)
# One of each implementation: for what does not depend on how it was drawn.
each_kind = pytest.mark.parametrize(
    "family", ["sparse_stack", "gaussian", "srht", "less"]
)


@jax.jit  # one program: XLA draws the operator once
def both_ways(S, A, Y):
    return S.dense(), S @ A, S.T @ Y


@jax.jit
def all_ways(S, A, Y):
    return *both_ways(S, A, Y), S @ A[:, 0], S.T @ Y[:, 1]


def new(family, seed=0, m=M, n=N):
    return FAMILIES[family].new(jax.random.key(seed), m, n)


def assert_same(family, got, want):
    """Equal to the bit where the family's sums are exact, else to rounding."""
    if FAMILIES[family].exact:
        np.testing.assert_array_equal(got, want)
    else:
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


def normal(seed, *shape):
    draw = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(draw, jnp.float32)


@every_family
def test_mean_of_gram_is_the_identity(family):
    num, n = 2000, 21
    keys = jax.random.split(jax.random.key(1), num)
    dense = jax.jit(jax.vmap(lambda key: FAMILIES[family].new(key, M, n).dense()))
    S = np.asarray(dense(keys), np.float64)
    gram = np.einsum("tmi,tmj->tij", S, S)
    spread = gram.std(0, ddof=1) / np.sqrt(num)
    assert (np.abs(gram.mean(0) - np.eye(n)) <= 5.5 * spread + 1e-9).all()


@given(seed=st.integers(0, 2**31))
@settings(max_examples=5, deadline=None)
@every_family
def test_products_agree_with_the_dense_matrix(family, seed):
    S, A, Y = new(family, seed), whole_numbers(seed, N, 3), whole_numbers(seed, M, 2)
    assert S.shape == (M, N) and S.T.shape == (N, M)
    D, forward, back, of_vector, back_of_vector = all_ways(S, A, Y)
    D, A, Y = map(np.asarray, (D, A, Y))
    assert D.shape == (M, N)
    assert_same(family, forward, D @ A)
    assert_same(family, back, D.T @ Y)
    assert_same(family, of_vector, D @ A[:, 0])
    assert_same(family, back_of_vector, D.T @ Y[:, 1])


@each_kind
def test_transpose_of_the_transpose_and_its_dense_form(family):
    S = new(family)
    assert S.T.T is S
    both = jax.jit(lambda S, a: (S.T.dense(), S.dense().T, S.T.T @ a, S @ a))
    back, want, twice, once = both(S, normal(0, N))
    np.testing.assert_array_equal(back, want)
    np.testing.assert_array_equal(twice, once)


@each_kind
@pytest.mark.parametrize("n", [1, M + 1])
def test_few_columns(family, n):
    m = min(M, n) if FAMILIES[family].distinct else M
    A, Y = whole_numbers(0, n, 2), whole_numbers(1, m, 2)
    D, forward, back = map(np.asarray, both_ways(new(family, 3, m, n), A, Y))
    assert_same(family, forward, D @ A)
    assert_same(family, back, D.T @ Y)


@every_family
def test_one_operator_however_it_is_made(family):
    A = whole_numbers(1, N, 3)
    keys = lambda: jax.random.split(jax.random.key(2), 3)  # noqa: E731
    make = lambda key: FAMILIES[family].new(key, M, N)  # noqa: E731

    @jax.jit
    def batches(keys, A):
        many = jax.vmap(make)(keys)
        batch = jax.vmap(lambda S, A: S @ A, (0, None))(many, A)
        back = jax.vmap(lambda S, Y: S.T @ Y)(many, batch)
        fresh = jax.vmap(lambda key: make(key) @ A)(keys)
        first = make(keys[0])
        return many, batch, back, fresh, first

    many, batch, back, fresh, first = batches(keys(), A)
    assert_same(family, fresh, batch)
    for key, sketched, returned in zip(keys(), batch, back, strict=True):
        S = make(key)
        assert_same(family, S @ A, sketched)
        assert_same(family, S.T @ sketched, returned)
    assert_same(family, first @ A, batch[0])
    second = jax.tree.map(lambda leaf: leaf[1], many)
    assert_same(family, second @ A, batch[1])
    assert np.abs(batch[0] - batch[1]).max() > 0


@each_kind
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_vmap_over_matrices(family, axis):
    S, A = new(family), whole_numbers(4, 5, N, 3)
    got = jax.vmap(lambda A: S @ A, axis, axis)(jnp.moveaxis(A, 0, axis))
    want = np.stack([S @ one for one in A])
    assert_same(family, got, np.moveaxis(want, 0, axis))


@each_kind
def test_one_trace_serves_every_key_and_place(family):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def part(S, start, A):
        return S.columns(start, 5) @ A

    A = whole_numbers(5, 5, 3)
    for seed, start in ((0, 0), (1, 7), (2, 30)):
        S = new(family, seed)
        want = np.asarray(S.dense())[:, start : start + 5] @ np.asarray(A)
        assert_same(family, part(S, start, A), want)


@each_kind
def test_columns_of_columns(family):
    S = new(family)

    @jax.jit
    def both(S, start):
        part = S.columns(9, 20).columns(start, 8)
        assert part.shape == (M, 8)
        return part.dense(), S.dense()[:, 12:20]

    np.testing.assert_array_equal(*both(S, 3))


@each_kind
def test_dtype_of_the_operand_is_kept_and_summed_in_float32(family):
    n = 2400
    operands = [normal(6, n, 2).astype(dtype) for dtype in ("bfloat16", "float16")]
    run = jax.jit(lambda S, operands: [both_ways(S, A, A[:M]) for A in operands])
    results = run(new(family, n=n), operands)
    D = np.asarray(results[0][0], np.float64)
    for A, (_, forward, back) in zip(operands, results, strict=True):
        for got, op, x in ((forward, D, A), (back, D.T, A[:M])):
            exact = np.asarray(x, np.float64)
            assert got.dtype == A.dtype
            off = np.abs(np.asarray(got, np.float64) - op @ exact)
            # One rounding to the result, plus float32 sums of up to n terms.
            eps = jnp.finfo(A.dtype).eps
            assert (
                off <= eps * np.abs(op @ exact) + 1e-5 * (np.abs(op) @ np.abs(exact))
            ).all()


@each_kind
def test_no_columns(family):
    S = new(family)
    assert (S @ jnp.ones((N, 0))).shape == (M, 0)
    assert (S.T @ jnp.ones((M, 0))).shape == (N, 0)
    assert jax.vmap(lambda A: S @ A)(jnp.ones((3, N, 0))).shape == (3, M, 0)
    assert jax.vmap(lambda A: S @ A)(jnp.ones((0, N, 2))).shape == (0, M, 2)


@each_kind
def test_double_precision(family, x64):
    A = np.random.default_rng(7).standard_normal((N, 2))
    D, forward, _ = map(np.asarray, both_ways(new(family), A, A[:M]))
    assert D.dtype == forward.dtype == np.float64
    np.testing.assert_allclose(forward, D @ A, rtol=1e-13, atol=1e-13)


@each_kind
def test_derivatives_of_every_order(family):
    square = lambda S, a: ((S @ a) ** 2).sum() / 2  # noqa: E731

    @jax.jit
    def derivatives(S, a, y):
        forward, back = jax.jacfwd(lambda a: S @ a)(a), jax.jacrev(lambda a: S @ a)(a)
        of_transpose = jax.jacrev(lambda y: S.T @ y)(y)
        swapped = jax.linear_transpose(lambda a: S @ a, a)(y)[0]
        return forward, back, of_transpose.T, jax.hessian(square, 1)(S, a), swapped

    S, a, y = new(family), normal(8, N), normal(9, M)
    D = np.asarray(S.dense())
    *linear, hessian, swapped = derivatives(S, a, y)
    for got in linear:
        np.testing.assert_allclose(got, D, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(hessian, D.T @ D, atol=1e-5)
    np.testing.assert_allclose(swapped, D.T @ y, rtol=1e-5, atol=1e-6)


@each_kind
def test_gradient_through_a_batch_of_operators(family):
    keys = jax.random.split(jax.random.key(9), 3)
    A = whole_numbers(9, N, 2)

    def loss(A):
        sketched = jax.vmap(lambda key: FAMILIES[family].new(key, M, N) @ A)(keys)
        return (sketched**2).sum() / 2

    dense = [np.asarray(FAMILIES[family].new(key, M, N).dense()) for key in keys]
    want = sum(D.T @ (D @ A) for D in dense)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(A), want, rtol=1e-5, atol=1e-4)


@each_kind
def test_gradients_inside_shard_map(family):
    n, A = 48, whole_numbers(12, 48, 2)
    mesh = Mesh(np.array(jax.devices()), ("rows",))

    def local(key, rows, A):
        start = jax.lax.axis_index("rows") * len(rows)
        part = FAMILIES[family].new(key, M, n).columns(start, len(rows))

        def loss(rows):  # of the shard's rows, through the psum
            return (jax.lax.psum(part @ rows, "rows") ** 2).sum() / 2

        own = jax.random.fold_in(key, jax.lax.axis_index("rows"))
        S = FAMILIES[family].new(own, M, n)
        # An operator for each device, one A for all: gradients add up.
        return jax.grad(loss)(rows), jax.grad(lambda A: (S @ A).sum())(A)

    @jax.jit
    def alone(key, A):
        S = FAMILIES[family].new(key, M, n)
        keys = [jax.random.fold_in(key, i) for i in range(8)]
        each = [FAMILIES[family].new(k, M, n).T @ jnp.ones((M, 2)) for k in keys]
        return S.T @ (S @ A), sum(each)

    specs = dict(in_specs=(P(), P("rows"), P()), out_specs=(P("rows"), P()))
    run = jax.jit(jax.shard_map(local, mesh=mesh, **specs))
    got, want = run(jax.random.key(13), A, A), alone(jax.random.key(13), A)
    for one, other in zip(got, want, strict=True):
        assert_same(family, one, other)


PAIRS = [("sparse_stack", "gaussian"), ("less", "srht"), ("Hadamard", "BlockRoll")]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_sketch_of_a_sketch_is_an_operator(first, second):
    inner, outer = new(first, 1, m=16), new(second, 2, m=M, n=16)
    S, A, Y = outer @ inner, whole_numbers(14, N, 2), whole_numbers(15, M, 2)
    D = np.asarray(outer.dense(), np.float64) @ np.asarray(inner.dense())
    assert S.shape == (M, N)
    dense, forward, back = both_ways(S, A, Y)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4)
    close(dense, D)
    close(forward, D @ A)
    close(back, D.T @ Y)
    part, gram = jax.jit(lambda S, A: (S.columns(5, 7) @ A[:7], (S.T @ S) @ A))(S, A)
    close(part, D[:, 5:12] @ A[:7])
    close(gram, D.T @ (D @ A))


@every_family
def test_debias_scalar(family):
    S, scalar = new(family, m=24), FAMILIES[family].scalar
    if isinstance(scalar, str):
        with pytest.raises(ValueError, match=scalar):
            S.debias(7)
        return
    assert S.debias(7) == pytest.approx(scalar(24, 64, 7))
    assert float(jax.jit(S.debias)(4.5)) == pytest.approx(scalar(24, 64, 4.5))
    outer = new(family, m=16, n=24)
    both = scalar(16, 32, 4) * scalar(24, 64, 4)
    assert (outer @ S).debias(4) == pytest.approx(both)
    for d in (24, 25, -1, float("nan")):
        with pytest.raises(ValueError, match=f"d is {d} and m is 24.*more rows"):
            S.debias(d)


@each_kind
def test_errors_of_operands(family):
    S = new(family)
    with pytest.raises(ValueError, match=r"A is float32\[15,3\]; wanted .* 37 rows"):
        S @ jnp.ones((15, 3))
    with pytest.raises(ValueError, match=r"A is float32\[37,3\]; wanted .* 16 rows"):
        S.T @ jnp.ones((N, 3))
    with pytest.raises(ValueError, match=r"float32\[37,2,2\].*jax.vmap"):
        S @ jnp.ones((N, 2, 2))
    with pytest.raises(ValueError, match=r"float32\[\]; wanted a vector"):
        S @ jnp.float32(1)
    with pytest.raises(TypeError, match=r"int32\[37,2\].*floating"):
        S @ jnp.ones((N, 2), jnp.int32)
    with pytest.raises(ValueError, match=r"right operator has shape \(16, 37\)"):
        S @ S
    for left in (jnp.ones((3, M)), np.ones((3, M))):
        for right in (S, S.T):
            with pytest.raises(TypeError, match=r"\[3,16\].* write \(S.T @ A.T\).T"):
                left @ right


@every_family
def test_a_batch_of_operators_is_refused_outside_of_vmap(family):
    make = lambda key: FAMILIES[family].new(key, M, N)  # noqa: E731
    batch = lambda key: jax.vmap(make)(jax.random.split(key, 3))  # noqa: E731
    many = jax.eval_shape(batch, jax.random.key(0))
    for use in (
        lambda S: S @ jnp.ones((N, 2)),
        lambda S: S.T @ jnp.ones((M, 2)),
        lambda S: S.columns(0, 5),
        lambda S: S.dense(),
    ):
        with pytest.raises(ValueError, match=r"batch of .*jax.vmap"):
            use(many)


def test_a_traced_size_is_refused_with_a_hint():
    key, A = jax.random.key(0), jnp.ones((N, 2))
    root = lambda x: A  # noqa: E731

    def update(m):
        method = sketch.scale_by_newton_sketch(key, root, m)
        return method.update(A[0], method.init(A[0]), A[0])

    for use in (
        lambda m: sketch.gaussian(key, m, N) @ A,
        lambda m: sketch.sparse_stack(key, m, N) @ A,
        lambda m: sketch.srht(key, m, N) @ A,
        lambda m: sketch.less(key, A[:, 0], m) @ A,
        lambda m: sketch.less_uniform(key, m, N, s=2) @ A,
        lambda m: sketch.inverse_gram(key, A, m),
        update,
    ):
        with pytest.raises(TypeError, match=r"m is int32\[\], .*static_argnames='m'"):
            jax.eval_shape(use, 16)


@each_kind
def test_errors_of_columns(family):
    S = new(family)
    for size in (0, N + 1):
        with pytest.raises(ValueError, match=rf"size is {size}; wanted 1..37"):
            S.columns(0, size)
    for start in (-1, 33):
        with pytest.raises(ValueError, match=rf"start is {start}; wanted 0..32"):
            S.columns(start, 5)
    with pytest.raises(TypeError, match=r"start is float32\[\]; wanted one int"):
        S.columns(1.0, 5)


@each_kind
def test_rows_sharded_on_explicit_axes_are_refused_by_name(family):
    n = 48
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        A = jax.device_put(jnp.ones((n, 2)), NamedSharding(mesh, P("rows")))
        with pytest.raises(ValueError, match=r"Explicit mesh axes.*jax.shard_map"):
            new(family, n=n) @ A


def test_the_export_list():
    names = {name for name in dir(sketch) if not name.startswith("_")}
    assert names == {
        "BlockRoll",
        "Eigenpairs",
        "Hadamard",
        "LinearOperator",
        "Minimum",
        "NewtonSketchState",
        "SVD",
        "Solution",
        "SparseColumns",
        "SparseRows",
        "apply_sharded",
        "approximate_leverage_scores",
        "countsketch",
        "error_bound",
        "gaussian",
        "inverse_gram",
        "less",
        "less_uniform",
        "leverage_scores",
        "lstsq",
        "newton_sketch",
        "nystrom",
        "rademacher",
        "sample_rows",
        "scale_by_newton_sketch",
        "sparse_stack",
        "spectral",
        "srht",
        "svd",
        "tree",
        "walsh_hadamard",
    }
