"""Which quantizer each value of a network meets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..core import describe
from ._quantizer import Quantizer

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Policy:
    """The quantizers of a network's products; None leaves a value exact.

    Attributes:
        activation: for operands that depend on the data, rounded to the nearest.
        weight: for operands that depend on the parameters alone, rounded likewise.
        input_grad: for a layer's incoming gradient, on the way to its input; noisy.
        weight_grad: for the same gradient, on the way to its weight; noisy.
        where: the parameters whose layers are quantized: key paths such as
            `[("w1",), ("head", "kernel")]`, each naming a leaf or a subtree, or a
            predicate on such a path. None: all.

    Raises:
        TypeError: a quantizer is neither None nor made by `ptq`, `psq` or `bhq`, or
            `where` is neither paths nor a predicate.

    Example:
        >>> from jaxmethods.quantize import bhq, ptq
        >>> policy = Policy(
        ...     activation=ptq(8, zero_aligned=False),
        ...     weight=ptq(8),
        ...     input_grad=bhq(5),
        ...     weight_grad=bhq(8),
        ...     where=lambda path: path[0] != "head",
        ... )
        >>> policy.covers(("block", "kernel")), policy.covers(("head", "kernel"))
        (True, False)

    References:
        Chen, Gai, Yao, Mahoney, Gonzalez 2020 (arXiv 2010.14298).
    """

    activation: Quantizer | None = None
    weight: Quantizer | None = None
    input_grad: Quantizer | None = None
    weight_grad: Quantizer | None = None
    where: Sequence[Path] | Callable[[Path], bool] | None = None

    def __post_init__(self):
        for name in ("activation", "weight", "input_grad", "weight_grad"):
            q = getattr(self, name)
            if q is not None and not isinstance(q, Quantizer):
                raise TypeError(
                    f"{name} is {describe(q)}; "
                    f"wanted a quantizer such as psq(4), or None for an exact value."
                )
        if self.where is None or callable(self.where):
            return
        paths = self.where if isinstance(self.where, list | tuple) else [self.where]
        if not all(isinstance(path, list | tuple) for path in paths):
            raise TypeError(
                f"where is {describe(self.where)}; "
                f'wanted a list of key paths such as [("w1",)], or a predicate.'
            )
        # Tuples, so that a policy can be hashed and kept as a static argument.
        object.__setattr__(self, "where", tuple(map(tuple, paths)))

    def covers(self, path: Path) -> bool:
        """Whether the layer of the parameter at `path` is quantized."""
        if self.where is None:
            return True
        if callable(self.where):
            return bool(self.where(path))
        return any(path[: len(prefix)] == prefix for prefix in self.where)


def check_policy(policy: Policy) -> None:
    """Raises TypeError unless `policy` is a Policy."""
    if not isinstance(policy, Policy):
        raise TypeError(
            f"policy is {describe(policy)}; wanted a Policy, such as "
            "Policy(weight=ptq(8), input_grad=psq(5))."
        )
