"""Which exchange is the fastest, by a model of the link and of the memory."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from ..core import check_integer, check_positive
from ._adacomp import adacomp
from ._codec import Codec, check_codec, decode, nbytes, zeros_like_gradients
from ._dct import dct
from ._exchange import exchange, mean_exchange
from ._small_values import int8, sign
from ._two_phase import two_phase_exchange


class Candidate(NamedTuple):
    """A way to exchange gradients, for `auto`.

    Attributes:
        codec: How a message is made; None: gradients travel as they are, as a mean.
        two_phase: Whether by `two_phase_exchange`; else each message goes to all.
        reads: What encoding costs, in reads of the gradients as float32.
    """

    codec: Codec | None
    two_phase: bool = False
    reads: float = 0.0


class Choice(NamedTuple):
    """What `auto` chose.

    Attributes:
        name: Of the candidate.
        transformation: To be put before an optimizer in `optax.chain`.
        seconds: Predicted for one exchange, by each candidate's name.
        reason: Why, in a sentence.
    """

    name: str
    transformation: optax.GradientTransformation
    seconds: dict[str, float]
    reason: str


def auto(
    tree: Any,
    axis_name: Any,
    *,
    num_workers: int,
    bandwidth: float,
    memory_bandwidth: float = 5e9,
    candidates: Mapping[str, Candidate] | None = None,
) -> Choice:
    """Chooses how to exchange gradients: the least seconds by a cost model.

    A candidate takes the bytes that leave a worker over the bandwidth of its link, and
    what it reads and writes over that of its memory: encoding, then decoding and adding
    up the messages of all workers. On fast links or small meshes that is more than
    compression saves, and the plain mean wins. The model knows nothing of latency, of
    overlap with other work, or of what a codec does to training.

    Args:
        tree: A tree like the gradients; shapes and dtypes suffice.
        axis_name: The mapped axis, or a tuple of axes of a mesh, not of nested `vmap`.
        num_workers: Workers on the axis, at least 1.
        bandwidth: Bytes a second that a worker can send.
        memory_bandwidth: Bytes a second that a worker reads and writes: some 5e9 a core
            of a CPU, 1e12 and more a GPU or TPU.
        candidates: Names of `Candidate`. None: the mean of dense gradients, `int8` sent
            to all and in two phases, `sign`, `adacomp(slots=8)`, and `dct` of sparsity
            0.99 in messages with room for 1 % of each leaf.

    Returns:
        A `Choice`.

    Raises:
        TypeError: A number is none; a codec is none; a gradient is not floating.
        ValueError: A number that is not positive, or no candidates.

    Complexity:
        Traces each codec once for every shape that leaves have; compiles nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> gradients = {"w": jnp.zeros((1000, 1000))}
        >>> slow = auto(gradients, "i", num_workers=8, bandwidth=1e8)
        >>> fast = auto(gradients, "i", num_workers=8, bandwidth=1e11)
        >>> slow.name, fast.name
        ('adacomp', 'mean')
        >>> print(fast.reason)
        mean: 0.07 ms on the wire and none in memory; next is adacomp with 3.6 ms.

    References:
        Agarwal et al. 2022, On the utility of gradient compression in distributed
        training systems (arXiv 2103.00543): when the plain mean is faster.
    """
    check_integer(num_workers, "num_workers", 1)
    check_positive(bandwidth, "bandwidth")
    check_positive(memory_bandwidth, "memory_bandwidth")
    shapes = jax.eval_shape(zeros_like_gradients, tree)
    if candidates is None:
        candidates = _default_candidates()
    if not candidates:
        raise ValueError("candidates are empty; wanted at least one Candidate.")
    costs = {
        name: _cost(each, shapes, num_workers) for name, each in candidates.items()
    }
    wire = {name: cost.sent / bandwidth for name, cost in costs.items()}
    memory = {name: cost.touched / memory_bandwidth for name, cost in costs.items()}
    seconds = {name: wire[name] + memory[name] for name in costs}
    best, *others = sorted(seconds, key=seconds.__getitem__)
    reason = (
        f"{best}: {_milliseconds(wire[best])} on the wire and "
        f"{_milliseconds(memory[best])} in memory"
    )
    if others:
        reason += f"; next is {others[0]} with {_milliseconds(seconds[others[0]])}"
    make = _transformation(candidates[best], axis_name, num_workers)
    return Choice(best, make(), seconds, reason + ".")


def _milliseconds(seconds: float) -> str:
    """Two digits or more, and no exponent."""
    amount = 1e3 * seconds
    if amount == 0:
        return "none"
    if amount < 0.01:
        return "less than 0.01 ms"
    digits = 0 if amount >= 10 else 1 if amount >= 1 else 2
    return f"{amount:,.{digits}f} ms"


class _Cost(NamedTuple):
    """Bytes that a worker sends, and that it reads and writes."""

    sent: float
    touched: float


def _default_candidates() -> dict[str, Candidate]:
    # Reads: what encoding 1e7 numbers took on a CPU core, over a read of them.
    return {
        "mean": Candidate(None),
        "int8": Candidate(int8(), reads=7),
        "int8 in two phases": Candidate(int8(), two_phase=True, reads=10),
        "sign": Candidate(sign(), reads=7),
        "adacomp": Candidate(adacomp(slots=8), reads=4),
        "dct": Candidate(dct(sparsity=0.99, life=1000, capacity=0.01), reads=6),
    }


def _cost(candidate: Candidate, shapes: Any, num_workers: int) -> _Cost:
    dense = float(nbytes(shapes))
    others, share = num_workers - 1, (num_workers - 1) / num_workers
    if candidate.codec is None:
        return _Cost(2 * share * dense, 0)
    message = float(_message_bytes(candidate.codec, shapes))
    encoding = candidate.reads * dense
    if candidate.two_phase:
        return _Cost(2 * share * message, encoding + 4 * dense)
    # Of a small message the places that it names are read and written, of one as long
    # as the gradients all of them.
    adding = num_workers * min(8 * message, 3 * dense)
    return _Cost(others * message, encoding + adding)


def _message_bytes(codec: Codec, shapes: Any) -> int:
    """Of a whole tree; leaves of one shape have messages of one length."""
    check_codec(codec)

    def message_of(tree: Any) -> Any:
        return codec.encode(codec.init(tree), tree)[0]

    # Only of messages with one part a leaf is it known.
    if codec.decode is not decode:
        return nbytes(jax.eval_shape(message_of, shapes))
    leaves = jax.tree.leaves(shapes)
    counts = Counter((leaf.shape, leaf.dtype) for leaf in leaves)
    parts = jax.eval_shape(
        message_of,
        [jax.ShapeDtypeStruct(*shape_and_dtype) for shape_and_dtype in counts],
    )
    return sum(
        count * nbytes(part) for part, count in zip(parts, counts.values(), strict=True)
    )


def _transformation(
    candidate: Candidate, axis_name: Any, num_workers: int
) -> Callable[[], optax.GradientTransformation]:
    if candidate.codec is None:
        return lambda: mean_exchange(axis_name)
    codec = candidate.codec
    if candidate.two_phase:
        return lambda: two_phase_exchange(codec, axis_name, num_workers=num_workers)
    return lambda: exchange(codec, axis_name)
