"""Clustering from zeroed and quantized Gram matrices: theory against simulation.

    python -m benchmarks.papers.spectral [--quick] [--plot F]

Two classes +-mu in normal noise, p = 512 features, n = 2048 samples, c = 1/4 (Liao,
Couillet, Mahoney 2020, arXiv:2010.01376). For each function of the entries the snr
|mu|^2 runs through the phase transition that `spectral.predict` gives it; the table has
what the theory says and the mean of simulations with its 95 % interval (t). A star
marks a theory outside of it. At a finite size the transition is blurred (alignment and
error cannot have the limits 0 and 1/2 as their means), and a function that is not
linear sees the means themselves, the more the fewer entries it keeps. Last the fewest
bits for an error, by `spectral.cheapest`. The plot has alignment and error over the snr
and a spectrum beside its predicted density.

Last result, two x86_64 cores (busy), jax 0.10, 55 s (59 CPU s). Where the snr is 2 or
more, theory and simulations of the alignment: all entries 0.625 and 0.623 +- 0.009 at
snr 2, 0.729 and 0.728 +- 0.006 at snr 3; two bits, ternary and signs within 0.005 of
theory at four times their transitions and above; 3 % of the entries 0.742 and 0.707
+- 0.004 (by magnitude, signs only, snr 3.7), 0.778 and 0.747 +- 0.005 (uniform, snr
7.1). Transitions: 0.500, 0.505, 0.507, 0.516, 0.625, 1.781. At snr 3 an error of 10 %
takes 0.012 bits an entry, 5.2 % takes 0.36, 5.06 % takes 4; 5.04 % is the limit.
"""

import argparse
import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxmethods.sketch import spectral

RATIO = 0.25  # c = p / n
RELATIVE_SNR = (0.5, 0.8, 1.25, 1.6, 2.5, 4.0, 6.0)  # in units of the transition
TARGETS = (0.3, 0.2, 0.1, 0.052, 0.0506)


class Point(NamedTuple):
    """One function at one snr: (eigenvalue, alignment, error), thrice."""

    snr: float
    theory: np.ndarray
    mean: np.ndarray
    half_width: np.ndarray


def functions() -> dict[str, spectral.Entrywise]:
    """The functions that are compared, best thresholds found."""
    two_bits = functools.partial(spectral.quantize_entries, 2)
    ternary, two = (
        spectral.best_threshold(family)[0] for family in (spectral.binarize, two_bits)
    )
    return {
        "all entries": spectral.linear(),
        "2 bits": two_bits(two),
        "ternary": spectral.binarize(ternary),
        "signs": spectral.binarize(0.0),
        "3 % ternary": spectral.binarize(1.5),
        "3 % uniform": spectral.uniform(spectral.binarize(1.5).kept),
    }


def sample(key: Any, p: int, n: int, snr: Any) -> tuple[Any, Any]:
    """Data (p, n) of two classes of equal size, and their labels."""
    of_labels, of_mean, of_noise = jax.random.split(key, 3)
    labels = jnp.where(jax.random.permutation(of_labels, n) < n // 2, -1.0, 1.0)
    mean = jax.random.normal(of_mean, (p, 1))
    mean *= jnp.sqrt(snr) / jnp.linalg.norm(mean)
    return jax.random.normal(of_noise, (p, n)) + mean * labels[None, :], labels


@functools.partial(jax.jit, static_argnums=(3, 4))
def trial(key: Any, f: Any, snr: Any, p: int, n: int) -> Any:
    """Eigenvalue, alignment and error of one draw."""
    of_data, of_clustering = jax.random.split(key)
    x, labels = sample(of_data, p, n, snr)
    found = spectral.clustering(of_clustering, x, f)
    wrong = jnp.mean(found.labels != labels)
    alignment = (found.eigenvector @ labels) ** 2 / n
    return jnp.stack([found.eigenvalue, alignment, jnp.minimum(wrong, 1 - wrong)])


def simulate(f: spectral.Entrywise, snr: float, n: int, draws: int) -> Point:
    """Theory and simulations of one function at one snr."""
    keys = jax.random.split(jax.random.key(0), draws)
    p = round(RATIO * n)
    found = np.array([trial(key, f, jnp.float32(snr), p, n) for key in keys], float)
    error = found.std(0, ddof=1) / np.sqrt(draws)
    prediction = spectral.predict(f.moments, c=RATIO, snr=snr)
    return Point(
        snr,
        np.array(prediction[1:], float),
        found.mean(0),
        stats.t.ppf(0.975, draws - 1) * error,
    )


def transition(f: spectral.Entrywise) -> float:
    """The snr at which the eigenvector starts to tell."""
    return float(spectral.predict(f.moments, c=RATIO, snr=1.0).transition)


def table(name: str, f: spectral.Entrywise, points: list[Point]) -> str:
    """What theory says of a function and what simulations find."""
    bits = f.bits or 32
    lines = [
        f"{name}: {f}, {float(f.kept):.1%} kept at {bits} bits, transition at snr "
        f"{transition(f):.3f}",
        f"{'snr':>8}  {'eigenvalue':^24}{'alignment':^26}{'error':^26}",
    ]
    for point in points:
        cells = [f"{point.snr:8.3f} "]
        for theory, mean, half in zip(*point[1:], strict=True):
            star = " " if abs(theory - mean) <= half else "*"
            cells.append(f"{theory:8.3f} {mean:8.3f}±{half:.3f}{star} ")
        lines.append(" ".join(cells))
    return "\n".join(lines)


def cheapest_table(snr: float) -> str:
    """The fewest bits an entry for an error at one snr."""
    lines = [f"fewest bits at snr {snr:g}, by predicted error", "  error   bits  f"]
    for target in TARGETS:
        choice = spectral.cheapest(target, c=RATIO, snr=snr)
        lines.append(f"{target:7.4g} {choice.cost:6.3f}  {choice.f}")
    return "\n".join(lines)


def plot(path: Path, results: dict[str, list[Point]], n: int) -> None:
    """Draws alignment and error over the snr, and one spectrum."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    snr = np.geomspace(0.2, 8, 400)
    for (name, points), f in zip(results.items(), functions().values(), strict=True):
        at = functools.partial(spectral.predict, f.moments, c=RATIO)
        curve = jax.vmap(lambda v, at=at: at(snr=v))(jnp.asarray(snr))
        for i, ax in ((1, axes[0]), (2, axes[1])):
            (line,) = ax.plot(snr, curve[i + 1], label=name)
            ax.errorbar(
                [point.snr for point in points],
                [point.mean[i] for point in points],
                [point.half_width[i] for point in points],
                fmt=".",
                color=line.get_color(),
                capsize=2,
            )
    for ax, label in zip(axes, ("alignment", "error"), strict=False):
        ax.set_xscale("log")
        ax.set_xlim(0.2, 8)
        ax.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["0.25", "0.5", "1", "2", "4", "8"])
        ax.minorticks_off()
        ax.set_xlabel("snr")
        ax.set_ylabel(label)
    axes[0].legend(fontsize=8)
    spectrum(axes[2], n)
    figure.savefig(path, dpi=150)


def spectrum(ax: Any, n: int) -> None:
    """Draws the eigenvalues of one ternary matrix beside their predicted density."""
    f, snr = functions()["ternary"], 1.5
    x, _ = sample(jax.random.key(1), round(RATIO * n), n, snr)
    values = np.linalg.eigvalsh(spectral.transformed_gram(x, f))
    left, right = (float(v) for v in spectral.edges(f.moments, c=RATIO))
    z = np.linspace(left, right, 400)
    ax.hist(values, 80, density=True, color="0.8", label="eigenvalues")
    ax.plot(z, spectral.density(z, f.moments, c=RATIO), label="density")
    predicted = float(spectral.predict(f.moments, c=RATIO, snr=snr).eigenvalue)
    ax.axvline(predicted, ls=":", color="C3", label="informative, predicted")
    ax.plot(values[-1], 0.01, "kv", ms=5, label="largest, found")
    ax.set_xlabel(f"eigenvalue, ternary, snr {snr}")
    ax.set_yscale("log")
    ax.legend(fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.papers.spectral", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="512 samples, 4 draws")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    n, draws = (512, 4) if options.quick else (options.samples, options.draws)
    wall, cpu = time.perf_counter(), time.process_time()
    results = {}
    for name, f in functions().items():
        at = [v * transition(f) for v in RELATIVE_SNR]
        results[name] = [simulate(f, snr, n, draws) for snr in at]
        print(table(name, f, results[name]), end="\n\n", flush=True)
    print(cheapest_table(3.0))
    off = [p for points in results.values() for p in points]
    gaps = np.array([np.abs(p.theory - p.mean) for p in off])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(
        f"largest difference of the means: alignment {gaps[:, 1].max():.3f}, error "
        f"{gaps[:, 2].max():.3f}  ({wall:.0f} s, {cpu:.0f} CPU s)"
    )
    if options.plot:
        plot(options.plot, results, n)


if __name__ == "__main__":
    main()
