"""The Walsh-Hadamard transform: the kernel against Sylvester's matrix.

The kernel runs in interpret mode here; for a TPU it is lowered, not run.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from scipy.linalg import hadamard

from jaxmethods.kernels import _walsh_hadamard, walsh_hadamard

KERNEL = partial(walsh_hadamard, implementation="pallas")
PLATFORMS = ("tpu", "cuda", "cpu")


@pytest.fixture
def small_blocks(monkeypatch):
    """Columns in blocks of 8, and at most four groups of 16 rows at a time."""
    monkeypatch.setattr(_walsh_hadamard, "_LANES", 8)
    monkeypatch.setattr(_walsh_hadamard, "_BITS", 1)


def fused():
    return jax.jit(partial(_walsh_hadamard._fused, interpret=True))


def whole(seed, *shape, dtype=np.float32):
    r = np.random.default_rng(seed)
    return jnp.asarray(r.integers(-9, 10, shape), dtype)


# In one pass, in two of 2 + 1 bits beside the last 4, and in three of 2 + 2 + 1.
@pytest.mark.parametrize("length", [64, 128, 512])
@pytest.mark.parametrize("width, dtype", [(11, "float32"), (8, "bfloat16")])
def test_the_kernel_is_sylvesters_matrix(length, width, dtype, small_blocks):
    x = whole(0, length, width, dtype=dtype)
    got = fused()(x)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, hadamard(length) @ np.asarray(x, np.float32))


def test_one_pass_of_whole_blocks():
    x = whole(1, 4096, 1)
    want = _walsh_hadamard._all_at_once(x)
    np.testing.assert_array_equal(fused()(x), want)


def test_half_precision_adds_in_float32(small_blocks):
    got = fused()(jnp.ones((512, 1), "bfloat16"))  # bfloat16 would stop at 256
    np.testing.assert_array_equal(got[:2, 0], [512, 0])


def test_gradients_are_those_of_the_definition():
    x = whole(2, 256, 128) / 32

    def loss(fn, x):
        return jnp.sin(fn(x)).sum()

    got = jax.grad(partial(loss, KERNEL))(x)
    want = jax.grad(partial(loss, walsh_hadamard))(x)
    np.testing.assert_array_equal(got, want)
    by_hand = walsh_hadamard(jnp.cos(walsh_hadamard(x)))
    np.testing.assert_allclose(got, by_hand, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("axis", [0, -1])
def test_vmap(axis):
    x = whole(3, 2, 256, 130)
    mapped = jax.jit(jax.vmap(KERNEL, axis))
    given = jnp.moveaxis(x, 0, axis)
    np.testing.assert_array_equal(mapped(given), hadamard(256) @ np.asarray(x))
    text = jax.export.export(mapped, platforms=["tpu"])(given).mlir_module()
    assert text.count("@tpu_custom_call") == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits, passes", [(8, 1), (12, 1), (13, 2), (20, 2), (21, 3)])
def test_a_pass_for_12_bits_and_for_each_further_8(bits, passes, dtype):
    x = jax.ShapeDtypeStruct((1 << bits, 200), dtype)
    text = jax.export.export(jax.jit(KERNEL), platforms=["tpu"])(x).mlir_module()
    assert text.count("@tpu_custom_call") == passes


def test_lowering_for_each_platform():
    x = jax.ShapeDtypeStruct((512, 200), jnp.float32)
    for fn in (KERNEL, walsh_hadamard):
        for platform in PLATFORMS:
            export = jax.export.export(jax.jit(fn), platforms=[platform])(x)
            kernel = "tpu_custom_call" in export.mlir_module()
            assert kernel == (fn is KERNEL and platform == "tpu")


def test_shard_map_of_columns():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    spec = P(None, "data")
    sharded = jax.shard_map(KERNEL, mesh=mesh, in_specs=spec, out_specs=spec)
    x = whole(4, 256, 256)
    export = jax.export.export(jax.jit(sharded), platforms=["tpu"])(x)
    assert "tpu_custom_call" in export.mlir_module()
    np.testing.assert_array_equal(jax.jit(sharded)(x), hadamard(256) @ np.asarray(x))


@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((128, 130), "float32"),
        ((256, 127), "float32"),
        ((256, 130), "float16"),
        ((256, 130), "float64"),
        ((256, 0), "float32"),
    ],
    ids=str,
)
def test_what_is_no_kernel(shape, dtype, x64):
    x = whole(5, *shape, dtype=dtype)
    export = jax.export.export(jax.jit(KERNEL), platforms=["tpu"])(x)
    assert "tpu_custom_call" not in export.mlir_module()
    got = KERNEL(x)
    assert got.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
    np.testing.assert_array_equal(got, hadamard(shape[0]) @ np.asarray(x, np.float64))


def test_float32_is_a_kernel_beside_float64(x64):
    x = whole(6, 8192, 130)
    export = jax.export.export(jax.jit(KERNEL), platforms=["tpu"])(x)
    assert export.mlir_module().count("@tpu_custom_call") == 2


def test_errors():
    with pytest.raises(ValueError, match=r"implementation is 'triton'.*xla.*pallas"):
        walsh_hadamard(jnp.ones((2, 1)), implementation="triton")
