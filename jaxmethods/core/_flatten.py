"""From a Python function to one flat graph: calls inlined, constants evaluated."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal

from ._checks import is_concrete
from ._graph import Graph, Node, Variable, live_nodes
from ._versions import Body, as_body, bind, call_body, placed

_SPREADING = frozenset(
    {"broadcast_in_dim", "convert_element_type", "reshape", "squeeze"}
)

# These mean something inside a `shard_map` only.
_ON_A_MESH = frozenset({"pbroadcast", "pvary"})


def flatten(
    fn: Callable[..., Any],
    *args: Any,
    marked: Sequence[bool] | None = None,
    inline: "Mapping[str, Inliner] | None" = None,
) -> Graph:
    """Traces `fn` and returns what happens between marked inputs and outputs.

    Calls (`jit`, `remat`, `custom_jvp`, `custom_vjp`) are inlined; equations that no
    marked input reaches are evaluated, whatever they are; equations that no output
    needs are dropped; `scan`, `while` and `cond` stay one node each, unless `inline`
    says what becomes of them.

    Args:
        fn: Any function of pytrees. Unmarked leaves reach it as they are, so Python
            flags and strings work; they may be tracers.
        *args: Its arguments. A marked leaf needs a shape and a dtype only.
        marked: One bool a leaf of `args`, in tree order; None marks every leaf.
        inline: For a primitive, what puts nodes in the place of an equation that a
            marked input reaches: `unroll_scan`, `inline_cond`, `keep_whole`.

    Returns:
        A `Graph`; `graph.evaluate` computes what `fn` computes.

    Raises:
        ValueError: `marked` has another length than the leaves of `args`.

    Example:
        >>> import jax.numpy as jnp
        >>> graph = flatten(lambda w, x: jnp.tanh(x) @ jnp.exp(w),
        ...                 jnp.ones(3), jnp.ones(3), marked=(False, True))
        >>> [node.name for node in graph.nodes]
        ['tanh', 'dot_general']
    """
    leaves, treedef = jax.tree.flatten(args)
    marked = [True] * len(leaves) if marked is None else list(marked)
    if len(marked) != len(leaves):
        raise ValueError(
            f"marked has {len(marked)} entries for {len(leaves)} leaves; "
            "wanted one bool a leaf, in the order of jax.tree.leaves(args)."
        )

    @wraps(fn, updated=())  # so that jax names the user's in its messages
    def of_marked(*values: Any) -> Any:
        given = iter(values)
        filled = [
            next(given) if m else leaf for m, leaf in zip(marked, leaves, strict=True)
        ]
        return fn(*treedef.unflatten(filled))

    variable_leaves = [leaf for m, leaf in zip(marked, leaves, strict=True) if m]
    closed, shapes = jax.make_jaxpr(of_marked, return_shape=True)(*variable_leaves)
    inputs = tuple(Variable(v.aval) for v in as_body(closed).jaxpr.invars)
    treedef = jax.tree.structure(shapes)
    return flatten_body(as_body(closed), inputs, inputs, inline, treedef)


def flatten_body(
    body: Body,
    atoms: Sequence[Any],
    inputs: tuple[Variable, ...],
    inline: "Mapping[str, Inliner] | None" = None,
    treedef: Any = None,
    caller: JaxprEqn | None = None,
) -> Graph:
    """The graph of a jaxpr that is called on variables and constants.

    Args:
        body: From `as_body`.
        atoms: A variable, or the array of a constant, for each of its inputs.
        inputs: The inputs of the graph; they hold the variables among the atoms.
        inline: As for `flatten`.
        treedef: The structure of the results; None for a tuple.
        caller: The equation that the body belongs to.
    """
    needed = [True] * len(body.jaxpr.outvars)
    flattening = Flattening(inline or {})
    outputs = tuple(flattening.walk(body, list(atoms), needed, caller))
    live = live_nodes(flattening.nodes, outputs)
    return Graph(inputs, live, outputs, treedef or jax.tree.structure(outputs))


@dataclass(frozen=True)
class Flattening:
    """A graph in the making.

    Attributes:
        inline: What becomes of the equations of some primitives.
        nodes: The nodes so far; what is not needed is dropped in the end.
    """

    inline: "Mapping[str, Inliner]"
    nodes: list[Node] = field(default_factory=list)

    def walk(
        self,
        body: Body,
        atoms: Sequence[Any],
        needed: Sequence[bool],
        caller: JaxprEqn | None = None,
    ) -> list[Any]:
        """Appends the nodes of a body, called on `atoms`; returns its output atoms.

        An output that is not needed has no value: it is None, and nobody reads it.
        Equations without a line of the user's take that of their caller.
        """
        jaxpr, consts = body
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, atoms, strict=True))

        def read(var: Any) -> Any:
            return var.val if isinstance(var, Literal) else env[var]

        for equation, wanted in _live_equations(jaxpr, needed):
            inputs = [read(v) for v in equation.invars]
            outs = self._apply(placed(equation, caller), inputs, wanted)
            env.update(zip(equation.outvars, outs, strict=True))
        return [
            read(v) if n else None for v, n in zip(jaxpr.outvars, needed, strict=True)
        ]

    def emit(
        self,
        name: str,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        evaluate: Callable[..., list[Any]],
        equation: JaxprEqn,
        params: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """Appends a node; where no operand is a variable, evaluates it instead.

        Args:
            name: As in `Node`, like the arguments that follow.
            inputs: Its operands.
            outputs: The avals of its outputs.
            evaluate: What it computes.
            equation: Where it comes from.
            params: Its parameters.

        Returns:
            The atoms of its outputs.
        """
        inputs = [_known_if_empty(atom) for atom in inputs]
        if not any(isinstance(atom, Variable) for atom in inputs):
            return evaluate(*inputs)
        made = tuple(map(Variable, outputs))
        node = Node(name, tuple(inputs), made, dict(params or {}), evaluate, equation)
        self.nodes.append(node)
        return list(made)

    def _apply(
        self, equation: JaxprEqn, inputs: list[Any], wanted: list[bool]
    ) -> list[Any]:
        if not any(isinstance(atom, Variable) for atom in inputs):
            return _constant(equation, inputs)
        name = equation.primitive.name
        if name in self.inline:
            return self.inline[name](self, equation, inputs, wanted)
        inner = call_body(equation)
        if inner is not None:
            return self.walk(inner, inputs, wanted, equation)
        avals, evaluate = [v.aval for v in equation.outvars], partial(bind, equation)
        return self.emit(name, inputs, avals, evaluate, equation, equation.params)


def _known_if_empty(atom: Any) -> Any:
    """A value without entries depends on nothing."""
    if isinstance(atom, Variable) and not atom.aval.size:
        return jnp.zeros(atom.shape, atom.dtype)
    return atom


# From (a graph in the making, an equation, its operands, which of its outputs are
# needed) to the atoms of its outputs.
Inliner = Callable[[Flattening, JaxprEqn, list[Any], list[bool]], list[Any]]


def _constant(equation: JaxprEqn, inputs: list[Any]) -> list[Any]:
    """Evaluates an equation of constants; a broadcast scalar costs no memory.

    Inside `jit` even known numbers would become tracers. Scalars, what is computed from
    them and what they are broadcast to are what composite functions hold: they stay
    numbers that patterns can compare.
    """
    number = _number(inputs[0]) if len(inputs) == 1 else None
    if equation.primitive.name in _SPREADING and number is not None:
        out: Any = equation.outvars[0].aval
        if not jax.dtypes.issubdtype(out.dtype, jax.dtypes.extended):
            return [np.broadcast_to(np.asarray(number, out.dtype), out.shape)]
    known = bool(inputs) and all(map(is_concrete, inputs))
    if equation.primitive.name in _ON_A_MESH and number is not None:
        return inputs  # `bind` makes it vary where that matters
    values: list[Any] = [*inputs, *(v.aval for v in equation.outvars)]
    if known and all(np.shape(v) == () for v in values):
        with jax.ensure_compile_time_eval():
            return bind(equation, *inputs)
    return bind(equation, *inputs)


def _number(constant: Any) -> Any:
    """The number that an array is a broadcast of; None where it is another array."""
    if not is_concrete(constant):
        return None
    if np.shape(constant) == ():
        return constant
    is_spread = isinstance(constant, np.ndarray) and not any(constant.strides)
    return constant.flat[0] if is_spread and constant.size else None


def _live_equations(jaxpr: Any, needed: Sequence[bool]) -> list[tuple[Any, list[bool]]]:
    """The equations that needed outputs rest on, each with its own needed outputs."""
    alive = {
        v
        for v, n in zip(jaxpr.outvars, needed, strict=True)
        if n and not isinstance(v, Literal)
    }
    kept = []
    for equation in reversed(jaxpr.eqns):
        wanted = [v in alive for v in equation.outvars]
        if any(wanted):
            alive.update(v for v in equation.invars if not isinstance(v, Literal))
            kept.append((equation, wanted))
    return kept[::-1]
