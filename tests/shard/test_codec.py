"""The protocol that every codec keeps: a new codec is one line of the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.shard import adacomp, nbytes

CODECS = {
    "adacomp": adacomp(),
    "adacomp short bins": adacomp(bin_size=20),
    "adacomp one slot": adacomp(bin_size=20, slots=1),
}
SHAPES = {"conv": (3, 3, 2, 6), "dense": (13, 11), "bias": (11,)}
every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


def gradients(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(s) * np.exp(rng.standard_normal(s))).astype("f")
        for name, s in SHAPES.items()
    }


def left_over(state):
    return state.residue if hasattr(state, "residue") else state.error


@every_codec
def test_what_is_not_sent_stays(codec):
    state = codec.init(gradients(0))
    step = jax.jit(codec.encode)
    for seed in range(3):
        before, given = left_over(state), gradients(seed)
        message, state = step(state, given)
        sent = codec.decode(message)
        for name in SHAPES:
            total = np.asarray(before[name]) + given[name]
            rounding = 2.0**-22 * (np.abs(sent[name]) + np.abs(total))
            off = np.abs(sent[name] + left_over(state)[name] - total)
            assert (off <= rounding).all()
            assert sent[name].dtype == jnp.float32
            assert sent[name].shape == SHAPES[name]


@every_codec
def test_zeros_send_zeros(codec):
    zeros = jax.tree.map(np.zeros_like, gradients(0))
    message, state = codec.encode(codec.init(zeros), zeros)
    for x in jax.tree.leaves((codec.decode(message), left_over(state))):
        assert not np.any(x)


@every_codec
def test_shapes_of_the_message_do_not_depend_on_the_data(codec, caplog):
    def shapes(message):
        leaves = [(x.shape, x.dtype) for x in jax.tree.leaves(message)]
        return jax.tree.structure(message), leaves

    state = codec.init(gradients(0))
    step = jax.jit(codec.encode)
    sparse = jax.tree.map(lambda x: np.where(x > 1, x, 0), gradients(1))
    message, after = step(state, gradients(0))
    with jax.log_compiles():
        assert shapes(step(state, sparse)[0]) == shapes(message)
    assert not any(said.startswith("Compiling") for said in caplog.messages)
    abstract, _ = jax.eval_shape(codec.encode, state, gradients(0))
    assert shapes(abstract) == shapes(message)
    assert nbytes(abstract) == nbytes(message)
    assert nbytes(message) == sum(
        np.asarray(x).nbytes for x in jax.tree.leaves(message)
    )
    assert jax.tree.structure(after) == jax.tree.structure(state)


@every_codec
def test_vmap_over_workers_is_one_by_one(codec):
    several = jax.tree.map(lambda *x: np.stack(x), *map(gradients, range(3)))
    states = jax.vmap(codec.init)(several)
    messages, _ = jax.jit(jax.vmap(codec.encode))(states, several)
    decoded = jax.vmap(codec.decode)(messages)
    for worker in range(3):
        given = gradients(worker)
        alone = codec.decode(codec.encode(codec.init(given), given)[0])
        for name in SHAPES:
            np.testing.assert_allclose(decoded[name][worker], alone[name], rtol=1e-6)


@every_codec
def test_empty_leaves_and_trees(codec):
    for tree in ({"none": jnp.zeros((0, 3))}, {}):
        message, state = codec.encode(codec.init(tree), tree)
        assert nbytes(message) == 0
        assert jax.tree.map(jnp.shape, codec.decode(message)) == jax.tree.map(
            jnp.shape, tree
        )
        assert jax.tree.structure(left_over(state)) == jax.tree.structure(tree)


@every_codec
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_gradients_keep_a_float32_memory(codec, dtype):
    given = jax.tree.map(lambda x: jnp.asarray(x, dtype), gradients(0))
    message, state = codec.encode(codec.init(given), given)
    for x in jax.tree.leaves((codec.decode(message), left_over(state))):
        assert x.dtype == jnp.float32


@every_codec
def test_errors(codec):
    given = gradients(0)
    state = codec.init(given)
    integers = {**given, "bias": np.ones(11, np.int32)}
    with pytest.raises(TypeError, match=r"\('bias',\) is int32\[11\]; wanted a float"):
        codec.encode(state, integers)
    with pytest.raises(TypeError, match="wanted a floating dtype"):
        codec.init(integers)
    with pytest.raises(ValueError, match=r"float32\[7\].*call init on a tree like"):
        codec.encode(state, {**given, "bias": np.ones(7, np.float32)})
    with pytest.raises(ValueError, match="the state was made for"):
        codec.encode(state, {"dense": given["dense"]})
