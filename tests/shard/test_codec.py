"""The protocol that every codec keeps: a new codec is one line of the table."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import shard
from jaxmethods.shard import adacomp, compose, nbytes

CODECS = {
    "adacomp": adacomp(),
    "adacomp short bins": adacomp(bin_size=20),
    "adacomp one slot": adacomp(bin_size=20, slots=1),
    "dct": shard.dct(sparsity=0.9, life=2),
    "dct with room for 7": shard.dct(sparsity=0.5, life=2, capacity=7),
    "dct in bits": shard.dct(
        sparsity=0.5, capacity=9, value=shard.OneBit(), index=shard.BitMask()
    ),
    "dct in blocks": shard.dct(sparsity=0.8, index=shard.LocalPlaces(20, 3)),
    "top_k": shard.top_k(sparsity=0.9),
    "top_k in blocks": shard.top_k(sparsity=0.8, block=30),
    "int8": shard.int8(block=32),
    "sign": shard.sign(),
    "ternary": compose(shard.AboveThreshold(0.5), shard.Ternary()),
    "local bins": compose(
        shard.LocalBins(20, 2), shard.OneBit(), shard.LocalPlaces(20, 2)
    ),
    "bfloat16": compose(shard.Largest(0.5), shard.BFloat16(), shard.BitMask()),
}
SHAPES = {"conv": (3, 3, 2, 6), "dense": (13, 11), "bias": (11,)}
every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


def gradients(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(s) * np.exp(rng.standard_normal(s))).astype("f")
        for name, s in SHAPES.items()
    }


@functools.cache
def stepper(codec):
    """(state, gradients) -> (decoded message, message, state), compiled once."""

    def step(state, given):
        message, state = codec.encode(state, given)
        return codec.decode(message), message, state

    return jax.jit(step)


def left_over(state):
    return state.residue if hasattr(state, "residue") else state.error


@every_codec
def test_what_is_not_sent_stays(codec):
    state = codec.init(gradients(0))
    for seed in range(3):
        before, given = left_over(state), gradients(seed)
        sent, _, state = stepper(codec)(state, given)
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
    sent, _, state = stepper(codec)(codec.init(zeros), zeros)
    for x in jax.tree.leaves((sent, left_over(state))):
        assert not np.any(x)


@every_codec
def test_shapes_of_the_message_do_not_depend_on_the_data(codec, caplog):
    def shapes(message):
        leaves = [(x.shape, x.dtype) for x in jax.tree.leaves(message)]
        return jax.tree.structure(message), leaves

    state = codec.init(gradients(0))
    step = stepper(codec)
    sparse = jax.tree.map(lambda x: np.where(x > 1, x, 0), gradients(1))
    _, message, after = step(state, gradients(0))
    with jax.log_compiles():
        assert shapes(step(state, sparse)[1]) == shapes(message)
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
    decoded, _, _ = jax.jit(jax.vmap(stepper(codec)))(states, several)
    for worker in range(3):
        given = gradients(worker)
        alone, _, _ = stepper(codec)(codec.init(given), given)
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
@pytest.mark.parametrize("size", [1e36, 3.4e38])
def test_huge_gradients_are_sent_or_stay(codec, size):
    given = np.full((30, 10), size, "f")  # whose sum is infinite
    given[::3] *= -1
    state = codec.init(given)
    message, state = codec.encode(state, given)
    sent = np.float64(codec.decode(message))
    if not state.skipped:
        off = np.abs(sent + np.float64(left_over(state)) - given)
        assert off.max() <= 2.0**-22 * size
    assert np.isfinite(sent).all() and np.isfinite(left_over(state)).all()


@pytest.mark.optimized
def test_int8_leaves_exactly_what_it_does_not_send():
    codec, rng = shard.int8(block=32), np.random.default_rng(0)
    given = rng.standard_normal(5000).astype("f")
    sent, _, state = stepper(codec)(codec.init(given), given)
    np.testing.assert_array_equal(np.float64(sent) + np.float64(state.error), given)
    largest = np.full(9, np.finfo("f").max)
    assert np.isfinite(
        codec.decode(codec.encode(codec.init(largest), largest)[0])
    ).all()


@every_codec
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_gradients_keep_a_float32_memory(codec, dtype):
    given = jax.tree.map(lambda x: jnp.asarray(x, dtype), gradients(0))
    sent, _, state = jax.eval_shape(stepper(codec), codec.init(given), given)
    for x in jax.tree.leaves((sent, left_over(state))):
        assert x.dtype == jnp.float32


def test_a_threshold_message_may_have_room_for_a_share():
    def room(size, share):
        codec = shard.dct(sparsity=0.9, capacity=share)
        leaf = jax.ShapeDtypeStruct((size,), jnp.float32)
        sent = jax.eval_shape(lambda g: codec.encode(codec.init(g), g)[0], leaf)
        return nbytes(sent) / 8

    assert [room(n, 0.25) for n in (1, 3, 100)] == [1, 1, 25]
    assert [room(n, 1.0) for n in (1, 3)] == [1, 3]
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"capacity is {wrong}; wanted a share"):
            shard.dct(sparsity=0.9, capacity=wrong)
    with pytest.raises(TypeError, match=r"capacity is .*; wanted a Python int"):
        shard.dct(sparsity=0.9, capacity="1 %")


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


@jax.tree_util.register_dataclass
@dataclass
class Pair:
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclass
class Swapped:
    second: Any
    first: Any


def test_other_dataclasses_are_not_taken_for_one_another():
    one, other = Pair(jnp.ones(3), jnp.zeros(3)), Swapped(jnp.zeros(3), jnp.ones(3))
    assert jax.tree.structure(one) == jax.tree.structure(other)  # to jax
    codec = shard.top_k(sparsity=0.5)
    with pytest.raises(ValueError, match="the state was made for"):
        codec.encode(codec.init(one), other)

    @jax.tree_util.register_dataclass
    @dataclass
    class Own:
        values: Any

    message, _ = adacomp().encode(adacomp().init(jnp.ones(2)), jnp.ones(2))
    assert jax.tree.structure(message) != jax.tree.structure(Own(jnp.ones(2)))
