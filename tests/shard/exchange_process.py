"""What each of several processes does: exchanges, and the bytes that its sockets sent.

Run as a program: `python -m tests.shard.exchange_process PORT PROCESSES INDEX DEVICES
FOLDER`.
"""

import functools
import hashlib
import json
import math
import os
import socket
import struct
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmethods.shard import (
    adacomp,
    dct,
    exchange,
    initialize,
    int8,
    mean_exchange,
    nbytes,
    resize,
    two_phase_exchange,
    wire,
)

from ..ports import kept_port

WORKERS, STEPS, COUNTED = 4, 2, 4
ROW = P("i")


def one_message(codec, shapes):
    """(N - 1) messages leave a worker."""
    tree = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    sent = jax.eval_shape(lambda g: codec.encode(codec.init(g), g)[0], tree)
    return (WORKERS - 1) * nbytes(sent)


class Exchange(NamedTuple):
    """An exchange, of what, and by formula the bytes that leave a worker in a step."""

    tx: optax.GradientTransformation
    shapes: dict[str, tuple[int, ...]]
    sent: float

    @property
    def size(self):
        return sum(math.prod(shape) for shape in self.shapes.values())


LARGE = {"w": (1024, 512), "b": (512,)}
SIZE = 1025 * 512
SHORT = {"w": (250, 256)}  # longer, a threshold takes seconds to compile
ADACOMP, DCT = adacomp(slots=8), dct(sparsity=0.99, life=2, capacity=640)
EXCHANGES = {
    "adacomp": Exchange(exchange(ADACOMP, "i"), LARGE, one_message(ADACOMP, LARGE)),
    "dct": Exchange(exchange(DCT, "i"), SHORT, one_message(DCT, SHORT)),
    "int8 in two phases": Exchange(
        two_phase_exchange(int8(), "i", num_workers=WORKERS),
        LARGE,
        2 * one_message(int8(), {"part": (SIZE // WORKERS,)}),
    ),
    "dense": Exchange(
        mean_exchange("i"), LARGE, 2 * (WORKERS - 1) / WORKERS * 4 * SIZE
    ),
}


def gradients(shapes, worker, step, whole_numbers):
    rng = np.random.default_rng([worker, step])
    if whole_numbers:  # of which all sums are exact, in any order
        return {k: rng.integers(-9, 10, s).astype("f") for k, s in shapes.items()}
    return {k: rng.standard_normal(s).astype("f") for k, s in shapes.items()}


def line(devices):
    return Mesh(np.array(devices), "i", axis_types=(AxisType.Auto,))


def on_each(mesh, fn):
    def own(*args):
        out = fn(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: x[None], out)

    mapped = jax.shard_map(own, mesh=mesh, in_specs=ROW, out_specs=ROW, check_vma=False)
    return jax.jit(mapped)


class Workers:
    """An exchange on the devices of a mesh, one worker a device."""

    def __init__(self, name, mesh):
        self.mesh, self.whole_numbers = mesh, name == "dense"
        self.shapes = EXCHANGES[name].shapes
        update = on_each(mesh, EXCHANGES[name].tx.update)
        given = self.given(0)
        self.state = on_each(mesh, EXCHANGES[name].tx.init)(given)
        self.update = update.lower(given, self.state).compile()

    def given(self, step):
        """Gradients, each worker's made where it lies."""

        def row(index, name):
            worker = index[0].start or 0
            return gradients(self.shapes, worker, step, self.whole_numbers)[name][None]

        return {
            name: jax.make_array_from_callback(
                (self.mesh.size, *shape),
                NamedSharding(self.mesh, ROW),
                functools.partial(row, name=name),
            )
            for name, shape in self.shapes.items()
        }

    def step(self, step):
        update, self.state = self.update(self.given(step), self.state)
        return update


def digests(tree):
    """Worker -> a hash of its bits, of the workers of this process."""
    found = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            worker = str(shard.index[0].start or 0)
            bits = found.setdefault(worker, hashlib.sha256())
            bits.update(np.asarray(shard.data).tobytes())
    return {worker: bits.hexdigest() for worker, bits in found.items()}


def sent_by_sockets():
    """Bytes that this process's TCP connections sent and had acknowledged.

    From the kernel (tcpi_bytes_acked of linux/tcp.h, since Linux 4.1): payload alone,
    of this process alone.
    """
    total = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
                continue
            own = socket.socket(fileno=os.dup(int(number)))
        except OSError:  # closed meanwhile
            continue
        with own:
            if own.family == socket.AF_UNIX or own.type != socket.SOCK_STREAM:
                continue
            info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
            total += struct.unpack_from("=Q", info, 120)[0]
    return total


def sent_when_quiet():
    """The same once nothing is under way: acknowledgements come later."""
    before = sent_by_sockets()
    while True:
        time.sleep(0.1)
        now = sent_by_sockets()
        if now == before:
            return now
        before = now


def sent_by_interface():
    """Bytes that the loopback interface of this machine sent, headers included."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    own = next(line for line in lines if line.strip().startswith("lo:"))
    return int(own.split(":")[1].split()[8])


def exchanged(name, mesh):
    workers = Workers(name, mesh)
    updates = [digests(workers.step(step)) for step in range(STEPS)]
    found = {"updates": updates, "states": digests(workers.state)}
    given = workers.given(0)
    found["wire"] = wire(workers.update).total
    interface, sockets = sent_by_interface(), sent_when_quiet()
    for _ in range(COUNTED):
        jax.block_until_ready(workers.update(given, workers.state))
    found["sockets"] = (sent_when_quiet() - sockets) / COUNTED
    found["interface"] = [interface, sent_by_interface()]
    return found


def error_of(fn, *args, **options):
    try:
        fn(*args, **options)
    except (ValueError, RuntimeError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def joined(port, processes, index, devices):
    """Joins the others, after some tries that go wrong; what each said."""
    said = {"no cluster": error_of(initialize)}
    wrong = f"localhost:{port}"
    said["index"] = error_of(initialize, wrong, processes, processes)
    with socket.create_server(("", 0)) as taken:
        own = f"localhost:{taken.getsockname()[1]}"
        said["taken"] = error_of(initialize, own, 2, 0, timeout=0.3)
        said["silent"] = error_of(initialize, own, 2, 1, timeout=0.3)
    with kept_port() as free:
        own = f"localhost:{free}"
        said["nobody"] = error_of(initialize, own, 2, 1, timeout=0.3)
        said["alone"] = error_of(initialize, own, 2, 0, timeout=0.3)
    right = (f"localhost:{port}", processes, index)
    initialize(*right, num_cpu_devices=devices, timeout=60)
    initialize(*right, num_cpu_devices=devices)  # does nothing
    said["other"] = error_of(initialize, *right, num_cpu_devices=devices + 1)
    said["again"] = error_of(initialize, *right, num_cpu_devices=devices)
    return said


EXCHANGE = exchange(adacomp(bin_size=8, slots=1), "i")
OPTIMIZER = optax.chain(EXCHANGE, optax.adam(0.1))


def small_gradients(worker, step):
    return np.random.default_rng([worker, step]).standard_normal(24).astype("f")


def trained(optimizer, mesh, state, steps):
    """(sum of all updates, state) after steps with small gradients."""
    sharding, total = NamedSharding(mesh, ROW), 0
    run = on_each(mesh, lambda g, s: optimizer.update(g, s))
    for step in steps:
        given = jax.make_array_from_callback(
            (mesh.size, 24),
            sharding,
            lambda index, step=step: small_gradients(index[0].start or 0, step)[None],
        )
        if state is None:
            state = on_each(mesh, optimizer.init)(given)
        update, state = run(given, state)
        total = total + np.float64(np.asarray(update.addressable_shards[0].data)[0])
    return total, state


def main():
    port, processes, index, devices = map(int, sys.argv[1:5])
    folder = Path(sys.argv[5])
    jax.config.update("jax_platforms", "cpu")
    # As in the tests: fast to compile, the same collectives.
    jax.config.update("jax_disable_most_optimizations", True)
    found = {"said": joined(port, processes, index, devices)}
    mesh = line(jax.devices())
    found["workers"] = mesh.size
    found["exchanges"] = {name: exchanged(name, mesh) for name in EXCHANGES}
    if processes == 2:
        import orbax.checkpoint as ocp

        _, state = trained(OPTIMIZER, mesh, None, range(3))
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "state", state)
        # Rows of two processes, resized where they lie.
        pairs = jax.jit(lambda s: resize(s, 2), out_shardings=NamedSharding(mesh, P()))
        found["pairs"] = np.asarray(pairs(state)[0].residue).tolist()
    (folder / f"{index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
