"""Newton's method with a Hessian that is sketched anew at every step."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular

from ..core import (
    check_choice,
    check_floating,
    check_integer,
    check_key,
    describe,
)
from ._inverse_gram import FAMILIES, known_ridge, sketcher
from ._matrices import check_matrix, check_ridge, in_float32, seen_finite
from ._operator import check_sketch_shape


class NewtonSketchState(NamedTuple):
    """The state of `scale_by_newton_sketch`.

    Attributes:
        key: scalar typed key, of the next sketch.
        decrement: scalar, half of g^T inv(H) g at the last gradient: an estimate of
            how far the objective was above its minimum. Infinite before the first.
    """

    key: jax.Array
    decrement: jax.Array


class Minimum(NamedTuple):
    """What `newton_sketch` returns.

    Attributes:
        params: a pytree like the start.
        decrement: (num_steps,), estimates of the objective above its minimum before
            each step.
    """

    params: Any
    decrement: jax.Array


def newton_sketch(
    key: jax.Array,
    fn: Callable[[Any], jax.Array],
    root: Callable[[Any], jax.Array],
    params: Any,
    m: int,
    *,
    num_steps: int,
    family: str = "less",
    ridge: Any = 0.0,
    axis_name: Any = None,
) -> Minimum:
    r"""Minimises a sum over many rows by Newton steps with sketched Hessians.

    $$x_{t+1} = x_t - \Big(1 - \frac{d}{m}\Big)
      \Big(\tfrac{1}{\gamma}\, B_t^T S_t^T S_t B_t + \mathrm{ridge}\, I\Big)^{-1}
      \nabla f(x_t) , \qquad B_t^T B_t + \mathrm{ridge}\, I \approx \nabla^2 f(x_t) ,$$

    with a new S_t of m rows at each step and the scalar gamma of its family. Near the
    minimum the squared error, in the norm of the Hessian, falls by about d / m a step,
    whatever the condition number. Steps are full: start where Newton's method itself
    converges. With a ridge gamma is that of the effective dimension, while the length
    of the step stays that of d: safe, and short where few directions count.

    Args:
        key: scalar typed key.
        fn: params -> scalar, the objective, its ridge term included.
        root: params -> floating (n, d), a matrix B whose Gram is the Hessian without
            the ridge; d numbers in params, in the order of
            `jax.flatten_util.ravel_pytree` (that of sorted keys in a dict). Or a
            pytree like params, of leaves (n, *shape), as `jax.jacobian` of n residuals
            returns. For a sum of losses of A @ x: the rows of A, each times the root
            of its loss's second derivative; for a mean over n rows all that over
            sqrt(n). Without a ridge of full column rank.
        params: pytree of floating leaves, the start.
        m: rows of a sketch, above d; 4 d or more. An int, static under `jit`.
        num_steps: steps, at least 1, static. For the params after each step scan
            `scale_by_newton_sketch` instead.
        family: as in `inverse_gram`; "less" is Newton-LESS.
        ridge: scalar, 0 or more, the coefficient of |params|^2 / 2 in `fn`; its part
            of the Hessian is not sketched.
        axis_name: inside `jax.shard_map`, the mesh axis over which rows are split:
            `root` gives those of this device, `fn` the objective of all (a psum).

    Returns:
        `Minimum(params, decrement)`. Under `jit` params are NaN where the root has a
        column of zeros; other columns that depend on each other make steps huge.

    Raises:
        TypeError: `key` is not a typed key, or the root is not floating.
        ValueError: the root is no matrix with a column a parameter; m is too small; the
            family is unknown or has no scalar; num_steps is below 1; ridge, where
            concrete, is negative or NaN; params, where concrete, come out not finite.

    Complexity:
        A step: one gradient, one root, and what `inverse_gram` costs without inverting.
        Outside of `jit` each call compiles its steps anew.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> A = jax.random.normal(jax.random.key(0), (500, 3))
        >>> fn = lambda x: 0.5 * ((A @ (x - 1)) ** 2).sum()
        >>> found = newton_sketch(
        ...     jax.random.key(1), fn, lambda x: A, jnp.zeros(3), 60, num_steps=10
        ... )
        >>> bool(abs(found.params - 1).max() < 1e-3)
        True

    References:
        Pilanci, Wainwright 2017, Newton sketch (arXiv 1505.02250);
        Derezinski, Lacotte, Pilanci, Mahoney 2021, Newton-LESS (arXiv 2107.07480).
    """
    check_integer(num_steps, "num_steps", 1)
    options = dict(family=family, ridge=ridge, axis_name=axis_name)
    method = scale_by_newton_sketch(key, root, m, **options)

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        update: Any = method.update
        direction, state = update(jax.grad(fn)(params), state, params)
        params = jax.tree.map(lambda x, dx: x - dx, params, direction)
        return (params, state), state.decrement

    start = params, method.init(params)
    (params, _), decrement = jax.lax.scan(step, start, length=num_steps)
    if not all(seen_finite(leaf) for leaf in jax.tree.leaves(params)):
        raise ValueError(
            f"params are not finite after {num_steps} steps; wanted a root(params) "
            f"without columns that depend on each other: drop some, or give a ridge; "
            f"and a start from which full steps converge: start nearer, or scan "
            f"scale_by_newton_sketch with a line search."
        )
    return Minimum(params, decrement)


def scale_by_newton_sketch(
    key: jax.Array,
    root: Callable[[Any], jax.Array],
    m: int,
    *,
    family: str = "less",
    ridge: Any = 0.0,
    axis_name: Any = None,
) -> optax.GradientTransformation:
    """Gradients times the inverse of a sketched Hessian, as an optax transformation.

    `(1 - d / m) inv(H_t) g`, the step of `newton_sketch`, which says what the arguments
    are; chain it with `optax.scale(-1.0)`, or with a line search where full steps would
    be too long.

    Args:
        key: scalar typed key; each update splits it.
        root: params -> floating (n, d), a matrix whose Gram is the Hessian without the
            ridge, or a pytree of its columns.
        m: rows of a sketch, above d.
        family: as in `inverse_gram`.
        ridge: scalar, 0 or more.
        axis_name: inside `jax.shard_map`, the mesh axis over which the rows of the root
            are split; the gradient is that of all rows on every device.

    Returns:
        `optax.GradientTransformation`, whose `update` needs params and whose state is
        a `NewtonSketchState`. Updates have the sign and the dtypes of the gradients.

    Raises:
        TypeError: `key` is not a typed key; in `update`: the root is not floating.
        ValueError: the family is unknown; ridge, where concrete, is negative or NaN;
            in `update`: params are missing, the root is no matrix with a column a
            parameter, or, where concrete, has columns that are seen to depend on each
            other; m is too small, or the family has no scalar.

    Complexity:
        An update: one root, and what `inverse_gram` costs without inverting.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> A = jax.random.normal(jax.random.key(0), (500, 3))
        >>> newton = scale_by_newton_sketch(jax.random.key(1), lambda x: A, 60)
        >>> optimizer = optax.chain(newton, optax.scale(-1.0))
        >>> x = jnp.ones(3)
        >>> updates, _ = optimizer.update(A.T @ (A @ x), optimizer.init(x), x)
        >>> bool(abs(optax.apply_updates(x, updates)).max() < 0.5)
        True

    References:
        Derezinski, Lacotte, Pilanci, Mahoney 2021, Newton-LESS (arXiv 2107.07480).
    """
    check_key(key)
    check_choice(family, FAMILIES, "family")
    check_ridge(ridge)

    def init(params: Any) -> NewtonSketchState:
        flat, _ = ravel_pytree(params)
        return NewtonSketchState(key, jnp.asarray(jnp.inf, in_float32(flat).dtype))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(
                "params are None; wanted the params at which the gradient was taken: "
                "optimizer.update(gradients, state, params)."
            )
        gradient, unravel = ravel_pytree(updates)
        matrix = _check_root(root(params), params, len(gradient))
        check_sketch_shape(m, len(matrix))
        wide, given = in_float32(matrix), known_ridge(ridge)
        options = dict(m=m, family=family, axis_name=axis_name)
        following, direction, decrement = _step(
            state.key, wide, gradient, given, **options
        )
        if seen_finite(gradient) and not seen_finite(direction):
            raise ValueError(
                f"root(params) is {describe(matrix)} with columns that depend on each "
                f"other, or not finite, so that its Gram matrix has no inverse; wanted "
                f"independent ones: drop some, or give a ridge."
            )
        state = NewtonSketchState(following, decrement.astype(state.decrement.dtype))
        return unravel(direction.astype(gradient.dtype)), state

    return optax.GradientTransformation(init, update)


@partial(jax.jit, static_argnames=("m", "family", "axis_name"))
def _step(
    key: jax.Array,
    root: jax.Array,
    gradient: jax.Array,
    ridge: Any,
    *,
    m: int,
    family: str,
    axis_name: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The next key, (1 - d / m) inv(H) g, and half of g^T inv(H) g."""
    following, scoring, drawing = jax.random.split(key, 3)
    R = sketcher(scoring, root, m, family, ridge, axis_name)(drawing)
    half = solve_triangular(R, gradient.astype(R.dtype), trans=1)
    direction = (1 - len(gradient) / m) * solve_triangular(R, half)
    return following, direction, 0.5 * half @ half


def _check_root(root: Any, params: Any, num_params: int) -> jax.Array:
    """The matrix, or that of a pytree of its columns, a column for each parameter."""
    parts, form = jax.tree.flatten(root)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    if form == jax.tree.structure(params) and shapes:
        rows = jnp.shape(parts[0])[:1]
        wanted = [(*rows, *shape) for shape in shapes]
        if rows and [jnp.shape(part) for part in parts] == wanted:
            columns = [check_floating(part, "root(params)") for part in parts]
            columns = [x.reshape(*rows, math.prod(x.shape[1:])) for x in columns]
            root = jnp.concatenate(columns, axis=1)
    if not jax.tree_util.all_leaves([root]):
        raise ValueError(
            f"root(params) has leaves {[describe(part) for part in parts]} and params "
            f"those of shapes {shapes}; wanted one matrix, or a pytree like params "
            f"with leaves of shapes (n, *shape)."
        )
    matrix = check_matrix(root, "root(params)")
    if matrix.shape[1] != num_params:
        raise ValueError(
            f"root(params) is {describe(matrix)} and params hold {num_params} numbers; "
            f"wanted a column a number, in the order of ravel_pytree."
        )
    return matrix
