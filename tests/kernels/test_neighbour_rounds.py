"""Rounds of averages with neighbours: W^T x, NOTIFY and ACK under a race detector.

The kernel runs in TPU interpret mode, where every device is a thread and all remote
copies and semaphores are simulated; for a TPU it is lowered, not run.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods.kernels import _neighbour_rounds, mean_of, neighbour_rounds

WORKERS = 4


def circulant(*offsets):
    """From whom each of four workers receives."""
    return (np.arange(WORKERS)[:, None] - np.array(offsets)[None]) % WORKERS


SENDERS = {
    "ring": circulant(1),
    "exp2": circulant(1, 2),
    "complete": circulant(1, 2, 3),
    "any": np.array([[3, 1], [2, 0], [0, 3], [1, 2]]),
}


def matrix_of(senders):
    matrix = np.eye(len(senders))
    for column in senders.T:
        matrix += np.eye(len(senders))[column]
    return matrix / (senders.shape[1] + 1)


def values(*shape, dtype="float32", seed=0):
    r = np.random.default_rng(seed)
    return r.standard_normal((WORKERS, *shape)).astype(jnp.dtype(dtype))


def meshed(fn, shape=(WORKERS,), names=("i",)):
    mesh = Mesh(np.array(jax.devices()[: np.prod(shape)]).reshape(shape), names)
    return jax.jit(
        jax.shard_map(fn, mesh=mesh, in_specs=P(*names), out_specs=P(*names))
    )


def interpreted(senders, num_rounds, acknowledge=True):
    return partial(
        _neighbour_rounds._handshaken,
        axis_name="i",
        senders=senders,
        num_rounds=num_rounds,
        acknowledge=acknowledge,
        interpret=pltpu.InterpretParams(detect_races=True),
    )


def by_definition(senders, num_rounds, x):
    fn = partial(
        neighbour_rounds, axis_name="i", senders=senders, num_rounds=num_rounds
    )
    return np.asarray(jax.vmap(fn, axis_name="i")(x))


@pytest.mark.parametrize("name", SENDERS)
@pytest.mark.parametrize("num_rounds", [0, 1, 6])
def test_the_definition_is_a_power_of_the_matrix(name, num_rounds):
    senders, x = SENDERS[name], values(7, 2)
    power = np.linalg.matrix_power(matrix_of(senders), num_rounds)
    want = np.einsum("ij,j...->i...", power, x)
    got = by_definition(senders, num_rounds, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name, shape, num_rounds, dtype",
    [
        ("ring", (3,), 7, "float32"),  # one block, mostly padding
        ("exp2", (19, 129), 3, "float32"),  # three blocks, the last sticking out
        ("complete", (1030,), 4, "float32"),
        ("any", (2, 5), 5, "bfloat16"),
    ],
)
def test_the_kernel_is_the_definition_without_a_race(
    name, shape, num_rounds, dtype, monkeypatch, capfd
):
    monkeypatch.setattr(_neighbour_rounds, "_MOST_ROWS", 8)
    senders, x = SENDERS[name], values(*shape, dtype=dtype)
    got = np.asarray(meshed(interpreted(senders, num_rounds))(x))
    np.testing.assert_array_equal(got, by_definition(senders, num_rounds, x))
    power = np.linalg.matrix_power(matrix_of(senders), num_rounds)
    want = np.einsum("ij,j...->i...", power, x.astype(np.float64))
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(got.astype("f"), want, atol=2 * num_rounds * eps)
    assert not interpret_pallas_call.races.races_found
    # The interpreter prints which semaphores do not end at zero.
    assert "non-zero count" not in capfd.readouterr().out


@pytest.mark.parametrize("name", ["ring", "exp2"])
def test_without_the_acknowledgement_the_detector_reports_races(name, capfd):
    run = meshed(interpreted(SENDERS[name], 5, acknowledge=False))
    jax.block_until_ready(run(values(40)))
    assert interpret_pallas_call.races.races_found
    assert "RACE DETECTED" in capfd.readouterr().out


def test_devices_of_a_mesh_with_other_axes():
    x = values(6).reshape(WORKERS, 2, 3).swapaxes(0, 1)  # (2, 4, 3)
    run = meshed(interpreted(SENDERS["any"], 2), (2, WORKERS), ("other", "i"))
    got = np.asarray(run(x))
    assert not interpret_pallas_call.races.races_found
    for part in range(2):
        want = by_definition(SENDERS["any"], 2, x[part])
        np.testing.assert_array_equal(got[part], want)


def test_lowering_for_each_platform_alone_and_under_transforms():
    fn = partial(
        neighbour_rounds,
        axis_name="i",
        senders=SENDERS["exp2"],
        num_rounds=3,
        implementation="pallas",
    )
    x = values(300)

    def has_kernel(run, x, platform="tpu"):
        export = jax.export.export(jax.jit(run), platforms=[platform])
        return "tpu_custom_call" in export(x).mlir_module()

    run = meshed(fn)
    for platform in ("tpu", "cuda", "cpu"):
        assert has_kernel(run, x, platform) == (platform == "tpu")
    assert has_kernel(run, x.astype(jnp.bfloat16))
    assert has_kernel(meshed(jax.vmap(fn, in_axes=-1, out_axes=-1)), x)
    assert has_kernel(jax.grad(lambda x: (run(x) ** 2).sum()), x)
    two = meshed(fn, (2, WORKERS), ("other", "i"))
    assert has_kernel(two, np.stack([x, x]))
    assert not has_kernel(meshed(partial(fn, implementation="xla")), x)
    # No kernel of it: an axis of vmap, a dtype, nothing to send or to do.
    assert not has_kernel(jax.vmap(fn, axis_name="i"), x)
    assert not has_kernel(run, x.astype(np.float16))
    assert not has_kernel(run, x[:, :0])
    assert not has_kernel(meshed(partial(fn, num_rounds=0)), x)


def test_values_and_gradients_of_the_choice():
    senders, x = SENDERS["any"], values(4)
    run = {
        how: meshed(
            partial(
                neighbour_rounds,
                axis_name="i",
                senders=senders,
                num_rounds=2,
                implementation=how,
            )
        )
        for how in ("xla", "pallas")
    }
    np.testing.assert_array_equal(run["xla"](x), run["pallas"](x))
    power = np.linalg.matrix_power(matrix_of(senders), 2)
    cotangent = values(4, seed=1)
    for how in run.values():
        _, back = jax.vjp(how, x)
        np.testing.assert_allclose(back(cotangent)[0], power.T @ cotangent, atol=1e-6)


def test_a_mean_that_all_have_settles():
    """Rounding moves it for a few rounds at most, and then it stays."""
    x = np.random.default_rng(0).random(1000).astype("f") + 1
    for count in (1, 2, 4, 6, 16):
        y = x
        for _ in range(10):
            y = mean_of(y, [y] * count)
        np.testing.assert_array_equal(mean_of(y, [y] * count), y)
        np.testing.assert_allclose(y, x, rtol=6e-7)


def test_errors():
    x = jnp.ones((WORKERS, 3))

    def over(senders, **options):
        fn = partial(neighbour_rounds, axis_name="i", senders=senders, **options)
        return jax.vmap(fn, axis_name="i")

    with pytest.raises(
        ValueError, match=r"int64\[2, 1\] and the axis 'i' of 4; wanted"
    ):
        over(np.array([[1], [0]]))(x)
    with pytest.raises(
        ValueError, match=r"column 0 of senders is \[1, 1, 3, 2\]; wante"
    ):
        over(np.array([[1], [1], [3], [2]]))(x)
    with pytest.raises(ValueError, match=r"num_rounds is -1; wanted at least 0"):
        over(SENDERS["ring"], num_rounds=-1)(x)
    with pytest.raises(ValueError, match=r"implementation is 'triton'.*xla.*pallas"):
        over(SENDERS["ring"], implementation="triton")(x)
