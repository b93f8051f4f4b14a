"""Fits a plan into the memory of a device, for the fewest bytes on the wire."""

from collections.abc import Iterator

from ._choice import FULL, Choice
from ._memory import Memory


def fit(memory: Memory, chosen: Choice, forced: Choice, limit: int) -> dict[int, str]:
    """Changes choices until a device holds no more than a limit.

    Takes what sends least for each byte it saves first, splits and full shards alike,
    and at last changes one parameter at a time as long as that sends less and fits.
    That need not find the least of all.

    Args:
        memory: What choices cost.
        chosen: What sends least, memory aside.
        forced: What the user chose.
        limit: Bytes a device.

    Returns:
        The choices.

    Raises:
        ValueError: None of the choices fits.
    """
    fitted = dict(chosen)
    while memory.total(fitted) > limit:
        before = memory.total(fitted)
        for move in _ordered(memory, fitted, forced):
            if memory.total(fitted) <= limit:
                break
            changed = {**fitted, **move}
            if memory.total(changed) < memory.total(fitted):
                fitted = changed
        if memory.total(fitted) >= before:
            raise ValueError(_too_small(memory, fitted, limit))
    return _improved(memory, fitted, forced, limit)


def _ordered(memory: Memory, chosen: Choice, forced: Choice) -> list[dict[int, str]]:
    """The changes that save memory, the cheapest a byte first, then the largest."""
    sent, held = memory.prices.total(chosen), memory.total(chosen)
    ranked = []
    for move in _moves(memory, chosen, forced):
        changed = {**chosen, **move}
        saved = held - memory.total(changed) + _whole(memory, move)
        if saved > 0:
            more = memory.prices.total(changed) - sent
            ranked.append((more / saved, -saved, move))
    return [move for *_, move in sorted(ranked, key=lambda entry: entry[:2])]


def _whole(memory: Memory, move: Choice) -> int:
    """What one gathered kernel takes: not held against the first to be gathered."""
    return max(memory.prices.sizes[n] for n in move) if FULL in move.values() else 0


def _moves(memory: Memory, chosen: Choice, forced: Choice) -> Iterator[dict[int, str]]:
    prices = memory.prices
    for leaf in range(len(prices.sizes)):
        free = leaf not in forced and chosen.get(leaf) != FULL
        if free and prices.full_axis(leaf) is not None:
            yield {leaf: FULL}
    for layer in prices.layers:
        if layer.leaf not in chosen:
            yield from prices.options(layer, chosen)


def _improved(
    memory: Memory, fitted: Choice, forced: Choice, limit: int
) -> dict[int, str]:
    """Changes one parameter at a time, as long as less is sent and it still fits."""
    prices, best = memory.prices, dict(fitted)
    before: Choice = {}
    while before != best:
        before = dict(best)
        for leaf in sorted(range(len(prices.sizes)), key=prices.sizes.__getitem__):
            if leaf in forced:
                continue
            others = {n: choice for n, choice in best.items() if n != leaf}
            options = [others]
            if prices.full_axis(leaf) is not None:
                options.append({**others, leaf: FULL})
            fitting = [x for x in options if memory.total(x) <= limit]
            best = min([best, *fitting], key=prices.total)
    return best


def _too_small(memory: Memory, chosen: Choice, limit: int) -> str:
    spread = memory.prices.spread_axes(chosen)
    held = [
        memory.held(n, chosen, n in spread) for n in range(len(memory.prices.sizes))
    ]
    parameters, gradients, states, activations = map(sum, zip(*held, strict=True))
    activations += memory.unassigned
    return (
        f"memory_limit is {limit:,} bytes a device; the least found for "
        f"{memory.prices.devices} devices is {memory.total(chosen):,.0f}: parameters "
        f"{parameters:,}, gradients {gradients:,}, optimizer state {states:,}, "
        f"activations {activations:,.0f}, the largest gathered kernel "
        f"{memory.gathered(chosen):,}, batch and counters {memory.other:,}. Wanted "
        "more devices, fewer examples, or a higher limit."
    )
