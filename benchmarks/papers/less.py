"""The bias of sketched inverses on two real matrices, and what averaging gains.

    python -m benchmarks.papers.less [--data FOLDER] [--quick] [--out DIR]

Sparse sketches with small inversion bias (Derezinski, Liao, Dobriban, Mahoney 2021,
arXiv:2011.10695): the inverse of a sketched Gram matrix is too large, and one scalar
mends that for a LESS sketch of d entries a row as for a dense one, for whatever matrix;
not for rows that are sampled, for sparse rows without a look at the leverage, nor for a
CountSketch. Both matrices have the first 5,000 images of MNIST as rows and d = 16
pixels as columns, of

- coherent: ranks at geometric steps when ordered by how many images have ink there,
  from the pixel that has it in 3;
- incoherent: the largest standard deviation.

A sketch is drawn 8,192 times (4,096 where it is dense) of m rows. Q is the inverse of
the sketched Gram of the whitened matrix, times `S.debias(d)`, or (m - d) / m where a
family has no scalar; the mean of Q would be the identity if nothing were off. Draws
that lose a direction (smallest eigenvalue of the Gram below 1e-3) are left out and
counted. `eps` is the least with I / (1 + eps) <= E Q <= (1 + eps) I, of the mean over
draws, with a 95 % interval: the eigenvalues of the true mean differ from those of the
mean by at most the spectral norm of its error, the 95 % quantile of which comes from
random signs of the draws. `noise` is the eps that those signs would show without bias.
`raw` is eps without the scalar, `best` that of the best scalar there is.

Averaging: a Newton step for least squares, labels +1 for digits of 5 or more and -1 for
others: the mean of q such inverses times the gradient; its squared error in the norm of
the Hessian over that of the exact step, with the scalar and without, m = 64, and by
`inverse_gram(workers=q)`. `--quick` takes the digits that ship with the package.

Last result, one x86_64 core (busy), jax 0.10, 312 s (296 CPU s); eps with its 95 %
interval in brackets (where there is none, +- 0.009 at m = 128 and 0.006 at 256, of the
dense and of coherent row samples 0.013 and 0.009), and the share of draws lost where
that is above 1 %.

    coherent: largest leverage 0.95, 298 times the mean, 29 rows above 0.1
                        m = 32            64                128              256
    gaussian            0.026 [0, .07]    0.017 [0, .04]    0.011            0.008
    rademacher          0.084 [.05, .12]  0.031 [.01, .05]  0.014            0.008
    srht                0.064 [.04, .09]  0.032 [.02, .05]  0.018            0.010
    less                0.087 [.06, .12]  0.033 [.02, .05]  0.015            0.009
    less, approximate   0.087 [.06, .12]  0.032 [.02, .05]  0.015            0.008
    less, s = 4         0.144 [.07, .22]  0.041 [.03, .06]  0.018            0.008
    sparse_stack        0.085 [.06, .11]  0.026 [.01, .04]  0.013            0.007
    countsketch         3.7 [3.1, 4.3]    1.7 [1.3, 2.1]    0.29 [.21, .37]  0.11
                                                                             [.07, .15]
    less_uniform        100 % lost        100 % lost        89 [59, inf]     53
                                                            97 % lost        65 % lost
                                                                             [48, inf]
    sample_rows         11 [8.5, inf]     1.3 [.8, 1.8]     0.056 [0, .11]   0.010
                        74 % lost         11 % lost
    - approximate       14 [11, inf]      1.7 [1.1, 2.3]    0.052 [.03, .07] 0.018
                        71 % lost         9 % lost
    - corrected         26 [21, inf]      1.9 [1.2, 2.5]    0.038 [.02, .06] 0.008
                        69 % lost         9 % lost

    incoherent: largest leverage 0.010, 3.3 times the mean
    gaussian            0.031 [0, .07]    0.019 [0, .04]    0.013            0.006
    rademacher          0.094 [.05, .13]  0.038 [.02, .06]  0.019            0.010
    srht                0.022 [0, .05]    0.012 [0, .03]    0.008            0.005
    less                0.082 [.05, .11]  0.032 [.02, .05]  0.015            0.009
    less, approximate   0.090 [.06, .12]  0.032 [.02, .05]  0.016            0.008
    less, s = 4         0.079 [.05, .11]  0.030 [.02, .04]  0.013            0.008
    sparse_stack        0.088 [.06, .12]  0.031 [.02, .05]  0.016            0.010
    countsketch         0.084 [.06, .11]  0.031 [.02, .05]  0.014            0.006
    less_uniform        0.089 [.06, .12]  0.033 [.02, .05]  0.020            0.010
    sample_rows         0.044 [.02, .07]  0.019 [0, .03]    0.013            0.008
    - approximate       0.082 [.05, .11]  0.032 [.02, .05]  0.017            0.010
    - corrected         0.053 [.02, .08]  0.018 [0, .03]    0.015            0.009

The noise is 0.024, 0.013, 0.008 and 0.005, of the dense 0.033, 0.018, 0.011 and 0.008.
So gaussian shows noise only. LESS has a bias left: its scalar is that of independent
entries, and the mean eigenvalue 1.061, 1.020, 1.008 and 1.004; the best scalar leaves
noise only. Without a scalar LESS and gaussian do not differ: 1.17 and 1.18, 0.38 and
0.39, 0.16 and 0.17, 0.08 and 0.08. On the coherent matrix row sampling and CountSketch
have 38 times the eps of LESS and more up to m = 4 d, by their best scalar as well, and
LESS-uniform always loses a direction. At 16 d row sampling by exact scores is level
with LESS, CountSketch 12 times worse. On the incoherent one all are alike, but for the
finer scalars of gaussian and srht.

Squared error of the averaged step, coherent; half the 95 % interval is 2 % at q = 1,
5 % at 16, 16 % at 256, of inverse_gram 18, 10, 15 %, of the last two up to 60 %:

                        q = 1     4        16       64       256
    gaussian            0.375     0.093    0.023    0.0057   0.0015
    less, approximate   0.384     0.097    0.025    0.0066   0.0020
    - no scalar         0.811     0.301    0.173    0.141    0.132
    sparse_stack        0.382     0.097    0.025    0.0063   0.0019
    inverse_gram, less  0.410     0.107    0.025    0.0062   0.0020
    countsketch         2.8       0.72     0.19     0.060    0.031
    sample_rows         47        12       3.1      0.93     0.34
    - corrected         114       29       7.5      2.5      1.0

Without the scalar the error stops at the square of the bias. With it the error falls as
1 / q, that of LESS nearly: at q = 256 a quarter is bias.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data import Split, load_digits, load_mnist
from jaxmethods.sketch import (
    approximate_leverage_scores,
    countsketch,
    gaussian,
    inverse_gram,
    less,
    less_uniform,
    leverage_scores,
    rademacher,
    sample_rows,
    sparse_stack,
    srht,
)

from .command_line import read_options, timed

NUM_COLUMNS, RATIOS = 16, (2, 4, 8, 16)  # d, and m over d
NUM_IMAGES, FEWEST = 5000, 3
WORKERS = (1, 4, 16, 64, 256)
AVERAGED = 4  # m over d of the sketches that are averaged
LOST = 1e-3  # a Gram matrix with a smaller eigenvalue has lost a direction
DENSE = ("gaussian", "rademacher")


class Problem(NamedTuple):
    """A matrix (n, d), labels (n,), and the matrix in an orthonormal basis."""

    name: str
    matrix: np.ndarray
    labels: np.ndarray
    basis: np.ndarray

    @property
    def step(self) -> np.ndarray:
        """The exact Newton step in the basis, of length 1."""
        direction = self.basis.T @ self.labels
        return direction / np.linalg.norm(direction)


class Draws(NamedTuple):
    """Inverses of sketched Gram matrices (t, d, d), the scalar, the share lost."""

    inverses: np.ndarray
    scalar: float
    lost: float


class Bias(NamedTuple):
    """What the mean of draws is off by.

    Attributes:
        eps: With the scalar.
        low: The lower end of a 95 % interval.
        high: The upper end; infinite where the draws do not bound it.
        noise: What eps is without bias, from the spread of the draws.
        raw: Eps without the scalar.
        best: Eps of the best scalar.
        trace: The mean eigenvalue of the mean, with the scalar.
        trace_error: Half its 95 % interval.
        lost: The share of draws that lost a direction.
    """

    eps: float
    low: float
    high: float
    noise: float
    raw: float
    best: float
    trace: float
    trace_error: float
    lost: float


def problem(name: str, matrix: np.ndarray, labels: np.ndarray) -> Problem:
    """The matrix with its basis, columns scaled."""
    matrix = matrix / np.linalg.norm(matrix, axis=0)
    return Problem(name, matrix, labels, np.linalg.qr(matrix)[0])


def pixels(split: Split) -> list[Problem]:
    """Two choices of 16 pixels; the labels say whether the digit is 5 or more."""
    images, targets = (np.asarray(x[:NUM_IMAGES]) for x in split.train)
    values, labels = images.reshape(len(images), -1).astype(float), targets >= 5
    used = (values > 0).sum(0)
    order = np.argsort(used, kind="stable")
    order = order[used[order] >= FEWEST]
    steps = np.geomspace(1, len(order), NUM_COLUMNS).round().astype(int) - 1
    for i in range(1, len(steps)):  # the first ones would coincide
        steps[i] = max(steps[i], steps[i - 1] + 1)
    varied = np.argsort(-values.std(0), kind="stable")[:NUM_COLUMNS]
    return [
        problem(name, values[:, columns], 2.0 * labels - 1)
        for name, columns in (("coherent", order[steps]), ("incoherent", varied))
    ]


Family = Callable[[Any, int], Any]


def families(matrix: np.ndarray) -> dict[str, Family]:
    """Name -> draw(key, m), an operator; scores are those of the matrix."""
    n, d = matrix.shape
    A = jnp.asarray(matrix, jnp.float32)
    exact = leverage_scores(A)
    # Rows of zeros have score 0 and, to rounding, leverage 0.
    near = approximate_leverage_scores(jax.random.key(3), A)
    return {
        "gaussian": lambda key, m: gaussian(key, m, n),
        "rademacher": lambda key, m: rademacher(key, m, n),
        "srht": lambda key, m: srht(key, m, n),
        "less": lambda key, m: less(key, exact, m, s=d),
        "less, approximate": lambda key, m: less(key, near, m, s=d),
        "less, s = 4": lambda key, m: less(key, near, m, s=4),
        "sparse_stack": lambda key, m: sparse_stack(key, m, n),
        "countsketch": lambda key, m: countsketch(key, m, n),
        "less_uniform": lambda key, m: less_uniform(key, m, n, s=d),
        "sample_rows": lambda key, m: sample_rows(key, exact, m),
        "sample_rows, approximate": lambda key, m: sample_rows(key, near, m),
        "sample_rows, corrected": lambda key, m: sample_rows(
            key, near, m, leverage=jnp.where(near > 0, exact, 0)
        ),
    }


def draw(
    problem: Problem, family: Family, m: int, num_draws: int, otherwise: float
) -> Draws:
    """Inverts the sketched Gram of the whitened matrix, many times.

    Args:
        problem: The matrix.
        family: Of the sketch.
        m: Rows of the sketch.
        num_draws: How many.
        otherwise: The scalar of a family that has none.
    """
    basis = jnp.asarray(problem.basis, jnp.float32)
    operator = family(jax.random.key(0), m)  # raises here, where all is concrete

    @jax.jit
    def grams(keys: Any) -> Any:
        def gram(key: Any) -> Any:
            sketched = family(key, m) @ basis
            return jnp.matmul(sketched.T, sketched, precision="highest")

        return jax.lax.map(gram, keys, batch_size=16)

    keys = jax.random.split(jax.random.key(m), num_draws)
    value, vector = np.linalg.eigh(np.asarray(grams(keys), np.float64))
    kept = value[:, 0] > LOST
    value, vector = value[kept], vector[kept]
    inverses = np.einsum("tik,tk,tjk->tij", vector, 1 / value, vector)
    try:
        scalar = float(operator.debias(NUM_COLUMNS))
    except ValueError:
        scalar = otherwise
    return Draws(inverses, scalar, 1 - float(kept.mean()))


def eps(value: np.ndarray) -> np.ndarray:
    """The eps of means with such eigenvalues (..., d), ascending."""
    low, high = value[..., 0], value[..., -1]
    with np.errstate(divide="ignore"):
        below = np.where(low > 0, 1 / np.maximum(low, 0) - 1, np.inf)
    return np.maximum(np.maximum(high - 1, below), 0)


def bias(draws: Draws, num_signs: int = 400) -> Bias:
    """What the mean is off by, with an interval from random signs of the draws."""
    Q = draws.scalar * draws.inverses
    num, d = Q.shape[:2]
    if num < 8:
        unknown = dict.fromkeys(Bias._fields, float("nan"))
        return Bias(**unknown | {"lost": draws.lost})
    mean = Q.mean(0)
    sign = np.random.default_rng(0).choice([-1.0, 1.0], (num_signs, num))
    off = (sign @ (Q - mean).reshape(num, -1) / num).reshape(-1, d, d)
    at_chance = np.linalg.eigvalsh(off)
    radius = np.quantile(np.abs(at_chance).max(1), 0.95)
    value = np.linalg.eigvalsh(mean)
    inner = np.clip(1, value - radius, value + radius)  # the closest to the identity
    outer = np.array([value[0] - radius, value[-1] + radius])
    trace = np.trace(Q, axis1=1, axis2=2) / d
    return Bias(
        float(eps(value)),
        float(eps(inner)),
        float(eps(outer)),
        float(np.median(eps(1 + at_chance))),
        float(eps(value / draws.scalar)),
        float(np.sqrt(value[-1] / value[0]) - 1),
        float(trace.mean()),
        float(1.96 * trace.std(ddof=1) / np.sqrt(num)),
        draws.lost,
    )


def averaging(steps: np.ndarray, exact: np.ndarray) -> dict[int, tuple[float, float]]:
    """Squared error of means of q steps (t, d), each with half its 95 % interval."""
    found = {}
    for q in WORKERS:
        groups = len(steps) // q
        if groups < 8:
            continue
        means = steps[: groups * q].reshape(groups, q, -1).mean(1)
        error = ((means - exact) ** 2).sum(1)
        half = 1.96 * error.std(ddof=1) / np.sqrt(groups)
        found[q] = float(error.mean()), float(half)
    return found


def by_inverse_gram(
    problem: Problem, family: str, num_draws: int
) -> dict[int, tuple[float, float]]:
    """The same of `inverse_gram`, on the matrix itself and with scores of its own."""
    A, m = jnp.asarray(problem.matrix, jnp.float32), AVERAGED * NUM_COLUMNS
    gradient = problem.matrix.T @ problem.labels
    exact = np.linalg.solve(problem.matrix.T @ problem.matrix, gradient)
    size = np.linalg.norm(problem.matrix @ exact)
    found = {}
    for q in WORKERS:
        groups = min(64, num_draws // q)
        if groups < 8:
            continue
        estimate = functools.partial(inverse_gram, A=A, m=m, family=family, workers=q)
        keys = jax.random.split(jax.random.key(q), groups)
        each = jax.jit(functools.partial(jax.lax.map, estimate))
        inverse = np.asarray(each(keys))
        off = (inverse.astype(float) @ gradient - exact) @ problem.matrix.T
        error = (off**2).sum(1) / size**2
        half = 1.96 * error.std(ddof=1) / np.sqrt(groups)
        found[q] = float(error.mean()), float(half)
    return found


def study(problem: Problem, num_draws: int, dense_draws: int) -> dict[str, Any]:
    """Bias of every family at every size, and averages; prints tables as it goes."""
    n, d = problem.matrix.shape
    leverage = np.asarray(leverage_scores(jnp.asarray(problem.matrix, jnp.float32)))
    print(
        f"\n{problem.name}, {n} x {d}: largest leverage {leverage.max():.3f}, "
        f"{leverage.max() * n / d:.1f} times the mean, {(leverage > 0.1).sum()} rows "
        f"above 0.1\n{'':26}{'m':>4}{'eps':>9}  {'95 % interval':20}{'noise':>8}"
        f"{'raw':>9}{'best':>9}  {'trace':18}{'lost':>7}"
    )
    found: dict[str, Any] = {"bias": {}, "averages": {}, "raw averages": {}}
    for name, family in families(problem.matrix).items():
        num = dense_draws if name in DENSE else num_draws
        of_sizes = found["bias"][name] = {}
        for ratio in RATIOS:
            m = ratio * d
            # The corrected weights need no scalar.
            otherwise = 1.0 if "corrected" in name else (m - d) / m
            try:
                draws = draw(problem, family, m, num, otherwise)
            except ValueError:  # too few rows for corrected weights
                continue
            b = of_sizes[m] = bias(draws)
            print(
                f"{name:26}{m:4}{b.eps:9.4f}  {f'{b.low:.4f} to {b.high:.4f}':20}"
                f"{b.noise:8.4f}{b.raw:9.4f}{b.best:9.4f}  "
                f"{f'{b.trace:.4f} +- {b.trace_error:.4f}':18}{b.lost:7.2%}",
                flush=True,
            )
            if ratio == AVERAGED:
                steps = draws.inverses @ problem.step
                with_scalar = averaging(draws.scalar * steps, problem.step)
                found["averages"][name] = with_scalar
                found["raw averages"][name] = averaging(steps, problem.step)
    for family in ("less", "sparse_stack"):
        averages = by_inverse_gram(problem, family, num_draws)
        found["averages"][f"inverse_gram, {family}"] = averages
    print_averages(found)
    return found


def print_averages(found: dict[str, Any]) -> None:
    """Squared errors of Newton steps over the number of workers."""
    print(f"\nerror of the mean of q steps, m = {AVERAGED * NUM_COLUMNS}")
    print(f"{'':34}" + "".join(f"{f'q = {q}':>20}" for q in WORKERS))
    for kind, label in (("averages", ""), ("raw averages", ", no scalar")):
        for name, errors in found[kind].items():
            cells = [f"{f'{e:.2e} +- {h:.0e}':>20}" for e, h in errors.values()]
            print(f"{name + label:34}" + "".join(cells))


def plot(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Draws eps over m and the error of averages over q, a row for each matrix."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    for (title, found), (left, right) in zip(results.items(), axes, strict=True):
        colors = {name: f"C{i % 10}" for i, name in enumerate(found["bias"])}
        for i, (name, sizes) in enumerate(found["bias"].items()):
            style = "o-" if i < 7 else "s--"
            m = np.array(list(sizes))
            values = np.array([(b.eps, b.low, b.high) for b in sizes.values()])
            if not len(m):
                continue
            spread = np.abs(values[:, 1:] - values[:, :1]).T
            spread[~np.isfinite(spread)] = 0
            shown = dict(color=colors[name], ms=4, capsize=2, label=name)
            left.errorbar(m * 1.01**i, values[:, 0], spread, fmt=style, **shown)
        noise = [b.noise for b in found["bias"]["gaussian"].values()]
        sizes = list(found["bias"]["gaussian"])
        left.plot(sizes, noise, ":", color="0.5", label="noise of gaussian")
        left.set(xlabel="rows m of the sketch", ylabel="eps", title=title)
        left.set(xscale="log", yscale="log", ylim=(3e-3, 100))
        left.set_xticks(sizes, [str(m) for m in sizes])
        left.minorticks_off()
        for name in ("gaussian", "less, approximate", "less_uniform", "sample_rows"):
            for kind, style in (("averages", "o-"), ("raw averages", "o:")):
                errors = found[kind][name]
                label = name + (", no scalar" if kind != "averages" else "")
                if not errors:  # every draw lost a direction
                    continue
                values, q = np.array(list(errors.values())), list(errors)
                shown = dict(color=colors[name], ms=4, capsize=2, label=label)
                right.errorbar(q, values[:, 0], values[:, 1], fmt=style, **shown)
        right.set(xlabel="workers q", ylabel="squared error of the averaged step")
        right.set(xscale="log", yscale="log", title=title)
        right.set_xticks(WORKERS, [str(q) for q in WORKERS])
        right.minorticks_off()
    axes[0, 0].legend(fontsize=7, ncols=2)
    axes[0, 1].legend(fontsize=7)
    figure.savefig(path, dpi=130)


def save(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Writes all that was measured as JSON."""
    rows = []
    for matrix, found in results.items():
        for name, sizes in found["bias"].items():
            rows += [
                {"matrix": matrix, "family": name, "m": m, **b._asdict()}
                for m, b in sizes.items()
            ]
        for kind in ("averages", "raw averages"):
            for name, errors in found[kind].items():
                row = {"matrix": matrix, "family": name, kind: errors}
                rows.append(row)
    path.write_text(json.dumps(rows, indent=1) + "\n")


def main() -> None:
    options = read_options("less", __doc__, data="mnist", quick="the shipped digits")
    with timed():
        problems = pixels(load_digits() if options.quick else load_mnist(options.data))
        sizes = (512, 256) if options.quick else (8192, 4096)
        results = {problem.name: study(problem, *sizes) for problem in problems}
    if options.out:
        save(options.out / "less.json", results)
        plot(options.out / "less.png", results)


if __name__ == "__main__":
    main()
