"""Sketches beside scipy's and scikit-learn's, in reads of A.

    OMP_NUM_THREADS=1 NPROC=1 taskset -c 0 python -m benchmarks sketch [--quick]

Every row is a product with a float32 matrix A of n x d. `ours_s` draws the operator
from its key inside the timed call, jitted; the scores of LESS are given. The floor is a
read, `A.sum()`, for a product that reads A; filling a new array for one that writes as
much; the product with a stored S for the dense families; a copy for the transform.
Seconds are processor time, medians of interleaved rounds, and so are the ratios: ours
over the floor, ours over the fastest peer. Peers, on one thread:

- csc, csr: scipy's product with the same matrix, built before; "drawn": with numpy's
  draws and the building;
- CWT: `scipy.linalg.clarkson_woodruff_transform`, random numbers included;
- projection: the transform of scikit-learn's `SparseRandomProjection` of as many
  entries a column, fitted before; for normal entries `GaussianRandomProjection`, fitted
  before and with its fit;
- numpy: log2(n) passes of sums and differences, or signs drawn and multiplied;
- fht-cpu 1.0.1, where it is on PYTHONPATH, which transforms columns stored one after
  the other; with the change of order, and of a matrix that is stored so.

The dense families take 2 n m d flops, so n is 1e5 there. SRHT pads 1e6 rows to 2^20.

Last result, one core of an AMD EPYC beside other jobs, jax 0.10.2; ms of ours and of
the floor, ours over the floor (a read where no other is named), MB of temporaries, ms
of peers:

    1e6 x 100, m = 1000         ours  floor          GB/s    MB
    countsketch                   17   12   1.4        24   1.8  csc 25, CWT 127,
                                                                 projection 126
    sparse_stack, k = 4           35   12   2.9        11   4.8  csc 60, projection 431
    sparse_stack, k = 8           67   12   5.6       6.0   8.8  csc 86, projection 827
    SparseColumns given, k = 1    46   12   3.8       8.7     0  csc 25
    SparseColumns given, k = 4   108   12   8.9       3.7   0.4  csc 60
    less, s = 64 (default)       6.4   12   0.5        63    12  csr 8.5, drawn 28
    less, s = 100                9.6   12   0.8        42    12  csr 13, drawn 40
    less_uniform, s = 100        4.8   11   0.4        84   1.2  csr 10, drawn 11
    sample_rows                  1.5   12   0.1       263    12  csr 0.3, drawn 6.7
    srht                         590   19   32        0.7   839  numpy 1206
    S.T @ Y, k = 1               147  184   0.8 fills 2.7     0  csr 31
    S.T @ Y, k = 4               205  162   1.3 fills 2.0    16  csr 59

    2^18 x 256, m = 1024
    countsketch                   10  7.8   1.3        27   2.1  csc 12, CWT 68,
                                                                 projection 69
    sparse_stack, k = 4           25  7.4   3.4        11   2.1  csc 44, projection 231
    sparse_stack, k = 8           47  8.4   5.6       5.7   4.2  csc 62, projection 455
    less, s = 64 (default)       9.0  7.6   1.2        30   3.9  csr 16, drawn 29
    less_uniform, s = 64         7.0  7.5   0.9        39   0.8  csr 16, drawn 14
    sample_rows                  0.6  7.5   0.1       417   2.1  csr 0.6, drawn 2.4
    srht                         352   12   29        0.8   537  numpy 672

    1e5 x 100, m = 1000
    gaussian                     521  166   3.1 products    2.7  projection 179, with
                                                                 its fit 2276
    rademacher                   245  153   1.6 products    2.7  numpy 733

    2^18 x 64
    walsh_hadamard                53   28   1.9 copies      2.4  numpy 182, fht-cpu 47,
                                                                 by columns 14

Where the buckets of a sparse sketch are given, csc takes half as long as ours, and its
transpose a quarter: fewer new pages. fht-cpu was measured in an earlier run.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse
from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection

from jaxmethods.sketch import (
    SparseColumns,
    SparseRows,
    approximate_leverage_scores,
    countsketch,
    gaussian,
    less,
    less_uniform,
    rademacher,
    sample_rows,
    sparse_stack,
    srht,
    walsh_hadamard,
)

from .harness import race, ratios

Calls = Mapping[str, Callable[[], Any]]
ROUNDS, FEW_ROUNDS = 9, 5  # few where a peer takes seconds


def run(quick: bool) -> list[dict]:
    """The rows of this area."""
    if quick:
        return [
            *sparse_rows(100_000, 100, 1000, [64]),
            *transposed_rows(100_000, 100, 1000),
            *dense_rows(10_000, 100, 1000),
            *transform_rows(1 << 15, 64),
        ]
    return [
        *sparse_rows(1_000_000, 100, 1000, [64, 100]),
        *transposed_rows(1_000_000, 100, 1000),
        *sparse_rows(1 << 18, 256, 1024, [64]),
        *dense_rows(100_000, 100, 1000),
        *transform_rows(1 << 18, 64),
    ]


def matrix(n: int, d: int) -> jax.Array:
    """Independent normal entries, float32."""
    return jax.random.normal(jax.random.key(1), (n, d))


def product_row(
    name: str,
    ours: Any,
    args: tuple[Any, ...],
    peers: Calls,
    *,
    floor: Callable[[], Any] | None = None,
    unit: str = "reads",
    nbytes: int | None = None,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """Races ours against a floor and peers; prints them.

    Args:
        name: Of the row.
        ours: A jitted function.
        args: Its arguments, the matrix last.
        peers: Name -> a call.
        floor: A call; by default a read of the matrix.
        unit: What the floor is.
        nbytes: Of what `gbps` counts; by default of the matrix.
        rounds: Of each contestant.

    Returns:
        A row, with `floors`, ours over the floor, and its extremes; `gbps`;
        `temporaries` in bytes; the name of the fastest peer and the seconds of all.
    """
    calls: dict[str, Callable[[], Any]] = {"ours": partial(ours, *args)}
    calls["floor"] = floor or partial(jax.jit(jnp.sum), args[-1])
    taken = race(calls | dict(peers), rounds=rounds)
    found = ratios(taken["ours"], taken["floor"], cpu=True)
    seconds = {label: timing.cpu_s for label, timing in taken.items()}
    row: dict[str, Any] = {f"{label}_s": value for label, value in seconds.items()}
    row |= {"name": name, "first_s": taken["ours"].first_s, "unit": unit}
    row |= {"floors": float(np.median(found)), "floors_range": (min(found), max(found))}
    row["gbps"] = 1e-9 * (nbytes or args[-1].nbytes) / row["ours_s"]
    compiled = ours.lower(*args).compile()
    row["temporaries"] = compiled.memory_analysis().temp_size_in_bytes
    row["peer"] = min(peers, key=seconds.__getitem__)
    row["peer_s"] = seconds[row["peer"]]
    beside = ratios(taken["ours"], taken[row["peer"]], cpu=True)
    row |= {"ratio": float(np.median(beside))}
    row |= {"ratio_min": min(beside), "ratio_max": max(beside)}
    others = ", ".join(f"{label} {1e3 * seconds[label]:.1f}" for label in peers)
    print(
        f"{name:42}{1e3 * row['ours_s']:7.1f} ms  {row['floors']:6.2f} {unit} of "
        f"{1e3 * row['floor_s']:.1f} ms ({min(found):.2f} to {max(found):.2f})  "
        f"{row['gbps']:.1f} GB/s  {1e-6 * row['temporaries']:.1f} MB  {others}",
        flush=True,
    )
    return row


def sparse_rows(n: int, d: int, m: int, draws: Sequence[int]) -> list[dict]:
    """`S @ A` of the families that do not multiply with every entry."""
    A, key = matrix(n, d), jax.random.key(0)
    host, size = np.asarray(A), f"{n} x {d}"
    rows = []
    for k in (1, 4, 8):
        S = draw(key, m, n, k)
        csc, sparse = as_csc(S.explicit()), projection(host, m, k)
        peers = {"csc": lambda csc=csc: csc @ host}
        peers |= {"projection": lambda sparse=sparse: sparse.transform(host.T)}
        if k == 1:
            transform = scipy.linalg.clarkson_woodruff_transform
            peers["CWT"] = partial(transform, host, m, rng=0)
        ours = jax.jit(lambda key, A, k=k: draw(key, m, n, k) @ A)
        check(ours(key, A), csc @ host)
        label = "countsketch" if k == 1 else f"sparse_stack, k = {k}"
        rows.append(product_row(f"{label}, {size}", ours, (key, A), peers))
    explicit = jax.jit(lambda S, A: S @ A)
    for k in (1, 4):
        S = draw(key, m, n, k).explicit()
        csc = as_csc(S)
        peers = {"csc": lambda csc=csc: csc @ host}
        name = f"SparseColumns given, k = {k}, {size}"
        rows.append(product_row(name, explicit, (S, A), peers))
    scores, rng = approximate_leverage_scores(key, A), np.random.default_rng(0)
    for label, s, family in (
        *((f"less, s = {s}", s, partial(less, m=m, s=s)) for s in draws),
        *(
            (
                f"less_uniform, s = {s}",
                s,
                lambda key, _, s=s: less_uniform(key, m, n, s=s),
            )
            for s in draws
        ),
        ("sample_rows", 1, partial(sample_rows, m=m)),
    ):
        csr = as_csr(family(key, scores))
        ours = jax.jit(lambda key, p, A, family=family: family(key, p) @ A)
        check(ours(key, scores, A), csr @ host)
        p = None if "uniform" in label else np.asarray(scores, float)
        peers = {"csr": lambda csr=csr: csr @ host}
        peers["csr drawn"] = partial(less_by_scipy, rng, p, m, s, host)
        args = key, scores, A
        rows.append(product_row(f"{label}, {size}", ours, args, peers))
    ours = jax.jit(lambda key, A: srht(key, m, n) @ A)
    peers = {"numpy": lambda: srht_by_numpy(rng, m, host)}
    name = f"srht, {size}"
    return [*rows, product_row(name, ours, (key, A), peers, rounds=FEW_ROUNDS)]


def transposed_rows(n: int, d: int, m: int) -> list[dict]:
    """`S.T @ Y`; what it writes is as large as A."""
    Y, key = jax.random.normal(jax.random.key(2), (m, d)), jax.random.key(0)
    host, rows = np.asarray(Y), []
    fill = partial(jax.jit(lambda value: jnp.full((n, d), value)), jnp.float32(1))
    for k in (1, 4):
        csr = as_csc(draw(key, m, n, k).explicit()).T
        ours = jax.jit(lambda key, Y, k=k: draw(key, m, n, k).T @ Y)
        check(ours(key, Y), csr @ host)
        name = f"S.T @ Y, k = {k}, {n} x {d}"
        peers = {"csr": lambda csr=csr: csr @ host}
        options = dict(floor=fill, unit="fills", nbytes=4 * n * d)
        rows.append(product_row(name, ours, (key, Y), peers, **options))
    return rows


def dense_rows(n: int, d: int, m: int) -> list[dict]:
    """`S @ A` of the families that multiply with every entry."""
    A, key, rng = matrix(n, d), jax.random.key(0), np.random.default_rng(0)
    host, rows, product = np.asarray(A), [], jax.jit(jnp.matmul)
    fitted = GaussianRandomProjection(m, random_state=0).fit(host.T)
    fresh = GaussianRandomProjection(m, random_state=0)

    def signs() -> np.ndarray:
        bits = rng.integers(0, 256, (m, -(-n // 8)), np.uint8)
        drawn = np.unpackbits(bits, axis=1)[:, :n].astype(np.float32)
        return (2 * drawn - 1) @ host * np.float32(m**-0.5)

    for family, peers in (
        (
            gaussian,
            {
                "projection": lambda: fitted.transform(host.T),
                "projection and fit": lambda: fresh.fit_transform(host.T),
            },
        ),
        (rademacher, {"numpy": signs}),
    ):
        stored = family(key, m, n).dense()
        ours = jax.jit(lambda key, A, family=family: family(key, m, n) @ A)
        check(ours(key, A), np.asarray(stored) @ host)
        name, args = f"{family.__name__}, {n} x {d}", (key, A)
        floor = partial(product, stored, A)
        options = dict(floor=floor, unit="products", rounds=FEW_ROUNDS)
        rows.append(product_row(name, ours, args, peers, **options))
    return rows


def transform_rows(n: int, d: int) -> list[dict]:
    """The Walsh-Hadamard transform beside a copy."""
    A = matrix(n, d)
    host, ours = np.asarray(A), jax.jit(walsh_hadamard)
    wanted = transform_by_numpy(host)
    check(ours(A), wanted)
    peers: dict[str, Callable[[], Any]] = {"numpy": lambda: transform_by_numpy(host)}
    if importlib.util.find_spec("fht_cpu"):
        fht = partial(importlib.import_module("fht_cpu").fht, axis=0, num_threads=1)
        columns = np.array(host, order="F")
        check(fht(columns, out=np.empty_like(columns)), wanted)
        peers["fht-cpu"] = lambda: fht(np.array(host, order="F"))
        peers["fht-cpu by columns"] = lambda: fht(columns, out=np.empty_like(columns))
    copy = partial(jax.jit(lambda x: x + 1), A)
    name = f"walsh_hadamard, {n} x {d}"
    return [product_row(name, ours, (A,), peers, floor=copy, unit="copies")]


def draw(key: jax.Array, m: int, n: int, k: int) -> Any:
    """A sketch with k entries a column."""
    return countsketch(key, m, n) if k == 1 else sparse_stack(key, m, n, k=k)


def projection(host: np.ndarray, m: int, k: int) -> SparseRandomProjection:
    """scikit-learn's with k entries a column in the mean, fitted."""
    return SparseRandomProjection(m, density=k / m, random_state=0).fit(host.T)


def check(found: Any, wanted: np.ndarray) -> None:
    """Raises unless both are the same to rounding."""
    size = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * size)


def as_csc(S: SparseColumns) -> scipy.sparse.csc_matrix:
    """The same operator as a matrix of scipy."""
    k, n = S.bucket.shape
    block = np.arange(k)[:, None] * (S.num_rows // k)
    index = (np.asarray(S.bucket) + block).T.ravel().astype(np.int32)
    value = (np.asarray(S.sign, np.float32) / np.sqrt(k)).astype(np.float32).T.ravel()
    pointer = np.arange(0, k * n + 1, k, dtype=np.int32)
    return scipy.sparse.csc_matrix((value, index, pointer), shape=S.shape)


def as_csr(S: SparseRows) -> scipy.sparse.csr_matrix:
    """The same operator as a matrix of scipy."""
    m, s = S.index.shape
    index, value = np.asarray(S.index).ravel(), np.asarray(S.weight).ravel()
    pointer = np.arange(0, m * s + 1, s, dtype=np.int32)
    return scipy.sparse.csr_matrix((value, index, pointer), shape=S.shape)


def less_by_scipy(
    rng: np.random.Generator, scores: np.ndarray | None, m: int, s: int, A: np.ndarray
) -> np.ndarray:
    """Draws by scores, or evenly where there are none, signs, a csr matrix, times A."""
    n = len(A)
    if scores is None:
        index, p = rng.integers(0, n, m * s, np.int32), np.full(m * s, 1 / n)
    else:
        share = scores / scores.sum()
        index = rng.choice(n, m * s, p=share).astype(np.int32)
        p = share[index]
    sign = 2 * rng.integers(0, 2, m * s, np.int8) - 1
    value = (sign / np.sqrt(m * s * p)).astype(A.dtype)
    pointer = np.arange(0, m * s + 1, s, dtype=np.int32)
    return scipy.sparse.csr_matrix((value, index, pointer), shape=(m, n)) @ A


def transform_by_numpy(rows: np.ndarray) -> np.ndarray:
    """The Walsh-Hadamard transform, a pass over memory for each bit of the length."""
    out = rows.copy()
    length = 1
    while length < len(rows):
        pairs = out.reshape(-1, 2, length, rows.shape[1])
        first = pairs[:, 0].copy()
        pairs[:, 0] += pairs[:, 1]
        np.subtract(first, pairs[:, 1], out=pairs[:, 1])
        length *= 2
    return out


def srht_by_numpy(rng: np.random.Generator, m: int, host: np.ndarray) -> np.ndarray:
    """Random signs, zero rows, the transform, and m of its rows."""
    n, d = host.shape
    length = 1 << (n - 1).bit_length()
    signed = np.zeros((length, d), host.dtype)
    sign = 2 * rng.integers(0, 2, (n, 1), np.int8) - 1
    np.multiply(host, sign.astype(host.dtype), out=signed[:n])
    picked = rng.choice(length, m, replace=False)
    return transform_by_numpy(signed)[picked] * np.float32(m**-0.5)
