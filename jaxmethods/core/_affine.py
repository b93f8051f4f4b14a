"""Which primitives are affine, and in which of their operands."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._graph import Node, Variable

# Linear in these operands together, whatever the others (indices, predicates) hold.
_JOINT: dict[str, tuple[int, ...]] = {
    "add": (0, 1),
    "add_any": (0, 1),
    "broadcast_in_dim": (0,),
    "convert_element_type": (0,),
    "copy": (0,),
    "copy_p": (0,),
    "cumsum": (0,),
    "device_put": (0,),
    "div": (0,),
    "dynamic_slice": (0,),
    "dynamic_update_slice": (0, 1),
    "expand_dims": (0,),
    "gather": (0,),
    "name": (0,),
    "neg": (0,),
    "optimization_barrier": (0,),
    "pad": (0, 1),
    "pbroadcast": (0,),
    "pvary": (0,),
    "reduce_sum": (0,),
    "reduce_window_sum": (0,),
    "reshape": (0,),
    "reshard": (0,),
    "rev": (0,),
    "scatter": (0, 2),
    "scatter-add": (0, 2),
    "select_and_gather_add": (0,),
    "select_and_scatter_add": (0,),
    "sharding_constraint": (0,),
    "slice": (0,),
    "split": (0,),
    "squeeze": (0,),
    "sub": (0, 1),
    "tile": (0,),
    "transpose": (0,),
    "triangular_solve": (1,),
    "unstack": (0,),
}
_ALL_OPERANDS = frozenset({"concatenate", "stack"})
# Linear in either of two operands while the other is fixed.
_BILINEAR = frozenset({"conv_general_dilated", "dot_general", "mul"})


class LinearRule(NamedTuple):
    """What is known of a primitive that is linear in its last operand.

    Attributes:
        absolute: `absolute(node, power) -> linear(x) -> list of outputs`: the node with
            |coefficient| ** power in the place of each coefficient.
        num_terms: `num_terms(node)`: how many rounded terms an output adds up.
    """

    absolute: Callable[[Node, int], Callable[[Any], list[Any]]]
    num_terms: Callable[[Node], int]


_LINEAR: dict[str, LinearRule] = {}


def register_linear(
    name: str,
    absolute: Callable[[Node, int], Callable[[Any], list[Any]]],
    num_terms: Callable[[Node], int],
) -> None:
    """Declares a primitive of another package linear in its last operand.

    The package that owns the primitive calls it on import; it gives the primitive a
    transpose as well. The operands before the last are factors, not added.

    Args:
        name: The name of the primitive.
        absolute: As in `LinearRule`.
        num_terms: As in `LinearRule`.

    Example:
        >>> register_linear(
        ...     "halve", lambda node, power: lambda x: [x / 2**power], lambda node: 1
        ... )
        >>> linear_rule("halve").absolute(None, 2)(8.0)
        [2.0]
    """
    _LINEAR[name] = LinearRule(absolute, num_terms)


def linear_rule(name: str) -> LinearRule | None:
    """What a package has declared of its linear primitive; None for any other.

    Example:
        >>> linear_rule("sin") is None
        True
    """
    return _LINEAR.get(name)


def _joint_operands(node: Node) -> tuple[int, ...]:
    if node.name in _LINEAR:
        return (len(node.inputs) - 1,)
    if node.name in _ALL_OPERANDS:
        return tuple(range(len(node.inputs)))
    if node.name == "select_n":
        return tuple(range(1, len(node.inputs)))
    return _JOINT.get(node.name, ())


def _variable_positions(node: Node) -> list[int]:
    return [i for i, atom in enumerate(node.inputs) if isinstance(atom, Variable)]


def _is_real(node: Node) -> bool:
    values = [*node.variables, *node.outputs]
    return all(jnp.issubdtype(v.dtype, jnp.floating) for v in values)


def is_affine(node: Node) -> bool:
    """Whether a node's outputs are affine in all of its variable operands together.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods.core import flatten
        >>> graph = flatten(lambda x: (2.0 * x - 1.0) * x, jnp.ones(3))
        >>> [(node.name, is_affine(node)) for node in graph.nodes]
        [('mul', True), ('sub', True), ('mul', False)]
    """
    where = _variable_positions(node)
    if not _is_real(node):
        return False
    if node.name in _BILINEAR:
        return len(where) == 1
    return set(where) <= set(_joint_operands(node))


def is_bilinear(node: Node) -> bool:
    """Whether a node is a product of two variables: `mul`, `dot_general`, `conv`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods.core import flatten
        >>> graph = flatten(lambda w, x: (2.0 * w) @ x, jnp.ones((2, 3)), jnp.ones(3))
        >>> [(node.name, is_bilinear(node)) for node in graph.nodes]
        [('mul', False), ('dot_general', True)]
    """
    both = node.name in _BILINEAR and len(_variable_positions(node)) == 2
    return both and _is_real(node)


def linear_part(node: Node) -> Callable[..., list[Any]]:
    """An affine node without its offset, as a function of the variable operands.

    Constants that are added count as zero; factors, indices and predicates stay. The
    result is what `jax.linear_transpose` can transpose.

    Args:
        node: A node for which `is_affine` holds.

    Returns:
        `linear(*variables) -> list of outputs`, variables in the order of
        `node.variables`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods.core import flatten
        >>> graph = flatten(lambda x: x - 4.0, jnp.ones(2))
        >>> print(linear_part(graph.nodes[0])(jnp.array([1.0, 2.0]))[0])
        [1. 2.]
    """
    added = () if node.name in _BILINEAR else _joint_operands(node)
    where = _variable_positions(node)
    fixed = [
        jnp.zeros_like(atom) if i in added and i not in where else atom
        for i, atom in enumerate(node.inputs)
    ]

    def linear(*variables: Any) -> list[Any]:
        operands = list(fixed)
        for i, value in zip(where, variables, strict=True):
            operands[i] = value
        return node.evaluate(*operands)

    return linear


def offset(node: Node) -> list[Any] | None:
    """The outputs of an affine node where its variables are zero; None if all zero.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods.core import flatten
        >>> graph = flatten(lambda x: 2.0 * x - 4.0, jnp.ones(2))
        >>> [offset(node) is None for node in graph.nodes]
        [True, False]
    """
    if node.name in _BILINEAR or len(node.variables) == len(_joint_operands(node)):
        return None
    where = _variable_positions(node)
    operands = [
        zeros_of(atom) if i in where else atom for i, atom in enumerate(node.inputs)
    ]
    return node.evaluate(*operands)


def zeros_of(variable: Variable) -> Any:
    """Zeros like a variable, varying over the same mesh axes of a `shard_map`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods.core import flatten
        >>> graph = flatten(lambda x: 2.0 * x, jnp.ones((2, 3)))
        >>> zeros_of(graph.inputs[0]).shape
        (2, 3)
    """
    aval = variable.aval
    kind = getattr(aval, "manual_axis_type", None)  # jax has called it both ways
    axes = getattr(aval, "vma", ()) if kind is None else kind.varying
    zeros = jnp.zeros(variable.shape, variable.dtype)
    return jax.lax.pcast(zeros, tuple(sorted(axes)), to="varying") if axes else zeros
