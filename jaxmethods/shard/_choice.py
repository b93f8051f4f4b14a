"""Which layers to split over a group: what each choice sends in a training step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._costs import Layer

Choice = Mapping[int, str]  # leaf -> "column" or "row"; replicated ones are left out

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
    """

    groups: int
    members: int
    layers: Sequence[Layer]
    shapes: Sequence[tuple[int, ...]]
    sizes: Sequence[int]

    def choose(self) -> dict[int, str]:
        """Splits layers, alone or in pairs, as long as that sends less."""
        chosen: dict[int, str] = {}
        for layer in self.layers:
            if layer.leaf in chosen:
                continue
            options = [{**chosen, **more} for more in self._options(layer, chosen)]
            chosen = min([chosen, *options], key=self.total)
        return chosen

    def _options(self, layer: Layer, chosen: Choice) -> list[dict[int, str]]:
        if self.members == 1 or not self._can(layer, layer.column_axis):
            return []
        alone = {layer.leaf: "column"}
        options = [alone]
        able = {m.leaf for m in self.layers if self._can(m, m.column_axis)}
        for after in self.layers:
            first = after.follows - chosen.keys()
            if layer.leaf not in first or first != after.follows or not first <= able:
                continue
            if self._can(after, after.row_axis):
                options.append(dict.fromkeys(first, "column") | {after.leaf: "row"})
                if self._can(after, after.column_axis):
                    options.append(alone | {after.leaf: "column"})
        return options

    def _can(self, layer: Layer, axis: int) -> bool:
        classifier = layer.last and layer.outputs < NARROW
        if layer.kind != "dense" or classifier:
            return False
        return self.shapes[layer.leaf][axis] % self.members == 0

    def total(self, chosen: Choice) -> float:
        """All that a device sends."""
        spread = self.spread_axes(chosen)
        gradients = sum(self.gradient(n, n in spread) for n in range(len(self.sizes)))
        return gradients + sum(self.activations(x, chosen) for x in self.layers)

    def gradient(self, leaf: int, spread: bool) -> float:
        """For the gradient of one parameter: an all-reduce among its replicas."""
        devices = self.groups * (1 if spread else self.members)
        size = self.sizes[leaf] / (self.members if spread else 1)
        return 2 * (devices - 1) / devices * size

    def activations(self, layer: Layer, chosen: Choice) -> float:
        """For rows and columns that cross into and out of a split layer, and back."""
        choice = chosen.get(layer.leaf)
        if choice is None:
            return 0
        rows = layer.rows / (self.groups * self.members)
        number = (self.members - 1) * rows * layer.itemsize
        if choice == "row":
            return 2 * number * layer.outputs
        entering = number * layer.inputs * (1 + layer.trained)
        paired = any(
            layer.leaf in after.follows and chosen.get(after.leaf) == "row"
            for after in self.layers
        )
        leaving = 0 if paired else 2 * number * layer.outputs / self.members
        return entering + leaving

    def spread_axes(self, chosen: Choice) -> dict[int, int]:
        """The axis along which each parameter of a split layer is spread."""
        axes: dict[int, int] = {}
        for layer in self.layers:
            choice = chosen.get(layer.leaf)
            if choice == "row":
                axes[layer.leaf] = layer.row_axis
            elif choice == "column":
                axes[layer.leaf] = layer.column_axis
                for leaf, axis in layer.beside:
                    if self.shapes[leaf][axis] % self.members == 0:
                        axes[leaf] = axis
        return axes

    def why_nothing(self) -> str:
        """What splitting every layer that can be split would save and cost."""
        able = [x for x in self.layers if self._can(x, x.column_axis)]
        if not able:
            return (
                f"no dense layer can be split over {self.members} devices: wanted one "
                "outside loops, with a kernel of its own, that is no classifier and "
                "whose width divides. Everything is replicated."
            )
        every: dict[int, Any] = dict.fromkeys((x.leaf for x in able), "column")
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
