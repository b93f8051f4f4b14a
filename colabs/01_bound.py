# %% [markdown]
# # Guaranteed bounds of any JAX function
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxmethods/jaxmethods/blob/main/colabs/01_bound.ipynb)
#
# What can a function reach, for *every* input of a set? You will bound a plain
# function, see why linear bounds beat intervals, prove that a classifier keeps its
# label, train one for which that can be proven, ask which word of a sentence matters
# most to a transformer, and certify a network whose weights are rounded. About a minute
# on a CPU.

# %% [markdown]
# Install the package if it is not there yet. On Colab this takes half a minute; in a
# clone of the repository it does nothing.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("jaxmethods") is None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "jaxmethods"], check=True
    )

# %% [markdown]
# ## A plain function and a set
#
# A set stands where an array would. `Ball` is all points within a radius, `Box` all
# points between two ends. The function below is not written for this purpose: bounds
# are found by reading its jaxpr.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods import bound, data


def bumps(x):
    return jnp.sin(3 * x[0]) - 2 * jnp.tanh(x[0] + x[1]) + x[1] ** 2


ball = bound.Ball(jnp.array([0.4, 0.5]), 0.3)
samples = ball.center + 0.3 * jax.random.uniform(
    jax.random.key(0), (2000, 2), minval=-1
)
values = jax.vmap(bumps)(samples)

# %% [markdown]
# `ibp` carries intervals through the function, operation by operation; every step
# forgets how its operands depend on each other. `crown` looks for two linear functions
# that enclose it instead, which remember. Both contain every sampled value.

# %%
for method in (bound.ibp, bound.crown):
    lower, upper = method(bumps)(ball)
    print(f"{method.__name__:<6} [{lower:.3f}, {upper:.3f}]")
    assert lower <= values.min() and values.max() <= upper
print(f"seen   [{values.min():.3f}, {values.max():.3f}]")

# %% [markdown]
# The two planes themselves come from `linear_bounds`. They hold everywhere in the set,
# which a few thousand samples confirm.

# %%
planes = bound.linear_bounds(bumps)(ball)
below = samples @ planes.lower_slope + planes.lower_bias
above = samples @ planes.upper_slope + planes.upper_bias
assert bool(jnp.all(below <= values) and jnp.all(values <= above))
print("lower plane", planes.lower_slope.round(3), planes.lower_bias.round(3))

# %% [markdown]
# Derivatives are functions too. Bounds of the gradient give a Lipschitz constant that
# holds on the set, and the direction in which an output depends on an input.

# %%
constant = bound.lipschitz(bumps)(ball)
steepest = jnp.abs(jax.vmap(jax.grad(bumps))(samples)).sum(1).max()
assert steepest <= constant
print(f"Lipschitz in the linf norm: at most {constant:.2f}, seen {steepest:.2f}")
elsewhere = bound.Box(jnp.array([-0.1, 1.0]), jnp.array([0.2, 1.2]))
found = bound.monotonicity(bumps)(elsewhere)
print("surely rises with each input, in a box beside it:", found.increasing)

# %% [markdown]
# ## Does a classifier keep its label?
#
# The shipped digits are 8 x 8 pixels in [0, 1]. A small network first learns them the
# usual way. `margins` turns logits into what has to stay positive: the label's logit
# minus each other one.

# %%
import optax

digits = data.load_digits()
images = jnp.asarray(digits.train.images.reshape(-1, 64))
labels = jnp.asarray(digits.train.labels)


def net(params, x):
    x = jax.nn.relu(x @ params["w0"] + params["b0"])
    return jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"]


def initial(key):
    shapes = {"w0": (64, 48), "b0": (48,), "w1": (48, 48), "b1": (48,), "w2": (48, 10)}
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.normal(k, s) * (len(s) > 1) / np.sqrt(s[0])
        for k, (name, s) in zip(keys, shapes.items(), strict=True)
    }


def train(loss, steps=250, seed=1):
    """Plain Adam on the mean of `loss(params, x, y, share)`, share from 0 to 1."""
    optimizer = optax.adam(3e-3)

    def step(carry, i):
        params, state = carry
        pick = jax.random.randint(
            jax.random.fold_in(jax.random.key(seed), i), (64,), 0, len(labels)
        )
        batch = jax.vmap(loss, (None, 0, 0, None))
        mean = lambda p: batch(p, images[pick], labels[pick], i / steps).mean()  # noqa: E731
        updates, state = optimizer.update(jax.grad(mean)(params), state)
        return (optax.apply_updates(params, updates), state), None

    def run(params):
        carry = params, optimizer.init(params)
        return jax.lax.scan(step, carry, jnp.arange(steps))[0][0]

    return jax.jit(run)(initial(jax.random.key(seed + 1)))


def cross_entropy(params, x, y, share):
    return optax.losses.softmax_cross_entropy_with_integer_labels(net(params, x), y)


plain = train(cross_entropy)
test_images = jnp.asarray(digits.test.images.reshape(-1, 64))[:200]
test_labels = jnp.asarray(digits.test.labels)[:200]

# %% [markdown]
# `radius` bisects for the largest ball in which the label is proven to stay: one
# compilation, for as many images as `vmap` gets. It is 0 where the network is wrong
# already.


# %%
def certified(params, eps=0.05):
    """The share of test images that are right, and proven so, within eps."""

    def one(x, y):
        rows = bound.margins(lambda x: net(params, x), y)
        return jnp.all(bound.crown(rows, side="lower")(bound.Ball(x, eps)).lower > 0)

    return float(jax.jit(jax.vmap(one))(test_images, test_labels).mean())


def accuracy(params):
    logits = jax.vmap(net, (None, 0))(params, test_images)
    return float((logits.argmax(1) == test_labels).mean())


radii = jax.jit(
    jax.vmap(lambda x, y: bound.radius(lambda x: net(plain, x), x, y, method="crown"))
)(test_images[:16], test_labels[:16])
print("certified radii", np.asarray(radii).round(3))
print(
    f"plain training: accuracy {accuracy(plain):.2f}, "
    f"certified at eps 0.05: {certified(plain):.2f}"
)

# %% [markdown]
# For a single image there is more to try. `verify` looks for a counterexample, then for
# a proof, from cheap to dear: intervals, linear bounds, optimised linear bounds, branch
# and bound. A bit beyond the radius of the linear bounds it still finds a proof, or
# shows an image that the network gets wrong.

# %%
verdict = bound.verify(
    lambda x: net(plain, x),
    bound.Ball(test_images[0], 1.15 * radii[0]),
    int(test_labels[0]),
    time_limit=60.0,
)
print(verdict.status, "by", verdict.method, f"margin {verdict.margin:.4f}")
assert verdict.status != "unknown" or verdict.margin <= 0

# %% [markdown]
# ## Training for what can be proven
#
# `robust_loss` is the cross entropy of the worst case that a bound allows; it is
# differentiable, so it can be minimised like any loss. The radius grows during
# training.

# %%
robust = bound.robust_loss(net)


def certified_loss(params, x, y, share):
    return robust(params, x, y, 0.06 * jnp.minimum(1.5 * share, 1.0))


certain = train(certified_loss)
before, after = certified(plain), certified(certain)
print(f"certified at eps 0.05: {before:.2f} after plain training, {after:.2f} now")
assert after > before

# %% [markdown]
# ## A network with rounded weights
#
# Weights are arguments like any other, so they can be sets as well. `quantization_box`
# puts a box of half a quantization step round each: what is proven over the boxes holds
# for the rounded network, whichever way each weight is rounded.


# %%
def survives(params, bits):
    boxes = bound.quantization_box(params, bits)

    def one(x, y):
        rows = lambda p: bound.margins(lambda x: net(p, x), y)(x)  # noqa: E731
        return jnp.all(bound.crown_ibp(rows, side="lower")(boxes).lower > 0)

    return float(jax.jit(jax.vmap(one))(test_images[:64], test_labels[:64]).mean())


shares = {bits: survives(certain, bits) for bits in (6, 8)}
print("images that stay right however weights of so many bits are rounded:", shares)
assert shares[8] >= shares[6]

# %% [markdown]
# ## A word of a transformer
#
# Softmax, layer norm and products of two values that both vary are one operation each
# to `bound`. `word_radius` moves one embedding of a sentence at a time: the smaller the
# radius within which the label provably stays, the more that word matters.

# %%
T, D = 5, 8
keys = jax.random.split(jax.random.key(5), 6)
q, k, v, w = (jax.random.normal(key, (D, D)) / np.sqrt(D) for key in keys[:4])
head = jax.random.normal(keys[4], (D, 2))


def encoder(x):
    scores = jax.nn.softmax((x @ q) @ (x @ k).T / np.sqrt(D))
    x = x + scores @ (x @ v)
    x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)
    return jnp.tanh(x + jax.nn.relu(x @ w)).mean(0) @ head


sentence = jax.random.normal(keys[5], (T, D))
label = int(encoder(sentence).argmax())
words = jax.jit(lambda x: bound.word_radius(encoder, x, label, method="crown_ibp"))(
    sentence
)
print("certified radius of each word", np.asarray(words.radius).round(3))
print("most important first", np.asarray(words.ranking))
assert int(words.ranking[0]) == int(words.radius.argmin())

# %% [markdown]
# ## Where to go from here
#
# A primitive without a rule is an error that names it, its line and the call that adds
# one; the page on extending `bound` does so from nothing. `alpha_crown` optimises what
# `crown` chooses, `forward` carries linear bounds forward, `Substitutions` are
# sentences in which some words are replaced, and everything here composes with `jit`,
# `grad`, `vmap` and `shard_map`.
