"""Finds vectors divided by their root mean square, however that is written.

Layer, group and RMS norms and x / ||x|| all divide y by sqrt(scale sum(y^2) + eps): y
centred or not, the variance as E y^2 or as E x^2 - (E x)^2, the factor with a gain in
it or not, the groups along axes or inside a reshaped one. A match looks for the sum of
squares behind a divisor and checks that it is that of what is divided.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ._checks import is_concrete
from ._graph import Graph, Node, Variable, live_nodes
from ._moves import Producers, flat_origin, groups, is_move, moved, same_value

Shape = tuple[int, ...]


class _Vector(NamedTuple):
    """What is normalised: `source`, less its means over groups where `centered`.

    Two are equal where the same entries are grouped alike, in whatever shape.
    """

    source: Variable
    centered: bool


class _Squares(NamedTuple):
    """The value scale * sum(vector^2) + eps, with a sum for each group.

    Attributes:
        vector: What is squared.
        shape: The shape in which it is.
        axes: The axes of that shape which are summed.
        scale: A positive number.
        eps: A scalar, perhaps traced.
        indices: For each entry of the value, the place of its group.
    """

    vector: _Vector
    shape: Shape
    axes: Shape
    scale: float
    eps: Any
    indices: np.ndarray


class _Factor(NamedTuple):
    """A gain / sqrt(squares), or that of which a quotient is taken."""

    squares: _Squares
    gains: tuple[tuple[str, Any], ...]


def match_normalizations(graph: Graph) -> Graph:
    """Replaces y / sqrt(scale sum(y^2) + eps) by two nodes, `norm` and `normalize`.

    Args:
        graph: From `flatten`, without repeats.

    Returns:
        A graph of the same function. A `norm` has the inputs y and eps (a constant) and
        computes the divisor, with axes of size 1; params are "axes" and "scale". A
        `normalize` has the inputs y, the norm and eps, and divides; the same params.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods.core import flatten
        >>> fn = lambda x: x / jnp.sqrt(jnp.mean(x * x, keepdims=True) + 1e-6)
        >>> graph = match_normalizations(flatten(fn, jnp.ones(3)))
        >>> [node.name for node in graph.nodes]
        ['norm', 'normalize']
    """
    producers = {out: node for node in graph.nodes for out in node.outputs}
    matcher = _Matcher(producers)
    nodes = [piece for node in graph.nodes for piece in matcher.visit(node)]
    live = live_nodes(nodes, graph.outputs)
    return Graph(graph.inputs, live, graph.outputs, graph.treedef)


class _Matcher:
    def __init__(self, producers: Producers) -> None:
        self.producers = producers

    def visit(self, node: Node) -> Sequence[Node]:
        if node.name not in ("mul", "div") or not isinstance(node.inputs[1], Variable):
            return [node]
        pairs = [node.inputs]
        if node.name == "mul":
            pairs.append(node.inputs[::-1])
        for vector, divisor in pairs:
            if not (isinstance(vector, Variable) and isinstance(divisor, Variable)):
                continue
            factor = self._factor(divisor, node)
            found = None if factor is None else self._numerator(vector, factor, node)
            if factor is not None and found is not None:
                y, gains = found
                return list(_normalized(node, y, factor.squares, gains))
        return [node]

    def _maker(self, atom: Any) -> Node | None:
        atom = same_value(self.producers, atom)
        return self.producers.get(atom) if isinstance(atom, Variable) else None

    # ---------------------------------------------------------------- the divisor
    def _factor(self, divisor: Variable, product: Node) -> _Factor | None:
        """Reads what a product multiplies by, or a quotient divides by."""
        shape = product.outputs[0].shape
        is_inverse = product.name == "mul"
        moves: list[Node] = []
        gains: list[tuple[str, Any]] = []
        node = self._maker(divisor)
        while node is not None:
            if is_move(node):
                moves.insert(0, node)
                node = self._maker(node.inputs[0])
                continue
            root, inverse = _root(node)
            if root is not None:
                squares = self._squares(root, moves, shape)
                wanted = squares is not None and inverse is is_inverse
                return _Factor(squares, tuple(gains)) if wanted else None
            step = self._gain(node, is_inverse=is_inverse)
            if step is None:
                return None
            inner, name, gain = step
            if gain is not None:
                gains.append((name, _spread(gain, moves)))
            if name == "inverse":
                is_inverse = False
            node = self._maker(inner)
        return None

    def _gain(
        self, node: Node, *, is_inverse: bool
    ) -> tuple[Variable, str, Any] | None:
        """The rest of a factor and the constant that it is multiplied by."""
        variables = node.variables
        if node.name == "integer_pow" and node.params["y"] == -1 and is_inverse:
            return variables[0], "inverse", None
        if node.name not in ("mul", "div") or len(variables) != 1:
            return None
        first, second = node.inputs
        constant = second if variables[0] is first else first
        if node.name == "mul":
            return variables[0], "mul" if is_inverse else "div", constant
        if variables[0] is second:
            return (variables[0], "inverse", constant) if is_inverse else None
        return variables[0], "div" if is_inverse else "mul", constant

    def _squares(
        self, value: Variable, moves: list[Node], shape: Shape
    ) -> _Squares | None:
        """Reads scale * sum(y^2) + eps, and where its entries go."""
        behind = self._behind(value, moves)
        if behind is None or behind.scale <= 0:
            return None
        is_sum = behind.node.name == "reduce_sum"
        read = self._sum_of_squares if is_sum else self._fast_variance
        found = read(behind.node)
        if found is None:
            return None
        indices = np.broadcast_to(_laid_out(found.indices, behind.moves), shape)
        scale = found.scale * behind.scale
        return found._replace(scale=scale, eps=behind.eps, indices=indices)

    def _behind(self, value: Variable, moves: Sequence[Node] = ()) -> "_Behind | None":
        """Follows a value through moves and affine steps to a sum or difference."""
        moves = list(moves)
        scale, eps, clips = 1.0, 0.0, False
        while True:
            node = self._maker(value)
            if node is None:
                return None
            if node.name in ("sub", "reduce_sum"):
                return _Behind(node, moves, scale, eps, clips)
            if is_move(node):
                moves.insert(0, node)
                value = node.inputs[0]
                continue
            step = _affine_step(node)
            if step is None or (clips and step.added is not None):
                return None
            if clips and step.factor < 0:  # then the clip is what is left
                return None
            clips = clips or step.clips
            if step.added is not None:
                eps = eps + scale * step.added
            scale *= step.factor
            value = step.inner

    def _sum_of_squares(self, total: Node) -> _Squares | None:
        square = self._maker(total.inputs[0])
        if square is None:
            return None
        base = _squared(square)
        if base is None:
            return None
        shape, axes = base.shape, tuple(sorted(int(a) for a in total.params["axes"]))
        if not axes:
            return None
        out = total.outputs[0]
        indices = np.arange(out.aval.size).reshape(out.shape)
        vector = self._vector(base, shape, axes)
        return _Squares(vector, shape, axes, 1.0, 0.0, indices)

    def _fast_variance(self, node: Node) -> _Squares | None:
        """E x^2 - (E x)^2, which is the mean of the squares of x less its mean."""
        if not all(isinstance(a, Variable) for a in node.inputs):
            return None
        first = self._squares(node.inputs[0], [], node.outputs[0].shape)
        square = self._maker(node.inputs[1])
        mean = None if square is None else _squared(square)
        second = None if mean is None else self._mean(mean, node.outputs[0].shape)
        if first is None or second is None or first.vector.centered:
            return None
        source, shape, axes, indices = second
        alike = (source, shape, axes) == (first.vector.source, first.shape, first.axes)
        size = _group_size(shape, axes)
        exact = _is_number(first.eps, 0.0) and np.isclose(first.scale * size, 1, 1e-5)
        if not (alike and exact and np.array_equal(indices, first.indices)):
            return None
        return first._replace(vector=_Vector(source, True))

    def _mean(
        self, value: Variable, out_shape: Shape
    ) -> tuple[Variable, Shape, Shape, np.ndarray] | None:
        """What a value holds the means of: a flat source, its groups, and which."""
        behind = self._behind(value)
        if behind is None or behind.node.name != "reduce_sum":
            return None
        if behind.clips or not _is_number(behind.eps, 0.0):
            return None
        node = behind.node
        shape = node.inputs[0].shape
        axes = tuple(sorted(int(a) for a in node.params["axes"]))
        if not np.isclose(behind.scale * _group_size(shape, axes), 1, 1e-5):
            return None
        out = node.outputs[0]
        indices = np.arange(out.aval.size).reshape(out.shape)
        indices = np.broadcast_to(_laid_out(indices, behind.moves), out_shape)
        return flat_origin(self.producers, node.inputs[0]), shape, axes, indices

    # ------------------------------------------------------------- what is divided
    def _vector(self, y: Variable, shape: Shape, axes: Shape) -> _Vector:
        """What y is, for groups over some axes of a shape that it may be brought to."""
        source = flat_origin(self.producers, y)
        node = self._maker(source)
        if node is None or node.name != "sub" or node.inputs[0] is node.inputs[1]:
            return _Vector(source, False)
        x, taken = node.inputs
        if isinstance(x, Variable) and x.shape == node.outputs[0].shape:
            if not isinstance(taken, Variable):
                is_zero = _is_number(taken, 0.0)
                return (
                    self._vector(x, shape, axes) if is_zero else _Vector(source, False)
                )
            mean = self._mean(taken, x.shape)
            whole = flat_origin(self.producers, x)
            if mean is not None and mean[:3] == (whole, shape, axes):
                where = groups(shape, axes)
                if np.array_equal(mean[3].reshape(-1), where.reshape(-1)):
                    return _Vector(whole, True)
        return _Vector(source, False)

    def _numerator(
        self, value: Variable, factor: _Factor, product: Node
    ) -> tuple[Variable, list[tuple[str, Any]]] | None:
        """The vector in what is divided, and the constants it is multiplied by."""
        squares, gains = factor.squares, list(factor.gains)
        out = product.outputs[0]
        size = int(np.prod(squares.shape))
        if value.shape != out.shape or out.aval.size != size:
            return None
        where = groups(squares.shape, squares.axes).reshape(-1)
        if not np.array_equal(squares.indices.reshape(-1), where):
            return None
        while True:
            if self._vector(value, squares.shape, squares.axes) == squares.vector:
                alike = value.dtype == out.dtype and value.shape == out.shape
                return (value, gains) if alike else None
            node = self._maker(value)
            if node is None or node.name not in ("mul", "div", "neg"):
                return None
            if len(node.variables) != 1:
                return None
            if node.name == "div" and node.variables[0] is not node.inputs[0]:
                return None
            value = node.variables[0]
            if node.name == "neg":
                gains.append(("neg", None))
            else:
                (constant,) = (a for a in node.inputs if a is not value)
                gains.append((node.name, constant))


class _Behind(NamedTuple):
    """A value as moves of scale * output of a node + eps, at least 0 where `clips`."""

    node: Node
    moves: list[Node]
    scale: float
    eps: Any
    clips: bool


class _Step(NamedTuple):
    """A value as factor * inner + added, at least 0 where `clips`."""

    inner: Variable
    factor: float = 1.0
    added: Any = None
    clips: bool = False


def _affine_step(node: Node) -> _Step | None:
    """One operation between a sum and the root of it."""
    variables = node.variables
    if len(variables) != 1:
        return None
    inner = variables[0]
    if inner.shape != node.outputs[0].shape:
        return None
    constants = [a for a in node.inputs if not isinstance(a, Variable)]
    if node.name == "select_n":
        # The variance of too few numbers is NaN by choice: no value to bound.
        which, cases = _scalar(constants[0]), node.inputs[1:]
        if which is not None and is_concrete(which):
            return _Step(inner) if cases[int(which)] is inner else None
        others = [a for a in cases if a is not inner]
        return _Step(inner) if all(map(_is_nan, others)) else None
    number = _scalar(constants[0]) if constants else None
    if number is None:
        return None
    if node.name == "add":
        return _Step(inner, added=number)
    if not is_concrete(number):
        return None
    number = float(number)
    if node.name == "max" and number <= 0:
        return _Step(inner, clips=True)
    if node.name == "mul":
        return _Step(inner, factor=number)
    if node.name == "div" and node.inputs[0] is inner and number != 0:
        return _Step(inner, factor=1 / number)
    return None


def _root(node: Node) -> tuple[Variable | None, bool]:
    """What a node is the root of, and whether of the inverse."""
    if node.name in ("sqrt", "rsqrt"):
        return node.inputs[0], node.name == "rsqrt"
    if node.name == "pow" and isinstance(node.inputs[0], Variable):
        for power in (0.5, -0.5):
            if _is_number(node.inputs[1], power):
                return node.inputs[0], power < 0
    return None, False


def _squared(node: Node) -> Variable | None:
    """What a node is the square of."""
    if node.name == "square" or (node.name == "integer_pow" and node.params["y"] == 2):
        return node.inputs[0]
    if node.name == "mul" and node.inputs[0] is node.inputs[1]:
        return node.inputs[0]
    return None


def _group_size(shape: Shape, axes: Shape) -> int:
    return int(np.prod([shape[a] for a in axes]))


def _scalar(constant: Any) -> Any:
    """A constant as one number; None where it is several, or may be."""
    if is_concrete(constant):
        values = np.asarray(constant)
        same = values.size and bool(np.all(values == values.reshape(-1)[0]))
        return values.reshape(-1)[0] if same else None
    return jnp.reshape(constant, ()) if np.size(constant) == 1 else None


def _is_number(constant: Any, number: float) -> bool:
    if isinstance(constant, Variable) or not is_concrete(constant):
        return False
    return bool(np.all(np.asarray(constant) == number))


def _is_nan(constant: Any) -> bool:
    if isinstance(constant, Variable) or not is_concrete(constant):
        return False
    return bool(np.all(np.isnan(np.asarray(constant, np.float64))))


def _spread(gain: Any, moves: Iterable[Node]) -> Any:
    """A gain as the factor that it is part of is laid out."""
    for node in moves:
        gain = node.evaluate(jnp.broadcast_to(gain, node.inputs[0].shape))[0]
    return gain


def _laid_out(indices: np.ndarray, moves: Iterable[Node]) -> np.ndarray:
    """Where the entries of an array go."""
    for node in moves:
        indices = moved(node, indices)
    return indices


def _normalized(
    node: Node, y: Variable, squares: _Squares, gains: Sequence[tuple[str, Any]]
) -> Iterable[Node]:
    """The nodes that take the place of a product or quotient."""
    out = node.outputs[0]
    shape, axes, scale = squares.shape, squares.axes, squares.scale
    params = {"axes": axes, "scale": scale}
    grouped = y
    if y.shape != shape:
        grouped = Variable(y.aval.update(shape=shape))
        yield _step(node, "reshape", (y,), grouped, lambda v: v.reshape(shape))
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    norm, ratio = (Variable(y.aval.update(shape=s)) for s in (kept, shape))

    def measure(v: Any, eps: Any) -> Any:
        return jnp.sqrt(scale * jnp.sum(v * v, axes, keepdims=True) + eps)

    steps: list[tuple[str, Any]] = list(gains)
    if shape != out.shape:
        steps.insert(0, ("reshape", None))
    value = ratio if steps else out
    eps = squares.eps
    as_array = np.asarray if is_concrete(eps) else jnp.asarray
    eps = as_array(eps, y.dtype)
    yield _step(node, "norm", (grouped, eps), norm, measure, params)
    yield _step(
        node, "normalize", (grouped, norm, eps), value, lambda v, n, _: v / n, params
    )
    for number, (name, gain) in enumerate(steps):
        last = number == len(steps) - 1
        following = out if last else Variable(out.aval)
        inputs = (value,) if gain is None else (value, gain)
        yield _step(node, name, inputs, following, _functions(out.shape)[name])
        value = following


def _functions(shape: Shape) -> dict[str, Any]:
    return {
        "div": jnp.divide,
        "inverse": jnp.multiply,
        "mul": jnp.multiply,
        "neg": jnp.negative,
        "reshape": lambda v: v.reshape(shape),
    }


def _step(
    node: Node,
    name: str,
    inputs: tuple[Any, ...],
    output: Variable,
    fn: Any,
    params: dict[str, Any] | None = None,
) -> Node:
    name = "mul" if name == "inverse" else name
    return Node(
        name, inputs, (output,), params or {}, lambda *v: [fn(*v)], node.equation
    )
