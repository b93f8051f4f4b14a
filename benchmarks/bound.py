"""Bounds of six small nets beside auto_LiRPA, immrax and bounds written by hand.

    NPROC=1 taskset -c 0 python -m benchmarks bound [--quick]

Lower bounds of the 9 margins of the zoo's nets in an linf ball, one compiled call for a
batch of B images, float32. Peers run in the same process, in turns, where they can be
imported: auto_LiRPA 0.7 with torch for CPUs on PYTHONPATH, on the same weights and
images (both on the GPU where jax has one, by wall time); immrax from PyPI for what it
has; and what one writes by hand for one net alone, in plain float32 without an account
of rounding. The floor is the forward pass of the same batch. Seconds are medians of
processor time, so pin the process to one core as above. `width_ratio` is how far our
bounds are below the margins at the centre, over the peer's. Of random nets nearly all
units may change their sign; of the `settled` ones most keep it, as in trained nets.

`train` rows are a value and gradient in the weights: what a certified training step
costs; the floor there is the plain loss's. The first row is the machine's matrix
product.

Some of the last results, one x86_64 core at 150 GFLOP/s and nothing else running, jax
0.10, auto_LiRPA 0.7.1, CPU ms, ours and theirs at B = 1 and at 32:

    MLP   IBP         .29    1.5     .63   2.2
          CROWN-IBP   .50    2.7     2.2   5.4
          CROWN       2.7    7.0      68   141
    CNN   IBP         .38    2.3     2.7   4.8
          CROWN-IBP   .81    4.6      14    26
          CROWN        15     42     474  1585
    pooled IBP        .13    1.1     2.8   6.6
          CROWN-IBP   1.2    4.3      44    69
          CROWN        21     14     760  1888

The pooled net's bounds by CROWN are .43 and .67 times as wide as auto_LiRPA's; a batch
of one under `vmap` takes twice as long an image as a batch of two, since XLA sums up
slowly there.

One NVIDIA H100, jax 0.11, ms, ours and theirs at B = 1 and at 256:

    MLP   IBP         .23    2.7     .22   2.7
          CROWN-IBP   .23    5.3     .44   6.8
          CROWN       .52     13     2.7    10
    CNN   IBP         .23    2.3     .28   2.5
          CROWN-IBP   .38    5.7     .84   7.2

Beside another job: settled MLP CROWN 2.1 and 5.8, 41 and 70; settled CNN 13 and 22, 294
and 728; transformer at B = 1 335 and 327, LSTM 84 and 847. The account of rounding
makes ours 1.03 (settled MLP), 1.06 (settled CNN), 1.08 (transformer) times as wide.
`forward` is slower on convolutions: 159 and 57 (CNN).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods import bound

from .harness import compare, matmul_row
from .peers import auto_lirpa, immrax
from .peers.by_hand import BY_HAND
from .zoo import NETS, Net, images, settled

_METHODS: dict[str, Callable] = {
    "ibp": bound.ibp,
    "forward": bound.forward,
    "crown_ibp": partial(bound.crown_ibp, side="lower"),
    "crown": partial(bound.crown, side="lower"),
    "alpha_crown": partial(bound.alpha_crown, num_steps=20, side="lower"),
}


def run(quick: bool) -> list[dict[str, Any]]:
    """The rows of this area."""
    for library in (auto_lirpa, immrax):
        if library.missing:
            print(library.missing)
    rows = [matmul_row(None if auto_lirpa.missing else auto_lirpa.matmul)]
    for name, draw in NETS.items():
        net = draw()
        for method in _METHODS:
            for batch in (1, 32) if quick else (1, 32, 256):
                if _is_bearable(name, method, batch):
                    rows += bound_rows(name, net, method, batch)
                if name in ("mlp", "cnn") and method == "crown":
                    rows += bound_rows(name, settled(net), method, batch, "settled, ")
        if name in ("mlp", "cnn"):
            rows += training_rows(name, net, 32 if quick else 128)
    return rows


def _is_bearable(name: str, method: str, batch: int) -> bool:
    sequential = name in ("transformer", "lstm")
    if method in ("forward", "alpha_crown"):
        return batch == 1 and not sequential
    return batch == 1 or not sequential or (batch == 32 and method != "crown")


def bound_rows(
    name: str, net: Net, method: str, batch: int, note: str = ""
) -> Iterator[dict[str, Any]]:
    """A row for each peer, or one without."""
    args = (net.params, *images(batch))
    ours = partial(jax.jit(jax.vmap(_lower(net, method), (None, 0, 0))), *args)
    floor = partial(jax.jit(jax.vmap(net.apply, (None, 0))), *args[:2])
    title = f"{name} {method}, {note}B = {batch}"
    peers = dict(_peers(name, net, method, args))
    if not peers:
        yield compare(title, cpu=True, ours=ours, floor=floor)
    centre = jax.vmap(partial(_margins, net), (None, 0, 0))(*args)
    for label, peer in peers.items():
        rounds = 5 if method == "alpha_crown" or batch == 256 else 7
        contestants = {"ours": ours, "peer": peer, "floor": floor}
        row = compare(f"{title}, {label}", cpu=True, rounds=rounds, **contestants)
        mine, theirs = (float(jnp.mean(centre - np.asarray(f()))) for f in (ours, peer))
        yield row | {"width_ratio": mine / theirs, "width": mine}


def _peers(
    name: str, net: Net, method: str, args: tuple
) -> Iterator[tuple[str, Callable[[], Any]]]:
    if not auto_lirpa.missing and (name, method) not in auto_lirpa.REFUSED:
        prepared = auto_lirpa.lower_margins(name, *args, net.eps)
        yield "auto_LiRPA", prepared(method)
    if not immrax.missing and name == "mlp" and method in immrax.METHODS:
        yield "immrax", partial(immrax.lower_margins(method), *args, net.eps)
    if (name, method) in BY_HAND:
        by_hand = jax.vmap(BY_HAND[name, method], (None, 0, 0, None))
        yield "by hand", partial(jax.jit(by_hand), *args, net.eps)


def _margins(net: Net, params: dict, x: jax.Array, y: jax.Array) -> jax.Array:
    return bound.margins(partial(net.apply, params), y)(x)


def _lower(net: Net, method: str) -> Callable[..., jax.Array]:
    def lower(params: dict, x: jax.Array, y: jax.Array) -> jax.Array:
        margins = bound.margins(partial(net.apply, params), y)
        return _METHODS[method](margins)(bound.Ball(x, net.eps)).lower

    return lower


def training_rows(name: str, net: Net, batch: int) -> Iterator[dict[str, Any]]:
    xs, ys = images(batch)

    def plain(params):
        logits = jax.vmap(net.apply, (None, 0))(params, xs)
        return jnp.mean(
            jax.nn.logsumexp(logits, axis=1)
            - jnp.take_along_axis(logits, ys[:, None], axis=1)[:, 0]
        )

    def certified(lower):
        def loss(params):
            margins = jax.vmap(lower, (None, 0, 0))(params, xs, ys)
            zeros = jnp.zeros_like(margins[:, :1])
            return jnp.mean(
                jax.nn.logsumexp(jnp.concatenate([zeros, -margins], 1), axis=1)
            )

        return partial(jax.jit(jax.value_and_grad(loss)), net.params)

    floor = partial(jax.jit(jax.value_and_grad(plain)), net.params)
    for method in ("ibp", "crown_ibp"):
        contestants = {"ours": certified(_lower(net, method)), "floor": floor}
        if (name, method) in BY_HAND:
            by_hand = BY_HAND[name, method]
            contestants["peer"] = certified(
                lambda p, x, y, by_hand=by_hand: by_hand(p, x, y, net.eps)
            )
        yield compare(f"{name} {method} train, B = {batch}", cpu=True, **contestants)
