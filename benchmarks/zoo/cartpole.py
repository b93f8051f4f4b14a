"""CartPole of gymnax, also as a camera sees it, and a track to practise on."""

import jax
import jax.numpy as jnp
from gymnax.environments.classic_control import cartpole

# Of position, velocity, angle and its velocity.
SPANS = 1.6, 2.5, 0.21, 2.5
STARTS = 1.0, 1.0, 0.1, 1.0
TRACK = 1.2


class CartPole(cartpole.CartPole):
    """CartPole, with what is observed and where it is practised as options.

    Args:
        pixels: None to observe the four numbers; else each number is a spot of light on
            a strip of so many pixels, from 0 to 1, as wide as the distance of two
            pixels, and stops at the ends of the strip, `SPANS` from its middle.
        practice: Whether episodes start anywhere within `STARTS` and end when the cart
            is 1.2 from the middle, not 2.4. From starts in the middle an agent never
            learns what to do elsewhere, where an adversary takes it.
    """

    def __init__(self, pixels: int | None = None, practice: bool = False):
        super().__init__()
        self.pixels, self.practice = pixels, practice

    @property
    def default_params(self) -> cartpole.EnvParams:
        """Of a track half as long where it is practised."""
        params = super().default_params
        return params.replace(x_threshold=TRACK) if self.practice else params

    def reset_env(
        self, key: jax.Array, params: cartpole.EnvParams
    ) -> tuple[jax.Array, cartpole.EnvState]:
        """Starts an episode."""
        if not self.practice:
            return super().reset_env(key, params)
        share = jax.random.uniform(key, (4,), minval=-1, maxval=1)
        x, speed, angle, turn = share * jnp.array(STARTS)
        state = cartpole.EnvState(time=0, x=x, x_dot=speed, theta=angle, theta_dot=turn)
        return self.get_obs(state), state

    def get_obs(
        self, state: cartpole.EnvState, params: object = None, key: object = None
    ) -> jax.Array:
        """Four numbers, or four strips of pixels one after the other."""
        numbers = super().get_obs(state)
        if self.pixels is None:
            return numbers
        spots = jnp.clip(numbers / jnp.array(SPANS), -1, 1)
        places = jnp.linspace(-1, 1, self.pixels)
        away = (spots[:, None] - places[None]) * (self.pixels - 1) / 2
        return jnp.exp(-(away**2) / 2).reshape(-1)
