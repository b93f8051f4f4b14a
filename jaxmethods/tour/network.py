"""The network that the tour trains: two convolutions, two dense layers, in flax."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class DigitNet(nn.Module):
    """Convolutions of 16 and 32 features, 128 hidden units, ten logits.

    The first convolution keeps images of up to 8 pixels whole and halves larger ones;
    the second halves. Input (height, width, channels), output (10,).
    """

    hidden: int = 128

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of one image."""
        stride = 1 if x.shape[0] <= 8 else 2
        x = nn.relu(nn.Conv(16, (3, 3), strides=stride)(x))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(-1)))
        return nn.Dense(10)(x)


def init_params(net: nn.Module, key: jax.Array, image_shape: tuple[int, ...]) -> Any:
    """Initial parameters for images of a shape."""
    # Optimising the initialiser costs eight times its run: it runs once.
    fast = {"xla_backend_optimization_level": 0}
    init = jax.jit(net.init, compiler_options=fast)
    return init(key, jnp.zeros(image_shape))
