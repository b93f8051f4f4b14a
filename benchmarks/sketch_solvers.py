"""Solvers that sketch, beside those of numpy, scipy and scikit-learn.

    OMP_NUM_THREADS=1 NPROC=1 taskset -c 0 python -m benchmarks sketch_solvers [--quick]

Jitted, processor time, medians of interleaved rounds; all draw their random numbers
inside the timed call. The floor is a read of the matrix, `A.sum()`, for scores and
least squares, and the products alone for the SVD.

- `lstsq`, 1e5 x 200 of condition 1e6 in float64, beside `numpy.linalg.lstsq`,
  `scipy.linalg.lstsq` with its default driver and with gelsy. The data come with the
  exact solution x* to rounding (b is A x plus a part orthogonal to all columns). Two
  errors: how far the residual's norm is above the least, as a fraction, and
  |A (x - x*)| over the norm of the least residual;
- `svd`, 20 leading of 20,000 x 1,000 in float32 with singular values 1 / sqrt(j),
  beside `sklearn.utils.extmath.randomized_svd` with as many power iterations and QR,
  and with its defaults; the excess is that of the error in the Frobenius norm over the
  least of rank 20, as a fraction;
- `leverage_scores` and `approximate_leverage_scores` of 1e6 x 100 normal entries in
  float32 beside scipy's QR decomposition; beside them the least and the most of the
  exact that a score is, and the sum over d.

Last result, one core of an AMD EPYC beside other jobs, jax 0.10.2, times in ms:

                                   ours  floor  peers
    lstsq                           426    4.4  numpy 741, scipy 1038, gelsy 1028
    svd                             184    167  as ours 227, defaults 346
    leverage_scores                4020     18  scipy's QR 5590
    approximate_leverage_scores     100     12  scipy's QR 3620

The residual of `lstsq` is the least to all 16 digits and |A (x - x*)| 8e-12 of it, of
numpy's 1.4e-12. The excess of `svd` is 1.4e-4, as that of scikit-learn's with as many
iterations, and 4e-6 by default, with seven. The approximate scores are 0.24 to 3.2
times the exact, 1.14 in the mean.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from sklearn.utils.extmath import randomized_svd

from jaxmethods.sketch import (
    approximate_leverage_scores,
    leverage_scores,
    lstsq,
    svd,
)

from .harness import race, ratios

ROUNDS = 5
Call = Callable[[], Any]


def run(quick: bool) -> list[dict]:
    """The rows of this area."""
    rows = score_rows(100_000 if quick else 1_000_000, 100)
    rows += svd_rows(2_000 if quick else 20_000, 200 if quick else 1_000, 20)
    return rows + lstsq_rows(20_000 if quick else 100_000, 200, 1e6)


def solver_rows(
    name: str,
    ours: Call,
    peers: dict[str, Call],
    floor: Call,
    errors: Callable[[Any], dict[str, float]],
) -> list[dict]:
    """A row for each peer; prints a line for each contestant.

    Args:
        name: Of the rows.
        ours: A call.
        peers: Name -> a call.
        floor: A call.
        errors: From what a call returned to what is wrong with it.
    """
    taken = race({"ours": ours, "floor": floor, **peers}, rounds=ROUNDS)
    wrong = {label: errors(call()) for label, call in {"ours": ours, **peers}.items()}
    rows = []
    for label, timing in taken.items():
        found = ratios(timing, taken["floor"], cpu=True)
        cells = "".join(f"  {k} {v:.4g}" for k, v in wrong.get(label, {}).items())
        print(
            f"{name:46}{label:24}{1e3 * timing.cpu_s:9.1f} ms "
            f"{np.median(found):7.2f} floors{cells}",
            flush=True,
        )
        if label in peers:
            row = {"name": f"{name}, {label}", "ours_s": taken["ours"].cpu_s}
            row |= {"peer_s": timing.cpu_s, "floor_s": taken["floor"].cpu_s}
            beside = ratios(taken["ours"], timing, cpu=True)
            row |= {"ratio": float(np.median(beside))}
            row |= {"ratio_min": min(beside), "ratio_max": max(beside)}
            row |= {"first_s": taken["ours"].first_s}
            rows.append(row | {"errors": wrong["ours"], "peer_errors": wrong[label]})
    return rows


def basis(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """A random matrix (n, d) with orthonormal columns."""
    return np.linalg.qr(rng.normal(size=(n, d)))[0]


def lstsq_rows(n: int, d: int, condition: float) -> list[dict]:
    """Least squares in float64, an ill-conditioned problem."""
    rng = np.random.default_rng(0)
    U, V = basis(rng, n, d), basis(rng, d, d)
    A = (U * np.geomspace(1, 1 / condition, d)) @ V.T
    x, noise = rng.normal(size=d), rng.normal(size=n)
    noise -= U @ (U.T @ noise)
    noise -= U @ (U.T @ noise)
    b = A @ x + noise / np.linalg.norm(noise)

    def errors(found: Any) -> dict[str, float]:
        x_found = np.asarray(found[0])
        above = float(np.linalg.norm(A @ x_found - b)) - 1
        off = float(np.linalg.norm(A @ (x_found - x)))
        return {"residual above": above, "image off": off}

    with jax.enable_x64(True):
        A_here, b_here = jnp.asarray(A), jnp.asarray(b)
        solve, read = jax.jit(lstsq), jax.jit(jnp.sum)
        key = jax.random.key(0)
        peers = {
            "numpy": lambda: np.linalg.lstsq(A, b),
            "scipy": lambda: scipy.linalg.lstsq(A, b),
            "scipy, gelsy": lambda: scipy.linalg.lstsq(A, b, lapack_driver="gelsy"),
        }
        ours, floor = partial(solve, key, A_here, b_here), partial(read, A_here)
        name = f"lstsq, {n} x {d}, condition {condition:g}"
        return solver_rows(name, ours, peers, floor, errors)


def svd_rows(n: int, d: int, k: int) -> list[dict]:
    """The leading singular vectors of a slowly decaying spectrum."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, d + 1) ** -0.5
    A = (basis(rng, n, d) * spectrum) @ basis(rng, d, d).T
    host, key = A.astype(np.float32), jax.random.key(0)
    here, iterations, width = jnp.asarray(host), 4, k + 10
    probes = jax.random.normal(key, (d, width))

    @jax.jit
    def products(A: jax.Array, probes: jax.Array) -> jax.Array:
        def twice(_: int, probes: jax.Array) -> jax.Array:
            return A.T @ (A @ probes)

        return jax.lax.fori_loop(0, iterations + 1, twice, probes)

    def errors(found: Any) -> dict[str, float]:
        U, s, Vt = (np.asarray(part, float) for part in found)
        least = np.linalg.norm(spectrum[k:])
        return {"excess": float(np.linalg.norm(A - (U * s) @ Vt) / least) - 1}

    call = partial(randomized_svd, host, k, random_state=0)
    normalised = dict(n_iter=iterations, power_iteration_normalizer="QR")
    peers = {
        "scikit-learn, as ours": partial(call, **normalised),
        "scikit-learn, defaults": call,
    }
    ours = partial(jax.jit(svd, static_argnums=2), key, here, k)
    name, floor = f"svd, {k} of {n} x {d}", partial(products, here, probes)
    return solver_rows(name, ours, peers, floor, errors)


def score_rows(n: int, d: int) -> list[dict]:
    """Leverage scores, exact and approximate."""
    A, key = jax.random.normal(jax.random.key(1), (n, d)), jax.random.key(0)
    host = np.asarray(A)

    def peer() -> np.ndarray:
        Q, _ = scipy.linalg.qr(host, mode="economic", check_finite=False)
        return np.einsum("ij,ij->i", Q, Q)

    exact = peer()

    def errors(found: Any) -> dict[str, float]:
        share = np.asarray(found) / exact
        least, most = float(share.min()), float(share.max())
        return {"least": least, "most": most, "sum": float(found.sum()) / d}

    read = partial(jax.jit(jnp.sum), A)
    rows, peers = [], {"scipy's QR": peer}
    for ours in (
        partial(jax.jit(leverage_scores), A),
        partial(jax.jit(approximate_leverage_scores), key, A),
    ):
        name = f"{ours.func.__name__}, {n} x {d}"
        rows += solver_rows(name, ours, peers, read, errors)
    return rows
