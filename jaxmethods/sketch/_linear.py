"""An operator applied to a matrix, as one jax primitive that knows its transpose.

The fast form of a sketch is a loop that reads blocks of A where they lie. What jax
would derive from it is not fast: the transpose of such a loop adds an array as large
as A at every step. So `S @ A` is a primitive, linear in A, with three facts about it:
its jvp is itself, its transpose is `S.T @ Y`, and a batch of matrices is one wide
matrix. A family of operators writes two plain functions, `apply` and
`apply_transpose`, and never meets autodiff. Those who bound functions learn here that
the primitive is linear, and the operator of the entries' absolute values.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ..core import Node, register_linear, vary_together


def linear_apply(operator: Any, matrix: jax.Array, *, transposed: bool) -> jax.Array:
    """`operator.apply(matrix)`, or `apply_transpose`, with the derivatives above.

    Args:
        operator: pytree with `shape` (m, n), `apply` and `apply_transpose`.
        matrix: floating (n, d), or (m, d) where transposed.
        transposed: whether to apply the transpose.

    Returns:
        (m, d), or (n, d) where transposed, in the dtype of `matrix`.
    """
    arrays, form = _flatten(operator)
    operands = vary_together([*arrays, matrix])
    return _apply_p.bind(*operands, form=form, transposed=transposed)


class _Form(NamedTuple):
    """What of an operator is static.

    Attributes:
        treedef: Its structure.
        impls: Of its keys; None for a leaf that is no key.
        name: The structure in words: structures of different dataclasses with equal
            fields are equal to jax, and one would be taken for the other.
    """

    treedef: Any
    impls: tuple[Any, ...]
    name: str


def _flatten(operator: Any) -> tuple[list[jax.Array], _Form]:
    """The leaves of an operator as plain arrays: keys become their words.

    A primitive that took a key would count as a use of it, so that the second
    `S @ A` of one operator would be a reused key to jax's checks.
    """
    leaves, treedef = jax.tree.flatten(operator)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    keys = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    paired = list(zip(leaves, keys, strict=True))
    impls = tuple(jax.random.key_impl(x) if is_key else None for x, is_key in paired)
    arrays = [jax.random.key_data(x) if is_key else x for x, is_key in paired]
    return arrays, _Form(treedef, impls, str(treedef))


def _unflatten(arrays: Any, form: _Form) -> Any:
    leaves = [
        array if impl is None else jax.random.wrap_key_data(array, impl=impl)
        for array, impl in zip(arrays, form.impls, strict=True)
    ]
    return form.treedef.unflatten(leaves)


def _run(*operands: jax.Array, form: _Form, transposed: bool) -> jax.Array:
    """The computation itself, in ordinary jax."""
    *arrays, matrix = operands
    operator = _unflatten(arrays, form)
    return operator.apply_transpose(matrix) if transposed else operator.apply(matrix)


def _abstract(*operands, form, transposed):
    *arrays, matrix = operands
    rows, columns = form.treedef.unflatten(arrays).shape
    shape = (columns if transposed else rows, matrix.shape[1])
    return matrix.update(shape=shape, weak_type=False)


def _jvp(primals, tangents, **params):
    *arrays, matrix = primals
    *array_tangents, matrix_tangent = tangents
    parts = []
    if not isinstance(matrix_tangent, ad.Zero):
        parts.append(_apply_p.bind(*arrays, matrix_tangent, **params))
    moving = [i for i, x in enumerate(array_tangents) if not isinstance(x, ad.Zero)]
    if moving:  # weights of the operator itself: rare, so left to jax

        def of_weights(*weights):
            changed = dict(zip(moving, weights, strict=True))
            kept = [changed.get(i, array) for i, array in enumerate(arrays)]
            return _run(*kept, matrix, **params)

        weights, directions = (
            [values[i] for i in moving] for values in (arrays, array_tangents)
        )
        parts.append(jax.jvp(of_weights, weights, directions)[1])
    return _apply_p.bind(*primals, **params), sum(parts[1:], start=parts[0])


def _transpose(cotangent, *operands, form, transposed):
    *arrays, _ = operands
    back = _apply_p.bind(*arrays, cotangent, form=form, transposed=not transposed)
    return [None] * len(arrays) + [back]


def _batch(operands, dims, **params):
    *arrays, matrix = operands
    *array_dims, matrix_dim = dims
    if all(dim is None for dim in array_dims):
        wide = jnp.moveaxis(matrix, matrix_dim, -1)
        rows, *columns = wide.shape
        flat = wide.reshape(rows, math.prod(columns))
        out = _apply_p.bind(*arrays, flat, **params)
        return out.reshape(len(out), *columns), 2
    mapped = tuple(i for i, dim in enumerate(dims) if dim is not None)
    many = [jnp.moveaxis(operands[i], dims[i], 0) for i in mapped]
    return _each(many, operands, mapped=mapped, **params), 0


# Jitted, or outside of jit the loop were compiled anew at every call.
@partial(jax.jit, static_argnames=("mapped", "form", "transposed"))
def _each(many: Any, shared: Any, *, mapped: tuple[int, ...], **params: Any) -> Any:
    """One operator after the other: batched places would make scatters."""

    def one(slices):
        each = dict(zip(mapped, slices, strict=True))
        return _apply_p.bind(*(each.get(i, x) for i, x in enumerate(shared)), **params)

    return jax.lax.map(one, many)


def _absolute(node: Node, power: int) -> Callable[[Any], list[jax.Array]]:
    """The node with |entry| ** power in the place of each entry of its operator."""
    *arrays, _ = node.inputs
    operator = _unflatten(arrays, node.params["form"])
    if not hasattr(operator, "absolute"):
        raise NotImplementedError(
            f"{type(operator).__name__} does not say what its entries' absolute values "
            "are, which bounds of its products need; wanted a method absolute(power) "
            "that returns the operator of |entry| ** power: write one, or multiply by "
            "the dense matrix."
        )
    sizes, transposed = operator.absolute(power), node.params["transposed"]
    return lambda x: [linear_apply(sizes, x, transposed=transposed)]


def _num_terms(node: Node) -> int:
    """A product a row of the matrix at most, and the scale with its own rounding."""
    return node.inputs[-1].shape[0] + 2


_apply_p = Primitive("sketch_apply")
_apply_p.def_impl(jax.jit(_run, static_argnames=("form", "transposed")))
_apply_p.def_abstract_eval(_abstract)
ad.primitive_jvps[_apply_p] = _jvp
ad.primitive_transposes[_apply_p] = _transpose
batching.primitive_batchers[_apply_p] = _batch
mlir.register_lowering(_apply_p, mlir.lower_fun(_run, multiple_results=False))
register_linear(_apply_p.name, _absolute, _num_terms)
