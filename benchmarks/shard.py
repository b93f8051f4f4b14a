"""Messages, exchange and plans beside their peers: python -m benchmarks shard.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks shard [--quick]

- messages: one leaf of 1e7 floats (1e6 with `--quick`) is encoded, with error feedback,
  and decoded, by every codec and by compressors in torch, where torch is on PYTHONPATH:
  the same inputs, in turns, in one process pinned to one core, medians of processor
  time. The floor is residue plus gradient. A codec stands beside the fastest torch
  compressor that does what it does, and beside the operations of GRACE's top-k;
- bytes: what leaves one of 8 workers in an exchange, read from the compiled program by
  `shard.wire`, beside `nbytes` of its message and the `psum` of the dense gradient;
- step: a gradient of an MLP, the exchange and Adam by 8 workers, beside `pmean`, and
  beside the gradient alone (the floor). The workers are virtual devices of one core, so
  a worker's time is an eighth of the whole. Then with a slow link, which is simulated:
  the bytes over the link's speed are added, without latency and without overlap;
- a step of a hybrid plan beside plain data parallelism.

Last result, one core of an x86_64 machine with much else running, jax 0.10.2, torch
2.14.1, 9,999,997 floats; the floor takes 20.2 ms and GRACE's top-k 275 ms. `floors
more` is how many floors encode and decode take beyond the fastest in torch:

    codec                encode  decode  torch  which         floors more  over GRACE
    adacomp, digits        49.8    20.7    189  AdaComp             -5.80        0.25
    adacomp, 500 x 4       67.2    14.8    157  AdaComp             -3.73        0.30
    adacomp, 500 x 16      70.0    18.3    183  AdaComp             -4.67        0.31
    adacomp, 50 x 4        70.3    16.5    213  AdaComp             -6.22        0.32
    adacomp, 50 x 8        94.4    20.5    242  AdaComp             -6.29        0.40
    dct, 1 %               58.6    18.8   71.9  threshold            0.22        0.28
    dct, 1 %, blocks       98.9    24.0   71.9  threshold            2.49        0.43
    top_k, 1 %              109    22.4    213  top-k               -4.00        0.47
    top_k, 1 %, blocks      106    24.1    213  top-k               -4.16        0.47
    int8                   60.3    20.4   47.2  int8                 1.68        0.29
    sign                   72.2    20.2   52.7  sign                 1.94        0.33

Of 1e6 floats, which stay in the cache (floor 0.72 ms, GRACE 8.6 ms), torch is further
ahead: dct +2.7 floors, in blocks +5.3, int8 +3.3, sign +3.1. What leaves a worker is
what the formula says, to the byte, in every row. A step with 1.07e6 parameters, ms:

    exchange                 kB sent  measured   1 Gbit/s  10 Gbit/s
    pmean                       7473       4.7       64.5       10.7
    adacomp, digits             1495      20.1       32.1       21.3
    adacomp, 500 x 4             120      11.6       12.5       11.7
    dct, 1 %, blocks            1402      17.4       28.6       18.5
    int8                        7589      12.2       72.9       18.3
    int8, two phases            1897      13.8       29.0       15.3
    sign                         934      10.0       17.5       10.7
    sign, two phases             234      13.1       15.0       13.3

At 1 Gbit/s all but int8 sent to all gain, at 10 Gbit/s none does on such a core.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods import shard

from .harness import Timing, compare, race, ratios
from .peers import torch_codecs

WORKERS, SHARE, LIFE = 8, 0.01, 1000
GRACE, TWO_PHASES = "GRACE top-k", ", two phases"
SLOW_LINKS = {"1 Gbit/s": 1e9 / 8, "10 Gbit/s": 1e10 / 8}


class Subject(NamedTuple):
    """A codec to measure.

    Attributes:
        codec: Ours.
        equivalents: What does the same in torch.
        two_phase: Whether its exchange takes two phases.
    """

    codec: shard.Codec
    equivalents: tuple[str, ...]
    two_phase: bool = False


def subjects(size: int) -> dict[str, Subject]:
    """The codecs, for a leaf of so many entries."""
    found = {"adacomp, digits": Subject(shard.adacomp(bin_size=500), ("digits",))}
    for bin_size, slots in ((500, 4), (500, 16), (50, 4), (50, 8)):
        name = f"{bin_size} x {slots}"
        codec = shard.adacomp(bin_size=bin_size, slots=slots)
        found[f"adacomp, {name}"] = Subject(codec, (name,))
    found = {
        name: subject._replace(equivalents=(f"AdaComp, {subject.equivalents[0]}",))
        for name, subject in found.items()
    }
    largest = ("top-k", GRACE)
    thresholds = ("threshold", "sampled threshold")
    dct = partial(shard.dct, sparsity=1 - SHARE, life=LIFE, capacity=size // 80)
    blocks = shard.LocalPlaces(1024, 32)
    return found | {
        "dct, 1 %": Subject(dct(), thresholds),
        "dct, 1 %, blocks": Subject(dct(index=blocks), thresholds),
        "top_k, 1 %": Subject(shard.top_k(sparsity=1 - SHARE), largest),
        "top_k, 1 %, blocks": Subject(
            shard.top_k(sparsity=1 - SHARE, block=1000), largest
        ),
        "int8": Subject(shard.int8(), ("int8", "int8, blocks"), two_phase=True),
        "sign": Subject(shard.sign(), ("sign",), two_phase=True),
    }


def given(size: int) -> tuple[np.ndarray, np.ndarray]:
    """A residue and a gradient."""
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((2, size)).astype(np.float32))


def warm_state(codec: shard.Codec, residue: jax.Array, gradient: jax.Array) -> Any:
    """A state past its first step, whose threshold is set, with that residue."""
    state = jax.jit(codec.encode)(codec.init(gradient), residue + gradient)[1]
    left = "residue" if hasattr(state, "residue") else "error"
    return state._replace(**{left: residue})


def messages(quick: bool) -> list[dict[str, Any]]:
    """Encoding and decoding one leaf, all codecs and peers in one race."""
    size = 999_997 if quick else 9_999_997  # no multiple of any bin
    arrays = given(size)
    residue, gradient = map(jnp.asarray, arrays)
    contestants: dict[str, Callable[[], Any]] = {
        "floor": partial(jax.jit(jnp.add), residue, gradient)
    }
    found = subjects(size)
    for name, subject in found.items():
        encode, decode = jax.jit(subject.codec.encode), jax.jit(subject.codec.decode)
        state = warm_state(subject.codec, residue, gradient)
        message, _ = encode(state, gradient)
        contestants["encode " + name] = partial(encode, state, gradient)
        contestants["decode " + name] = partial(decode, message)
    peers: dict[str, Callable[[], Any]] = {}
    if torch_codecs.missing is None:
        bar = float(np.quantile(np.abs(arrays[0] + arrays[1]), 1 - SHARE))
        peers = torch_codecs.compressors(*arrays, share=SHARE, threshold=bar)
    else:
        print(torch_codecs.missing)
    taken = race(contestants | peers, rounds=5 if quick else 7)
    rows = [_row(name, found[name], taken) for name in found]
    print(
        f"\n{size} floats, ms of one core; the floor is {1e3 * rows[0]['floor_s']:.3g}"
    )
    print("in torch: " + ", ".join(f"{p} {1e3 * taken[p].cpu_s:.3g}" for p in peers))
    _print_messages(rows)
    return rows


def _row(name: str, subject: Subject, taken: dict[str, Timing]) -> dict[str, Any]:
    """A row of the table, from the processor time of all."""
    encode, decode = taken["encode " + name], taken["decode " + name]
    both = [
        a + b for a, b in zip(encode.cpu_rounds_s, decode.cpu_rounds_s, strict=True)
    ]
    ours = encode._replace(cpu_rounds_s=tuple(both), cpu_s=float(np.median(both)))
    floor_s = taken["floor"].cpu_s
    row = {
        "name": name,
        "ours_s": ours.cpu_s,
        "floor_s": floor_s,
        "first_s": encode.first_s + decode.first_s,
        "encode_s": encode.cpu_s,
        "decode_s": decode.cpu_s,
    }
    if GRACE not in taken:
        return row
    best = min(subject.equivalents, key=lambda peer: taken[peer].cpu_s)
    found = ratios(ours, taken[best], cpu=True)
    return row | {
        "peer": best,
        "peer_s": taken[best].cpu_s,
        "ratio": float(np.median(found)),
        "ratio_min": min(found),
        "ratio_max": max(found),
        "floors_over_peer": (ours.cpu_s - taken[best].cpu_s) / floor_s,
        "over_grace": float(np.median(ratios(ours, taken[GRACE], cpu=True))),
    }


def _print_messages(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'codec':21}{'encode':>8}{'decode':>8}{'torch':>8}  {'which':19}"
        f"{'floors more':>12}{'over GRACE':>12}"
    )
    for row in rows:
        line = (
            f"{row['name']:21}{1e3 * row['encode_s']:8.3g}{1e3 * row['decode_s']:8.3g}"
        )
        if "peer" in row:
            line += f"{1e3 * row['peer_s']:8.3g}  {row['peer']:19}"
            line += f"{row['floors_over_peer']:12.2f}{row['over_grace']:12.2f}"
        print(line)


def _mesh() -> Mesh:
    return Mesh(np.array(jax.devices()[:WORKERS]), ("i",))


def _on_mesh(fn: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(jax.shard_map(fn, mesh=_mesh(), in_specs=P("i"), out_specs=P("i")))


def _exchanged(tx: Any) -> Callable[..., Any]:
    """The exchange on a mesh, of gradients and states that are stacked."""

    def own(gradient: jax.Array, state: Any) -> Any:
        one = jax.tree.map(lambda x: x[0], (gradient, state))
        return jax.tree.map(lambda x: x[None], tx.update(*one))

    return _on_mesh(own)


def sent_bytes(size: int) -> dict[str, dict[str, float]]:
    """Name -> bytes of a message, and what leaves a worker: counted and by formula."""
    stack = jax.ShapeDtypeStruct((WORKERS, size), jnp.float32)
    summed = _on_mesh(lambda g: jax.lax.psum(g, "i"))
    others, part = WORKERS - 1, -(-size // WORKERS)
    psum = 2 * others / WORKERS * 4 * size
    found = {"psum": {"wire": shard.wire(summed)(stack).total, "formula": psum}}

    def length(codec: shard.Codec, size: int) -> int:
        one = jax.ShapeDtypeStruct((size,), jnp.float32)
        return shard.nbytes(
            jax.eval_shape(lambda g: codec.encode(codec.init(g), g)[0], one)
        )

    for name, subject in subjects(size).items():
        message = length(subject.codec, size)
        txs = {name: (shard.exchange(subject.codec, "i"), others * message)}
        if subject.two_phase:
            tx = shard.two_phase_exchange(subject.codec, "i", num_workers=WORKERS)
            formula = 2 * others * length(subject.codec, part)
            txs[name + TWO_PHASES] = (tx, formula)
        for label, (tx, formula) in txs.items():
            states = jax.eval_shape(jax.vmap(tx.init), stack)
            counted = shard.wire(_exchanged(tx))(stack, states).total
            found[label] = {"wire": counted, "formula": formula, "message": message}
    return found


def traffic(quick: bool, rows: list[dict[str, Any]]) -> None:
    """Prints what leaves a worker, and adds it to the rows of the codecs."""
    size = 999_997 if quick else 9_999_997
    found = sent_bytes(size)
    psum = found["psum"]["wire"]
    print(f"\nbytes that leave one of {WORKERS} workers, of {size} floats")
    print(f"{'exchange':21}{'message':>12}{'wire':>12}{'formula':>12}{'psum/wire':>11}")
    for name, counts in found.items():
        cells = [counts.get("message", 4 * size), counts["wire"], counts["formula"]]
        less = psum / counts["wire"]
        print(f"{name:21}" + "".join(f"{c:12.0f}" for c in cells) + f"{less:11.1f}")
        for row in rows:
            if name in (row["name"], row["name"] + TWO_PHASES):
                kept = row.setdefault("bytes", {"psum": psum})
                kept["two phases" if name.endswith(TWO_PHASES) else "exchange"] = counts


def steps(quick: bool) -> list[dict[str, Any]]:
    """A training step of 8 workers, measured, and with the time of a simulated link."""
    rng, widths = np.random.default_rng(1), (784, 256 if quick else 1024, 256, 10)
    params = [
        jnp.asarray(rng.standard_normal(pair) / np.sqrt(pair[0]), jnp.float32)
        for pair in pairwise(widths)
    ]
    data = jnp.asarray(rng.standard_normal((WORKERS, 16, widths[0])), jnp.float32)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        for weight in params[:-1]:
            x = jax.nn.relu(x @ weight)
        return (x @ params[-1]).var()

    def stepper(tx: optax.GradientTransformation) -> Any:
        optimizer = optax.chain(tx, optax.adam(1e-3))

        def step(params: Any, state: Any, x: jax.Array) -> Any:
            own = jax.tree.map(lambda leaf: leaf[0], state)
            varying = jax.lax.pcast(params, "i", to="varying")
            updates, own = optimizer.update(jax.grad(loss)(varying, x[0]), own)
            moved = optax.apply_updates(varying, updates)
            return jax.tree.map(lambda leaf: leaf[None], (moved, own))

        over = jax.shard_map(
            step, mesh=_mesh(), in_specs=(P(), P("i"), P("i")), out_specs=P("i")
        )
        state = optimizer.init(params)
        stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * WORKERS), state)
        return partial(jax.jit(over), params, stacked, data)

    names = ("adacomp, digits", "adacomp, 500 x 4", "dct, 1 %, blocks", "int8", "sign")
    found = subjects(widths[0] * widths[1])
    txs = {"pmean": shard.mean_exchange("i"), "nothing": optax.identity()}
    for name in names:
        txs[name] = shard.exchange(found[name].codec, "i")
        if found[name].two_phase:
            two = shard.two_phase_exchange(found[name].codec, "i", num_workers=WORKERS)
            txs[name + TWO_PHASES] = two
    compiled = {name: stepper(tx) for name, tx in txs.items()}
    sent = {name: shard.wire(f.func)(*f.args).total for name, f in compiled.items()}
    taken = race(compiled, rounds=7)
    return [_step_row(name, taken, sent) for name in txs if name != "nothing"]


def _step_row(
    name: str, taken: dict[str, Timing], sent: dict[str, float]
) -> dict[str, Any]:
    seconds = {which: timing.cpu_s / WORKERS for which, timing in taken.items()}
    simulated = {
        link: seconds[name] + sent[name] / speed for link, speed in SLOW_LINKS.items()
    }
    return {
        "name": f"step, {name}",
        "ours_s": seconds[name],
        "peer_s": seconds["pmean"],
        "floor_s": seconds["nothing"],
        "first_s": taken[name].first_s,
        "ratio": float(np.median(ratios(taken[name], taken["pmean"], cpu=True))),
        "wire": sent[name],
        "simulated_s": simulated,
    }


def _print_steps(rows: list[dict[str, Any]]) -> None:
    print(f"\na step of one of {WORKERS} workers, ms; with links that are simulated")
    titles = "".join(f"{link:>14}" for link in SLOW_LINKS)
    print(f"{'exchange':27}{'kB sent':>9}{'measured':>10}{titles}")
    for row in rows:
        found = [row["ours_s"], *row["simulated_s"].values()]
        times = "".join(
            f"{1e3 * s:{w}.3g}" for s, w in zip(found, (10, 14, 14), strict=True)
        )
        print(f"{row['name']:27}{row['wire'] / 1e3:9.0f}{times}")


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
        plan = shard.splitbrain(loss, params, batch, mesh=mesh)
        step = plan.apply(jax.value_and_grad(loss))
        steps[members] = partial(step, plan.place(params), batch)
    single = partial(jax.jit(jax.value_and_grad(loss)), params, batch)
    return [compare("step, K = 2", ours=steps[2], peer=steps[1], floor=single)]


def run(quick: bool) -> list[dict[str, Any]]:
    """All rows: name, ours_s, peer_s, ratio, floor_s, and for codecs their bytes."""
    rows = messages(quick)
    traffic(quick, rows)
    found = steps(quick)
    _print_steps(found)
    return [*rows, *found, *plans(quick)]
