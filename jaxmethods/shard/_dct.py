"""Dynamic communication thresholding: what reaches a threshold is sent in full."""

from ._codec import Codec
from ._compose import compose
from ._index_codes import IndexCode, Int32Places
from ._selectors import AboveThreshold
from ._value_codes import Float32, ValueCode


def dct(
    *,
    sparsity: float,
    life: int = 1,
    capacity: int | float | None = None,
    value: ValueCode | None = None,
    index: IndexCode | None = None,
) -> Codec:
    """DCT: sends the entries of gradient + error that reach a threshold.

    Each worker and leaf has a threshold tau of its own: every `life` steps the
    `floor(sparsity n)`-th smallest magnitude of w = g + e (from 0), so that a share of
    `1 - sparsity` passes; in between it stays. What passes, |w| >= tau, is sent as it
    is; the rest is the new error. Ties at the threshold pass, zeros never do.

    Between renewals the number that passes drifts by factors, up and down: see
    `FeedbackState.held_back` for what found no room.

    Args:
        sparsity: the share of entries that is *not* sent, in [0, 1).
        life: steps between renewals of the thresholds, at least 1; the paper has about
            1000. Under `vmap` a threshold is computed at each step and thrown away.
        capacity: entries of a leaf that a message has room for, at least 1 (clipped to
            the size of the leaf); a float, their share of each leaf, in (0, 1], of a
            small leaf one entry; the largest go first, the rest waits in the error.
            None: all, so that nothing waits, and no byte is saved: dense zeros; with an
            index code that brings its own room, such as `LocalPlaces`, that room.
        value: how values travel, as in `compose`; None: `Float32()`.
        index: how places travel, as in `compose`; None: `Int32Places()`.

    Returns:
        A `Codec` with `FeedbackState`, whose `threshold` is a tree of () float32.

    Raises:
        TypeError: an option is no number of its kind.
        ValueError: an option out of its range.

    Complexity:
        A message takes 8 bytes an entry of its capacity with `Int32Places`,
        4 and an eighth an entry of the leaf with `BitMask`. XLA compiles for 1.5 s
        of a CPU for each leaf of 1e4 entries, 3 s of 1e6; with `LocalPlaces` 1 and 2.4.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmethods.shard import nbytes
        >>> codec = dct(sparsity=0.5, life=2, capacity=2)
        >>> gradient = jnp.array([3.0, -4.0, 1.0, 0.5])
        >>> message, state = codec.encode(codec.init(gradient), gradient)
        >>> codec.decode(message)
        Array([ 3., -4.,  0.,  0.], dtype=float32)
        >>> float(state.threshold), nbytes(message)
        (3.0, 16)

    References:
        Gupta et al. 2020, "Training Recommender Systems at Scale: Communication-
        Efficient Model and Data Parallelism", arXiv:2010.08899.
    """
    selector = AboveThreshold(sparsity, life, capacity)
    places = index if capacity is None else index or Int32Places()
    return compose(selector, value or Float32(), places)
