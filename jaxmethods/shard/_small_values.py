"""Codecs that send every entry, each in a byte or a bit."""

from ._codec import Codec
from ._compose import compose
from ._selectors import Everything
from ._value_codes import Float32, Int8Blocks, OneBit


def int8(*, block: int = 256) -> Codec:
    """Sends every entry of gradient + error in a byte, with one scale a block.

    Rounded to the nearest of 255 levels up to the largest of `block` consecutive
    entries; the rounding error is fed back.

    Args:
        block: entries that share a scale, at least 1.

    Returns:
        A `Codec` with `FeedbackState`.

    Raises:
        TypeError: block is no int.
        ValueError: block is below 1.

    Complexity:
        A message takes 1 + 4 / block bytes an entry.

    Example:
        >>> import jax.numpy as jnp
        >>> codec, gradient = int8(), jnp.array([127.0, 1.25])
        >>> message, state = codec.encode(codec.init(gradient), gradient)
        >>> codec.decode(message), state.error
        (Array([127.,   1.], dtype=float32), Array([0.  , 0.25], dtype=float32))

    References:
        Karimireddy et al. 2019, arXiv:1901.09847 (error feedback).
    """
    return compose(Everything(), Int8Blocks(block))


def sign() -> Codec:
    """Sends the sign of every entry of gradient + error, with one scale a leaf.

    Signs times the mean magnitude: sign SGD with error feedback.

    Returns:
        A `Codec` with `FeedbackState`.

    Complexity:
        A message takes a bit an entry and 4 bytes a leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> codec, gradient = sign(), jnp.array([3.0, -1.0])
        >>> message, state = codec.encode(codec.init(gradient), gradient)
        >>> codec.decode(message), state.error
        (Array([ 2., -2.], dtype=float32), Array([1., 1.], dtype=float32))

    References:
        Karimireddy et al. 2019, arXiv:1901.09847, algorithm 1.
    """
    return compose(Everything(), OneBit())


def dense() -> Codec:
    """Sends every entry as it is: the yardstick of the others.

    Returns:
        A `Codec` with `FeedbackState`, whose error stays zero.

    Complexity:
        A message takes 4 bytes an entry; a plain `jax.lax.pmean` sends less where there
        are more than two workers.

    Example:
        >>> import jax.numpy as jnp
        >>> codec = dense()
        >>> codec.decode(codec.encode(codec.init(jnp.ones(2)), jnp.ones(2))[0])
        Array([1., 1.], dtype=float32)
    """
    return compose(Everything(), Float32(), feedback=False)
