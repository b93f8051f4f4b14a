"""AdaComp: each bin sends the entries that are large in it, each as one sign."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core import check_choice, check_integer, check_nonnegative
from ..kernels import WORD_BIN, bin_signs, bin_slots
from ._codec import Codec, check_gradients, decode, zeros_like_gradients
from ._flat_places import at_places
from ._ternary import pack_ternary, unpack_ternary

CONVOLUTION_BIN, DENSE_BIN = 50, 500


class AdaCompState(NamedTuple):
    """What a worker has not sent yet; one a worker, never replicated.

    Attributes:
        residue: A tree like the gradients, float32.
        full_bins: () int32, bins of the last message with no free slot, which may have
            held entries back; always 0 where `slots` is None.
        skipped: () int32, leaves of the last gradients that held NaN or infinity.
    """

    residue: Any
    full_bins: jax.Array
    skipped: jax.Array


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True)
class Dense:
    """A leaf sent as it is.

    Attributes:
        values: The leaf, float32.
        kind: The name of the class. To jax, structures of different dataclasses with
            equal static fields are equal, and `jit` could take one for the other.
    """

    values: jax.Array
    kind: str = field(default="Dense", metadata=dict(static=True))

    def dense(self) -> jax.Array:
        """The leaf, float32."""
        return self.values


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True)
class TernaryMap:
    """A leaf as one ternary digit an entry: room for every entry.

    Attributes:
        digits: (ceil(n / 5),) uint8.
        scale: () float32.
        shape: The shape of the leaf, n entries.
    """

    digits: jax.Array
    scale: jax.Array
    shape: tuple[int, ...] = field(metadata=dict(static=True))

    def dense(self) -> jax.Array:
        """Signs times scale, float32."""
        signs = unpack_ternary(self.digits, int(np.prod(self.shape)))
        return self.scale * signs.reshape(self.shape).astype(jnp.float32)


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True)
class SlotCodes:
    """A leaf as a few codes a bin.

    Attributes:
        codes: (bins, slots) uint8 or uint16; the low 6 or 14 bits are the place in the
            bin, the high 2 bits are 0 (free slot), 1 (plus) or 2 (minus).
        scale: () float32.
        shape: The shape of the leaf.
        bin_size: Entries a bin.
    """

    codes: jax.Array
    scale: jax.Array
    shape: tuple[int, ...] = field(metadata=dict(static=True))
    bin_size: int = field(metadata=dict(static=True))

    def dense(self) -> jax.Array:
        """Signs times scale at their places, float32."""
        return self.add_to(jax.lax.full_like(self.scale, 0, shape=self.shape))

    def add_to(self, total: jax.Array, factor: float = 1.0) -> jax.Array:
        """`total + factor * self.dense()`."""
        bits = 8 * self.codes.dtype.itemsize - 2
        place = (self.codes & (2**bits - 1)).astype(jnp.int32)
        mark = (self.codes >> bits).astype(jnp.int32)
        sign = jnp.where(mark == 2, -1.0, mark.astype(jnp.float32))
        start = self.bin_size * jnp.arange(len(place), dtype=jnp.int32)
        # Free slots add 0 to the first entry of their bin.
        at = at_places(jnp.atleast_1d(total), start[:, None] + place)
        total = at.add(factor * self.scale * sign, mode="promise_in_bounds")
        return total.reshape(self.shape)


def adacomp(
    *,
    bin_size: int | None = None,
    slots: int | None = None,
    scale_factor: float = 2.0,
    implementation: str = "xla",
) -> Codec:
    """AdaComp: sends the locally large entries of residue + gradient, as signs.

    With residue r and gradient g of a leaf, flat and cut into bins of T consecutive
    entries: G = r + g, H = G + (scale_factor - 1) g, m_b = max of |G| in bin b. Entry j
    of bin b is sent iff |H_j| >= m_b and G_j != 0. Its value is s sign(G_j), with one
    scale s, the mean of all m_b, a leaf. The new residue is G less what was sent, so
    nothing is lost.

    A leaf whose r + g holds NaN or infinity sends zeros and keeps its old residue: that
    gradient of that leaf is dropped on that worker, the others are not poisoned, and
    `AdaCompState.skipped` counts it. Clip gradients and add weight decay before the
    exchange, not after it. `resize` hands residues to another number of workers.

    Args:
        bin_size: T, 1 or more, for every leaf; T beyond the leaf's size is one bin.
            None, the paper's: 50 for leaves of 4 axes or more (convolutions), 500 for 2
            or 3 axes; leaves of fewer than 2 axes are sent as they are.
        slots: Entries a bin at most, 1..T (clipped to the bins of small leaves), in
            one byte each up to T = 64, in two up to T = 16384. Of more than fit, the
            largest |H| go first, then the smallest index; the rest waits in the
            residue. With the default bins, 4 to 8 slots hold what training sends:
            50 to 25 times fewer bytes than float32 on convolutions, 250 to 125 times
            on dense layers. None: every entry fits, as a ternary digit of 1.6 bits, 20
            times fewer bytes whatever is sent. By `exchange` a worker sends
            N - 1 messages, in a mean 2 (N - 1) / N times its gradients: without slots
            that is 40 / N times less, and no less from N = 40 on; with 8 slots 50 / N
            times on convolutions and 250 / N times on dense layers.
        scale_factor: Weight of the latest gradient in H, 0 or more; more sends more.
        implementation: "xla" or "pallas", as in `jaxmethods.kernels.bin_slots`: a
            kernel for TPUs, for slots of bins of 128, 256, ... 2048.

    Returns:
        A `Codec` with `AdaCompState`. Gradients of any floating dtype; residue and
        decoded values are float32.

    Raises:
        TypeError: bin_size or slots is no int; a gradient is not floating.
        ValueError: An option out of its range; gradients unlike the state.

    Complexity:
        A message takes 4 + n / 5 bytes without slots, 4 + slots ceil(n / T) or twice
        with them.

    Example:
        >>> codec = adacomp(bin_size=4)
        >>> gradient = jnp.array([4.0, -1.0, 2.0, 0.0])
        >>> message, state = codec.encode(codec.init(gradient), gradient)
        >>> codec.decode(message)
        Array([4., 0., 4., 0.], dtype=float32)
        >>> state.residue
        Array([ 0., -1., -2.,  0.], dtype=float32)

    References:
        Chen, Choi, Brand, Agrawal, Zhang, Gopalakrishnan 2017, "AdaComp: Adaptive
        Residual Gradient Compression for Data-Parallel Distributed Training",
        arXiv:1712.02679.
    """
    _check_options(bin_size, slots, scale_factor)
    check_choice(implementation, ("xla", "pallas"), "implementation")

    def init(tree: Any) -> AdaCompState:
        none = jnp.zeros((), jnp.int32)
        return AdaCompState(zeros_like_gradients(tree), none, none)

    def encode(state: AdaCompState, gradients: Any) -> tuple[Any, AdaCompState]:
        check_gradients(gradients, state.residue)
        leaves, treedef = jax.tree.flatten(gradients)
        messages, residues = [], []
        full = skipped = jnp.int32(0)
        for residue, leaf in zip(jax.tree.leaves(state.residue), leaves, strict=True):
            gradient = jnp.asarray(leaf, jnp.float32)
            size = _bin_size(gradient, bin_size)
            if size is None:
                part = _send_dense(residue, gradient)
            else:
                part = _send_signs(
                    residue, gradient, size, slots, scale_factor, implementation
                )
            messages.append(part.message)
            residues.append(part.residue)
            full, skipped = full + part.full, skipped + part.skipped
        state = AdaCompState(treedef.unflatten(residues), full, skipped)
        return treedef.unflatten(messages), state

    return Codec(init, encode, decode)


def _check_options(
    bin_size: int | None, slots: int | None, scale_factor: float
) -> None:
    if bin_size is not None:
        # Codes of two bytes have room for 14 bits of place; digits have no places.
        check_integer(bin_size, "bin_size", 1, WORD_BIN if slots else float("inf"))
    if slots is not None:
        check_integer(slots, "slots", 1, bin_size or DENSE_BIN)
    check_nonnegative(scale_factor, "scale_factor")


def _bin_size(gradient: jax.Array, bin_size: int | None) -> int | None:
    """Entries a bin for this leaf; None where it is sent as it is."""
    if gradient.size == 0 or (bin_size is None and gradient.ndim < 2):
        return None
    default = CONVOLUTION_BIN if gradient.ndim >= 4 else DENSE_BIN
    return min(bin_size or default, gradient.size)


class _Part(NamedTuple):
    """What one leaf adds to the message and to the state."""

    message: Any
    residue: jax.Array
    full: jax.Array
    skipped: jax.Array


def _send_dense(residue: jax.Array, gradient: jax.Array) -> _Part:
    total = residue + gradient
    finite = jnp.isfinite(total).all()
    # Nothing is left over: a residue that was put there by hand is paid at once.
    return _Part(
        Dense(jnp.where(finite, total, 0)),
        jnp.where(finite, 0, residue),
        jnp.int32(0),
        jnp.int32(~finite),
    )


def _send_signs(
    residue: jax.Array,
    gradient: jax.Array,
    bin_size: int,
    slots: int | None,
    scale_factor: float,
    implementation: str,
) -> _Part:
    flat = residue.reshape(-1), gradient.reshape(-1)
    options = dict(bin_size=bin_size, scale_factor=scale_factor)
    total = residue + gradient
    if slots is None:
        marks, tops = bin_signs(*flat, **options)
    else:
        marks, tops, summed = bin_slots(
            *flat, **options, slots=min(slots, bin_size), implementation=implementation
        )
        if implementation == "pallas":
            total = summed.reshape(total.shape)
    scale = tops.mean()
    finite = jnp.isfinite(scale)
    scale = jnp.where(finite, scale, 0)
    # Of a leaf that is not finite nothing is sent; a code, like a sign, of 0 is none.
    marks = jnp.where(finite, marks, 0)
    left = jnp.where(finite, total, residue)
    if slots is None:
        message: Any = TernaryMap(pack_ternary(marks), scale, gradient.shape)
        left = left - scale * marks.reshape(left.shape).astype(jnp.float32)
        full = jnp.int32(0)
    else:
        message = SlotCodes(marks, scale, gradient.shape, bin_size)
        left = message.add_to(left, -1.0)
        # Not marks[:, -1]: XLA turns top_k and a slice into a sort, ten times slower.
        full = (marks != 0).all(1).sum(dtype=jnp.int32)
    return _Part(message, left, full, jnp.int32(~finite))
