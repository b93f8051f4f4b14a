"""Clean, attacked and certified accuracy over a range of radii."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..audit.accuracy import is_right, survives_pgd
from ..audit.certificates import is_certified
from ..audit.compiling import compiled
from ..audit.levels import held
from ..audit.model import Apply
from ..data import Images

_CHUNK = 256


class Accuracy(NamedTuple):
    """Shares of a test set: right, right under attack, certified; one a radius."""

    eps: list[float]
    clean: float
    attacked: list[float]
    certified: list[float]


def accuracy_meter(
    apply: Apply, params: Any, test: Images, eps: list[float]
) -> Callable[[Any], Accuracy]:
    """Counts, over a test set, what a network gets right at each radius.

    As `audit.accuracy` and `audit.certificates` do, with PGD and CROWN-IBP, over the
    ball clipped to [0, 1].

    Args:
        apply: `apply(params, image) -> logits` of one image.
        params: Parameters of the shapes to come.
        test: What to count over.
        eps: The radii, ascending.

    Returns:
        `measure(params) -> Accuracy`, its programs compiled already.
    """
    chunk = min(_CHUNK, len(test.labels))
    like = (params, np.float32(0)), *(part[:chunk] for part in test)
    certifies = partial(is_certified, method="crown_ibp")
    right, survives, proves = (
        compiled(partial(holds, apply), *like)
        for holds in (is_right, survives_pgd, certifies)
    )

    def measure(params: Any) -> Accuracy:
        def shares(name: str, holds: Any, radii: Sequence[float], start: Any) -> Any:
            levels = [(params, np.float32(e)) for e in radii]
            return held(holds, levels, *test, chunk=chunk, start=start, label=name)

        (clean,) = shares("clean accuracy", right, [0.0], None)
        attacked = shares("PGD attack", survives, eps, clean)
        certified = shares("certificates", proves, eps, clean)
        return Accuracy(
            eps,
            float(clean.mean()),
            attacked.mean(1).tolist(),
            certified.mean(1).tolist(),
        )

    return measure
