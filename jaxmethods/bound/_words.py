"""How far words may move before a text classifier might change its mind."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core import check_choice, describe, is_concrete
from ._balls import check_finite
from ._margins import margins
from ._radius import METHODS, largest_radius
from ._sets import Ball


class WordRadii(NamedTuple):
    """Certified radii of words, and what they say about their importance.

    Attributes:
        radius: (P,), for each position, or pair of positions, how far the embedding
            there may move: each of a pair in a ball of its own.
        ranking: (P,), int, indices into `radius`, the most important first: the
            smaller its radius, the more a word matters to the prediction.
    """

    radius: jax.Array
    ranking: jax.Array


def word_radius(
    fn: Callable[[Any], Any],
    x: Any,
    label: Any,
    positions: Any = None,
    *,
    p: float = jnp.inf,
    method: str = "crown",
) -> WordRadii:
    """How far single words, or pairs, may move while the label provably stays.

    All positions are searched by one compiled loop; sentences may be a second batch
    axis: `vmap(lambda x, y: word_radius(fn, x, y))(xs, ys)`. Bounds are linear in the
    words that move, d or 2 d numbers, however long the sentence is.

    Args:
        fn: From the embeddings of one sentence, (T, d), to logits (n,).
        x: The embeddings, (T, d), floating.
        label: int in 0..n-1; may be traced.
        positions: Which words: (P,) for single ones, (P, 2) for pairs, int, in
            0..T-1; all single words if None. May be traced, and is then not checked.
        p: The norm of the ball round each word: 1, 2 or inf.
        method: As for `radius`.

    Returns:
        `WordRadii`; radius 0 where the sentence itself gets another label.

    Raises:
        ValueError: An unknown method or norm, embeddings that are no (T, d), no
            position at all; where values are concrete, a position out of range or
            repeated, a label that is no class, embeddings that are not finite.
        TypeError: Token ids in the place of embeddings; positions or a label that are
            no integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods import bound
        >>> weights = jnp.array([1.0, 3.0, 2.0])  # the second word counts most
        >>> fn = lambda x: jnp.stack([weights @ x[:, 0], weights @ x[:, 1]])
        >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
        >>> found = bound.word_radius(fn, x, 0)
        >>> print(found.radius.round(1), found.ranking)
        [3.  1.  1.5] [1 2 0]

    References:
        Shi, Zhang, Chang, Huang, Hsieh. Robustness verification for transformers. ICLR
        2020, arXiv:2002.06622.
    """
    check_choice(method, tuple(METHODS), "method")
    x = _check_embeddings(x)
    positions = _check_positions(
        jnp.arange(len(x)) if positions is None else positions, len(x)
    )
    Ball(x, 0.0, p).check()
    is_correct = jnp.all(margins(fn, label)(x) > 0)

    def one(places: jax.Array) -> jax.Array:
        words = jnp.take(x, places, axis=0)

        def moved(*words: jax.Array) -> Any:
            sentence = x
            for place, word in zip(places, words, strict=True):
                here = (jnp.arange(len(x)) == place)[:, None]
                sentence = jnp.where(here, word[None], sentence)
            return fn(sentence)

        lower = METHODS[method](margins(moved, label))

        def certified(eps: jax.Array) -> jax.Array:
            return jnp.all(lower(*(Ball(w, eps, p) for w in words)).lower > 0)

        return largest_radius(certified, words, is_correct)

    found = jax.vmap(one)(positions.reshape(len(positions), -1))
    return WordRadii(found, jnp.argsort(found))


def _check_embeddings(x: Any) -> jax.Array:
    array = jnp.asarray(x)
    if jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"x is {describe(array)}, as token ids are; wanted embeddings (T, d), "
            "floating: apply the model's embedding function to the ids first."
        )
    check_finite(array, "x")
    if array.ndim != 2:
        raise ValueError(
            f"x is {describe(array)}; wanted the embeddings (T, d) of one sentence: "
            "batch with vmap."
        )
    return array


def _check_positions(positions: Any, num_words: int) -> jax.Array:
    array = jnp.asarray(positions)
    if not array.size:
        raise ValueError(
            f"positions is {describe(array)}, without entries; wanted at least one, or "
            "None for all words."
        )
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"positions is {describe(array)}; wanted integers.")
    if not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 2)):
        raise ValueError(
            f"positions is {describe(array)}; wanted (P,) for single words or (P, 2) "
            "for pairs."
        )
    if not is_concrete(array):
        return array
    values = np.asarray(array)
    outside = values[(values < 0) | (values >= num_words)]
    if outside.size:
        raise ValueError(
            f"positions holds {outside[0]} for a sentence of {num_words} words; wanted "
            f"0..{num_words - 1}."
        )
    listed = np.sort(values.reshape(len(values), -1), axis=1)
    in_pair = values.ndim == 2 and bool((listed[:, 0] == listed[:, 1]).any())
    if in_pair or len(np.unique(listed, axis=0)) < len(listed):
        raise ValueError(
            f"positions {values.tolist()} repeats one; wanted each word, or pair of "
            "two words, once."
        )
    return array
