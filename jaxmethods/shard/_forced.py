"""The choices that a user makes for some parameters, before the plan chooses."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core import check_choice, choose_paths
from ._choice import CHOICES, FULL, REPLICATE, Prices

Path = tuple[Any, ...]
Choices = Mapping[Path, str] | Callable[[Path], str | None] | None


def forced_choices(
    choices: Choices, paths: Sequence[Path], prices: Prices
) -> dict[int, str]:
    """What `choices` says of each parameter.

    A path of the mapping chooses every parameter below it that can be laid out so; a
    longer path wins. The path of a parameter, and a predicate, must be obeyed.

    Raises:
        ValueError: An unknown path or choice; a parameter that cannot be laid out so;
            a path below which none can.
    """
    if choices is None:
        return {}
    if callable(choices):
        asked = {path: choices(path) for path in paths}
        wanted = {path: choice for path, choice in asked.items() if choice is not None}
    else:
        wanted = {p if isinstance(p, tuple) else (p,): c for p, c in choices.items()}
    forced: dict[int, str] = {}
    for prefix in sorted(wanted, key=len):
        choice = wanted[prefix]
        if not any(path[: len(prefix)] == prefix for path in paths):
            raise ValueError(
                f"choices name {prefix}, which is no parameter; the known paths are "
                f"{list(paths)}."
            )
        check_choice(choice, CHOICES, f"the choice for {prefix}")
        below = choose_paths([prefix], paths)
        refusals = {
            leaf: _refusal(prices, leaf, choice)
            for leaf, is_below in enumerate(below)
            if is_below
        }
        able = [leaf for leaf, refusal in refusals.items() if not refusal]
        exact = prefix in paths
        if exact or not able:
            for leaf, refusal in refusals.items():
                if refusal:
                    raise ValueError(
                        f"choices asks for {choice!r} at {prefix}, but {paths[leaf]} "
                        f"of shape {prices.shapes[leaf]} {refusal}."
                    )
        forced.update(dict.fromkeys(able, choice))
    return forced


def _refusal(prices: Prices, leaf: int, choice: str) -> str:
    """Why a parameter cannot be laid out so; "" where it can."""
    if choice == REPLICATE:
        return ""
    if choice == FULL:
        if prices.full_axis(leaf) is not None:
            return ""
        return (
            f"has no axis that {prices.devices} devices divide; wanted a multiple: "
            "pad it, or replicate it"
        )
    layer = prices.by_leaf.get(leaf)
    if layer is None or layer.kind != "dense":
        kind = "no kernel of a product" if layer is None else f"of kind {layer.kind!r}"
        return (
            f"is {kind}; wanted a dense kernel of its own, outside loops: replicate it "
            "or shard it fully"
        )
    if not prices.divides(layer, choice):
        axis = layer.row_axis if choice == "row" else layer.column_axis
        return (
            f"has {prices.shapes[leaf][axis]} {choice}s, which {prices.members} "
            "devices do not divide; wanted a multiple of the mesh's axis 'model'"
        )
    return ""
