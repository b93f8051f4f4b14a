"""Averages with neighbours: W x in every mode, bit for bit, and its gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods.kernels import mean_of
from jaxmethods.shard import Graph, graph, mixing_matrix, stochastic_reduce, wire

WORKERS = 4
STAR = [[1, 2, 3], [0, -1, -1], [0, -1, -1], [0, -1, -1]]
GRAPHS = {
    "ring": graph("ring", WORKERS),
    "exp2": graph("exp2", WORKERS),
    "shuffled": Graph([[2, 1], [2, 3], [0, 3], [1, 0]]),
    "one_peer": graph("one_peer", WORKERS),
    "metropolis": Graph(STAR, weights="metropolis"),
    "in_degree": Graph(STAR, weights="in_degree"),
}
every_graph = pytest.mark.parametrize("name", GRAPHS)


def line():
    return Mesh(np.array(jax.devices()[:WORKERS]), ("i",))


def over_workers(fn, how):
    """fn(*own) for four workers, arguments and results stacked on axis 0."""
    if how == "vmap":
        return jax.jit(jax.vmap(fn, axis_name="i"))
    if how == "pmap":
        return jax.pmap(fn, axis_name="i", devices=jax.devices()[:WORKERS])

    def own(*args):
        out = fn(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: x[None], out)

    sharded = jax.shard_map(own, mesh=line(), in_specs=P("i"), out_specs=P("i"))
    return jax.jit(sharded)


def values(seed=0, shape=(5, 3)):
    r = np.random.default_rng(seed)
    a = r.standard_normal((WORKERS, *shape)).astype("f")
    return {"a": a, "b": a[:, 0, :1] + 1}


def times(matrix, x):
    return np.einsum("ij,j...->i...", matrix, x.astype(np.float64))


@every_graph
def test_all_modes_give_the_same_bits_of_w_x(name):
    g, x = GRAPHS[name], values()
    runs = {}
    for how in ("vmap", "pmap", "shard_map"):
        reduce = over_workers(lambda t: stochastic_reduce(t, "i", g, 1), how)
        runs[how] = jax.tree.map(np.asarray, reduce(x))
    for leaf, before in x.items():
        want = times(mixing_matrix(g, 1), before)
        np.testing.assert_allclose(runs["vmap"][leaf], want, rtol=2e-6, atol=1e-6)
        for how in ("pmap", "shard_map"):
            np.testing.assert_array_equal(runs["vmap"][leaf], runs[how][leaf])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["ring", "exp2", "shuffled"])
def test_the_sum_is_in_the_order_of_senders(name, dtype):
    """What a host that holds numpy arrays makes of the same messages."""
    g, x = GRAPHS[name], values()["a"].astype(jnp.dtype(dtype))
    got = over_workers(lambda t: stochastic_reduce(t, "i", g), "vmap")(x)
    assert got.dtype == dtype
    for worker, senders in enumerate(g.senders):
        want = mean_of(x[worker], [x[j] for j in senders])
        assert type(want) is np.ndarray and want.dtype == dtype
        np.testing.assert_array_equal(np.asarray(got[worker]), want)


def test_half_precision_sums_are_taken_in_single():
    g = graph("complete", WORKERS)
    x = jnp.array([256.0, 1.0, 1.0, 1.0], jnp.bfloat16)  # 256 + 1 = 256 in bfloat16
    got = jax.vmap(lambda t: stochastic_reduce(t, "i", g), axis_name="i")(x)
    assert got.tolist() == [jnp.bfloat16(259 / 4)] * 4 != [jnp.bfloat16(64)] * 4


def test_the_reference_after_six_rounds(shared, x64):
    golden = np.load(shared / "goldens/05-asap.npz")
    for key, name in (("all", "complete"), ("chord", "chord"), ("halton", "halton")):
        g = graph(name, len(golden["mix_x0"]))
        rounds = partial(stochastic_reduce, num_rounds=int(golden["mix_rounds"]))
        y = jax.vmap(lambda t, g=g, f=rounds: f(t, "i", g), axis_name="i")(
            golden["mix_x0"]
        )
        np.testing.assert_allclose(y, golden[f"mix_{key}"], rtol=1e-12)
        np.testing.assert_allclose(y.mean(0), golden["mix_x0"].mean(0), rtol=1e-12)


def test_one_peer_has_the_exact_mean_after_a_cycle(shared, x64):
    golden = np.load(shared / "goldens/05-asap.npz")
    x, g = jnp.asarray(golden["onepeer_x0"]), graph("one_peer", 8)

    def loop(first, x):
        body = lambda t, x: stochastic_reduce(x, "i", g, first + t)  # noqa: E731
        return jax.lax.fori_loop(0, 3, body, x)

    for first in (0, 1, 5):  # any three rounds in a row
        run = jax.jit(jax.vmap(partial(loop, first), axis_name="i"))
        np.testing.assert_allclose(run(x), golden["onepeer_final"], rtol=1e-12)
    three = lambda x: stochastic_reduce(x, "i", g, num_rounds=3)  # noqa: E731
    got = jax.vmap(three, axis_name="i")(x)
    np.testing.assert_allclose(got, golden["onepeer_final"], rtol=1e-12)


@pytest.mark.parametrize("name", ["shuffled", "one_peer", "metropolis"])
@pytest.mark.parametrize("how", ["vmap", "shard_map"])
def test_gradients_are_those_of_w_x(name, how, x64):
    g, x = GRAPHS[name], values()["a"].astype("float64")
    run = over_workers(lambda t, s: stochastic_reduce(t, "i", g, s, num_rounds=2), how)
    step = jnp.arange(1, 2).repeat(WORKERS)
    matrix = mixing_matrix(g, 2) @ mixing_matrix(g, 1)
    cotangent = np.random.default_rng(1).standard_normal(x.shape)
    got, back = jax.vjp(lambda x: run(x, step), x)
    np.testing.assert_allclose(got, times(matrix, x), rtol=1e-12)
    np.testing.assert_allclose(
        back(cotangent)[0], times(matrix.T, cotangent), rtol=1e-12
    )
    _, tangent = jax.jvp(lambda x: run(x, step), (x,), (cotangent,))
    np.testing.assert_allclose(tangent, times(matrix, cotangent), rtol=1e-12)


def test_a_batch_of_models_and_a_mesh_of_two_axes():
    g, x = graph("ring", 8), values()["a"][:, :2]  # (4, 2, 3)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("i", "j"))
    both = lambda t: stochastic_reduce(t, ("i", "j"), g)  # noqa: E731
    out = jax.shard_map(both, mesh=mesh, in_specs=P("i", "j"), out_specs=P("i", "j"))
    want = times(mixing_matrix(g), x.reshape(8, 3)).reshape(x.shape)
    np.testing.assert_allclose(out(x), want, rtol=1e-5, atol=1e-6)

    half = GRAPHS["exp2"]
    reduce = over_workers(
        lambda t: jax.vmap(lambda t: stochastic_reduce(t, "i", half))(t), "shard_map"
    )
    np.testing.assert_allclose(
        reduce(x), times(mixing_matrix(half), x), rtol=1e-5, atol=1e-6
    )


def test_infinities_of_workers_that_send_elsewhere_stay_there():
    g = GRAPHS["in_degree"]
    x = jnp.array([1.0, jnp.inf, 2.0, 3.0])
    got = jax.vmap(lambda t: stochastic_reduce(t, "i", g), axis_name="i")(x)
    assert got.tolist() == [jnp.inf, jnp.inf, 1.5, 2.0]


@pytest.mark.optimized
@pytest.mark.parametrize("name, sends", [("ring", 1), ("exp2", 2), ("one_peer", 1)])
def test_bytes_on_the_wire(name, sends):
    g, x = GRAPHS[name], values()
    own = lambda t: stochastic_reduce(t, "i", g)  # noqa: E731
    sharded = jax.shard_map(own, mesh=line(), in_specs=P("i"), out_specs=P("i"))
    size = sum(leaf.nbytes for leaf in x.values()) // WORKERS
    assert wire(sharded)(x).total == sends * size


def test_complex_values_and_a_value_all_have():
    g = GRAPHS["exp2"]
    z = values()["a"] * np.complex64(1 + 2j)
    got = over_workers(lambda t: stochastic_reduce(t, "i", g), "vmap")(z)
    want = np.einsum("ij,j...->i...", mixing_matrix(g), z)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    same = jax.shard_map(
        lambda t: stochastic_reduce(t, "i", g),
        mesh=line(),
        in_specs=P(),
        out_specs=P("i"),
    )
    np.testing.assert_array_equal(same(jnp.ones(2)), np.ones(2 * WORKERS))
    one = lambda t: stochastic_reduce(t, "i", graph("exp2", 1))  # noqa: E731
    assert jax.vmap(one, axis_name="i")(jnp.array([[3.0]])).tolist() == [[3.0]]


def test_errors():
    ring, x = GRAPHS["ring"], jnp.ones((WORKERS, 3))

    def over(*args, **kwargs):
        reduce = lambda t: stochastic_reduce(t, "i", *args, **kwargs)  # noqa: E731
        return jax.vmap(reduce, axis_name="i")

    with pytest.raises(
        NameError, match=r"'nowhere' is not bound here; call stochastic"
    ):
        stochastic_reduce(x, "nowhere", ring)
    with pytest.raises(
        ValueError, match=r"graph is of 16 workers and the axis 'i' of 4"
    ):
        over(graph("ring", 16))(x)
    with pytest.raises(TypeError, match=r"tree\['n'\] is int32\[3\].*floating leaves"):
        over(ring)({"n": x.astype(int)})
    with pytest.raises(TypeError, match=r"step is float 0\.5; wanted an integer"):
        over(ring, 0.5)(x)
    with pytest.raises(ValueError, match=r"num_rounds is 0; wanted at least 1"):
        over(ring, num_rounds=0)(x)
    with pytest.raises(
        ValueError, match=r"'triton'; wanted one of \['xla', 'pallas'\]"
    ):
        over(ring, implementation="triton")(x)
    with pytest.raises(
        ValueError, match=r"'pallas' and degrees differ in Graph\(4 wor"
    ):
        over(GRAPHS["metropolis"], implementation="pallas")(x)
