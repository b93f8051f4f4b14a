"""Programs of an audit are compiled for a few hundred runs."""

from importlib import import_module

import jax
import pytest

MODULE = import_module("jaxmethods.audit.compiling")


@pytest.mark.parametrize(
    "cpu, fewer, options",
    [
        (True, False, {"xla_backend_optimization_level": 2}),
        (True, True, None),
        (False, False, None),
    ],
)
def test_cpus_optimise_less_unless_less_was_asked_for(monkeypatch, cpu, fewer, options):
    seen = []
    monkeypatch.setattr(MODULE, "on_cpu", lambda: cpu)
    monkeypatch.setattr(
        MODULE.jax,
        "jit",
        lambda fn, compiler_options=None: seen.append(compiler_options),
    )
    jax.config.update("jax_disable_most_optimizations", fewer)
    MODULE.quick(abs)
    assert seen == [options]
