"""Failures as one line each, so that what does not depend on them goes on."""

from collections.abc import Mapping


def one_line(error: BaseException, *, named: bool = False, limit: int = 600) -> str:
    r"""The message of an error without line breaks.

    Args:
        error: Any.
        named: Whether to put the name of its type in front.
        limit: How many characters at most.

    Returns:
        The text, without its middle where it is longer; the name of the type where
        there is no message.

    Example:
        >>> one_line(ValueError("two\n  lines"))
        'two lines'
    """
    text = " ".join(str(error).split())
    name = type(error).__name__
    if not text:
        return name
    if len(text) > limit:
        # What an error of a callback quotes ends with the cause.
        half = limit // 2 - 3
        text = f"{text[:half].rstrip()} ... {text[-half:].lstrip()}"
    return f"{name}: {text}" if named else text


def problem_lines(problems: Mapping[str, str]) -> list[str]:
    """What failed and why, a line a reason, with all the sections that have it.

    Example:
        >>> problem_lines({"accuracy": "no labels", "labels": "no labels"})
        ['accuracy, labels: no labels']
    """
    lines = []
    for reason in dict.fromkeys(problems.values()):
        sections = [name for name, why in problems.items() if why == reason]
        lines.append(f"{', '.join(sections)}: {reason}")
    return lines
