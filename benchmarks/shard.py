"""Messages, exchange and plans beside their peers: python -m benchmarks shard.

Packing and decoding one message of a leaf, beside a global top-k of 1 % (what most
compressors do) and the memory floor, residue plus gradient; the mean of gradients over
8 devices by messages, beside `pmean`; a training step of a hybrid plan, beside plain
data parallelism. The 8 devices share one memory, so the exchange shows the cost of the
codec (8 workers pack one message and decode 8 each), not what a wire would gain.

Last result, 1e7 floats, CPU time on 2 cores of a shared x86 machine, in ms:

    operation              pack   decode   floor
    ternary                 115       20      19
    bins of 500, 16 slots   137       20      19
    bins of 50, 8 slots     175       25      19
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods.shard import adacomp, exchange, splitbrain

from .harness import compare

PRESETS = {
    "ternary": {"bin_size": 500},
    "T=500 x 16": {"bin_size": 500, "slots": 16},
    "T=50 x 8": {"bin_size": 50, "slots": 8},
}


def messages(quick: bool) -> list[dict[str, Any]]:
    """Packing and decoding one leaf."""
    size = 999_997 if quick else 9_999_997  # no multiple of any bin
    rng = np.random.default_rng(0)
    gradient = jnp.asarray(rng.standard_normal(size), jnp.float32)
    residue = jnp.asarray(rng.standard_normal(size), jnp.float32)
    add = jax.jit(jnp.add)

    @jax.jit
    def global_top_k(residue: jax.Array, gradient: jax.Array) -> Any:
        total = residue + gradient
        _, index = jax.lax.top_k(jnp.abs(total), size // 100)
        return total[index], index, total.at[index].set(0)

    peer, floor = (
        partial(global_top_k, residue, gradient),
        partial(add, residue, gradient),
    )
    rows = []
    for name, options in PRESETS.items():
        codec = adacomp(**options)
        encode, decode = jax.jit(codec.encode), jax.jit(codec.decode)
        state = codec.init(gradient)._replace(residue=residue)
        message, _ = encode(state, gradient)
        pack = partial(encode, state, gradient)
        rows.append(compare(f"pack {name}", ours=pack, peer=peer, floor=floor))
        unpack = partial(decode, message)
        rows.append(compare(f"decode {name}", ours=unpack, peer=floor, floor=floor))
    return rows


def exchanges(quick: bool) -> list[dict[str, Any]]:
    """The mean over 8 devices of one machine, where bytes cost little."""
    devices = jax.devices()
    mesh = Mesh(np.array(devices), ("i",))
    size = (200, 500) if quick else (1000, 1000)
    rng = np.random.default_rng(1)
    stack = jnp.asarray(rng.standard_normal((len(devices), *size)), jnp.float32)

    def on_mesh(fn: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=P("i"), out_specs=P("i")))

    peer = partial(on_mesh(lambda g: jax.lax.pmean(g, "i")), stack)
    floor = partial(jax.jit(lambda g: g.mean(0)), stack)
    rows = []
    for name, options in PRESETS.items():
        tx = exchange(adacomp(**options), "i")
        states = jax.vmap(tx.init)(stack)

        def own(g: jax.Array, state: Any, tx: Any = tx) -> Any:
            mean, state = tx.update(g[0], jax.tree.map(lambda x: x[0], state))
            return jax.tree.map(lambda x: x[None], (mean, state))

        ours = partial(on_mesh(own), stack, states)
        rows.append(compare(f"exchange {name}", ours=ours, peer=peer, floor=floor))
    return rows


def plans(quick: bool) -> list[dict[str, Any]]:
    """Value and gradient of a wide network, dense layers split or not."""
    width = 512 if quick else 2048
    rng = np.random.default_rng(2)
    params = {
        k: jnp.asarray(rng.standard_normal(s) / 32, jnp.float32)
        for k, s in {"a": (784, width), "b": (width, width), "c": (width, 10)}.items()
    }
    batch = jnp.asarray(rng.standard_normal((16, 784)), jnp.float32)

    def loss(p: Any, x: jax.Array) -> jax.Array:
        return (jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]).var()

    steps = {}
    for members in (1, 2):
        devices = np.array(jax.devices()).reshape(-1, members)
        mesh = Mesh(devices, ("data", "model"))
        plan = splitbrain(loss, params, batch, mesh=mesh)
        step = plan.apply(jax.value_and_grad(loss))
        steps[members] = partial(step, plan.place(params), batch)
    single = partial(jax.jit(jax.value_and_grad(loss)), params, batch)
    return [compare("step, K = 2", ours=steps[2], peer=steps[1], floor=single)]


def run(quick: bool) -> list[dict[str, Any]]:
    """All rows: name, ours_s, peer_s, ratio, floor_s."""
    return [*messages(quick), *exchanges(quick), *plans(quick)]
