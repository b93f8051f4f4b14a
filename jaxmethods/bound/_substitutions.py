"""Word substitutions: sentences in which a few words give way to others.

A linear function of the embeddings is a sum over the words, so in its least value each
word stands as it is or gives way to its best candidate, whatever the others do: what
remains is to choose the `budget` words that gain most. Sorting finds the same optimum
as the dynamic programme over positions that is usual here, without its loop.

References:
    Jia, Raghunathan, Goksel, Liang. Certified robustness to adversarial word
    substitutions. EMNLP 2019, arXiv:1909.00986.
    Xu, Shi, Zhang, Wang, Chang, Huang, Kailkhura, Lin, Hsieh. Automatic perturbation
    analysis for scalable certified robustness and beyond. NeurIPS 2020,
    arXiv:2002.12920, section 3.2 (the dynamic programme).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import check_floating, check_integer, describe, is_concrete
from ._balls import check_finite
from ._bounds import Bounds
from ._rows import Rows, SingleEntries, extreme


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Substitutions:
    """All sentences that differ from one in at most `budget` words.

    Args:
        base: The embeddings of the sentence as it is, (T, d), floating.
        candidates: What each word may be replaced by, (T, K, d).
        valid: Which of the candidates there are, (T, K), bool; what the others hold
            never counts, NaN included.
        budget: At most how many words are replaced, 0 or more. Static.

    Raises:
        ValueError: When bounds are asked for: the shapes do not fit, the budget is
            negative, or a value that counts is not finite, where it is concrete.
        TypeError: When bounds are asked for: embeddings that are not floating, as token
            ids are; a mask that is not bool; a budget that is no integer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> base = jnp.array([[1.0], [2.0], [3.0]])
        >>> words = bound.Substitutions(
        ...     base, jnp.array([[[5.0]], [[0.0]], [[2.5]]]), jnp.ones((3, 1), bool), 1
        ... )
        >>> total = bound.crown(lambda x: x.sum())(words)
        >>> round(float(total.lower), 3), round(float(total.upper), 3)
        (4.0, 10.0)

    References:
        Jia et al. 2019, arXiv:1909.00986; Xu et al. 2020, arXiv:2002.12920.
    """

    base: Any
    candidates: Any
    valid: Any
    budget: int = field(metadata=dict(static=True))

    def check(self) -> None:
        """Raises unless this is a valid set."""
        base = self._check_embeddings(self.base, "base")
        candidates = self._check_embeddings(self.candidates, "candidates")
        valid, wanted = jnp.asarray(self.valid), candidates.shape[:-1]
        if base.ndim != 2 or candidates.ndim != 3:
            raise ValueError(
                f"base and candidates of Substitutions are {describe(base)} and "
                f"{describe(candidates)}; wanted (T, d) and (T, K, d): one sentence a "
                "call, batch with vmap."
            )
        if (candidates.shape[0], candidates.shape[2]) != base.shape:
            raise ValueError(
                f"candidates of Substitutions have shape {candidates.shape}; wanted "
                f"({base.shape[0]}, K, {base.shape[1]}) for a base {base.shape}."
            )
        if valid.dtype != bool:
            raise TypeError(
                f"valid of Substitutions is {describe(valid)}; wanted bool: pass "
                "mask > 0."
            )
        if valid.shape != wanted:
            raise ValueError(
                f"valid of Substitutions has shape {valid.shape}; wanted {wanted}, one "
                "entry a candidate."
            )
        check_integer(self.budget, "budget of Substitutions", 0)
        check_finite(base, "base of Substitutions")
        used = self.choices()[:, 1:]
        if is_concrete(used) and not bool(np.all(np.isfinite(np.asarray(used)))):
            raise ValueError(
                "candidates of Substitutions hold NaN or infinity where valid is True; "
                "wanted finite values there."
            )

    @staticmethod
    def _check_embeddings(x: Any, name: str) -> jax.Array:
        array = jnp.asarray(x)
        if jnp.issubdtype(array.dtype, jnp.integer):
            raise TypeError(
                f"{name} of Substitutions is {describe(array)}, as token ids are (int);"
                " wanted embeddings: look the ids up first, table[ids]."
            )
        return check_floating(array, f"{name} of Substitutions")

    @property
    def placeholder(self) -> Any:
        """The sentence as it is."""
        return jnp.asarray(self.base)

    def choices(self) -> jax.Array:
        """What each word may be, (T, 1 + K, d): the word itself comes first."""
        base = self.placeholder[:, None]
        candidates = jnp.asarray(self.candidates, base.dtype)
        candidates = jnp.where(jnp.asarray(self.valid)[:, :, None], candidates, base)
        return jnp.concatenate([base, candidates], axis=1)

    def hull(self) -> list[Bounds]:
        """The smallest interval round the embeddings."""
        words = self.choices() if self.budget else self.placeholder[:, None]
        return [Bounds(jnp.min(words, axis=1), jnp.max(words, axis=1))]

    def minimum(self, rows: Sequence[Rows | None]) -> jax.Array:
        """The least value over the sentences of linear functions; exact.

        Args:
            rows: The coefficients of the embeddings, in a list of one.

        Returns:
            One number a row.
        """
        (found,) = rows
        if found is None:
            return jnp.zeros(())
        if isinstance(found, SingleEntries):  # one entry a row: one word is enough
            (ends,) = self.hull()
            return extreme(found, ends.lower, ends.upper)
        return self._least(found.dense())

    def _least(self, slopes: Any) -> jax.Array:
        """The least value for coefficients (R, T, d)."""
        values = jnp.einsum("rtd,tkd->rtk", slopes, self.choices(), precision="highest")
        kept = values[..., 0]
        total = jnp.sum(kept, axis=1)
        gains = kept - jnp.min(values, axis=2)
        budget = min(self.budget, gains.shape[1])
        if budget < gains.shape[1]:
            gains, _ = jax.lax.top_k(gains, budget)
        return total - jnp.sum(gains, axis=1)
