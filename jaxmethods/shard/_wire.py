"""The bytes that a compiled program sends between devices, read from its HLO."""

import functools
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, overload

import jax
from jax.stages import Compiled


class Wire(NamedTuple):
    """What one device sends in one call.

    Attributes:
        total: Bytes.
        collectives: Bytes of each collective operation, by its name in the HLO.
    """

    total: float
    collectives: dict[str, float]


@overload
def wire(fn: Compiled) -> Wire:  # noqa: D418, every public name has one
    """Of a program that is compiled already."""
    ...


@overload
def wire(fn: Callable[..., Any]) -> Callable[..., Wire]:  # noqa: D418
    """Of a function, to be compiled for the arguments that come."""
    ...


def wire(fn: Any) -> Any:
    """Measures the bytes a device sends in one call of a function.

    Compiles the function for the shapes, dtypes and shardings of the arguments, without
    running it, and reads the collectives of the compiled program. With g devices in a
    group and operands of S bytes a device sends 2 (g - 1) / g S in an all-reduce,
    (g - 1) S in an all-gather, (g - 1) / g S in a reduce-scatter or all-to-all, and S
    in a permutation or broadcast: what rings of devices send. Where groups differ in
    size, the largest counts. The body of a loop counts once a round, its condition
    once more; of branches the one that sends most.

    Counted is what the program says: a bfloat16 all-reduce that the compiler widens to
    float32, as on CPU, counts as float32. Kernels that send by themselves (remote DMA)
    are not seen, nor are headers.

    Between CPU processes (gloo) the sockets of 2, 3, 4 and 8 processes sent these bytes
    and 144 bytes of headers (permutation, all-to-all) or 288 (all-gather, all-reduce) a
    message, of which there are g - 1 or, in an all-reduce, 2 (g - 1). Only gloo's
    reduce-scatter sends more, on some devices: S in place of (g - 1) / g S on half of 4
    or 8 and on one of 3; with 2 the formula holds.

    Args:
        fn: Any function, jitted or not; or a compiled program, from
            `jax.jit(fn).lower(*args).compile()`.

    Returns:
        `measure(*args) -> Wire`; of a compiled program its `Wire`. Arrays or
        `jax.ShapeDtypeStruct` serve as arguments. Warns where a loop that sends has no
        trip count known to the compiler; its body then counts once.

    Raises:
        NotImplementedError: The platform gives no text of a compiled program.

    Example:
        >>> import jax.numpy as jnp
        >>> wire(lambda x: jnp.tanh(x).sum())(jnp.ones(8))
        Wire(total=0, collectives={})
    """
    if isinstance(fn, Compiled):
        return _of_text(fn.as_text())

    @functools.wraps(fn)
    def measure(*args: Any, **kwargs: Any) -> Wire:
        lower = getattr(fn, "lower", None) or jax.jit(fn).lower
        # Collectives are settled before machine code is made, which nothing will run.
        fast: Any = {"xla_backend_optimization_level": 0}
        return _of_text(lower(*args, **kwargs).compile(compiler_options=fast).as_text())

    return measure


def _of_text(hlo: str | None) -> Wire:
    if hlo is None:
        raise NotImplementedError(
            "the compiled program has no text here; wanted one: measure on CPU."
        )
    sent = _bytes_sent(hlo)
    return Wire(sum(sent.values()), dict(sent))


_SENT: dict[str, Callable[[float, int], float]] = {
    # Bytes of the result and devices a group -> bytes a device sends.
    "all-reduce": lambda size, group: 2 * size * (group - 1) / group,
    "all-gather": lambda size, group: size * (group - 1) / group,
    "reduce-scatter": lambda size, group: size * (group - 1),
    "all-to-all": lambda size, group: size * (group - 1) / group,
    "ragged-all-to-all": lambda size, group: size * (group - 1) / group,
    "collective-permute": lambda size, group: size * (group > 1),
    "collective-broadcast": lambda size, group: size * (group > 1),
}
# No quote before the operation: names of scopes are quoted and may hold anything.
_COLLECTIVE = re.compile(rf"%?(\S+) = ([^\"]*?) ({'|'.join(_SENT)})(-start)?\(")
_COMPUTATION = re.compile(r"(ENTRY )?%?([^\s(]+) \(.*\) -> .* \{$")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)(?:e\d\w*)?\[([\d,]*)\]")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition)=%?([\w.\-]+)")
_LISTED = re.compile(r"\b(calls|called_computations)=\{([^}]*)\}")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRUE_FALSE = re.compile(r"\b(?:true|false)_computation=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\s*\{\s*"n":\s*"(\d+)"')
_OTHER_END = re.compile(r" [\w\-]+-(?:done|update)\(")


def _bytes_sent(hlo: str) -> Counter[str]:
    """Bytes by collective, of one call of the program's entry."""
    computations: dict[str, list[str]] = {}
    entry, body = "", []
    counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", hlo.split("\n")[0])
    devices = math.prod(map(int, counts))
    for line in map(str.strip, hlo.splitlines()):
        header = _COMPUTATION.match(line)
        if header:
            body = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif " = " in line:
            body.append(line.removeprefix("ROOT "))

    @functools.cache
    def sent_by(name: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for line in computations.get(name, ()):
            for part in _sent_in_line(line, devices, sent_by):
                total.update(part)
        return total

    return sent_by(entry)


def _sent_in_line(
    line: str, devices: int, sent_by: Callable[[str], Counter[str]]
) -> Iterator[Counter[str]]:
    """What one instruction sends: itself, and in the computations it calls."""
    collective = _COLLECTIVE.match(line)
    if collective:
        name, result, kind, start = collective.groups()
        if start and kind != "all-reduce":  # (operands, results, context...)
            result = _parts(result)[:2][-1]
        size = sum(_array_bytes(*array) for array in _ARRAY.findall(result))
        sent = _SENT[kind](size, _group_size(line, devices))
        if sent:
            yield Counter({name: sent})
        return
    if _OTHER_END.search(line.split('"')[0]):
        return  # of an async operation, which its start has counted
    rounds = _TRIPS.search(line)
    called = _CALLED.findall(line)
    for role, listed in _LISTED.findall(line):
        called += [(role, name.strip(" %")) for name in listed.split(",")]
    for role, name in called:
        inside = sent_by(name)
        if inside and " while(" in line and rounds is None:
            warnings.warn(
                f"the loop {line.split(' = ')[0]} sends in each round, but the "
                "compiler does not know its number of rounds: counted once.",
                stacklevel=2,
            )
        # A condition is asked once more than the body runs.
        times = int(rounds[1]) + (role == "condition") if rounds else 1
        yield Counter({k: v * times for k, v in inside.items()})
    listed = _BRANCHES.search(line)
    branches = listed[1].replace("%", "").split(", ") if listed else []
    branches += _TRUE_FALSE.findall(line)
    if branches:
        yield max(map(sent_by, branches), key=lambda sent: sum(sent.values()))


def _parts(result: str) -> list[str]:
    """The elements of a tuple's type: "(f32[2], (s8[4], u8[1]))" has two."""
    parts, depth = [""], 0
    for letter in result.removeprefix("(").removesuffix(")"):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _array_bytes(kind: str, bits: str, shape: str) -> float:
    count = math.prod(map(int, filter(None, shape.split(","))))
    # pred has no bits in its name and takes a byte, as do types of less.
    return count * (0 if kind == "token" else max(int(bits or 8), 8) // 8)


def _group_size(line: str, devices: int) -> int:
    """Devices a group: {{0,1},{2,3}}, [2,4]<=[8], or mesh['a'=4,'b'=2] {'a'}.

    Of a permutation the pairs count, and only whether any leads elsewhere.
    """
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
        moves = re.findall(r"(\d+),(\d+)", pairs[1])
        return 2 if any(source != target for source, target in moves) else 1
    if listed := re.search(r"replica_groups=\{\{([\d,{}]*)\}\}", line):
        return max(len(group.split(",")) for group in listed[1].split("},{"))
    if tiled := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(tiled[1])
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", axes[1]))
        named = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", axes[2])
        return math.prod(int(part or sizes[name]) for name, part in named)
    return devices  # no groups: all are one
