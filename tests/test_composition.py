"""Each transform of each other: a cell of the matrix is a test, or empty.

`CELLS` maps (transform, of) to a test. The README shows the same matrix.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods import bound, influence, quantize, shard, sketch

EPS = 0.05


def fresh(number=0):
    return jax.random.key(number)


def net(p, x):
    return jax.nn.relu(x @ p["w0"]) @ p["w1"]


PARAMS = {
    "w0": jax.random.normal(jax.random.key(1), (5, 8)) / 2,
    "w1": jax.random.normal(jax.random.key(2), (8, 3)) / 2,
}
XS = jax.random.normal(jax.random.key(3), (8, 5))
YS = jnp.arange(8) % 3


def lower_margin(p, x, y, apply=net):
    margins = bound.margins(lambda v: apply(p, v), y)
    return bound.crown_ibp(margins)(bound.Ball(x, EPS)).lower.min()


def loss(p, example):
    x, y = example
    logits = net(p, x)
    return jax.nn.logsumexp(logits) - logits[y]


def batch_loss(p, xs, ys):
    return jnp.mean(jax.vmap(lambda *e: loss(p, e))(xs, ys))


def certified_loss(p, xs, ys):
    return -jnp.mean(jax.vmap(lambda x, y: lower_margin(p, x, y))(xs, ys))


NOISY = quantize.Policy(
    input_grad=quantize.bhq(5), weight_grad=quantize.psq(8, per="feature")
)


def mesh_of(data, model=1):
    devices = np.array(jax.devices()[: data * model]).reshape(data, model)
    return Mesh(devices, ("data", "model"))


def close(got, want, rtol=1e-4, atol=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want
    )


# ------------------------------------------------------------------------------ sketch


def sketch_of_sketch():
    A = jax.random.normal(fresh(), (64, 3))
    wide, narrow = (
        sketch.sparse_stack(fresh(), 32, 64),
        sketch.countsketch(fresh(1), 8, 32),
    )
    both = jax.jit(lambda A: (narrow @ wide) @ A)(A)
    close(both, narrow.dense() @ (wide.dense() @ A))


def sketch_of_quantize():
    A = jax.random.normal(fresh(), (64, 3))
    S, q = sketch.sparse_stack(fresh(), 16, 64), quantize.psq(3)
    draws = jax.vmap(lambda k: S @ q(k, A))(jax.random.split(fresh(), 4000))
    # Both are linear in expectation: the mean of the draws is the sketch of A.
    error = jnp.abs(draws.mean(0) - S @ A) / (draws.std(0) / jnp.sqrt(4000) + 1e-6)
    assert error.max() < 5


def sketch_of_bound():
    """The directions that the lower planes of all examples lean on most."""
    planes = bound.linear_bounds(lambda x: net(PARAMS, x))
    slopes = jax.jit(jax.vmap(lambda x: planes(bound.Ball(x, EPS)).lower_slope))(XS)
    A = slopes.reshape(-1, XS.shape[1])
    got = jax.jit(sketch.svd, static_argnums=2)(fresh(), A, 2)
    close(got.s, np.linalg.svd(A, compute_uv=False)[:2], rtol=1e-4)
    close(jnp.abs(got.Vt @ np.linalg.svd(A)[2][:2].T), jnp.eye(2), atol=1e-3)


def sketch_of_influence():
    """Scores of sketched gradients: on average over keys they are the scores."""
    run = influence.tracin(loss, project=12)
    keys = jax.random.split(fresh(), 2000)
    args = [PARAMS], [0.1], (XS, YS), (XS[:2], YS[:2])
    draws = jax.jit(jax.vmap(lambda k: run(k, *args)))(keys)
    error = jnp.abs(draws.mean(0) - influence.tracin(loss)(*args))
    assert (error / (draws.std(0) / jnp.sqrt(2000) + 1e-6)).max() < 5


def sketch_of_shard():
    A, S = jax.random.normal(fresh(), (64, 3)), sketch.sparse_stack(fresh(), 16, 64)

    def rows(block):
        mine = S.columns(jax.lax.axis_index("data") * len(block), len(block))
        return jax.lax.psum(mine @ block, "data")

    run = jax.shard_map(rows, mesh=mesh_of(8), in_specs=P("data"), out_specs=P())
    close(jax.jit(run)(A), S @ A)


# ---------------------------------------------------------------------------- quantize


def quantize_of_quantize():
    policy = quantize.Policy(weight=quantize.ptq(3), where=[("w1",)])
    by_hand = PARAMS | {"w1": quantize.ptq(3)(None, PARAMS["w1"])}
    close(quantize.qat(net, policy)(PARAMS, XS), net(by_hand, XS))


def quantize_of_sketch():
    """Two-bit entries of a kernel matrix still tell two classes apart."""
    spectral, signs = sketch.spectral, jnp.where(jnp.arange(128) % 2, 1.0, -1.0)
    noise = jax.random.normal(fresh(), (256, 128))
    x = noise + 2 * signs[None] / 16  # the means are 4 apart
    few_bits = spectral.quantize_entries(2, 2.0)
    found = spectral.clustering(fresh(1), x, few_bits)
    right = jnp.mean((found.labels == found.labels[0]) == (signs == signs[0]))
    error = jnp.minimum(right, 1 - right)
    predicted = spectral.predict(few_bits.moments, c=2.0, snr=4.0).error
    assert error < predicted + 5 * jnp.sqrt(predicted / 128) < 0.3


def quantize_of_bound():
    """Bounds of a network with low-bit weights: they hold for that network."""
    low_bit = quantize.qat(net, quantize.Policy(weight=quantize.ptq(3)))
    got = jax.jit(bound.crown(low_bit))(PARAMS, bound.Ball(XS[0], EPS))
    noise = jax.random.uniform(fresh(), (500, 5), minval=-EPS, maxval=EPS)
    reached = jax.vmap(lambda n: low_bit(PARAMS, XS[0] + n))(noise)
    assert (got.lower <= reached.min(0)).all() and (reached.max(0) <= got.upper).all()
    float_bounds = jax.jit(bound.crown(net))(PARAMS, bound.Ball(XS[0], EPS))
    assert jnp.abs(float_bounds.lower - got.lower).max() > 1e-3


def quantize_of_influence():
    policy = quantize.Policy(weight=quantize.ptq(4))
    low_bit = quantize.qat(loss, policy)
    examples = XS, YS
    got = jax.jit(influence.tracin(low_bit))([PARAMS], [0.1], examples, examples)
    grads = jax.jit(jax.vmap(lambda *e: jax.grad(low_bit)(PARAMS, e)))(*examples)
    flat = jnp.concatenate([g.reshape(8, -1) for g in jax.tree.leaves(grads)], 1)
    close(got, 0.1 * flat @ flat.T)


def quantize_of_shard():
    """An all-reduce in bytes: its roundings are fed back, so the mean is kept."""
    tx = shard.two_phase_exchange(shard.int8(block=16), "data", num_workers=4)

    def local(xs, ys):
        mine = jax.tree.map(lambda w: jax.lax.pcast(w, "data", to="varying"), PARAMS)
        gradient = jax.grad(batch_loss)(mine, xs, ys)

        def again(state, _):
            update, state = tx.update(gradient, state)
            return state, update

        return jax.lax.scan(again, tx.init(gradient), length=64)[1]

    spec = P("data")
    run = jax.shard_map(local, mesh=mesh_of(4), in_specs=(spec, spec), out_specs=P())
    updates = jax.jit(run)(XS, YS)
    exact = jax.grad(batch_loss)(PARAMS, XS, YS)
    most = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(exact))
    first = jax.tree.map(lambda u, g: u[0] - g, updates, exact)
    mean = jax.tree.map(lambda u, g: u.mean(0) - g, updates, exact)
    off = [
        max(float(jnp.abs(x).max()) for x in tree.values()) for tree in (first, mean)
    ]
    # Two roundings, each by half a step of 1 / 127 of the largest number in a block.
    assert 0 < off[0] < 2.5 * most / 127
    assert off[1] < 3 * most / 127 / 64 + 1e-6


# ------------------------------------------------------------------------------- bound


def bound_of_sketch():
    """What a network says of sketched features, the features in a ball."""
    S, x = sketch.countsketch(fresh(), 5, 40), jnp.sin(jnp.arange(40.0))
    of_sketch, ball = (lambda x: net(PARAMS, S @ x)), bound.Ball(x, EPS)
    got = jax.jit(bound.crown(of_sketch))(ball)
    noise = jax.random.uniform(fresh(), (500, 40), minval=-EPS, maxval=EPS)
    reached = jax.vmap(lambda n: of_sketch(x + n))(noise)
    assert (got.lower <= reached.min(0)).all() and (reached.max(0) <= got.upper).all()
    close(got, jax.jit(bound.crown(lambda x: net(PARAMS, S.dense() @ x)))(ball))


def bound_of_quantize():
    """Certified under weight quantization: a box of half a step round every weight."""
    bits = 6

    def half_a_step(w):
        return (w.max() - w.min()) / (2 * (2**bits - 1))

    boxes = jax.tree.map(
        lambda w: bound.Box(w - half_a_step(w), w + half_a_step(w)), PARAMS
    )
    got = jax.jit(bound.ibp(net))(boxes, XS[0])
    q = quantize.ptq(bits, zero_aligned=False)
    low_bit = net(jax.tree.map(lambda w: q(None, w), PARAMS), XS[0])
    assert (got.lower <= low_bit).all() and (low_bit <= got.upper).all()


def bound_of_bound():
    """A bound inside a training loss, and a bound of a derivative."""
    of_loss = jax.jit(jax.value_and_grad(certified_loss))
    _, gradient = of_loss(PARAMS, XS, YS)
    direction = jax.tree.map(
        lambda w: jnp.sin(jnp.arange(w.size)).reshape(w.shape), PARAMS
    )
    h = 1e-2

    def along(t):
        moved = jax.tree.map(lambda w, d: w + t * d, PARAMS, direction)
        return of_loss(moved, XS, YS)[0]

    slope = sum(
        jnp.sum(g * d)
        for g, d in zip(
            jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True
        )
    )
    # Piecewise smooth in float32: a central difference is good to a few per cent.
    close((along(h) - along(-h)) / (2 * h), slope, rtol=0.05, atol=1e-2)
    fn = lambda x: jnp.sum(jnp.tanh(x @ PARAMS["w0"]))  # noqa: E731
    got = jax.jit(bound.ibp(jax.grad(fn)))(bound.Ball(XS[0], EPS))
    noise = jax.random.uniform(fresh(), (200, 5), minval=-EPS, maxval=EPS)
    reached = jax.jit(jax.vmap(lambda n: jax.grad(fn)(XS[0] + n)))(noise)
    assert (got.lower <= reached.min(0)).all() and (reached.max(0) <= got.upper).all()


def bound_of_influence():
    """Which examples move a certified margin."""
    robust = lambda p, e: -lower_margin(p, *e)  # noqa: E731
    examples = XS, YS
    got = jax.jit(influence.tracin(robust))([PARAMS], [0.1], examples, examples)
    grads = jax.jit(jax.vmap(lambda *e: jax.grad(robust)(PARAMS, e)))(*examples)
    flat = jnp.concatenate([g.reshape(8, -1) for g in jax.tree.leaves(grads)], 1)
    close(got, 0.1 * flat @ flat.T)


def bound_of_shard():
    margins = jax.vmap(lambda x, y: lower_margin(PARAMS, x, y))
    spec = P("data")
    run = jax.shard_map(margins, mesh=mesh_of(8), in_specs=(spec, spec), out_specs=spec)
    close(jax.jit(run)(XS, YS), jax.jit(margins)(XS, YS))


# --------------------------------------------------------------------------- influence


def influence_of_quantize():
    """Influence on the loss of a network trained with five-bit gradients."""

    def step(p, key):
        g = jax.grad(quantize.fqt(batch_loss, NOISY), argnums=1)(key, p, XS, YS)
        p = jax.tree.map(lambda w, d: w - 0.3 * d, p, g)
        return p, p

    _, path = jax.lax.scan(step, PARAMS, jax.random.split(fresh(), 3))
    rates, examples = jnp.full(3, 0.3), (XS, YS)
    got = jax.jit(influence.tracin(loss))(path, rates, examples, examples)
    own = jax.jit(influence.self_influence(loss))(path, rates, examples)
    close(jnp.diagonal(got), own)
    assert (jnp.diagonal(got) > 0).all()


def influence_of_bound():
    """Training on a robust loss: each step's example lowers its own certified loss."""
    robust = lambda p, e: -lower_margin(p, *e)  # noqa: E731
    of_loss, example = jax.jit(jax.value_and_grad(robust)), (XS[0], YS[0])
    before, g = of_loss(PARAMS, example)
    after = jax.tree.map(lambda w, d: w - 1e-3 * d, PARAMS, g)
    influences = jax.jit(influence.self_influence(robust))
    own = influences([PARAMS], [1e-3], (XS[:1], YS[:1]))[0]
    lowered = before - of_loss(after, example)[0]
    close(lowered, own, rtol=0.05, atol=1e-5)  # first order in the learning rate


def influence_of_influence():
    scores = influence.tracin(loss)([PARAMS], [0.1], (XS, YS), (XS, YS))
    own = influence.self_influence(loss)([PARAMS], [0.1], (XS, YS))
    close(jnp.diagonal(scores), own)


def influence_of_shard():
    """The training set sharded over the mesh."""

    def scores(xs, ys):
        return influence.tracin(loss)([PARAMS], [0.1], (xs, ys), (XS[:2], YS[:2]))

    spec = P("data")
    run = jax.shard_map(
        scores, mesh=mesh_of(4), in_specs=(spec, spec), out_specs=P(None, "data")
    )
    close(jax.jit(run)(XS, YS), scores(XS, YS))


# ------------------------------------------------------------------------------- shard


def train_on_mesh(local_loss):
    mesh = mesh_of(4, 2)
    plan = shard.splitbrain(lambda p, b: local_loss(p, *b), PARAMS, (XS, YS), mesh=mesh)

    def step_loss(p, batch):
        xs, ys, key = batch
        return quantize.fqt(local_loss, NOISY)(key, p, xs, ys)

    optimizer = optax.chain(
        shard.exchange(shard.adacomp(bin_size=4), "data"), optax.sgd(0.1)
    )
    init, step = shard.hybrid_training(plan, step_loss, optimizer)
    params = plan.place(PARAMS)
    state, step, values = jax.jit(init)(params), jax.jit(step), []
    for key in jax.random.split(fresh(), 15):
        params, state, value = step(params, state, (XS, YS, key))
        values.append(float(value))
    return values


def shard_of_sketch():
    """One psum of sketched gradients is the sketch of their mean."""
    n = sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
    S = sketch.countsketch(fresh(), 16, n)

    def local(xs, ys):
        # Cast first, or the gradients are summed over the mesh before the sketch.
        mine = jax.tree.map(lambda w: jax.lax.pcast(w, "data", to="varying"), PARAMS)
        gradient = jax.grad(batch_loss)(mine, xs, ys)
        return jax.lax.pmean(sketch.tree(S, gradient), "data")

    spec = P("data")
    run = jax.shard_map(local, mesh=mesh_of(4), in_specs=(spec, spec), out_specs=P())
    close(jax.jit(run)(XS, YS), sketch.tree(S, jax.grad(batch_loss)(PARAMS, XS, YS)))


def shard_of_quantize():
    """AdaComp on top of five-bit gradients trains."""
    values = train_on_mesh(batch_loss)
    assert values[-1] < 0.8 * values[0]


def shard_of_bound():
    """Certified training on a data x model mesh, five-bit gradients and all."""
    values = train_on_mesh(certified_loss)
    assert values[-1] < values[0] - 0.1


def shard_of_influence():
    """Distributed TracIn: `jax.jit` over arrays that lie on the mesh."""
    rows = jax.sharding.NamedSharding(mesh_of(8), P("data"))
    xs, ys = jax.device_put((XS, YS), rows)
    scores = jax.jit(
        lambda xs, ys: influence.self_influence(loss)([PARAMS], [0.1], (xs, ys))
    )
    close(scores(xs, ys), scores(XS, YS))


def shard_of_shard():
    """A hybrid plan equals training on one device."""
    mesh = mesh_of(4, 2)
    fn = jax.value_and_grad(lambda p, b: batch_loss(p, *b))
    plan = shard.splitbrain(lambda p, b: batch_loss(p, *b), PARAMS, (XS, YS), mesh=mesh)
    close(plan.apply(fn)(plan.place(PARAMS), (XS, YS)), fn(PARAMS, (XS, YS)))


CELLS = {
    (name, of): globals()[f"{name}_of_{of}"]
    for name in ("sketch", "quantize", "bound", "influence", "shard")
    for of in ("sketch", "quantize", "bound", "influence", "shard")
    if f"{name}_of_{of}" in globals()
}
EMPTY = {("influence", "sketch")}


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: f"{c[0]} of {c[1]}")
def test_cell(cell):
    CELLS[cell]()
    assert CELLS[cell].__name__ == "_of_".join(cell)


def test_every_cell_is_tested_or_empty():
    assert len(CELLS) + len(EMPTY) == 25
    assert not CELLS.keys() & EMPTY


def test_pmap_users_are_served_by_the_same_functions():
    exchange = shard.exchange(shard.adacomp(bin_size=4), "i")

    def step(p, xs, ys):
        value = jax.vmap(lambda x, y: lower_margin(p, x, y))(xs, ys)
        key = jax.random.fold_in(fresh(), jax.lax.axis_index("i"))
        g = jax.grad(quantize.fqt(batch_loss, NOISY), argnums=1)(key, p, xs, ys)
        return value, exchange.update(g, exchange.init(g))[0]

    xs, ys = XS.reshape(2, 4, 5), YS.reshape(2, 4)
    margins, mean = jax.pmap(step, axis_name="i", in_axes=(None, 0, 0))(PARAMS, xs, ys)
    want = jax.jit(jax.vmap(lambda x, y: lower_margin(PARAMS, x, y)))(XS, YS)
    close(margins.reshape(8), want)
    np.testing.assert_array_equal(mean["w0"][0], mean["w0"][1])
