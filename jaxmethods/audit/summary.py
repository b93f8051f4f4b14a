"""What an audit found, in some lines of the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .problems import problem_lines
from .sections import BLIND, percent, without_alike


def summary(findings: Mapping[str, Any]) -> str:
    """The findings of an audit as text.

    Args:
        findings: As `Report.findings` gives them.
    """
    model = findings["model"]
    count, *shape = model["inputs"]
    parts = [
        f"{model['name']}: {model['num_parameters']:,} parameters; {count} inputs of "
        f"{' x '.join(map(str, shape))}, {model['num_classes']} classes"
    ]
    parts += _radii(findings["accuracy"], findings["certificates"])
    if quantized := findings["quantized"]:
        columns = {name: quantized[name] for name in ("rounded", "certified")}
        parts.append(_columns("bits", map(str, quantized["bits"]), columns))
    if labels := findings["labels"]:
        shown = ", ".join(
            f"{s['index']} (labelled {s['label']}, read {s['predicted']})"
            for s in labels["suspects"][:5]
        )
        parts.append(f"suspicious labels: {shown}")
    if memory := findings["memory"]:
        lines = [f"bytes a device holds in training, {memory['devices']} devices:"]
        rows, alike = without_alike(memory["layouts"])
        lines += [
            f"  {plan['name']:<20} {plan['memory_bytes']:>14,.0f}" for plan in rows
        ]
        if alike:
            lines.append(f"  as data parallel: {', '.join(alike)}")
        parts.append("\n".join(lines))
    if findings["problems"]:
        lines = [f"failed: {line}" for line in problem_lines(findings["problems"])]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _radii(
    accuracy: Mapping[str, Any] | None, proven: Mapping[str, Any] | None
) -> Iterator[str]:
    columns: dict[str, Sequence[float]] = {}
    if accuracy:
        yield f"clean accuracy: {percent(accuracy['clean'])}"
        if accuracy["blind"]:
            yield f"{percent(accuracy['blind'])} {BLIND}"
        columns |= {"PGD": accuracy["pgd"], "APGD": accuracy["apgd"]}
    if proven:
        columns["certified"] = proven["certified"]
    either = proven or accuracy
    if either:
        yield _columns("eps", (f"{e:g}" for e in either["eps"]), columns)


def _columns(name: str, levels: Any, columns: Mapping[str, Sequence[float]]) -> str:
    lines = [f"{name:>8}" + "".join(f"{title:>11}" for title in columns)]
    for level, *shares in zip(levels, *columns.values(), strict=True):
        lines.append(f"{level:>8}" + "".join(f"{percent(s):>11}" for s in shares))
    return "\n".join(lines)
