"""A call that carries what some transform should know of the function behind it."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from ._versions import ANNOTATED


class Annotation(Protocol):
    """What is known of a function; hashable, by identity or by value."""

    def batched(self, in_axes: Sequence[int | None], axis_size: int) -> "Annotation":
        """What is then known of the function mapped over some of its operands.

        Args:
            in_axes: For each operand the axis that is mapped, or None; the results get
                the new axis in front.
            axis_size: The length of the axis.
        """
        ...


def annotated_call(fn: Callable[..., Any], annotation: Annotation, *args: Any) -> Any:
    """`fn(*args)`, as one equation of a jaxpr that carries the annotation.

    The equation behaves as its body in every transform of JAX, and `flatten` and
    `interpret` look into it; a transform that reads the annotation flattens with
    `keep_whole`. Derivatives are those of the body and carry no annotation.

    Args:
        fn: A function of pytrees of arrays; arrays that it closes over become operands
            in front of the arguments.
        annotation: Becomes `params["annotation"]`; `params["num_consts"]` says how many
            operands come first.
        *args: Its arguments.

    Example:
        >>> import jax.numpy as jnp
        >>> class Note:
        ...     def batched(self, in_axes, axis_size):
        ...         return self
        >>> fn = lambda x: annotated_call(jnp.sin, Note(), x)
        >>> jax.make_jaxpr(fn)(1.0).eqns[0].primitive
        annotated_call
        >>> float(jax.grad(fn)(0.0))
        1.0
    """
    leaves, treedef = jax.tree.flatten(args)

    def flat(*values: Any) -> Any:
        return fn(*treedef.unflatten(values))

    closed, shapes = jax.make_jaxpr(flat, return_shape=True)(*leaves)
    consts = closed.consts
    if consts:
        open_jaxpr = closed.jaxpr

        def hoisted(consts: Any, *values: Any) -> Any:
            return jaxpr_as_fun(ClosedJaxpr(open_jaxpr, consts))(*values)

        closed = jax.make_jaxpr(hoisted)(consts, *leaves)
    outs = _annotated_call_p.bind(
        *consts, *leaves, jaxpr=closed, annotation=annotation, num_consts=len(consts)
    )
    return jax.tree.unflatten(jax.tree.structure(shapes), outs)


def _run(*args: Any, jaxpr: Any, **_: Any) -> list[Any]:
    return jaxpr_as_fun(jaxpr)(*args)


def _abstract(*_: Any, jaxpr: Any, **__: Any) -> Any:
    return jaxpr.out_avals, jaxpr.effects


def _with_some(fn: Callable[..., Any], args: Sequence[Any], which: Sequence[bool]):
    """`fn` of some of its arguments, the others fixed."""

    def of_some(*some: Any) -> Any:
        given = iter(some)
        return fn(*(next(given) if w else a for w, a in zip(which, args, strict=True)))

    return of_some


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, jaxpr: Any, **_: Any):
    moved = [not isinstance(t, ad.Zero) for t in tangents]
    fn = _with_some(jaxpr_as_fun(jaxpr), primals, moved)
    at = [p for p, m in zip(primals, moved, strict=True) if m]
    return jax.jvp(fn, at, [t for t, m in zip(tangents, moved, strict=True) if m])


def _transpose(cotangents: Sequence[Any], *args: Any, jaxpr: Any, **_: Any):
    linear = [ad.is_undefined_primal(a) for a in args]
    fn = _with_some(jaxpr_as_fun(jaxpr), args, linear)
    avals = [a.aval for a, is_linear in zip(args, linear, strict=True) if is_linear]
    given = [ad.instantiate_zeros(c) for c in cotangents]
    found = iter(jax.linear_transpose(fn, *avals)(given))
    return [next(found) if is_linear else None for is_linear in linear]


def _batch(
    axis: Any,
    args: Sequence[Any],
    dims: Sequence[Any],
    *,
    jaxpr: Any,
    annotation: Annotation,
    num_consts: int,
):
    in_axes = list(dims)
    mapped = jax.vmap(
        jaxpr_as_fun(jaxpr),
        in_axes,
        axis_size=axis.size,
        axis_name=axis.name,
        spmd_axis_name=axis.spmd_name,
    )
    outs = _annotated_call_p.bind(
        *args,
        jaxpr=jax.make_jaxpr(mapped)(*args),
        annotation=annotation.batched(in_axes, axis.size),
        num_consts=num_consts,
    )
    return outs, [0] * len(outs)


_annotated_call_p = Primitive(ANNOTATED)
_annotated_call_p.multiple_results = True
_annotated_call_p.def_impl(_run)
_annotated_call_p.def_effectful_abstract_eval(_abstract)
ad.primitive_jvps[_annotated_call_p] = _jvp
ad.primitive_transposes[_annotated_call_p] = _transpose
batching.fancy_primitive_batchers[_annotated_call_p] = _batch
mlir.register_lowering(_annotated_call_p, mlir.lower_fun(_run, multiple_results=True))
