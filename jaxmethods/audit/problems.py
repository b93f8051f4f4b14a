"""Failures as one line each, so that what does not depend on them goes on."""


def one_line(error: BaseException, *, named: bool = False, limit: int = 600) -> str:
    r"""The message of an error without line breaks.

    Args:
        error: Any.
        named: Whether to put the name of its type in front.
        limit: How many characters at most.

    Returns:
        The text; the name of the type where there is no message.

    Example:
        >>> one_line(ValueError("two\n  lines"))
        'two lines'
    """
    text = " ".join(str(error).split())
    name = type(error).__name__
    if not text:
        return name
    text = text if len(text) <= limit else f"{text[: limit - 4].rstrip()} ..."
    return f"{name}: {text}" if named else text
