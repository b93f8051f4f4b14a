"""Packed codes: what is stored, how many bytes, and what comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.kernels import unpack_levels
from jaxmethods.quantize import QTensor, bhq, psq, ptq

dequantize = jax.jit(QTensor.dequantize)
unpack = jax.jit(unpack_levels, static_argnums=(1, 2))

PER_BYTE = {2: 4, 3: 2, 4: 2, 5: 1, 6: 1, 7: 1, 8: 1}


@pytest.mark.parametrize("factory", [ptq, psq, bhq])
def test_dequantized_is_the_quantizer_itself(factory):
    x, key = jax.random.normal(jax.random.key(0), (9, 3, 5)), jax.random.key(1)

    @jax.jit
    def both(x):
        qs = [factory(bits) for bits in (2, 3, 8)]
        return [(q.quantize(key, x), q(key, x)) for q in qs]

    for (tensor, want), bits in zip(both(x), (2, 3, 8), strict=True):
        assert (tensor.shape, tensor.dtype, tensor.bits) == (x.shape, x.dtype, bits)
        np.testing.assert_allclose(dequantize(tensor), want, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("factory", [ptq, psq, bhq])
def test_bytes_are_honest_and_few(factory, aligned, bits):
    x = jax.random.normal(jax.random.key(2), (32, 100))
    q = factory(bits, zero_aligned=aligned)
    tensor = jax.jit(lambda x: q.quantize(None, x))(x)
    held = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tensor))
    assert tensor.nbytes == held
    assert x.size / PER_BYTE[bits] <= held <= x.size / PER_BYTE[bits] + 32 * 32 + 64


def test_float64_scales_fit_the_same_budget(x64):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(32, 100)))
    assert x.dtype == jnp.float64
    tensor = jax.jit(lambda x: bhq(8).quantize(None, x))(x)
    assert tensor.nbytes <= x.size + 32 * 32 + 64


def test_it_passes_through_transformations():
    q, keys = psq(4), jax.random.split(jax.random.key(3), 3)
    x = jax.random.normal(jax.random.key(4), (3, 6, 5))
    batch = jax.jit(jax.vmap(q.quantize))(keys, x)
    want = jax.jit(jax.vmap(q))(keys, x)
    back = jax.jit(jax.vmap(lambda tensor: tensor.dequantize()))(batch)
    np.testing.assert_allclose(back, want, atol=1e-6)
    scanned = jax.lax.scan(lambda c, tensor: (c, tensor.dequantize()), 0, batch)[1]
    np.testing.assert_allclose(scanned, want, atol=1e-6)


def test_zero_is_a_code_when_aligned():
    x = jnp.array([[-1.0, 0.0, 2.0]])
    tensor = psq(2, zero_aligned=True).quantize(None, x)
    assert int(tensor.decoder.grid.zero[0, 0]) == 1
    np.testing.assert_array_equal(unpack(tensor.codes, 2, (1, 3)), [[0, 1, 3]])


def test_a_batch_of_codes_says_where_it_can_be_read():
    keys, x = jax.random.split(jax.random.key(0), 3), jnp.ones((4, 5))
    tensors = jax.vmap(lambda key: psq(8).quantize(key, x))(keys)
    with pytest.raises(ValueError, match=r"uint8\[3,4,5\], a batch.*jax\.vmap"):
        tensors.dequantize()
    assert jax.vmap(QTensor.dequantize)(tensors).shape == (3, 4, 5)
