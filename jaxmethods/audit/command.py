"""`jaxmethods audit`: loads what the options name and leaves the rest to `audit`."""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from .folder import check_writable
from .loading import load_checkpoints, load_data, load_function
from .model import is_network
from .problems import one_line
from .report import AuditConfig, audit

_ROOM = 20_000_000  # bytes: several times what a page with pictures takes
_SOURCES = ("checkpoint", "data", "inputs", "labels", "subtree", "like", "limit")


def prepare_cache() -> None:
    """Keeps compiled programs for the next run, unless the user chose a place."""
    config: Any = jax.config  # it gets its options as attributes when jax loads
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    if config.jax_compilation_cache_dir is None:
        config.update("jax_compilation_cache_dir", str(cache / "jaxmethods"))


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code.

    0: every section was done; 1: lines on stderr say what went wrong and what to do;
    130: interrupted.

    Args:
        options: What the parser of `add_parser` read.
    """
    made = not options.out.exists()
    try:
        return _run(options)
    except KeyboardInterrupt:
        _tell("interrupted; nothing was written.")
        return 130
    except Exception as error:
        named = not isinstance(error, OSError | TypeError | ValueError)
        _tell(one_line(error, named=named))
        return 1
    finally:
        if made:
            # Goes only where it is empty.
            with suppress(OSError):
                options.out.rmdir()


def _run(options: argparse.Namespace) -> int:
    prepare_cache()
    loads: dict[str, Callable[[], Any]] = {
        "out": lambda: check_writable(options.out, _ROOM),
        "apply": lambda: _function(options.function),
        "trees": lambda: load_checkpoints(
            options.checkpoint, subtree=options.subtree, like=options.like
        ),
        "data": lambda: load_data(
            options.data, inputs=options.inputs, labels=options.labels
        ),
    }
    # All that is wrong is told at once.
    loaded, failed = {}, False
    for name, load in loads.items():
        try:
            loaded[name] = load()
        except Exception as error:
            named = not isinstance(error, OSError | ValueError)
            _tell(one_line(error, named=named))
            failed = True
    if failed:
        return 1
    config = AuditConfig(
        **{name: getattr(options, name) for name in AuditConfig._fields}
    )
    inputs, labels = loaded["data"]
    report = audit(
        loaded["apply"],
        loaded["trees"][-1],
        _first(inputs, options.limit),
        _first(labels, options.limit),
        config,
        checkpoints=loaded["trees"],
        name=options.function,
        progress=True,
    )
    sources = {name: getattr(options, name) for name in _SOURCES}
    sources |= {name: str(sources[name]) for name in ("checkpoint", "data")}
    report = report._replace(asked=report.asked | sources)
    # Before anything is written: what was found stays even if that fails.
    sys.stdout.write(f"\n{report}\n")
    sys.stdout.flush()
    report.write(options.out)
    page = (options.out / "index.html").resolve()
    sys.stdout.write(f"\nreport: {page}\n")
    return 1 if report.problems else 0


def _function(text: str) -> Any:
    found = load_function(text)
    if is_network(found) and not isinstance(found, type):
        raise ValueError(
            f"{text} is a {type(found).__name__} with init and apply; wanted a "
            f"function (params, x): give {text}.apply."
        )
    return found


def _first(array: Any, limit: int | None) -> Any:
    # What has no axis is told of where inputs are checked.
    return array if array is None or not array.ndim else array[:limit]


def _tell(text: str) -> None:
    """Writes a line to stderr, with the name of the command."""
    sys.stderr.write(f"jaxmethods audit: {text}\n")
