"""Importing the package is cheap: no backend starts, no heavy library loads."""

import subprocess
import sys

SCRIPT = """
import sys
import jax
import jaxmethods
from jaxmethods import audit, bound, influence, quantize, rl, robust, shard, sketch
from jax._src import xla_bridge
heavy = {"flax", "orbax", "matplotlib"} & set(sys.modules)
print(sorted(heavy), xla_bridge.backends_are_initialized())
"""


def test_import_starts_no_backend_and_loads_nothing_heavy():
    out = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[] False"
