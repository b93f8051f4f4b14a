"""Bytes that a device holds in a training step, by where parameters lie."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ._choice import COLUMN, FULL, Choice, Prices


class Held(NamedTuple):
    """Bytes of a parameter and its layer on one device."""

    parameter: int
    gradient: int
    optimizer: int
    activation: float


@dataclass(frozen=True)
class Memory:
    """What a device holds.

    Attributes:
        prices: The layers, and what they send.
        states: Bytes of optimizer state a parameter.
        activations: Bytes that the backward pass keeps, by layer, over all devices.
        other: Bytes a device that no choice changes: the batch, counters.
    """

    prices: Prices
    states: Sequence[int]
    activations: Mapping[int, int]
    other: int

    def total(self, chosen: Choice) -> float:
        """All that a device holds at once, for the largest gathered kernel too."""
        spread = self.prices.spread_axes(chosen)
        leaves = range(len(self.prices.sizes))
        held = sum(sum(self.held(n, chosen, n in spread)) for n in leaves)
        return held + self.gathered(chosen) + self.unassigned + self.other

    def held(self, leaf: int, chosen: Choice, spread: bool) -> Held:
        """For one parameter and the layer whose kernel it is."""
        prices = self.prices
        parts = prices.members if spread else 1
        if chosen.get(leaf) == FULL:
            parts = prices.devices
        size = prices.sizes[leaf] // parts
        kept = self.activations.get(leaf, 0) / prices.devices
        layer = prices.by_leaf.get(leaf)
        if layer is not None and chosen.get(leaf) == COLUMN:
            # The gathered rows stay for the gradient of the kernel.
            kept += prices.crossing(layer) * layer.inputs
        return Held(size, size, self.states[leaf] // parts, kept)

    def gathered(self, chosen: Choice) -> int:
        """The largest kernel that is gathered while it is used."""
        sizes = enumerate(self.prices.sizes)
        full = [size for leaf, size in sizes if chosen.get(leaf) == FULL]
        return max(full, default=0)

    @functools.cached_property
    def unassigned(self) -> float:
        """Activations that no kernel's layer made."""
        made = sum(self.activations.get(n, 0) for n in range(len(self.prices.sizes)))
        return (sum(self.activations.values()) - made) / self.prices.devices
