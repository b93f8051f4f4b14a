"""Rows of A on many devices, and on two processes that talk over a socket."""

import contextlib
import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmethods import sketch

from ..ports import kept_port
from .families import FAMILIES, whole_numbers

N, D, M = 48, 3, 16


def mesh_of(num, *names):
    shape = (num,) if len(names) == 1 else (num // 2, 2)
    devices = np.array(jax.devices()[:num]).reshape(shape)
    return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names))


def each_family(key, product):
    keys = jax.random.split(key, len(FAMILIES))
    return {
        name: product(family.new(k, M, N))
        for k, (name, family) in zip(keys, FAMILIES.items(), strict=True)
    }


@jax.jit
def on_one_device(key, A):
    return each_family(key, lambda S: (S @ A, S.T @ (S @ A)))


@pytest.mark.parametrize("names", [("rows",), ("hosts", "rows")])
def test_row_shards_add_up_to_the_bit_on_any_mesh(names):
    A, split = whole_numbers(0, N, D), P(names)

    def local(key, A):
        def products(S):
            total = sketch.apply_sharded(S, A, names)
            start = jax.lax.axis_index(names) * len(A)
            return total, S.columns(start, len(A)).T @ total

        return each_family(key, products)

    out_specs = dict.fromkeys(FAMILIES, (P(), split))
    specs = dict(in_specs=(P(), split), out_specs=out_specs)
    run = jax.shard_map(local, mesh=mesh_of(8, *names), **specs)
    got = jax.jit(run)(jax.random.key(0), A)
    want = on_one_device(jax.random.key(0), A)
    for name, family in FAMILIES.items():
        if family.exact:
            np.testing.assert_array_equal(got[name][0], want[name][0], name)
            np.testing.assert_array_equal(got[name][1], want[name][1], name)
        else:
            near = functools.partial(np.testing.assert_allclose, err_msg=name)
            near(got[name][0], want[name][0], rtol=1e-5, atol=1e-5)
            near(got[name][1], want[name][1], rtol=1e-5, atol=1e-4)


def least_squares():
    r = np.random.RandomState(1)
    A = r.randn(400, 5) * np.logspace(0, -3, 5)
    return A, A @ r.randn(5) + 0.1 * r.randn(400)


@pytest.mark.usefixtures("x64")
def test_least_squares_of_sharded_rows_and_its_gradient():
    """By two keys, in a batch."""
    A, b = least_squares()
    keys = jax.random.split(jax.random.key(0), 2)

    def local(A, b):
        return jax.vmap(lambda key: sketch.lstsq(key, A, b, axis_name="rows"))(keys)

    specs = dict(mesh=mesh_of(8, "rows"), in_specs=P("rows"), out_specs=P())
    solve = jax.shard_map(local, **specs)

    def value(A, b):
        found = solve(A, b)
        return found.x.sum(), found

    got, found = jax.jit(jax.grad(value, (0, 1), has_aux=True))(A, b)
    want = np.linalg.lstsq(A, b, rcond=None)[0]
    for x, residual in zip(found.x, found.residual, strict=True):
        np.testing.assert_allclose(x, want, rtol=1e-9)
        np.testing.assert_allclose(residual, np.linalg.norm(A @ want - b))
    one = jax.grad(lambda A, b: sketch.lstsq(jax.random.key(0), A, b).x.sum(), (0, 1))
    for sharded, single in zip(got, jax.jit(one)(A, b), strict=True):
        np.testing.assert_allclose(sharded, 2 * single, rtol=1e-6, atol=1e-6)


def test_scores_of_sharded_rows():
    A, names = np.float32(least_squares()[0]), "rows"
    A[7] *= 100

    def local(A):
        exact = sketch.leverage_scores(A, ridge=0.5, axis_name=names)
        return exact, sketch.approximate_leverage_scores(
            jax.random.key(2), A, axis_name=names
        )

    split = P(names)
    run = jax.shard_map(
        local, mesh=mesh_of(8, names), in_specs=split, out_specs=(split, split)
    )
    exact, rough = jax.jit(run)(A)
    want = sketch.leverage_scores(A, ridge=0.5)
    np.testing.assert_allclose(exact, want, rtol=1e-3, atol=1e-6)
    want = sketch.approximate_leverage_scores(jax.random.key(2), A)
    np.testing.assert_allclose(rough, want, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", ["less", "sparse_stack", "gaussian", "srht"])
def test_the_inverse_gram_of_sharded_rows_is_that_of_one_device(family):
    A = np.float32(least_squares()[0])
    options = dict(family=family, workers=2, ridge=0.1)

    def local(A):
        return sketch.inverse_gram(
            jax.random.key(3), A, 40, axis_name="rows", **options
        )

    run = jax.shard_map(
        local, mesh=mesh_of(8, "rows"), in_specs=P("rows"), out_specs=P()
    )
    want = sketch.inverse_gram(jax.random.key(3), A, 40, **options)
    np.testing.assert_allclose(jax.jit(run)(A), want, rtol=1e-3, atol=1e-4)


def test_workers_and_rows_on_two_axes_of_a_mesh():
    A = np.float32(least_squares()[0])

    def local(A):
        return sketch.inverse_gram(
            jax.random.key(0), A, 40, workers=4, axis_name="rows", worker_axis_name="q"
        )

    mesh, split = mesh_of(8, "q", "rows"), P("rows")
    got = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=split, out_specs=P()))(A)
    L = np.linalg.cholesky(np.float64(A.T @ A))
    # 16 estimates of relative deviation sqrt(d / m) each, in d x d entries.
    off = np.linalg.norm(L.T @ np.float64(got) @ L - np.eye(5))
    assert off < 2 * 5 * (1 / 40 / 16) ** 0.5
    alone = sketch.inverse_gram(jax.random.key(0), A, 40, workers=4)
    assert np.abs(got - alone).max() > 1e-2  # other workers drew other sketches


@pytest.mark.usefixtures("x64")
def test_newton_steps_of_sharded_rows_are_those_of_one_device():
    """By two keys, in a batch; of rows on Auto axes and inside shard_map."""
    A, b = least_squares()
    x = jnp.zeros(5)

    def minimum(key, A, b, axis_name=None):
        def fn(x):
            value = 0.5 * ((A @ x - b) ** 2).sum()
            return value if axis_name is None else jax.lax.psum(value, axis_name)

        options = dict(num_steps=3, axis_name=axis_name)
        return sketch.newton_sketch(key, fn, lambda x: A, x, 40, **options)

    def by_two_keys(A, b, axis_name=None):
        keys = jax.random.split(jax.random.key(4), 2)
        return jax.vmap(lambda key: minimum(key, A, b, axis_name))(keys)

    mesh = mesh_of(8, "rows")
    specs = dict(mesh=mesh, in_specs=P("rows"), out_specs=P())
    run = jax.shard_map(lambda A, b: by_two_keys(A, b, "rows"), **specs)
    rows = jax.device_put((A, b), NamedSharding(mesh, P("rows")))
    want = jax.jit(by_two_keys)(A, b)
    for got in (jax.jit(run)(A, b), jax.jit(by_two_keys)(*rows)):
        np.testing.assert_allclose(got.params, want.params, rtol=1e-6)
        np.testing.assert_allclose(got.decrement, want.decrement, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_solvers_of_rows_on_auto_axes():
    A, b = least_squares()
    rows = jax.device_put((A, b), NamedSharding(mesh_of(8, "rows"), P("rows")))

    @jax.jit
    def run(A, b):
        x = sketch.lstsq(jax.random.key(0), A, b).x
        return x, sketch.svd(jax.random.key(1), A, 2).s, sketch.leverage_scores(A)

    x, s, scores = run(*rows)
    np.testing.assert_allclose(x, np.linalg.lstsq(A, b, rcond=None)[0], rtol=1e-9)
    U, size, _ = np.linalg.svd(A, full_matrices=False)
    np.testing.assert_allclose(s, size[:2], rtol=1e-9)
    np.testing.assert_allclose(scores, (U**2).sum(1), rtol=1e-9)


def test_rows_on_explicit_axes_are_refused_by_name():
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, P("rows"))
        A, K = jax.device_put((jnp.ones((48, 2)), jnp.ones((8, 8))), rows)
        one = jnp.ones(48)
        for use in (
            lambda: sketch.lstsq(jax.random.key(0), A, one),
            lambda: sketch.leverage_scores(A),
            lambda: sketch.inverse_gram(jax.random.key(1), A, 16, family="srht"),
            lambda: sketch.svd(jax.random.key(2), A, 1),
            lambda: sketch.nystrom(jax.random.key(3), K, 1),
            lambda: sketch.sample_rows(jax.random.key(4), jnp.sqrt(A[:, 0]), 8),
        ):
            with pytest.raises(ValueError, match=r"Explicit mesh axes.*auto_axes"):
                use()


def test_errors():
    A, S = whole_numbers(0, N, D), sketch.sparse_stack(jax.random.key(0), M, N)

    def run(A, fn):
        mesh = mesh_of(8, "rows")
        return jax.shard_map(fn, mesh=mesh, in_specs=P("rows"), out_specs=P())(A)

    with pytest.raises(ValueError, match=r"float32\[5,3\] on each of 8.*48 rows in al"):
        run(A[:40], lambda A: sketch.apply_sharded(S, A, "rows"))
    with pytest.raises(TypeError, match=r"int32.*astype"):
        run(A.astype(int), lambda A: sketch.apply_sharded(S, A, "rows"))
    with pytest.raises(
        NameError, match=r"'rows' is not bound here; call apply_sharded"
    ):
        sketch.apply_sharded(S, A, "rows")
    wide = jnp.ones((8, 9))
    with pytest.raises(ValueError, match=r"8 rows and 9 columns"):
        run(
            wide,
            lambda A: sketch.lstsq(jax.random.key(1), A, A[:, 0], axis_name="rows").x,
        )


PROCESS = """
import json, sys
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
rank = int(sys.argv[2])
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, rank)
from jaxmethods import sketch

mesh = Mesh(np.array(jax.devices()), "rows", axis_types=(AxisType.Auto,))
rows = NamedSharding(mesh, P("rows"))
A = np.float32(np.random.RandomState(0).randint(-9, 10, (48, 3)))
own = A[24 * rank : 24 * rank + 24]  # a process holds half of the data
shared = jax.make_array_from_process_local_data(rows, own, A.shape)

def local(A):
    S = sketch.sparse_stack(jax.random.key(0), 16, 48)
    solution = sketch.lstsq(jax.random.key(1), A[:, :2], A[:, 2], axis_name="rows")
    return sketch.apply_sharded(S, A, "rows"), solution.x

run = jax.shard_map(local, mesh=mesh, in_specs=P("rows"), out_specs=P())
SA, x = jax.jit(run)(shared)
print(json.dumps([jax.process_count(), *(np.asarray(v).tolist() for v in (SA, x))]))
"""


def test_two_processes_find_what_one_finds():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    with kept_port() as port, contextlib.ExitStack() as stack:
        command, processes = [sys.executable, "-c", PROCESS, str(port)], []
        for rank in range(2):
            process = subprocess.Popen([*command, str(rank)], env=environment, **pipes)
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        ends = [process.communicate(timeout=120) for process in processes]
    A = np.float32(np.random.RandomState(0).randint(-9, 10, (48, 3)))  # theirs
    want = sketch.sparse_stack(jax.random.key(0), 16, 48) @ A
    x = np.linalg.lstsq(np.float64(A[:, :2]), np.float64(A[:, 2]), rcond=None)[0]
    for process, (out, err) in zip(processes, ends, strict=True):
        assert process.returncode == 0, err
        count, SA, found = json.loads(out.splitlines()[-1])
        assert count == 2
        np.testing.assert_array_equal(SA, want)
        np.testing.assert_allclose(found, x, rtol=1e-4)
