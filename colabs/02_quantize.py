# %% [markdown]
# # How few bits can a gradient have?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxmethods/jaxmethods/blob/main/colabs/02_quantize.ipynb)
#
# Training in 8 bits or fewer rounds everything: activations, weights, and the gradients
# on their way back. You will see why gradients must be rounded by chance, why one scale
# for all samples wastes most of the bits, and how a transform of the samples wins some
# of them back. Then a flax network, written for 32 bits, trains at 8, 5 and 2, and a
# report says layer by layer how many it needs. About two minutes on a CPU.

# %% [markdown]
# Install the package if it is not there yet. On Colab this takes half a minute; in a
# clone of the repository it does nothing.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("jaxmethods") is None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "jaxmethods[colab]"], check=True
    )

# %% [markdown]
# ## Round by chance
#
# A quantizer of b bits puts each number onto one of 2^b evenly spaced levels. To the
# nearest, the error is smallest, but it is the same one every time: a gradient that is
# always rounded to zero never moves its weight. By chance, a number between two levels
# goes to each of them with the probability that makes the expectation right. A
# quantizer is a value; without a key it rounds to the nearest.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn

from jaxmethods import data, quantize
from jaxmethods.quantize import Policy, bhq, fqt, psq, ptq

ramp = jnp.linspace(-1, 1, 201)
keys = jax.random.split(jax.random.key(0), 1000)
two_bits = ptq(2, zero_aligned=False)
draws = jax.vmap(two_bits, (0, None))(keys, ramp)
plt.plot(ramp, two_bits(None, ramp), label="to the nearest")
plt.plot(ramp, draws[0], ".", ms=2, label="by chance, once")
plt.plot(ramp, draws.mean(0), label="by chance, mean of 1000")
plt.plot(ramp, ramp, ":", color="black", label="the number itself")
plt.xlabel("number")
plt.ylabel("rounded to 2 bits")
plt.legend()
plt.show()

# %% [markdown]
# The mean of the draws lies on the diagonal, up to the ends, which other libraries
# clip. `variance` gives the noise of a quantizer without drawing any, and `quantize`
# the codes themselves, packed.

# %%
codes = two_bits.quantize(keys[0], ramp)
print(f"drawn {draws.var(0).sum():.3f}, exact {quantize.variance(two_bits, ramp):.3f}")
print(f"{ramp.nbytes} bytes in float32, {codes.nbytes} as 2-bit codes with their scale")
assert jnp.abs(draws.mean(0) - ramp).max() < 0.06
assert jnp.allclose(codes.dequantize(), two_bits(keys[0], ramp), atol=1e-6)

# %% [markdown]
# ## A flax network in 32 bits
#
# The digits come with the package: 8 x 8 pixels in [0, 1]. The network knows nothing of
# quantization, and never will: the transforms read and rewrite its jaxpr.

# %%
digits = data.load_digits()
train, test = (tuple(map(jnp.asarray, part)) for part in (digits.train, digits.test))
LAYERS = {
    "conv1": partial(nn.Conv, 16, (3, 3)),
    "conv2": partial(nn.Conv, 32, (3, 3), strides=2),
    "hidden": partial(nn.Dense, 64),
    "head": partial(nn.Dense, 10),
}


class Net(nn.Module):
    def setup(self):
        for name, make in LAYERS.items():
            setattr(self, name, make())

    def features(self, x):
        x = nn.relu(self.conv2(nn.relu(self.conv1(x))))
        return nn.relu(self.hidden(x.reshape(len(x), -1)))

    def __call__(self, x):
        return self.head(self.features(x))


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def loss(params, images, labels):
    return cross_entropy(Net().apply({"params": params}, images), labels)


# %% [markdown]
# One training loop serves all that follows. The loss it takes has a key as its first
# argument, a fresh one each step, as quantized losses do.

# %%
STEPS, BATCH = 300, 128
fast = {"xla_backend_optimization_level": 0}  # compiles in a tenth of the time
start = jax.jit(Net().init, compiler_options=fast)(jax.random.key(1), train[0][:1])
start = start["params"]
optimizer = optax.sgd(optax.cosine_decay_schedule(0.1, STEPS), momentum=0.9)


def fit(noisy_loss):
    slope = jax.value_and_grad(noisy_loss, argnums=1)

    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (BATCH,), 0, len(train[1]))
        value, gradient = slope(
            jax.random.fold_in(key, 1), params, train[0][rows], train[1][rows]
        )
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    def half(carry, keys):
        carry, losses = jax.lax.scan(step, carry, keys)
        return carry, (carry[0], losses)

    keys = jax.random.split(jax.random.key(2), STEPS).reshape(2, -1)
    _, (halves, losses) = jax.lax.scan(half, (start, optimizer.init(start)), keys)
    middle, end = (jax.tree.map(lambda x, i=i: x[i], halves) for i in range(2))
    return middle, end, losses.ravel()


def accuracy(params):
    answers = jnp.argmax(Net().apply({"params": params}, test[0]), 1)
    return float(jnp.mean(answers == test[1]))


curves = {}
middle, exact, curves["32 bits"] = jax.jit(
    lambda: fit(lambda key, *args: loss(*args))
)()
print(f"32 bits: loss {curves['32 bits'][-20:].mean():.4f}, test {accuracy(exact):.3f}")
assert accuracy(exact) > 0.95

# %% [markdown]
# ## What a gradient looks like
#
# Here is the gradient that comes back from the head of the trained network: a row for
# each of 128 samples. A sample that the network is sure of has almost none; a few hold
# nearly all of it.

# %%
batch = train[0][:BATCH], train[1][:BATCH]
variables = {"params": exact}
features = Net().apply(variables, batch[0], method="features")


def from_head(features):
    kernel, bias = exact["head"]["kernel"], exact["head"]["bias"]
    return cross_entropy(features @ kernel + bias, batch[1])


g = jax.grad(from_head)(features)
ranges = jnp.sort(g.max(1) - g.min(1))[::-1]
plt.semilogy(ranges)
plt.xlabel("sample, the largest gradient first")
plt.ylabel("range of its row")
plt.show()
print(f"the largest row is {ranges[0] / jnp.median(ranges):,.0f} times the median one")
assert ranges[0] > 20 * jnp.median(ranges)

# %% [markdown]
# One scale for the whole array (`ptq`) makes the step of all rows as wide as the
# largest row needs. A scale a row (`psq`) leaves the noise to the large rows. The block
# Householder quantizer (`bhq`) goes further: it groups each large row with many small
# ones and reflects the group, so that the large row is spread evenly over all of them,
# rounds, and reflects back. Noise that sat in one row is averaged over the group. With
# `hadamard=True` the columns are mixed too, which takes down single large entries.

# %%
quantizers = {"ptq": ptq, "psq": psq, "bhq": bhq}
quantizers["bhq hadamard"] = lambda bits: bhq(bits, hadamard=True)
widths = range(2, 9)
for name, make in quantizers.items():
    noise = [quantize.variance(make(bits), g) / jnp.sum(g**2) for bits in widths]
    plt.semilogy(widths, noise, "o-", label=name)
plt.xlabel("bits")
plt.ylabel("variance, as a fraction of |g|²")
plt.legend()
plt.show()
spared = jnp.log2(quantize.variance(ptq(5), g) / quantize.variance(bhq(5), g)) / 2
print(f"bhq is as good as ptq with {spared:.1f} bits more")
assert spared > 1.5

# %% [markdown]
# ## Train at 8, 5 and 2 bits
#
# A `Policy` names a quantizer for each value that a product meets; `fqt` rewrites every
# product and convolution of the loss. On the way forward operands are rounded to the
# nearest, here in 8 bits. On the way back the gradient that enters a layer is rounded
# twice and independently: once for the gradient of the layer's input, once for that of
# its weight. Both get the same number of bits here.


# %%
def policy(make, bits):
    return Policy(
        activation=ptq(8, zero_aligned=False),
        weight=ptq(8),
        input_grad=make(bits),
        weight_grad=make(bits),
    )


runs = [("bhq", 8), ("bhq", 5), ("bhq", 2), ("ptq", 2)]
trained = {}
for name, bits in runs:
    label = f"{name}, {bits} bits"
    noisy = fqt(loss, policy(quantizers[name], bits))
    _, trained[label], curves[label] = jax.jit(lambda noisy=noisy: fit(noisy))()
    print(
        f"{label}: loss {curves[label][-20:].mean():.4f}, "
        f"test {accuracy(trained[label]):.3f}"
    )
assert min(accuracy(trained[f"bhq, {bits} bits"]) for bits in (8, 5, 2)) > 0.93

# %%
for label, losses in curves.items():
    smooth = np.convolve(losses, np.ones(15) / 15, "valid")
    plt.semilogy(smooth, label=label)
plt.xlabel("step")
plt.ylabel("training loss, mean of 15 steps")
plt.legend()
plt.show()

# %% [markdown]
# The expectation of each of these gradients is the exact one, so SGD works with any of
# them; what differs is the noise on top of the one that the choice of the batch makes.
# Rounded to the nearest, gradients of 2 bits do not train at all: try it on MNIST with
# `python -m benchmarks.papers.fqt`.
#
# ## The noise, layer by layer
#
# `gradient_noise` draws gradients of one batch and reports, for every parameter, the
# squared bias, the variance, the ratio of signal to noise, and the fewest bits whose
# noise is below that of the minibatch itself.


# %%
def reporter(make, bits):
    report = quantize.gradient_noise(loss, policy(make, bits))
    return jax.jit(lambda params: report(jax.random.key(3), params, *batch))


reports = {name: reporter(quantizers[name], 5)(exact) for name in ("ptq", "bhq")}
print(f"{'at 5 bits':<18}{'bias / variance':>16}{'signal / noise':>16}{'bits':>6}")
for name, report in reports.items():
    for layer in LAYERS:
        found = report[layer]["kernel"]
        share = found.bias / found.variance
        print(f"{name}, {layer:<13}{share:16.3f}{found.snr:16.1f}{found.bits:6d}")
for report in reports.values():
    for layer in report.values():
        assert layer["kernel"].bias < layer["kernel"].variance

# %% [markdown]
# The bias is what 64 draws leave of zero. The noise grows on the way back: what is
# rounded at the head travels through all layers below it, and each adds its own. The
# layers differ, so do the bits that they need, and both change as the network learns.

# %%
report = reporter(bhq, 5)
stages = {"before training": start, "half way": middle, "after it": exact}
needed = {
    stage: {k: int(v["kernel"].bits) for k, v in report(params).items()}
    for stage, params in stages.items()
}
for i, (stage, bits) in enumerate(needed.items()):
    places = np.arange(len(LAYERS)) + 0.27 * (i - 1)
    plt.bar(places, [bits[k] for k in LAYERS], 0.25, label=stage)
plt.xticks(range(len(LAYERS)), LAYERS)
plt.ylabel("bits that suffice")
plt.legend()
plt.show()

# %% [markdown]
# ## Bits by layer
#
# `fqt` takes any function: the loss, as above, or one layer, so that each can have bits
# of its own. Here each gets the most that it was found to need at any stage. (To leave
# some layers alone, give the policy a `where`.)

# %%
chosen = {name: max(bits[name] for bits in needed.values()) for name in LAYERS}


def apply_layer(make, params, x):
    return make().apply({"params": params}, x)


def by_layer(key, params, x, labels):
    for name, make in LAYERS.items():
        layer = partial(apply_layer, make)
        x = x.reshape(len(x), -1) if name == "hidden" else x
        key, own = jax.random.split(key)
        x = fqt(layer, policy(bhq, chosen[name]))(own, params[name], x)
        x = x if name == "head" else nn.relu(x)
    return cross_entropy(x, labels)


_, params, losses = jax.jit(lambda: fit(by_layer))()
print(", ".join(f"{name}: {bits} bits" for name, bits in chosen.items()))
print(f"loss {losses[-20:].mean():.4f}, test {accuracy(params):.3f}")
assert accuracy(params) > 0.93

# %% [markdown]
# What to take along: round gradients by chance, never to the nearest; a scale for each
# sample costs nothing, and the transform of `bhq` is worth some two bits more once the
# network has begun to learn; ask `gradient_noise` before you save on a layer.
