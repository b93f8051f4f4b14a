"""Compares derivatives of a loss along directions with central differences."""

import numpy as np


def check_slopes(run, at, directions):
    """`run` returns a loss and its gradient in all arguments, in float64."""
    gradient = run(*at)[1]
    for direction in directions:
        up, down = (
            run(*(v + h * d for v, d in zip(at, direction, strict=True)))[0]
            for h in (1e-6, -1e-6)
        )
        want = sum(np.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
        np.testing.assert_allclose((up - down) / 2e-6, want, rtol=1e-4)
