"""Low-bit gradients beside qwix and AQT: their error, their bias, and what they cost.

    OMP_NUM_THREADS=1 NPROC=1 taskset -c 0 python -m benchmarks quantize [--quick]

Peers, where they are on PYTHONPATH: qwix 0.1.8 and AQT (aqtp 0.9.0). What is measured:

- bias: the worst entry of the mean of 4,000 draws, in standard errors;
- a training step (gradient, optax SGD), jitted, 8 bits forward: of an MLP 64-256-256-10
  and a small CNN, batches of 128 digits; ours with the weights' gradients in 8 bits,
  the peers with all gradients in so many (AQT's weights' in 8). At 5 bits qwix draws no
  noise. AQT has no quantized gradient of a convolution;
- the quantizers alone beside their own nearest rounding, in 5 bits; the floor reads the
  matrix and writes one;
- the gradient of those nets, trained to a low loss, in 8, 5, 4 and 2 bits: squared bias
  and variance by layer, as fractions of the exact gradient's square. Each is compared
  as its own switch makes it and "alone", where the gradient on its way to the input is
  rounded and nothing else; forward is exact (qwix's convolutions have 8-bit weights,
  and are held against their own exact gradient).

Seconds are medians of processor time, ratios medians over rounds; pin the process to
one core as above.

Last result, one core of an Intel Xeon beside other jobs, jax 0.10.2. Worst entry of the
mean: ptq 3.8, psq 3.8, bhq 3.5, with hadamard 4.0 standard errors over 2 to 8 bits;
qwix and AQT 400 and more in any: half a step, 0.4 % of a row's largest entry in 8 bits,
3.2 % in 5, 6.7 % in 4, 33 % in 2. A step, in units of a float32 step (0.85 ms, 4.3 ms):

             psq    bhq   bhq hadamard   qwix   AQT
    MLP, 8   1.47   1.74  2.05           2.94   3.25
    MLP, 5   1.50   1.74  1.97           2.51   3.30
    CNN, 8   1.52   1.82  1.92           3.80
    CNN, 5   1.55   1.86  1.92           3.62

A quantizer alone, over its own nearest rounding and over that of ptq; qwix and AQT take
10 times as long as psq, 16 times on the wide matrix:

                      1024 x 1024       128 x 32768
    ptq               1.39   1.44       1.34   1.29
    psq               1.37   1.29       1.27   1.22
    psq per feature   1.38   1.50       1.12   1.59
    bhq               1.29   5.33       1.32   6.22
    bhq hadamard      1.14   7.83       1.02   9.77

Squared bias + variance of the whole gradient of the MLP (loss 0.012), 256 draws:

                         8 bits      5 bits              4 bits    2 bits
    psq                  2.8e-4            2.3e-3        9.4e-3    0.23
    bhq                  8.1e-6            1.7e-4        7.0e-4    1.9e-2
    bhq hadamard         4.4e-6            7.4e-5        3.1e-4    7.3e-3
    bhq hadamard alone   1.0e-6            7.1e-5        3.0e-4    7.3e-3
    qwix                 1.8e-4     2.7e-3 + 0           2.7e-2    0.23
    qwix alone           2.3e-5     7.9e-4 + 0           6.7e-3    8.4e-2
    AQT                  2.3e-4     1.9e-3 + 1.4e-3      1.3e-2    0.26
    AQT alone            2.7e-5     7.3e-4 + 1.3e-3      8.1e-3    0.18

At 5 bits bhq with hadamard is 37 times below qwix and 45 below AQT, alone 11 and 28
times. qwix's error is all bias there: nearest rounding halves the error of one step and
has it again in the next. With the weights' gradients in 5 bits too, as qwix has them,
ours is 3.0e-4, 9 times below. On the CNN at 5 bits qwix is at 4.8e-3, ours 69 times
below, 19 times with the weights' gradients in 5 bits.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxmethods.data import load_digits
from jaxmethods.quantize import Policy, Quantizer, bhq, fqt, psq, ptq

from .harness import Timing, compare, race, ratios
from .peers import aqt, qwix

BATCH, RATE, MOMENTUM = 128, 0.1, 0.9
BITS = (8, 5, 4, 2)
DRAWS = 4000
COMPARED = (
    ("bhq hadamard", "qwix"),
    ("bhq hadamard twice", "qwix"),
    ("bhq hadamard alone", "qwix alone"),
    ("bhq hadamard", "AQT"),
    ("bhq hadamard alone", "AQT alone"),
)
Gradient = Callable[[jax.Array, Any], Any]
Rounding = Callable[[jax.Array | None, jax.Array], jax.Array]


class Mlp(nn.Module):
    """64-256-256-10 with rectifiers."""

    dot_general_cls: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of 8 x 8 images."""
        x = x.reshape(len(x), -1)
        for width in (256, 256):
            x = nn.relu(nn.Dense(width, dot_general_cls=self.dot_general_cls)(x))
        return nn.Dense(10, dot_general_cls=self.dot_general_cls)(x)


class Cnn(nn.Module):
    """Two 3 x 3 convolutions, of 16 channels and of 32 with stride 2; dense 128, 10."""

    dot_general_cls: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of 8 x 8 images."""
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x)).reshape(len(x), -1)
        x = nn.relu(nn.Dense(128, dot_general_cls=self.dot_general_cls)(x))
        return nn.Dense(10, dot_general_cls=self.dot_general_cls)(x)


class Subject(NamedTuple):
    """A trained net and a batch."""

    model: nn.Module
    params: Any  # by layer
    batch: tuple[jax.Array, jax.Array]  # images (128, 8, 8, 1) and labels

    def loss(self, apply: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        """The mean cross-entropy of `apply`, which takes parameters and images last."""

        def fn(*args: Any) -> jax.Array:
            *first, images, labels = args
            logits = apply(*first, images)
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, labels
            ).mean()

        return fn

    def plain(self) -> Callable[..., jax.Array]:
        """The loss in float32, `fn(params, images, labels)`."""
        return self.loss(lambda params, x: self.model.apply({"params": params}, x))


def trained(model: nn.Module, steps: int) -> Subject:
    """The net after so many steps of SGD with momentum on digits."""
    images, labels = map(jnp.asarray, load_digits().train)
    first, later = jax.random.split(jax.random.key(0))
    init = jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 0})
    params = init(first, images[:1])["params"]
    subject = Subject(model, params, (images[:BATCH], labels[:BATCH]))
    loss, optimizer = subject.plain(), optax.sgd(RATE, MOMENTUM)

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, state = carry
        rows = jax.random.randint(key, (BATCH,), 0, len(labels))
        slope = jax.grad(loss)(params, images[rows], labels[rows])
        updates, state = optimizer.update(slope, state)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(later, steps)
    (params, _), _ = jax.jit(partial(jax.lax.scan, step))(
        (params, optimizer.init(params)), keys
    )
    value = jax.jit(loss)(params, *subject.batch)
    print(f"{type(model).__name__} after {steps} steps: loss {value:.4f}")
    return subject._replace(params=params)


class Noise(NamedTuple):
    """The error of a gradient, as fractions of its squared length."""

    bias: float  # squared length of what the mean of the draws is off by
    variance: float  # summed over the entries, of one draw

    @property
    def error(self) -> float:
        """The mean squared error of one draw."""
        return self.bias + self.variance


def noise(gradient: Gradient, exact: Any, params: Any, draws: int) -> dict[str, Noise]:
    """Bias and variance of a gradient, by layer and in all ("total").

    Args:
        gradient: `fn(key, params)`, a tree of layers like `params`.
        exact: What it estimates.
        params: The weights.
        draws: How many keys.
    """
    keys = jax.random.split(jax.random.key(1), draws)

    @jax.jit
    def measure(params: Any, exact: Any) -> Any:
        def one(key: jax.Array) -> Any:
            return jax.tree.map(jnp.subtract, gradient(key, params), exact)

        off = jax.lax.map(one, keys, batch_size=min(16, draws))
        return jax.tree.map(
            lambda d: (jnp.sum(d.mean(0) ** 2), jnp.sum(d.var(0, ddof=1))), off
        )

    size = {k: sum(np.sum(np.square(x)) for x in v.values()) for k, v in exact.items()}
    found, sums = {}, np.zeros(2)
    for layer, leaves in measure(params, exact).items():
        off, variance = np.sum([np.array(pair, float) for pair in leaves.values()], 0)
        # The mean of the draws has noise of its own.
        both = np.array([max(off - variance / draws, 0), variance])
        found[layer], sums = Noise(*both / size[layer]), sums + both
    return found | {"total": Noise(*sums / sum(size.values()))}


def ours(subject: Subject, policy: Policy) -> Gradient:
    """The gradient of `fqt`, `fn(key, params)`."""
    gradient = jax.grad(fqt(subject.plain(), policy), argnums=1)
    return lambda key, params: gradient(key, params, *subject.batch)


def theirs(subject: Subject, apply: Callable[..., jax.Array]) -> Gradient:
    """The gradient of a peer's net, `fn(key, params)`."""
    gradient = jax.grad(subject.loss(apply), argnums=1)
    return lambda key, params: gradient(key, params, *subject.batch)


def exact_gradient(subject: Subject, apply: Callable[..., jax.Array] | None) -> Any:
    """The gradient without noise: of the plain net, or of a peer's."""
    if apply is None:
        return jax.jit(jax.grad(subject.plain()))(subject.params, *subject.batch)
    return jax.jit(theirs(subject, apply))(jax.random.key(0), subject.params)


def contestants(
    subject: Subject, bits: int
) -> dict[str, tuple[Gradient, Callable[..., jax.Array] | None]]:
    """Gradients to compare, each with the net that has its exact gradient or None.

    Gradients on their way to the input have so many bits, on their way to the weight 8,
    in ours "twice" and in qwix so many as well. "alone": nothing else is rounded.
    """
    rotated = partial(bhq, hadamard=True)
    pairs = {
        "ptq": (ptq(bits), ptq(8)),
        "psq": (psq(bits), psq(8, per="feature")),
        "bhq": (bhq(bits), bhq(8)),
        "bhq hadamard": (rotated(bits), rotated(8)),
        "bhq hadamard twice": (rotated(bits), rotated(bits)),
        "psq alone": (psq(bits), None),
        "bhq alone": (bhq(bits), None),
        "bhq hadamard alone": (rotated(bits), None),
    }
    found: dict[str, Any] = {
        name: (ours(subject, Policy(input_grad=q, weight_grad=w)), None)
        for name, (q, w) in pairs.items()
    }
    model, is_dense = subject.model, isinstance(subject.model, Mlp)
    if not qwix.missing:
        same = None if is_dense else qwix.apply(model, None)
        found["qwix"] = theirs(subject, qwix.apply(model, bits)), same
        if is_dense:
            apply = qwix.apply(model, bits, input_grad_only=True)
            found["qwix alone"] = theirs(subject, apply), None
    if not aqt.missing and is_dense:
        apply = aqt.apply(model, bits, weight_grad=8)
        found["AQT"] = theirs(subject, apply), None
        apply = aqt.apply(model, bits, input_grad_only=True)
        found["AQT alone"] = theirs(subject, apply), None
    return found


def gradient_rows(
    name: str, subject: Subject, several: tuple[int, ...], draws: int
) -> list[dict[str, Any]]:
    """Errors of all gradients in so many bits; prints a table by layer."""
    rows = []
    layers = [*subject.params, "total"]
    for bits in several:
        print(f"\n{name}, {bits} bits: bias^2 + variance over |g|^2, {draws} draws")
        print("".join([f"{'':20}", *(f"{layer:^22}" for layer in layers)]))
        found = {}
        for label, (gradient, apply) in contestants(subject, bits).items():
            exact = exact_gradient(subject, apply)
            found[label] = noise(gradient, exact, subject.params, draws)
            cells = [
                f"{n.bias:9.1e} + {n.variance:<9.1e} " for n in found[label].values()
            ]
            print(f"{label:20}" + "".join(cells), flush=True)
        for label, peer in COMPARED:
            if peer in found:
                pair = found[label], found[peer]
                rows.append(error_row(f"{name}, {bits} bits, {label}, {peer}", *pair))
    return rows


def error_row(
    name: str, ours: Mapping[str, Noise], peer: Mapping[str, Noise]
) -> dict[str, Any]:
    """A row with the errors of both, and their ratio."""
    return {
        "name": f"error, {name}",
        "ratio": ours["total"].error / peer["total"].error,
        "ours": {layer: n._asdict() for layer, n in ours.items()},
        "peer": {layer: n._asdict() for layer, n in peer.items()},
    }


def worst_score(q: Rounding, x: jax.Array) -> tuple[float, float]:
    """How far the mean of 4,000 draws is off at worst.

    Returns:
        In standard errors, and as a fraction of the largest entry of the row. No level
        counts as rarer than 25 draws, and a millionth of the row is left to rounding.
    """
    keys = jax.random.split(jax.random.key(2), DRAWS)
    drawn = np.asarray(jax.jit(jax.vmap(q, (0, None)))(keys, x), float)
    high = np.abs(x).max(1, keepdims=True)
    off = np.abs(drawn.mean(0) - x)
    step = np.ptp(drawn, axis=0).max(1, keepdims=True)
    step = np.where(step > 0, step, high / 128)
    variance = np.maximum(drawn.var(0), 25 / DRAWS * step**2)
    score = np.maximum(off - 1e-6 * high, 0) / np.sqrt(variance / DRAWS + 1e-30)
    return float(score.max()), float((off / high).max())


def unbiased_rows() -> list[dict[str, Any]]:
    """The worst entry of the mean, of ours at 2 to 8 bits and of the peers."""
    x = gradient((32, 64))
    every = range(2, 9)
    tested: dict[str, list[Rounding]] = {
        "ptq": [ptq(bits) for bits in every],
        "psq": [psq(bits) for bits in every],
        "bhq": [bhq(bits) for bits in every],
        "bhq hadamard": [bhq(bits, hadamard=True) for bits in every],
    }
    for name, peer in (("qwix", qwix), ("AQT", aqt)):
        if not peer.missing:
            tested |= {f"{name} int{b}": [peer.round_rows(b)] for b in BITS}
    rows = []
    for name, several in tested.items():
        scores = np.array([worst_score(q, x) for q in several])
        score, part = scores.max(0)
        bits = ", worst of 2..8 bits" if len(several) > 1 else ""
        verdict = "unbiased" if score <= 5 else "biased"
        share = f", {part:.2%} of its row's largest" if score > 5 else ""
        print(
            f"mean of {DRAWS:,} draws, {name}{bits}: worst entry off by {score:.3g} "
            f"standard errors{share}: {verdict}"
        )
        rows.append({"name": f"unbiased, {name}", "score": score, "part": part})
    return rows


def step_rows(name: str, subject: Subject, rounds: int) -> list[dict[str, Any]]:
    """Times of a training step in 8 bits forward and in few back, and in float32."""
    optimizer = optax.sgd(RATE, MOMENTUM)
    state = optimizer.init(subject.params)

    def step(loss: Callable[..., jax.Array]) -> Callable[[], Any]:
        @jax.jit
        def fn(
            key: jax.Array, params: Any, state: Any, images: Any, labels: Any
        ) -> Any:
            slope = jax.grad(loss, argnums=1)(key, params, images, labels)
            updates, state = optimizer.update(slope, state)
            return optax.apply_updates(params, updates), state

        args = jax.random.key(0), subject.params, state, *subject.batch
        return lambda: fn(*args)

    plain, model = subject.plain(), subject.model
    steps = {"float32": step(lambda key, *args: plain(*args))}
    for bits in (8, 5):
        for label, q in (
            ("psq", psq(bits)),
            ("bhq", bhq(bits)),
            ("bhq hadamard", bhq(bits, hadamard=True)),
        ):
            back = psq(8, per="feature") if label == "psq" else replace(q, bits=8)
            policy = Policy(ptq(8, zero_aligned=False), ptq(8), q, back)
            steps[f"{label} {bits}"] = step(fqt(plain, policy))
        if not qwix.missing:
            apply = qwix.apply(model, bits, forward=8)
            steps[f"qwix {bits}"] = step(subject.loss(apply))
        if not aqt.missing and isinstance(model, Mlp):
            apply = aqt.apply(model, bits, weight_grad=8, forward=8)
            steps[f"AQT {bits}"] = step(subject.loss(apply))
    return report(name, race(steps, rounds=rounds))


def report(name: str, taken: Mapping[str, Timing]) -> list[dict[str, Any]]:
    """Prints the steps' times; a row for each of ours beside each peer's."""
    floor_s = taken["float32"].cpu_s
    print(f"\n{name}, a training step, {1e3 * floor_s:.2f} ms in float32")
    rows = []
    for label, timing in taken.items():
        print(
            f"  {label:16}{1e3 * timing.cpu_s:8.2f} ms, "
            f"{quotient(timing, taken['float32']):6.2f} of float32, "
            f"first {timing.first_s:.1f} s"
        )
        method, _, bits = label.rpartition(" ")
        for peer in ("qwix", "AQT"):
            other = taken.get(f"{peer} {bits}")
            if other and method and method not in ("qwix", "AQT"):
                row = {"name": f"step, {name}, {label}, {peer}", "floor_s": floor_s}
                row |= {"ours_s": timing.cpu_s, "peer_s": other.cpu_s}
                row |= {"ratio": quotient(timing, other), "first_s": timing.first_s}
                rows.append(row)
    return rows


def quotient(ours: Timing, other: Timing) -> float:
    """The median of the rounds' ratios of processor time."""
    return float(np.median(ratios(ours, other, cpu=True)))


def gradient(shape: tuple[int, int]) -> jax.Array:
    """Rows of very different size, as gradients of samples have."""
    rng = np.random.default_rng(0)
    rows = np.exp(1.5 * rng.normal(size=(shape[0], 1)))
    return jnp.asarray(rng.normal(size=shape) * rows, jnp.float32)


def psq_by_hand(key: jax.Array, x: jax.Array) -> jax.Array:
    """PSQ of 5 bits as one writes it."""
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    scale = 31 / (high - low)
    levels = jnp.floor((x - low) * scale + jax.random.uniform(key, x.shape))
    return jnp.clip(levels, 0, 31) / scale + low


def quantizer_rows(shape: tuple[int, int], rounds: int) -> list[dict[str, Any]]:
    """Times of the quantizers alone beside nearest rounding, and their bytes."""
    x, size = gradient(shape), f"{shape[0]} x {shape[1]}"
    key, copy = jax.random.key(0), jax.jit(lambda x: x + 1)
    plain = jax.jit(partial(ptq(5), None))
    quantizers = {
        "ptq": ptq(5),
        "psq": psq(5),
        "psq per feature": psq(5, per="feature"),
        "bhq": bhq(5),
        "bhq hadamard": bhq(5, hadamard=True),
    }
    pairs: list[tuple[str, Quantizer, Rounding]] = [
        (f"{name}, nearest", q, lambda _, x, q=q: q(None, x))
        for name, q in quantizers.items()
    ]
    pairs += [("psq, by hand", psq(5), psq_by_hand)]
    for name, peer in (("qwix", qwix), ("AQT", aqt)):
        if not peer.missing:
            pairs += [(f"psq 8, {name} int8", psq(8), peer.round_rows(8))]
    rows = []
    for name, q, other in pairs:
        row = compare(
            f"{name}, {size}",
            rounds=rounds,
            cpu=True,
            ours=partial(jax.jit(q), key, x),
            peer=partial(jax.jit(other), key, x),
            floor=partial(copy, x),
            plain=partial(plain, x),
        )
        row["bytes"] = q.quantize(key, x).nbytes
        row["floor_bytes"] = x.size * q.bits // 8
        rows.append(row)
        print(
            f"{row['name']}: {row['ratio']:.2f} of the peer, "
            f"{row['ours_s'] / row['plain_s']:.2f} of per-tensor nearest rounding; "
            f"{row['bytes'] / x.nbytes:.3f} of the bytes of float32, floor "
            f"{row['floor_bytes'] / x.nbytes:.3f}"
        )
    return rows


def run(quick: bool) -> list[dict]:
    """The rows of this area."""
    for peer in (qwix, aqt):
        if peer.missing:
            print(peer.missing)
    rounds, draws = (5, 32) if quick else (31, 256)
    rows = unbiased_rows()
    subjects = {"MLP": trained(Mlp(), 200)}
    if not quick:
        subjects |= {"CNN": trained(Cnn(), 200)}
    for name, subject in subjects.items():
        rows += step_rows(name, subject, rounds)
    shapes = ((256, 256),) if quick else ((1024, 1024), (128, 32768))
    for shape in shapes:
        rows += quantizer_rows(shape, rounds)
    for name, subject in subjects.items():
        several = BITS if name == "MLP" else (5,)
        rows += gradient_rows(name, subject, several, draws)
    return rows
