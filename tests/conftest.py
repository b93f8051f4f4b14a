"""Sets up jax before any array exists: 8 CPU devices, strict checks, a warm cache."""

import gc
import os
from pathlib import Path

import jax
import pytest
from jax._src import compiler

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))

# Threads for the collectives of eight devices to wait on, and some to work with.
os.environ.setdefault("NPROC", "32")
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE / "jaxmethods-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
# Compiled programs and jaxprs are millions of objects that stay: scanning them every
# 700 allocations took a tenth of the time.
gc.set_threshold(100_000, 20, 50)

_of_jax = compiler.get_compile_options


def _options(*args, **kwargs):
    options = _of_jax(*args, **kwargs)
    if compiler._DISABLE_MOST_OPTIMIZATIONS.value:
        options.env_option_overrides = [
            *options.env_option_overrides,
            # XLA's former way to write loops compiles in half the time.
            ("xla_cpu_use_fusion_emitters", False),
            ("xla_cpu_parallel_codegen_split_count", 1),
        ]
    return options


# jax takes options of XLA for a whole process, or for one jit; not for a while.
compiler.get_compile_options = _options


@pytest.fixture(autouse=True)
def _compile_fast(request):
    """Skips XLA's optimisations, unless a test is marked `optimized`."""
    name = "jax_disable_most_optimizations"
    jax.config.update(name, "optimized" not in request.keywords)
    yield
    jax.config.update(name, False)


@pytest.fixture
def x64():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield


def _shared() -> Path:
    return Path(os.environ.get("JAXMETHODS_SHARED", "../shared")).resolve()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data and real data sets."""
    return _shared()


def pytest_collection_modifyitems(items):
    """Skips the tests that read reference data where there is none."""
    missing = not (_shared() / "goldens").is_dir()
    reason = f"no goldens at {_shared()}: set JAXMETHODS_SHARED"
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skipif(missing, reason=reason))
