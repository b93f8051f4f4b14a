"""Sums over examples that a loop adds up: each device its own, all once, after it.

A parameter that every round of a `scan` uses has its gradient added up round by round.
A round's share is a product summed over examples, and examples are spread over devices:
left alone, XLA reduces it among them in every round.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ..core import (
    Graph,
    Node,
    Site,
    Variable,
    as_body,
    flatten_body,
    interpret,
    live_nodes,
    occurring,
    scan_arity,
    vary_as,
    vary_together,
)
from ._layout import DATA_LABEL, Layout

_ADDED = ("add", "add_any")
# Linear in their first operand; a product also in its second.
_LINEAR = (
    "convert_element_type transpose reshape squeeze broadcast_in_dim slice split neg "
    "copy reduce_sum mul div"
).split()


def sum_after_loops(
    closed: Any, layout: Layout, args: Sequence[Any], labels: Sequence[Collection[Any]]
) -> Any:
    """The same function, its scans adding up each device's own share of gradients.

    Known by what is added to a carried value of a parameter's size: matrix products,
    convolutions without groups and sums, over examples, and then cast, moved or scaled.

    Args:
        closed: A closed jaxpr.
        layout: Where examples lie.
        args: One value an input.
        labels: For each input, `DATA_LABEL` or the number of a parameter.

    Returns:
        A closed jaxpr.
    """
    if layout.members == 1 or not occurring(closed, ("scan",)):
        return closed
    shapes = [x.shape for x in args[: len(layout.specs)]]
    full = {shapes[kernel.leaf]: layout.specs[kernel.leaf] for kernel in layout.full}
    rule = _Rule(layout, frozenset([1, *map(math.prod, shapes)]), full)

    def rewritten(*values: Any) -> list[Any]:
        return interpret(
            closed, {"scan": rule}, values, labels=labels, inline=("jit", "pjit")
        )

    return jax.make_jaxpr(rewritten)(*args)


class _Step(NamedTuple):
    """An operation that is linear in one operand.

    Attributes:
        node: The operation.
        beside: Its other operands.
        output: Which of its results is meant.
    """

    node: Node
    beside: tuple[Any, ...]
    output: int


@dataclass(frozen=True)
class _Term:
    """A product summed over examples, and what is linear in it, up to a carried value.

    Attributes:
        node: The product.
        axes: The axis of examples of each of its operands.
        chain: The operations after it, in their order.
        over: The axes of the mesh over which examples lie.
    """

    node: Node
    axes: tuple[int, ...]
    chain: tuple[_Step, ...]
    over: tuple[str, ...]

    @property
    def operands(self) -> list[Any]:
        """Those of the product, and what enters the chain beside it."""
        return [*self.node.inputs, *(x for s in self.chain for x in s.beside)]

    def evaluate(self, *operands: Any) -> jax.Array:
        """The term, of part of the examples."""
        count = len(self.node.inputs)
        (value,), others = _bound(self.node, operands[:count]), iter(operands[count:])
        for step in self.chain:
            beside = [next(others) for _ in step.beside]
            value = _bound(step.node, [value, *beside])[step.output]
        return value


@dataclass(frozen=True)
class _Rule:
    """What becomes of a scan.

    Attributes:
        layout: Where examples lie.
        sizes: Numbers of entries of parameters, and 1: what else is carried is left.
        full: Where parameters lie that are spread over all devices, by their shapes.
    """

    layout: Layout
    sizes: Collection[int]
    full: Mapping[tuple[int, ...], P]

    def __call__(self, site: Site, *operands: Any) -> Any:
        body = as_body(site.equation.params["jaxpr"])
        num_consts, num_carry = scan_arity(site.equation)
        inputs = tuple(Variable(v.aval) for v in body.jaxpr.invars)
        graph = flatten_body(body, inputs, inputs)
        data = _data(graph, site.labels, num_consts, num_carry)
        terms = {}
        for number in range(num_carry):
            carried, result = inputs[num_consts + number], graph.outputs[number]
            if math.prod(carried.shape) in self.sizes:
                over = self._over(site, math.prod(carried.shape))
                found = _terms(graph, carried, result, data, (over, self._count(over)))
                if found:
                    terms[number] = found
        if terms:
            return self._rewritten(site, operands, graph, terms)
        if not occurring(site.equation.params["jaxpr"], ("scan",)):
            return NotImplemented
        marks = [{DATA_LABEL} if x in data else set() for x in inputs]
        return self._inside(site, operands, marks)

    def _over(self, site: Site, size: int) -> tuple[str, ...]:
        """The axes of the mesh over which the examples of a gradient lie."""
        # Those of a split layer that the loop holds are gathered in the group.
        split = any(
            math.prod(kernel.shape) == size and {kernel.leaf} in site.labels
            for kernel in self.layout.splits
        )
        return self.layout.shared if split else self.layout.own

    def _count(self, over: tuple[str, ...]) -> int:
        mesh = self.layout.mesh or jax.sharding.get_abstract_mesh()
        return math.prod(mesh.shape[axis] for axis in over)

    def _rewritten(
        self,
        site: Site,
        operands: Sequence[Any],
        graph: Graph,
        terms: Mapping[int, Sequence[_Term]],
    ) -> list[Any]:
        """The scan with shares in the place of sums; the sums after it."""
        params, (num_consts, num_carry) = (
            site.equation.params,
            scan_arity(site.equation),
        )
        consts, start = operands[:num_consts], list(operands[num_consts:])
        start, xs = start[:num_carry], start[num_carry:]
        wanted = [x for number in terms for t in terms[number] for x in t.operands]
        rest = [x for n, x in enumerate(graph.outputs) if n not in terms]
        outputs = tuple([*rest, *wanted])
        inner = replace(
            graph,
            nodes=live_nodes(graph.nodes, outputs),
            outputs=outputs,
            treedef=jax.tree.structure(outputs),
        )
        shares = {n: self._zeros(start[n], found[0].over) for n, found in terms.items()}

        def step(carry: Any, x: Any) -> Any:
            state, shares = carry
            whole = [start[n] if n in terms else state[n] for n in range(num_carry)]
            values = inner.evaluate(*consts, *whole, *x)
            kept, given = list(values[: len(rest)]), iter(values[len(rest) :])
            added = {}
            for number, found in terms.items():
                share = shares[number]
                for term in found:
                    own = [next(given) for _ in term.operands]
                    share = share + self._share(term, own)
                added[number] = share
            count = num_carry - len(terms)
            state = dict(zip(state, kept[:count], strict=True))
            return (state, added), kept[count:]

        others = {n: x for n, x in enumerate(start) if n not in terms}
        (state, shares), ys = jax.lax.scan(
            step,
            (others, shares),
            xs,
            length=params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
        sums = {n: start[n] + self._sum(x, terms[n][0].over) for n, x in shares.items()}
        return [*({**state, **sums}[n] for n in range(num_carry)), *ys]

    def _zeros(self, x: Any, over: tuple[str, ...]) -> jax.Array:
        shape = (self._count(over), *x.shape)
        zeros = vary_as(jnp.zeros(shape, x.dtype), jax.typeof(x))
        return self.layout.put(zeros, P(over))

    def _sum(self, shares: jax.Array, over: tuple[str, ...]) -> jax.Array:
        layout, spec = self.layout, self.full.get(shares.shape[1:])
        if spec is None or over != layout.own:
            return shares.sum(0)
        # XLA would reduce to all devices and cut.
        axis = len(spec) - 1
        return jax.shard_map(
            lambda own: jax.lax.psum_scatter(
                own[0], over, scatter_dimension=axis, tiled=True
            ),
            mesh=layout.mesh,
            in_specs=P(over),
            out_specs=spec,
            axis_names=set(over),
        )(shares)

    def _share(self, term: _Term, operands: Sequence[Any]) -> Any:
        """What each device adds, along a leading axis of devices."""
        layout, over = self.layout, term.over
        count = len(term.axes)
        specs = [
            layout.spec(x.ndim, {axis: over})
            for x, axis in zip(operands[:count], term.axes, strict=True)
        ]
        product = jax.shard_map(
            lambda *own: term.evaluate(*own)[None],
            mesh=layout.mesh,
            in_specs=(*specs, *[P()] * (len(operands) - count)),
            out_specs=P(over),
            axis_names=set(over),
        )
        return product(*map(jnp.asarray, operands))

    def _inside(
        self, site: Site, operands: Sequence[Any], marks: Sequence[Collection[Any]]
    ) -> list[Any]:
        """The scan, with the rule for the scans in its body."""
        params, (num_consts, num_carry) = (
            site.equation.params,
            scan_arity(site.equation),
        )
        consts, rest = operands[:num_consts], operands[num_consts:]

        def step(carry: Any, x: Any) -> Any:
            values = [*consts, *carry, *x]
            outs = interpret(
                params["jaxpr"],
                {"scan": self},
                values,
                labels=marks,
                inline=("jit", "pjit"),
            )
            return outs[:num_carry], outs[num_carry:]

        carry, ys = jax.lax.scan(
            step,
            list(rest[:num_carry]),
            list(rest[num_carry:]),
            length=params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
        return [*carry, *ys]


def _data(
    graph: Graph,
    labels: Sequence[Collection[Any]],
    num_consts: int,
    num_carry: int,
) -> set[Variable]:
    """The variables of a loop's body that depend on the batch, in any round."""
    pairs = zip(graph.inputs, labels, strict=True)
    data = {x for x, label in pairs if DATA_LABEL in label}
    carried = graph.inputs[num_consts : num_consts + num_carry]
    while True:
        for node in graph.nodes:
            if not data.isdisjoint(node.variables):
                data.update(node.outputs)
        grown = {
            x for x, out in zip(carried, graph.outputs, strict=False) if out in data
        }
        if grown <= data:
            return data
        data |= grown


def _terms(
    graph: Graph,
    carried: Variable,
    result: Any,
    data: Collection[Variable],
    over: tuple[tuple[str, ...], int],
) -> list[_Term]:
    """What a round adds to a carried value; [] where it is not such terms alone.

    Args:
        graph: The body of the loop.
        carried: The value as it enters a round.
        result: As it leaves.
        data: What depends on the batch.
        over: The axes of the mesh over which examples lie, and their devices.
    """
    uses = Counter(atom for node in graph.nodes for atom in node.variables)
    uses.update(atom for atom in graph.outputs if isinstance(atom, Variable))
    made = {out: node for node in graph.nodes for out in node.outputs}

    def depends(atom: Any) -> bool:
        return isinstance(atom, Variable) and atom in data

    def added(atom: Any) -> list[Any] | None:
        """The other summands of a sum that a carried value starts."""
        if atom is carried:
            return []
        node = made.get(atom)
        if node is None or node.name not in _ADDED or uses[atom] > 1:
            return None
        for here, other in (node.inputs, node.inputs[::-1]):
            before = added(here)
            if before is not None:
                return [*before, other]
        return None

    def terms(atom: Any, chain: tuple[_Step, ...]) -> list[_Term] | None:
        node = made.get(atom)
        if node is None:
            return None
        axes = _examples(node, data, over[1])
        first, *beside = node.inputs
        if node.name == "mul" and not depends(first):
            first, beside = beside[0], [first]
        if node.name in _LINEAR and not any(map(depends, beside)):
            step = _Step(node, tuple(beside), node.outputs.index(atom))
            # A sum after a product is not over examples.
            found = terms(first, (step, *chain))
            if found is not None:
                return found
        if axes is not None:
            return [_Term(node, axes, chain, over[0])]
        if node.name in _ADDED:
            both = [terms(x, chain) for x in node.inputs]
            return None if None in both else [t for found in both for t in found or ()]
        return None

    summands = added(result) if uses[carried] == 1 else None
    found = [terms(atom, ()) for atom in summands or ()]
    return [] if None in found else [t for some in found for t in some or ()]


def _bound(node: Node, operands: Sequence[Any]) -> list[Any]:
    # Not `node.evaluate`: that restores the mesh of the function outside.
    primitive = node.equation.primitive
    out = primitive.bind(*vary_together([*operands]), **node.params)
    return list(out) if primitive.multiple_results else [out]


def _examples(
    node: Node, data: Collection[Variable], count: int
) -> tuple[int, ...] | None:
    """The axis of examples of each operand of a product that sums over them."""
    if not all(isinstance(x, Variable) and x in data for x in node.inputs):
        return None
    shapes, params = [x.shape for x in node.inputs], node.params
    pairs: list[tuple[int, ...]] = []
    if node.name == "dot_general" and not params["dimension_numbers"][1][0]:
        pairs = [*zip(*params["dimension_numbers"][0], strict=True)]
    if node.name == "reduce_sum":
        pairs = [(axis,) for axis in params["axes"]]
    if node.name == "conv_general_dilated":
        grouped = params["feature_group_count"] * params["batch_group_count"] > 1
        dimensions = params["dimension_numbers"]
        pairs = [] if grouped else [(dimensions.lhs_spec[1], dimensions.rhs_spec[1])]
    return next((p for p in pairs if count > 1 and shapes[0][p[0]] % count == 0), None)
