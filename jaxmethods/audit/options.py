"""The options of `jaxmethods audit`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .certificates import METHODS
from .radii import DEFAULTS, NORMS
from .report import SECTIONS, AuditConfig
from .saving import saving_text

_EPILOG = """\
MODULE:FUNCTION is `apply(params, x) -> logits` of one input or of a batch; MODULE is on
the path, in this folder, or a .py file, and FUNCTION may have dots (model:net.apply).
The parameters come as nested dicts and lists: of an npz file the names are paths such
as Dense_0/kernel. Where the model takes another structure (an equinox module, a state
of nnx), --like names parameters of it, or a function that makes them.

{saving}
A section that fails is one line that says what to do; the others still run. Compiled
programs are kept in $XDG_CACHE_HOME/jaxmethods (~/.cache/jaxmethods), unless jax has a
place for them (JAX_COMPILATION_CACHE_DIR).
"""


def add_parser(commands: Any) -> None:
    """Adds the command to those of `jaxmethods`.

    Args:
        commands: What `ArgumentParser.add_subparsers` returned.
    """
    parser = commands.add_parser(
        "audit",
        help="how far any trained classifier can be trusted, with a report",
        description="Accuracy as it is, under attack and certified; with weights of "
        "few bits; suspicious labels; the memory of training on several devices.",
        epilog=_EPILOG.format(saving=saving_text()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("function", metavar="MODULE:FUNCTION", help="the model, apply(params, x)")
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="orbax folder or npz file")
    add("data", type=Path, metavar="DATA", help="npz file with inputs and labels")
    out, shown = Path("report/audit"), ", ".join(SECTIONS)
    _add(add, "--out", out, "DIR", "folder of the report", type=Path)
    add("--skip", type=_sections, default=(), metavar="A,B", help=f"of {shown}")
    _add_sources(add)
    _add_settings(add)


def _add(
    add: Callable[..., Any],
    flag: str,
    default: Any,
    metavar: str,
    text: str,
    **how: Any,
) -> None:
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    text = f"{text} (default: {shown})"
    add(flag, default=default, metavar=metavar, help=text, **how)


def _add_sources(add: Callable[..., Any]) -> None:
    _add(add, "--inputs", "inputs", "NAME", "the array of DATA that holds them")
    _add(add, "--labels", "labels", "NAME", "the array of DATA that holds them")
    add("--limit", type=_count, metavar="N", help="only the first N inputs")
    add("--subtree", metavar="NAME", help="where in CHECKPOINT the parameters lie")
    add("--like", metavar="MODULE:NAME", help="parameters of the model's structure")
    text = "whether x is a batch (default: found out)"
    add("--batched", type=_yes, metavar="yes|no", help=text)


def _add_settings(add: Callable[..., Any]) -> None:
    standard = AuditConfig()
    shown = (f"{','.join(map(str, e))} for {norm}" for norm, e in DEFAULTS.items())
    text = f"radii, in units of inputs (default: {'; '.join(shown)})"
    add("--eps", type=_floats, metavar="E,E", help=text)
    _add(add, "--norm", standard.norm, "|".join(NORMS), "of the radii", choices=NORMS)
    text = "least and greatest value of an entry, as --bounds=-1,1, or none"
    _add(add, "--bounds", standard.bounds, "LOW,HIGH", text, type=_bounds)
    methods = "auto", *METHODS
    text = f"what proves radii (of weights always crown_ibp): {', '.join(methods)}"
    _add(add, "--method", standard.method, "NAME", text, choices=methods)
    _add(add, "--bits", standard.bits, "B,B", "of rounded weights", type=_integers)
    text, choices = "what has a grid of its own: tensor, channel", ("tensor", "channel")
    _add(add, "--per", standard.per, "NAME", text, choices=choices)
    text = "devices that training is planned for"
    _add(add, "--devices", standard.devices, "K", text, type=_count)
    text = "examples of a training step, over all devices; a multiple of K"
    _add(add, "--batch", standard.batch, "N", text, type=_count)
    text = "inputs that are looked at at once"
    _add(add, "--chunk", standard.chunk, "N", text, type=_count)


def _sections(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if unknown := [name for name in names if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} is no section; wanted some of {', '.join(SECTIONS)}"
        )
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; wanted a number, 1 or more")
    return int(text)


def _floats(text: str) -> list[float]:
    return _numbers(text, float, "0.01,0.1")


def _integers(text: str) -> list[int]:
    return _numbers(text, int, "8,4,2")


def _numbers(text: str, kind: Callable[[str], Any], example: str) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}; wanted numbers such as {example}"
        ) from None


def _bounds(text: str) -> tuple[float, float] | None:
    if text == "none":
        return None
    ends = _floats(text)
    if len(ends) != 2:
        raise argparse.ArgumentTypeError(f"{text!r}; wanted two such as 0,1, or none")
    return ends[0], ends[1]


def _yes(text: str) -> bool:
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted yes or no")
    return text == "yes"
