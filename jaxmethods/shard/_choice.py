"""Which layers to split over a group: what each choice sends in a training step."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ._costs import Layer
from ._traffic import Traffic

REPLICATE, COLUMN, ROW, FULL = CHOICES = ("replicate", "column", "row", "full")
Choice = Mapping[int, str]  # leaf -> one of CHOICES; replicated ones may be left out

NARROW = 128  # a last layer of fewer outputs is the classifier, which stays replicated


@dataclass(frozen=True)
class Prices:
    """Bytes that a device sends in one training step, by where parameters lie.

    Attributes:
        groups: D, the groups over which examples are spread.
        members: K, the members of a group.
        layers: The layers of the loss.
        shapes: The shape of each parameter.
        sizes: The bytes of each parameter.
        traffic: What the gradient gathers and reduces.
    """

    groups: int
    members: int
    layers: Sequence[Layer]
    shapes: Sequence[tuple[int, ...]]
    sizes: Sequence[int]
    traffic: Traffic

    @property
    def devices(self) -> int:
        """N, all devices."""
        return self.groups * self.members

    @functools.cached_property
    def by_leaf(self) -> dict[int, Layer]:
        """The layer of each parameter that has one."""
        return {layer.leaf: layer for layer in self.layers}

    @functools.cached_property
    def followers(self) -> dict[int, list[Layer]]:
        """The layers whose rows are the columns of a layer."""
        after: dict[int, list[Layer]] = {layer.leaf: [] for layer in self.layers}
        for layer in self.layers:
            for before in layer.follows:
                after[before].append(layer)
        return after

    @functools.cached_property
    def biased(self) -> dict[int, list[int]]:
        """The layers along whose columns a bias or scale lies."""
        layers: dict[int, list[int]] = {}
        for layer in self.layers:
            for leaf, _ in layer.beside:
                layers.setdefault(leaf, []).append(layer.leaf)
        return layers

    def choose(self, forced: Choice | None = None) -> dict[int, str]:
        """Splits layers, alone or in pairs, as long as that sends less."""
        chosen: dict[int, str] = dict(forced or {})
        for layer in self.layers:
            if layer.leaf in chosen:
                continue
            options = [{**chosen, **more} for more in self.options(layer, chosen)]
            chosen = min([chosen, *options], key=self.total)
        return chosen

    def options(self, layer: Layer, chosen: Choice) -> list[dict[int, str]]:
        """The ways to split a layer, alone or together with those that follow it."""
        if self.members == 1 or not self.can(layer, COLUMN):
            return []
        alone = {layer.leaf: COLUMN}
        options = [alone]
        if self._columns_before(layer, chosen) and self.can(layer, ROW):
            options.append({layer.leaf: ROW})
        for after in self.followers[layer.leaf]:
            first = after.follows - chosen.keys()
            whole = first == after.follows and after.leaf not in chosen
            if not whole or not all(self.can(self.by_leaf[n], COLUMN) for n in first):
                continue
            if self.can(after, ROW):
                options.append(dict.fromkeys(first, COLUMN) | {after.leaf: ROW})
                if self.can(after, COLUMN):
                    options.append(alone | {after.leaf: COLUMN})
        return options

    def can(self, layer: Layer, choice: str) -> bool:
        """Whether a layer may be split by columns or by rows."""
        classifier = layer.last and layer.outputs < NARROW
        return layer.kind == "dense" and not classifier and self.divides(layer, choice)

    def divides(self, layer: Layer, choice: str) -> bool:
        """Whether the group divides what a split layer spreads."""
        axis = layer.row_axis if choice == ROW else layer.column_axis
        return self.shapes[layer.leaf][axis] % self.members == 0

    def full_axis(self, leaf: int) -> int | None:
        """The longest axis that all devices divide, or None."""
        shape = self.shapes[leaf]
        able = [a for a, n in enumerate(shape) if n and n % self.devices == 0]
        return max(able, key=shape.__getitem__, default=None)

    def total(self, chosen: Choice) -> float:
        """All that a device sends."""
        spread = self.spread_axes(chosen)
        gradients = sum(
            self.gradient(n, chosen, n in spread) for n in range(len(self.sizes))
        )
        return gradients + sum(self.activations(x, chosen) for x in self.layers)

    def gradient(self, leaf: int, chosen: Choice, spread: bool) -> float:
        """For one parameter and its gradient: an all-reduce among its replicas.

        A fully sharded kernel is gathered for each product, forward and, where its rows
        take a gradient, backward, and its gradient is reduced and scattered.
        """
        reduced = self.traffic.reduced[leaf]
        if chosen.get(leaf) == FULL:
            gathered = self.traffic.gathered[leaf] or 2 * self.sizes[leaf]
            # In a loop XLA reduces to all devices and cuts.
            stacked = self.traffic.stacked[leaf]
            return (self.devices - 1) / self.devices * (gathered + reduced + stacked)
        # The rows that a bias's gradient sums are gathered for a layer split by rows.
        gathered = any(chosen.get(n) == ROW for n in self.biased.get(leaf, ()))
        replicas = self.groups * (1 if spread or gathered else self.members)
        size = reduced / (self.members if spread else 1)
        return 2 * (replicas - 1) / replicas * size

    def activations(self, layer: Layer, chosen: Choice) -> float:
        """For rows and columns that cross into and out of a split layer, and back."""
        choice = chosen.get(layer.leaf)
        if choice not in (COLUMN, ROW):
            return 0
        number, repeats = self.crossing(layer), self.traffic.repeats[layer.leaf]
        # Rows of all columns become columns of all rows: one K-th is kept as it is.
        exchanged = number / self.members
        if choice == ROW:
            entering = exchanged * layer.inputs * (1 + layer.trained + repeats)
            leaving = number * layer.outputs * (2 + repeats)
            paired = self._columns_before(layer, chosen)
            return leaving + (0 if paired else entering)
        entering = number * layer.inputs * (1 + layer.trained + repeats)
        after = self.followers[layer.leaf]
        paired = any(
            chosen.get(x.leaf) == ROW and self._columns_before(x, chosen) for x in after
        )
        return entering + (0 if paired else 2 * exchanged * layer.outputs)

    def crossing(self, layer: Layer) -> float:
        """Bytes of the other members' rows, a column."""
        return (self.members - 1) * layer.rows / self.devices * layer.itemsize

    def _columns_before(self, layer: Layer, chosen: Choice) -> bool:
        before = [chosen.get(leaf) for leaf in layer.follows]
        return bool(before) and set(before) == {COLUMN}

    def spread_axes(self, chosen: Choice) -> dict[int, int]:
        """The axis along which the group spreads each parameter of a split layer."""
        axes: dict[int, int] = {}
        for layer in self.layers:
            choice = chosen.get(layer.leaf)
            if choice == ROW:
                axes[layer.leaf] = layer.row_axis
            elif choice == COLUMN:
                axes[layer.leaf] = layer.column_axis
                for leaf, axis in layer.beside:
                    free = leaf not in chosen
                    if free and self.shapes[leaf][axis] % self.members == 0:
                        axes[leaf] = axis
        return axes

    def why_nothing(self) -> str:
        """What splitting every layer that can be split would save and cost."""
        able = [x for x in self.layers if self.can(x, COLUMN)]
        if not able:
            return (
                f"no dense layer can be split over {self.members} devices: wanted one "
                "outside loops, with a kernel of its own, that is no classifier and "
                "whose width divides. Everything is replicated."
            )
        every = dict.fromkeys((x.leaf for x in able), COLUMN)
        spread = self.spread_axes(every)
        saved = sum(self.sizes[n] for n in spread) * (1 - 1 / self.members)
        more = self.total(every) - self.total({})
        return (
            f"no layer is worth splitting over {self.members} devices: splitting the "
            f"{len(able)} that can be would save {saved:,.0f} of {sum(self.sizes):,} "
            f"bytes of parameters a device, and send {more:,.0f} bytes more a step. "
            "Everything is replicated; wider dense layers or fewer examples a device "
            "would change that."
        )
