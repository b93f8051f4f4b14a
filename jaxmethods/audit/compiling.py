"""How the programs of an audit are compiled."""

from collections.abc import Callable
from typing import Any

import jax


def compiled(fn: Callable[..., Any], *like: Any) -> Callable[..., Any]:
    """The program of a function, for arguments of the shapes and types of `like`."""
    return jax.jit(fn).lower(*like).compile()


def quick(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` of a program that runs a few hundred times at most.

    On CPUs LLVM optimises it at its second level: with unrolled loops, which the third
    adds, it takes longer to compile and the bounds and gradients of smooth activations
    to run, by a third and more.

    Args:
        fn: A function of pytrees of arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> quick(jnp.sum)(jnp.arange(3.0))
        Array(3., dtype=float32)
    """
    config: Any = jax.config
    # Whoever asks for fewer optimisations gets fewer.
    if not on_cpu() or config.read("jax_disable_most_optimizations"):
        return jax.jit(fn)
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 2})


def on_cpu() -> bool:
    """Whether programs run on the CPU."""
    return jax.default_backend() == "cpu"
