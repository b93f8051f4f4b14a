"""Five transforms of any JAX function, and published methods built from them.

`sketch` random projections as operators; `quantize` low-bit training with unbiased
gradients; `bound` guaranteed bounds of any function over sets; `influence` which
training example moved a prediction; `shard` hybrid parallelism and compressed
exchange on meshes. `robust` holds attacks, `rl` agents whose observations are
perturbed, `audit` what to ask of a trained model, `data` readers of data files.

Example:
    >>> import jaxmethods
    >>> jaxmethods.__version__.count(".")
    2
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import audit, bound, data, influence, quantize, rl, robust, shard, sketch

_PACKAGES = (
    "audit",
    "bound",
    "data",
    "influence",
    "quantize",
    "rl",
    "robust",
    "shard",
    "sketch",
)
__all__ = ["__version__", "audit", "bound", "data", "influence", "quantize", "rl"]
__all__ += ["robust", "shard", "sketch"]


def __getattr__(name: str):
    # Packages load at first use: optax alone costs 0.2 s, a script may need one.
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
