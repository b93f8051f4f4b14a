"""Graphs of workers: send lists, matrices, gaps, permutations, and what is refused."""

import math
import re

import jax
import numpy as np
import pytest

from jaxmethods.shard import Graph, graph, mixing_matrix, spectral_gap

CIRCULANT = ("ring", "chord", "halton", "root", "exp2", "complete")
STAR = [[1, 2, 3], [0, -1, -1], [0, -1, -1], [0, -1, -1]]
GOLDEN = {"all": "complete", "chord": "chord", "halton": "halton"}


def every_graph(size):
    yield from (graph(name, size) for name in CIRCULANT)
    yield graph("one_peer", size)
    yield graph("random_regular", size, degree=3, key=jax.random.key(size))


def offsets(g):
    return [(int(j) - 0) % g.num_workers for j in g.send[0]]


def test_send_lists_and_gaps_are_the_reference(shared):
    golden = np.load(shared / "goldens/05-asap.npz")
    seen = 0
    for name in golden:
        if name.startswith("send_"):
            kind, size, *cut = name.split("_")[1:]
            degree = int(cut[0][3:]) if cut else None
            sigma = float(golden[name.replace("send", "sigma2")])
            if sigma > 1 - 1e-9:
                with pytest.raises(ValueError, match="disconnected"):
                    graph(GOLDEN[kind], int(size), degree=degree)
                continue
            g = graph(GOLDEN[kind], int(size), degree=degree)
            np.testing.assert_array_equal(np.sort(g.send), np.sort(golden[name]))
            assert abs(1 - spectral_gap(g) - sigma) < 1e-12
            seen += 1
    assert seen >= 20


@pytest.mark.parametrize(
    "name, size, want",
    [
        ("ring", 5, [1]),
        ("complete", 5, [1, 2, 3, 4]),
        ("chord", 6, [3, 1]),
        ("halton", 6, [1, 4]),
        ("halton", 16, [1, 9, 5, 13]),
        ("root", 31, [1, 6]),
        ("root", 2, [1]),
        ("exp2", 9, [1, 2, 4, 8]),
        ("exp2", 8, [1, 2, 4]),
        ("one_peer", 6, [1, 2, 4]),
    ],
)
def test_offsets(name, size, want):
    g = graph(name, size)
    assert offsets(g) == want and g.send.dtype == np.int32
    everyone = (np.arange(size)[:, None] + np.array(want)[None]) % size
    np.testing.assert_array_equal(g.send, everyone)


def test_gaps_by_formula():
    for size in (2, 3, 8, 13):
        ring = 1 - abs(math.cos(math.pi / size))
        np.testing.assert_allclose(spectral_gap(graph("ring", size)), ring, atol=1e-12)
        np.testing.assert_allclose(spectral_gap(graph("complete", size)), 1, atol=1e-12)
    for size in (2, 6, 8, 12, 32):
        exp2 = 2 / (math.ceil(math.log2(size)) + 1)
        np.testing.assert_allclose(spectral_gap(graph("exp2", size)), exp2, atol=1e-12)
    # A power of two: the exact mean after one cycle. Other numbers: never.
    np.testing.assert_allclose(spectral_gap(graph("one_peer", 8)), 1, atol=1e-12)
    assert spectral_gap(graph("one_peer", 6)) < 0.99


@pytest.mark.parametrize("size", [2, 5, 8, 13])
def test_matrices_keep_the_mean_and_shrink_the_distance_from_it(size):
    degree = min(3, size - 1)
    r = np.random.default_rng(size)
    for g in [
        *(graph(name, size) for name in (*CIRCULANT, "one_peer")),
        graph("random_regular", size, degree=degree, key=jax.random.key(1)),
    ]:
        x, product = r.standard_normal(size), np.eye(size)
        for step in range(g.send.shape[1] if g.cycles else 1):
            matrix = mixing_matrix(g, step)
            assert (matrix >= 0).all() and matrix.dtype == np.float64
            np.testing.assert_allclose(matrix.sum(0), 1, rtol=1e-14)
            np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-14)
            product = matrix @ product
        far = np.linalg.norm(product @ x - x.mean())
        bound = (1 - spectral_gap(g)) * np.linalg.norm(x - x.mean())
        assert far <= bound * (1 + 1e-12) + 1e-14


def test_rows_of_the_matrix_are_receivers():
    matrix = mixing_matrix(graph("chord", 6))
    assert matrix[3, 0] == matrix[1, 0] == matrix[0, 0] == 1 / 3  # 0 sends to 3 and 1
    peers = graph("one_peer", 8)
    for step in (1, 4, -2, np.int64(7)):
        want = (np.eye(8) + np.roll(np.eye(8), 2 ** (step % 3), 0)) / 2
        np.testing.assert_array_equal(mixing_matrix(peers, step), want)


def test_random_regular_follows_its_key_at_every_degree():
    for size in (2, 5, 8):
        for degree in range(1, size):
            g = graph("random_regular", size, degree=degree, key=jax.random.key(0))
            edges = mixing_matrix(g) > 0
            assert (edges.sum(0) == degree + 1).all()
            assert (edges.sum(1) == degree + 1).all()
    draw = [graph("random_regular", 16, key=jax.random.key(k)) for k in (1, 1, 2)]
    assert draw[0] == draw[1] != draw[2]
    assert draw[0].send.shape == (16, 4)  # ceil(log2 N)


def test_random_regular_mixes_better_than_a_ring():
    gaps = [
        spectral_gap(graph("random_regular", 32, degree=4, key=jax.random.key(k)))
        for k in range(5)
    ]
    # sigma_2 of a random digraph: about 1 / sqrt(degree + 1) = .45; of the ring .995.
    assert min(gaps) > 0.1 > 20 * spectral_gap(graph("ring", 32))


@pytest.mark.parametrize("size", [3, 8])
def test_columns_of_senders_are_permutations(size):
    for g in every_graph(size) if size > 3 else [graph("exp2", 3)]:
        for column, receivers in zip(g.senders.T, g.send.T, strict=True):
            np.testing.assert_array_equal(column[receivers], np.arange(size))


@pytest.mark.parametrize("seed", range(3))
def test_edges_in_any_order_become_permutations(seed):
    r = np.random.default_rng(seed)
    tidy = graph("random_regular", 12, degree=4, key=jax.random.key(seed))
    g = Graph(np.array([r.permutation(row) for row in tidy.send]))
    np.testing.assert_array_equal(mixing_matrix(g), mixing_matrix(tidy))
    for column in g.senders.T:
        np.testing.assert_array_equal(np.sort(column), np.arange(12))
    for worker, row in enumerate(g.senders):
        assert sorted(row) == sorted(np.argwhere(g.send == worker)[:, 0])


def test_irregular_graphs_fill_their_gaps():
    edges = np.random.default_rng(0).random((9, 9)) < 0.3
    edges |= np.roll(np.eye(9, dtype=bool), 1, 1)
    np.fill_diagonal(edges, False)
    rows = [np.flatnonzero(row) for row in edges]
    send = np.full((9, max(map(len, rows))), -1)
    for worker, row in enumerate(rows):
        send[worker, : len(row)] = row
    g = Graph(send, weights="in_degree")
    senders, used = g.permutations
    assert senders.shape[1] == max(edges.sum(0).max(), edges.sum(1).max())
    for column in senders.T:
        np.testing.assert_array_equal(np.sort(column), np.arange(9))
    for worker in range(9):
        mine = senders[worker, used[worker]]
        assert sorted(mine) == list(np.flatnonzero(edges[:, worker]))
    assert ((g.senders >= 0) == used).all() and not used.all()


def test_weights_where_degrees_differ():
    metropolis = mixing_matrix(Graph(STAR, weights="metropolis"))
    np.testing.assert_allclose(metropolis, metropolis.T)
    np.testing.assert_allclose(metropolis[0], 1 / 4)
    np.testing.assert_allclose(metropolis[1], [1 / 4, 3 / 4, 0, 0])
    plain = mixing_matrix(Graph(STAR, weights="in_degree"))
    np.testing.assert_allclose(plain[1], [1 / 2, 1 / 2, 0, 0])
    # The weighted mean it converges to: the left eigenvector, by degree + 1.
    far = np.linalg.matrix_power(plain, 200)
    np.testing.assert_allclose(far, np.array([[4, 2, 2, 2]]) / 10 + 0 * far, rtol=1e-9)
    even = graph("exp2", 8)
    for weights in ("metropolis", "in_degree"):
        ring = [[1, 3], [2, 0], [3, 1], [0, 2]]
        same = mixing_matrix(Graph(ring, weights=weights)), mixing_matrix(Graph(ring))
        np.testing.assert_allclose(*same, rtol=1e-15)
    assert Graph(even.send) == even != Graph(even.send, weights="in_degree")


def test_graphs_are_static_and_print():
    traces = []

    @jax.jit
    def fn(g, x):
        traces.append(g)
        return x * g.num_workers

    assert fn(graph("ring", 4), 2.0) == fn(graph("ring", 4), 3.0) - 4 == 8
    assert len(traces) == 1
    assert fn(graph("ring", 5), 2.0) == 10
    assert repr(graph("one_peer", 8)) == (
        "Graph(8 workers, 0 sends to [1, 2, 4], cycles=True)"
    )
    with pytest.raises(ValueError, match="read-only"):
        graph("ring", 4).send[0] = 3


def test_one_worker():
    for name in (*CIRCULANT, "one_peer", "random_regular"):
        g = graph(name, 1, key=jax.random.key(0))
        assert g.send.shape == (1, 0) and spectral_gap(g) == 1
        np.testing.assert_array_equal(mixing_matrix(g, 3), [[1]])


@pytest.mark.parametrize(
    "args, kwargs, message",
    [
        (("pentagon", 8), {}, r"'pentagon'; wanted one of \['ring', 'chord', 'halton'"),
        (("ring", 0), {}, r"num_workers is 0; wanted at least 1"),
        (("halton", 8), {"degree": 8}, r"degree is 8; wanted 1\.\.7"),
        (("halton", 8), {"degree": 0}, r"degree is 0; wanted 1\.\.7"),
        (("ring", 1), {"degree": 1}, r"degree is 1 of 1 worker"),
        (
            ("exp2", 8),
            {"degree": 4},
            r"degree is 4 and exp2 of 8 workers .*\[1, 2, 4\]",
        ),
        (("one_peer", 8), {"degree": 2}, r"degree is 2; one_peer has 1 in every"),
        (("chord", 16), {"degree": 2}, r"\[8, 4\] is disconnected: 4 parts of 4 work"),
        (("random_regular", 8), {"degree": 3}, r"key is None; .*jax.random.key\(0\)"),
    ],
)
def test_names_and_degrees_that_do_not_go(args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        graph(*args, **kwargs)


@pytest.mark.parametrize(
    "send, options, message",
    [
        ([[1], [2]], {}, r"worker 1 sends to 2; wanted 0\.\.1, or -1"),
        ([[1], [-2]], {}, r"worker 1 sends to -2; wanted 0\.\.1"),
        ([[1], [1]], {}, r"worker 1 sends to itself"),
        ([[1, 1], [0, 0]], {}, r"worker 0 sends to 1 more than once"),
        ([1, 0], {}, r"int64\[2\]; wanted \(workers, degree\)"),
        (np.zeros((0, 2), int), {}, r"int64\[0,2\]; wanted \(workers, degree\)"),
        (
            STAR,
            {},
            r"in-degrees are 1\.\.3, out-degrees 1\.\.3; .*'metropolis'.*'in_deg",
        ),
        ([[1], [0], [3], [2]], {}, r"workers \[0, 1\] never mix with the other 2 of 4"),
        ([[1], [2], [0]], {"weights": "metropolis"}, r"0 sends to 1, 1 not to 0"),
        (
            [[1], [0]],
            {"weights": "metropolis", "cycles": True},
            r"'metropolis' and the graph cycles",
        ),
        ([[1], [0]], {"weights": "equal"}, r"weights is 'equal'; wanted one of"),
        ([[1, 1], [0, 2], [0, 0]], {"cycles": True}, r"column 0 .* is \[1, 0, 0\]"),
    ],
)
def test_edges_that_do_not_go(send, options, message):
    with pytest.raises(ValueError, match=message):
        Graph(send, **options)


def test_traced_and_other_kinds():
    with pytest.raises(TypeError, match=r"float64\[2,1\]; wanted an integer dtype"):
        Graph([[1.0], [0.0]])
    with pytest.raises(TypeError, match=r"send is .*traced; wanted values"):
        jax.jit(lambda send: Graph(send).send)(np.array([[1], [0]]))
    with pytest.raises(TypeError, match=r"step is .*traced; wanted a Python int"):
        jax.jit(lambda t: mixing_matrix(graph("one_peer", 4), t))(1)
    with pytest.raises(TypeError, match=r"key is .*traced; wanted values"):
        jax.jit(lambda key: graph("random_regular", 4, key=key).send)(jax.random.key(0))
    with pytest.raises(TypeError, match=r"typed key"):
        graph("random_regular", 4, key=0)
    with pytest.raises(TypeError, match=re.escape("degree is float 2.0")):
        graph("exp2", 8, degree=2.0)
