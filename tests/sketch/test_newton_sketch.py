"""Newton steps with sketched Hessians: their rate, optax, pytrees, errors."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods import sketch

N, D = 200, 4


def rows(cond=1.0, seed=0):
    r = np.random.RandomState(seed)
    A = r.randn(N, D) / np.sqrt(r.chisquare(1, (N, 1)))
    U, _, Vt = np.linalg.svd(A, full_matrices=False)
    return jnp.asarray((U * np.logspace(0, -np.log10(cond), D)) @ Vt)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("cond", [1.0, 1e6])
def test_squared_error_falls_by_d_over_m_at_any_condition(cond):
    """The factor of a Gaussian sketch is exact (Newton-LESS, equation 3)."""
    m, num, A = 24, 300, np.asarray(rows(cond))
    start = np.linalg.lstsq(A, np.ones(N), rcond=None)[0]
    x = np.asarray(gaussian_steps(A, start, m, num))
    factor = ((x @ A.T) ** 2).sum(1) / ((A @ start) ** 2).sum()
    a, c = m - D - 1, (1 - D / m) * (m - D - 1) / m
    exact = 1 - 2 * c * m / a + c**2 * m**2 * (m - 1) / ((m - D) * a * (a - 2))
    error = factor.std() / num**0.5
    assert abs(factor.mean() - exact) < 5 * error
    assert D / m < exact < 1.5 * D / m


@functools.partial(jax.jit, static_argnums=(2, 3))
def gaussian_steps(A, start, m, num):
    """One step from one start, by many keys."""

    def step(key):
        fn = lambda x: 0.5 * ((A @ x) ** 2).sum()  # noqa: E731
        options = dict(num_steps=1, family="gaussian")
        return sketch.newton_sketch(key, fn, lambda x: A, start, m, **options).params

    return jax.vmap(step)(jax.random.split(jax.random.key(0), num))


def logistic():
    r = np.random.RandomState(1)
    A = jnp.asarray(r.randn(N, D))
    y = jnp.asarray(r.randint(0, 2, N) * 2.0 - 1)
    ridge = 3.0

    def fn(x):
        return jax.nn.softplus(-y * (A @ x)).sum() + 0.5 * ridge * (x**2).sum()

    def root(x):
        p = jax.nn.sigmoid(A @ x)
        return jnp.sqrt(p * (1 - p))[:, None] * A

    return fn, root, ridge


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("family", ["less", "sparse_stack"])
def test_logistic_regression_with_a_ridge(family):
    fn, root, ridge = logistic()
    x = jnp.zeros(D)

    @jax.jit
    def run(key):
        options = dict(num_steps=30, family=family, ridge=ridge)
        found = sketch.newton_sketch(key, fn, root, x, 40, **options)
        gram = root(x).T @ root(x) + ridge * jnp.eye(D)
        left = fn(x) - fn(found.params), jax.grad(fn)(found.params)
        return found.decrement, left, (gram, jax.hessian(fn)(x))

    decrement, (above, slope), both = run(jax.random.key(0))
    np.testing.assert_allclose(*both, atol=1e-12)  # what the sketch is of
    assert np.abs(slope).max() < 1e-9
    # Before the first step: the objective above its minimum, to the sketch's accuracy.
    np.testing.assert_allclose(decrement[0], above, rtol=0.6)
    assert decrement.shape == (30,) and decrement[-1] < 1e-18


def test_optax_chain_of_a_pytree_is_the_iteration():
    A = jnp.float32(rows())
    names = {"a": jnp.ones(()), "b": jnp.ones(3)}
    flat = lambda p: jnp.concatenate([p["a"][None], p["b"]])  # noqa: E731
    fn = lambda p: 0.5 * ((A @ (flat(p) - 2)) ** 2).sum()  # noqa: E731
    options = dict(m=32, family="less", ridge=0.0)
    method = sketch.scale_by_newton_sketch(jax.random.key(0), lambda p: A, **options)
    optimizer = optax.chain(method, optax.scale(-1.0))
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state):
        updates, state = optimizer.update(jax.grad(fn)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = names, optimizer.init(names)
    for _ in range(3):
        params, state = step(params, state)
    as_names = lambda p: {"a": A[:, 0], "b": A[:, 1:]}  # noqa: E731
    found = sketch.newton_sketch(
        jax.random.key(0), fn, as_names, names, num_steps=3, **options
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(params, names, found.params)
    chex.assert_trees_all_close(params, found.params, rtol=1e-4)
    np.testing.assert_allclose(state[0].decrement, found.decrement[-1], rtol=1e-2)
    assert fn(params) < 0.1 * fn(names)


@pytest.mark.usefixtures("x64")
def test_workers_average_by_vmap():
    """The mean of many steps is much nearer than one: bias is small beside variance."""
    A, start = rows(), jnp.ones(D)
    fn = lambda x: 0.5 * ((A @ x) ** 2).sum()  # noqa: E731

    def step(key):
        return sketch.newton_sketch(key, fn, lambda x: A, start, 32, num_steps=1).params

    x = jax.jit(jax.vmap(step))(jax.random.split(jax.random.key(0), 64))
    x, A, damped = np.asarray(x), np.asarray(A), np.ones(D) * D / 32
    # Damped: what an exact step of 1 - d / m leaves.
    one = ((A @ (x - damped[None]).T) ** 2).sum(0).mean()
    mean = ((A @ (x.mean(0) - damped)) ** 2).sum()
    assert mean < one / 16


def test_errors():
    key, A, x = jax.random.key(0), jnp.float32(rows()), jnp.ones(D)
    new = sketch.scale_by_newton_sketch
    with pytest.raises(ValueError, match=r"family is 'fourier'"):
        new(key, lambda x: A, 16, family="fourier")
    with pytest.raises(ValueError, match=r"ridge is -1"):
        new(key, lambda x: A, 16, ridge=-1.0)
    with pytest.raises(TypeError, match=r"jax.random.key\(0\)"):
        new(0, lambda x: A, 16)

    def update(root, m=16, params=x, seed=1, **options):
        method = new(jax.random.key(seed), root, m, **options)
        return method.update(x, method.init(x), params)

    with pytest.raises(ValueError, match=r"params are None.*update\(gradients"):
        update(lambda x: A, params=None)
    with pytest.raises(ValueError, match=r"float32\[200,3\] and params hold 4 numbers"):
        update(lambda x: A[:, :3])
    with pytest.raises(ValueError, match=r"root\(params\).*wanted a matrix"):
        update(lambda x: A[0])
    with pytest.raises(ValueError, match=r"m is 4"):
        update(lambda x: A, m=4)
    with pytest.raises(ValueError, match=r"countsketch"):
        update(lambda x: A, family="countsketch")
    with pytest.raises(TypeError, match=r"root\(params\) is int32"):
        update(lambda x: A.astype(int))
    with pytest.raises(ValueError, match=r"num_steps is 0"):
        sketch.newton_sketch(key, lambda x: x.sum(), lambda x: A, x, 16, num_steps=0)


def test_a_singular_root_is_an_error_and_under_jit_nan():
    A, x = jnp.float32(rows()).at[:, 1].set(0), jnp.ones(D)

    def run(key, ridge=0.0):
        fn = lambda x: 0.5 * ((A @ x) ** 2).sum()  # noqa: E731
        root = lambda x: A  # noqa: E731
        options = dict(num_steps=2, family="sparse_stack", ridge=ridge)
        return sketch.newton_sketch(key, fn, root, x, 16, **options).params

    with pytest.raises(ValueError, match=r"not finite after 2 steps.*give a ridge"):
        run(jax.random.key(0))
    options = dict(family="sparse_stack")

    def update(key, gradient):
        method = sketch.scale_by_newton_sketch(key, lambda x: A, 16, **options)
        return method.update(gradient, method.init(x), x)[0]

    with pytest.raises(ValueError, match=r"float32\[200,4\].*depend on each.*a ridge"):
        update(jax.random.key(1), x)
    both = jax.jit(lambda key, other: (run(key), run(other, 1.0)))
    params, with_ridge = both(*jax.random.split(jax.random.key(2)))
    assert np.isnan(params).any() and np.isfinite(with_ridge).all()
    # A gradient that is not finite is the caller's affair.
    assert np.isnan(update(jax.random.key(3), jnp.nan * x)).all()


def test_errors_of_a_root_that_is_a_pytree():
    params = {"a": jnp.ones(()), "b": jnp.ones(3)}
    bad = {"a": jnp.ones((9, 1)), "b": jnp.ones((9, 3))}
    method = sketch.scale_by_newton_sketch(jax.random.key(0), lambda p: bad, 16)
    with pytest.raises(ValueError, match=r"leaves \['float32\[9,1\]'.* \(n, \*shape\)"):
        method.update(params, method.init(params), params)
    whole = {"a": jnp.ones(9, int), "b": jnp.ones((9, 3))}
    method = sketch.scale_by_newton_sketch(jax.random.key(1), lambda p: whole, 16)
    with pytest.raises(TypeError, match=r"root\(params\) is int32\[9\]"):
        method.update(params, method.init(params), params)


def test_a_gradient_is_no_root():
    method = sketch.scale_by_newton_sketch(jax.random.key(8), lambda x: 2 * x, 4)
    params = jnp.float32(3.0)
    with pytest.raises(ValueError, match=r"root\(params\) is float32\[\].*a matrix"):
        method.update(params, method.init(params), params)
