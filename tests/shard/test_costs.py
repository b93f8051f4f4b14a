"""What the jaxpr says about layers, whoever wrote them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxmethods.core import flatten, leaf_paths
from jaxmethods.shard._axes import is_elementwise, moved_axes
from jaxmethods.shard._costs import layers_of, product_flops

W = {"a": jnp.ones((6, 8)), "b": jnp.ones(8), "c": jnp.ones((8, 4))}
X = jnp.ones((10, 6))


def read(loss, params=W, batch=X):
    names = ["/".join(map(str, path)) for path in leaf_paths(params)]
    return {names[layer.leaf]: layer for layer in layers_of(loss, params, batch)}, names


def chained(between, params=W):
    layers, names = read(
        lambda w, x: (between(x @ w["a"], w) @ w["c"]).sum(), params=params
    )
    return [names[leaf] for leaf in layers["c"].follows]


def test_a_pair():
    layers, names = read(
        lambda w, x: (jnp.tanh(x @ w["a"] + w["b"][None]) @ w["c"]).sum()
    )
    first, second = layers["a"], layers["c"]
    assert (first.kind, first.rows, first.inputs, first.outputs) == ("dense", 10, 6, 8)
    assert first.flops == 2 * 10 * 6 * 8 and first.itemsize == 4
    assert (first.row_axis, first.column_axis) == (0, 1)
    assert first.beside == {(names.index("b"), 0)} and second.beside == frozenset()
    assert not first.trained and second.trained
    assert not first.last and second.last
    assert second.follows == {names.index("a")}


@pytest.mark.parametrize(
    "between",
    [
        lambda h, w: jax.nn.gelu(h),
        lambda h, w: jax.nn.relu(h) * w["b"][None] + 1,
        lambda h, w: h.astype(jnp.bfloat16).astype(jnp.float32),
        lambda h, w: h.reshape(2, 5, 8).swapaxes(0, 1).reshape(10, 8),
        lambda h, w: jnp.where(h > 0, h, jnp.expm1(h)),
        lambda h, w: h[:, None, :].max(1),
        lambda h, w: jax.jit(jax.checkpoint(jnp.tanh))(h),
    ],
)
def test_elementwise_functions_keep_the_chain(between):
    assert chained(between) == ["a"]


@pytest.mark.parametrize(
    "between",
    [
        lambda h, w: jax.nn.softmax(h),
        lambda h, w: h - h.mean(1, keepdims=True),
        lambda h, w: h[:, ::-1],
        lambda h, w: jnp.cumsum(h, 1),
        lambda h, w: h.reshape(10, 2, 4).swapaxes(1, 2).reshape(10, 8),
        lambda h, w: h + jnp.roll(h, 1, 1),
    ],
)
def test_functions_along_the_columns_break_it(between):
    assert chained(between) == []


def test_square_products_and_transposes_are_no_elementwise_functions():
    square = {"a": jnp.ones((6, 6)), "c": jnp.ones((6, 6))}
    layers, _ = read(
        lambda w, x: (jnp.tanh(x @ w["a"]).T @ w["c"]).sum(), square, jnp.ones((6, 6))
    )
    assert {name: layer.kind for name, layer in layers.items()} == {
        "a": "dense",
        "c": "dense",
    }
    assert layers["c"].follows == frozenset()  # its rows are not the columns before


def test_dropout_keeps_the_chain():
    def loss(w, batch):
        x, key = batch
        h = x @ w["a"]
        h = jnp.where(jax.random.bernoulli(key, 0.5, h.shape), h, 0)
        return (h @ w["c"]).sum()

    layers, _ = read(loss, batch=(X, jax.random.key(0)))
    assert len(layers["c"].follows) == 1


def test_gated_columns_are_followed_together():
    params = {
        "up": jnp.ones((6, 8)),
        "gate": jnp.ones((6, 8)),
        "down": jnp.ones((8, 4)),
    }
    layers, _ = read(
        lambda w, x: (jax.nn.silu(x @ w["gate"]) * (x @ w["up"]) @ w["down"]).sum(),
        params,
    )
    assert layers["down"].follows == {layers["up"].leaf, layers["gate"].leaf}


def test_transposed_and_left_kernels():
    params = {"t": jnp.ones((8, 6)), "l": jnp.ones((4, 8))}
    layers, _ = read(lambda w, x: (w["l"] @ jnp.tanh(x @ w["t"].T).T).sum(), params)
    assert (layers["t"].row_axis, layers["t"].column_axis) == (1, 0)
    assert layers["t"].operand_axes == (1, 0)
    assert (layers["l"].row_axis, layers["l"].column_axis) == (1, 0)
    assert layers["l"].follows == {layers["t"].leaf}


@pytest.mark.parametrize(
    "loss",
    [
        lambda w, x: ((x @ w["a"]) @ w["a"].T).sum(),  # shared
        lambda w, x: (x @ (w["a"] @ w["c"])).sum(),  # computed from two
        lambda w, x: jnp.einsum(
            "bk,bkd->bd", x, w["a"][None] * jnp.ones((10, 6, 8))
        ).sum(),
        lambda w, x: (x @ jnp.roll(w["a"], 1, 0)).sum(),
    ],
    ids=["shared", "product", "batched", "rolled"],
)
def test_kernels_that_cannot_be_split(loss):
    layers, _ = read(loss)
    assert {layer.kind for layer in layers.values()} == {"other"}


def test_a_scaled_or_rounded_kernel_is_still_the_parameter():
    def loss(w, x):
        scale = jnp.abs(w["a"]).max()
        return (x @ (jnp.round(w["a"] / scale * 127) * scale / 127)).sum()

    assert read(loss)[0]["a"].kind == "dense"


def test_a_penalty_on_the_parameters_is_no_use():
    layers, _ = read(lambda w, x: (x @ w["a"]).sum() + (w["a"] ** 2).sum())
    assert layers["a"].kind == "dense"


def test_loops_count_their_rounds():
    def loss(w, x):
        def step(h, _):
            return jnp.tanh(h @ w["c"] @ w["c"].T), None

        return jax.lax.scan(step, x @ w["a"], None, length=5)[0].sum()

    layers, _ = read(loss)
    assert layers["c"].kind == "other"
    assert layers["c"].flops == 5 * 2 * (2 * 10 * 8 * 4)
    assert layers["a"].kind == "dense"


def test_a_kernel_also_used_in_a_loop_is_shared():
    def loss(w, x):
        h = x @ w["a"] @ w["c"]

        def step(h, _):
            return h @ w["c"].T @ w["a"].T @ w["a"] @ w["c"], None

        return jax.lax.scan(step, h, None, length=2)[0].sum()

    assert {layer.kind for layer in read(loss)[0].values()} == {"other"}


def test_vmap_of_an_example_is_a_batch():
    def loss(w, x):
        return jax.vmap(lambda x: (jnp.tanh(x @ w["a"]) @ w["c"]).sum())(x).mean()

    layers, _ = read(loss)
    assert layers["a"].rows == 10 and len(layers["c"].follows) == 1


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(groups):
    model = nn.Conv(6, (3, 5), feature_group_count=groups)
    x = jnp.ones((2, 8, 8, 4))
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    layers, _ = read(lambda p, x: model.apply(p, x).sum(), params, x)
    (layer,) = layers.values()
    assert layer.kind == "convolution"
    assert layer.flops == 2 * (2 * 8 * 8 * 6) * (3 * 5 * 4 // groups)


def test_a_flax_model():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
            x = nn.relu(nn.Dense(16)(x.reshape(len(x), -1)))
            x = nn.LayerNorm()(nn.Dense(12)(x))
            return nn.Dense(10)(x)

    model, x = Net(), jnp.ones((3, 8, 8, 1))
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    layers, names = read(lambda p, x: model.apply(p, x).sum(), params, x)
    kinds = {name.split("/")[1]: layer.kind for name, layer in layers.items()}
    assert kinds == {"Conv_0": "convolution"} | dict.fromkeys(
        ["Dense_0", "Dense_1", "Dense_2"], "dense"
    )
    second, third = layers["params/Dense_1/kernel"], layers["params/Dense_2/kernel"]
    assert [names[leaf] for leaf in second.follows] == ["params/Dense_0/kernel"]
    assert not third.follows and third.last


def test_axes_of_reshapes():
    def moved(fn, shape):
        graph = flatten(fn, jnp.ones(shape))
        return moved_axes(graph.nodes[0])

    assert moved(lambda x: x.reshape(6, 4), (2, 3, 4)) == (None, None, 1)
    assert moved(lambda x: x.reshape(2, 12), (2, 3, 4)) == (0, None, None)
    assert moved(lambda x: x.reshape(2, 1, 3, 4), (2, 3, 4)) == (0, 2, 3)
    assert moved(lambda x: jnp.sort(x), (2, 3)) is None


def test_flops_of_an_elementwise_equation_are_none():
    node = flatten(jnp.sin, X).nodes[0]
    assert product_flops(node.equation) == 0 and is_elementwise(node)
