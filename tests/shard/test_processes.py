"""Two and four real processes: the bits of one, the bytes of the formula."""

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmethods.shard import resize

from ..ports import kept_port
from . import exchange_process as work

# A message of gloo has at most 288 bytes of headers (measured with 2 to 8 processes), a
# device sends at most 12 in a step here, and the runtime's heartbeats take the rest.
HEADERS = 288 * 12 + 500
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Number of processes -> their folder and what each of them found."""

    @functools.cache
    def started(number):
        folder = tmp_path_factory.mktemp("processes")
        devices = str(work.WORKERS // number)
        # As in the tests: loops compile in half the time.
        flags = (
            "xla_cpu_use_fusion_emitters=false xla_cpu_parallel_codegen_split_count=1"
        )
        flags = " ".join(f"--{flag}" for flag in flags.split())
        environment = {**os.environ, "XLA_FLAGS": flags}
        environment["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
        processes, logs = [], [folder / f"{index}.log" for index in range(number)]
        with kept_port() as port, contextlib.ExitStack() as stack:
            command = [sys.executable, "-m", work.__name__, str(port), str(number)]
            for index, log in enumerate(logs):
                out = stack.enter_context(log.open("w"))
                own = [*command, str(index), devices, str(folder)]
                process = subprocess.Popen(
                    own, env=environment, cwd=ROOT, stdout=out, stderr=out
                )
                stack.callback(process.wait)
                stack.callback(process.kill)
                processes.append(process)
            deadline = time.monotonic() + 300
            ends = [p.wait(max(1, deadline - time.monotonic())) for p in processes]
        assert not any(ends), "\n".join(log.read_text()[-3000:] for log in logs)
        files = [folder / f"{index}.json" for index in range(number)]
        return folder, [json.loads(file.read_text()) for file in files]

    return started


@pytest.fixture(scope="module", params=[2, 4], ids="{} processes".format)
def processes(request, run):
    """What each of so many processes found."""
    return run(request.param)[1]


def compile_as_the_processes_do():
    """For what all tests share, which is made before a test's own setting."""
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def alone():
    """The bits of one process with as many virtual devices."""
    compile_as_the_processes_do()
    mesh, found = work.line(jax.devices()[: work.WORKERS]), {}
    for name in work.EXCHANGES:
        workers = work.Workers(name, mesh)
        updates = [work.digests(workers.step(step)) for step in range(work.STEPS)]
        found[name] = {"updates": updates, "states": work.digests(workers.state)}
    return found


@pytest.mark.parametrize("name", work.EXCHANGES)
def test_the_bits_are_those_of_one_process(name, processes, alone):
    for kind in ("updates", "states"):
        want = alone[name][kind]
        steps = [want] if kind == "states" else want
        for step, by_worker in enumerate(steps):
            got = {}
            for process in processes:
                each = process["exchanges"][name][kind]
                got |= each if kind == "states" else each[step]
            assert got == by_worker
    assert processes[0]["workers"] == work.WORKERS
    assert len({*alone[name]["updates"][0].values()}) == 1, "updates differ"


@pytest.mark.parametrize("name", work.EXCHANGES)
def test_formula_compiled_program_and_sockets_agree(name, processes):
    """Bytes that leave a process in a step, counted three ways, and by loopback."""
    formula = work.EXCHANGES[name].sent
    devices = work.WORKERS // len(processes)
    each = [process["exchanges"][name] for process in processes]
    for process in each:
        assert process["wire"] == formula
        payload = devices * formula
        assert payload <= process["sockets"] <= payload + devices * HEADERS
    # Others may use the interface meanwhile, so that it bounds from one side only.
    before, after = zip(*(process["interface"] for process in each), strict=True)
    by_interface = (max(after) - min(before)) / work.COUNTED
    assert by_interface >= sum(process["sockets"] for process in each)


def test_compressed_steps_send_less(processes):
    devices = work.WORKERS // len(processes)
    for name, times in {"adacomp": 40, "dct": 20, "int8 in two phases": 3.8}.items():
        dense = 2 * (work.WORKERS - 1) / work.WORKERS * 4 * work.EXCHANGES[name].size
        sent = processes[0]["exchanges"][name]["sockets"]
        assert sent < devices * dense / times


def test_what_goes_wrong_before_the_start_says_so(processes):
    number = len(processes)
    for process in processes:
        said = process["said"]
        assert "RuntimeError: port" in said["taken"]
        assert "is another running?" in said["taken"]
        assert "did not answer within 0.3 s; wanted process 0" in said["silent"]
        assert said["nobody"].startswith("TimeoutError: process 1 could not reach the")
        assert "at localhost:" in said["nobody"] and "within 0.3 s" in said["nobody"]
        assert said["alone"].startswith("TimeoutError: [1] of 2 processes did not come")
        index = f"ValueError: process_index is {number}; wanted 0..{number - 1}."
        assert said["index"] == index
        assert "num_processes, process_index not given" in said["no cluster"]
        devices = work.WORKERS // number
        assert f"num_cpu_devices={devices}, now {devices + 1}" in said["other"]
        assert said["again"] == "no error"


@pytest.fixture(scope="module")
def saved(run):
    """The state that two processes with two workers each saved, and the same of one."""
    compile_as_the_processes_do()
    mesh = work.line(jax.devices()[: work.WORKERS])
    _, state = work.trained(work.OPTIMIZER, mesh, None, range(3))
    return run(2)[0] / "state", state


def restored(path, state, devices, rows):
    """All rows on as many devices: spread over them, or each on all."""
    sharding = NamedSharding(work.line(jax.devices()[:devices]), rows)
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
    )
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, like)


def test_two_processes_resize_what_they_hold(saved, run):
    _, state = saved
    pairs = np.asarray(state[0].residue).reshape(2, 2, 24).mean(1)
    for process in run(2)[1]:
        np.testing.assert_allclose(process["pairs"], pairs, rtol=1e-6)


@pytest.mark.parametrize(("devices", "rows"), [(2, P("i")), (8, P())])
def test_a_checkpoint_goes_on_with_other_workers_and_loses_no_gradient(
    devices, rows, saved
):
    path, state = saved
    old = restored(path, state, devices, rows)
    for got, want in zip(*map(jax.tree.leaves, (old, state)), strict=True):
        np.testing.assert_array_equal(got, want)
    mesh = work.line(jax.devices()[:devices])
    to_all = NamedSharding(mesh, work.ROW)
    new = jax.jit(lambda s: resize(s, devices), out_shardings=to_all)(old)
    np.testing.assert_allclose(
        np.mean(new[0].residue, 0), np.mean(state[0].residue, 0), atol=1e-6
    )
    # Updates of the exchange alone are what was sent.
    sent, after = work.trained(work.EXCHANGE, mesh, new[0], range(3, 6))
    given = sum(
        np.mean([work.small_gradients(i, step) for i in range(devices)], 0)
        for step in range(3, 6)
    )
    total = sent + np.float64(after.residue).mean(0)
    np.testing.assert_allclose(
        total, given + np.float64(state[0].residue).mean(0), atol=1e-5
    )
    assert np.abs(sent - given).max() > 1e-2


def test_a_partial_or_corrupt_checkpoint_is_an_error_and_the_last_one_stays(
    saved, tmp_path
):
    _, state = saved
    with ocp.CheckpointManager(tmp_path / "steps") as manager:
        for step in (1, 2):
            manager.save(step, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
    folder = tmp_path / "steps"
    # A process that dies while it saves leaves a folder that is not final.
    (folder / "2").rename(folder / "2.orbax-checkpoint-tmp")
    with ocp.CheckpointManager(folder) as manager:
        assert manager.latest_step() == 1
        like = jax.tree.map(jnp.zeros_like, state)
        last = manager.restore(1, args=ocp.args.StandardRestore(like))
    for got, want in zip(*map(jax.tree.leaves, (last, state)), strict=True):
        np.testing.assert_array_equal(got, want)
    # One array alone: where several fail, orbax leaves callbacks behind that warn.
    residue, whole = {"residue": state[0].residue}, tmp_path / "whole"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(whole, residue)
    for damaged in ("manifest.ocdbt", "d/*"):
        broken = tmp_path / damaged[:1]
        shutil.copytree(whole, broken)
        for file in broken.rglob(damaged):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(ValueError, match=r"DATA_LOSS|OUT_OF_RANGE"):
            restored(broken, residue, 2, work.ROW)
    with pytest.raises(FileNotFoundError):
        restored(tmp_path / "nowhere", residue, 2, work.ROW)
    again = restored(whole, residue, 2, work.ROW)
    np.testing.assert_array_equal(again["residue"], residue["residue"])
