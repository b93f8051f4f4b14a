# %% [markdown]
# # A tour of jaxmethods
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxmethods/jaxmethods/blob/main/colabs/00_tour.ipynb)
#
# Five transforms of any JAX function, first one by one on a network of four lines, then
# all five in one training run on real digits. You will see what a certified bound is,
# why a gradient of five bits can be unbiased, which training examples moved a
# prediction, and how little a compressed exchange sends. About a minute on a CPU.

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
# ## A network, as plain as it gets
#
# Nothing below needs a layer class. A model is a function of parameters and one input;
# flax's `apply`, an equinox call or a closure would do as well. The digits come with
# the package: 8 x 8 pixels, values in [0, 1].

# %%
import jax
import jax.numpy as jnp

from jaxmethods import bound, data, influence, quantize, sketch

digits = data.load_digits()
images = jnp.asarray(digits.train.images[:512, ..., 0].reshape(512, 64))
labels = jnp.asarray(digits.train.labels[:512])


def net(params, x):
    return jax.nn.relu(x @ params["w0"] + params["b0"]) @ params["w1"]


keys = jax.random.split(jax.random.key(0))
params = {
    "w0": jax.random.normal(keys[0], (64, 32)) / 8,
    "b0": jnp.zeros(32),
    "w1": jax.random.normal(keys[1], (32, 10)) / 6,
}

# %% [markdown]
# ## quantize: five bits, and still the right gradient on average
#
# `fqt` rewrites every matrix product of the loss so that the gradient flowing back
# through it is rounded to a few bits, by chance and without bias. It takes a key first;
# the gradient in the parameters is therefore `argnums=1`. Block Householder
# quantization spreads the few large rows of a gradient over the many small ones before
# it rounds, which is what makes five bits enough.


# %%
def example_loss(params, example):
    logits = net(params, example[0])
    return jax.nn.logsumexp(logits) - logits[example[1]]


def loss(params, xs, ys):
    return jnp.mean(jax.vmap(example_loss, (None, 0))(params, (xs, ys)))


policy = quantize.Policy(
    input_grad=quantize.bhq(5), weight_grad=quantize.psq(8, per="feature")
)
low_bit_gradient = jax.jit(jax.grad(quantize.fqt(loss, policy), argnums=1))

# %% [markdown]
# The mean of many draws comes as close to the exact gradient as their noise allows:
# its distance shrinks with the square root of the number of draws.

# %%
exact = jax.grad(loss)(params, images, labels)["w0"]
draws = jnp.stack(
    [
        low_bit_gradient(k, params, images, labels)["w0"]
        for k in jax.random.split(keys[0], 64)
    ]
)
noise = jnp.sqrt(jnp.sum(draws.var(0)))
assert jnp.linalg.norm(draws.mean(0) - exact) < 2 * noise / jnp.sqrt(64)
print(f"noise of one draw: {noise / jnp.linalg.norm(exact):.2%} of the gradient")

# %% [markdown]
# Training with such gradients is ordinary training. A hundred steps of gradient descent
# are enough for these digits, and each checkpoint is kept for what follows.


# %%
@jax.jit
def step(params, key):
    gradient = low_bit_gradient(key, params, images, labels)
    return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient), params


trained, path = jax.lax.scan(step, params, jax.random.split(keys[1], 150))
accuracy = jnp.mean(jnp.argmax(net(trained, images), 1) == labels)
assert accuracy > 0.9
print(f"accuracy on the training digits: {accuracy:.1%}")

# %% [markdown]
# ## bound: what is certain
#
# `crown` takes a function and returns one that accepts a *set* where the function had
# an array: here all images whose pixels differ by at most 0.02. What comes back is a
# lower and an upper bound that hold for every image in the set, not only for those that
# somebody tried. `margins` turns logits into differences to the label; a positive lower
# bound on all of them is a proof that no such image changes the answer.


# %%
def certified(x, y, eps):
    margins = bound.margins(lambda x: net(trained, x), y)
    return jnp.all(bound.crown(margins)(bound.Ball(x, eps)).lower > 0)


share = [
    float(jnp.mean(jax.jit(jax.vmap(certified, (0, 0, None)))(images, labels, eps)))
    for eps in (0.0, 0.02, 0.05)
]
assert share[0] >= share[1] >= share[2] and share[0] == accuracy
print("certified at eps 0, 0.02, 0.05:", [f"{s:.1%}" for s in share])

# %% [markdown]
# ## influence: who taught it that?
#
# TracIn adds up, over checkpoints, how much a gradient step on one training example
# lowered the loss on another. For dense layers this needs no gradient per example: the
# inputs of a layer and the gradients of its outputs carry the same numbers. The example
# that influences a digit most is usually a digit of the same class.

# %%
checkpoints = jax.tree.map(lambda leaf: leaf[::50], path)
rates = jnp.full(3, 0.5)
pairs = images, labels
scores = influence.tracin(example_loss)(
    checkpoints, rates, pairs, (images[:20], labels[:20])
)
others = scores - 1e9 * jnp.eye(20, 512)  # not itself
same = jnp.mean(labels[others.argmax(1)] == labels[:20])
assert same > 0.7
print(f"strongest proponents of the same class: {same:.0%}")

# %% [markdown]
# ## sketch: fewer rows, the same answer on average
#
# A sketch is a random matrix with far fewer rows than columns. Applied to a tall matrix
# it keeps its Gram matrix on average, and it is never stored: its entries follow from a
# key and a counter, so that one device and eight devices draw the same ones.

# %%
tall = jax.random.normal(jax.random.key(7), (20_000, 6))
S = sketch.sparse_stack(jax.random.key(8), 400, 20_000)
short = S @ tall
relative = jnp.linalg.norm(short.T @ short - tall.T @ tall) / jnp.linalg.norm(
    tall.T @ tall
)
assert short.shape == (400, 6) and relative < 0.3
print(f"Gram matrix from 2 % of the rows: {relative:.1%} off")

# %% [markdown]
# ## All five at once
#
# The command below trains a conv net on a mesh of eight devices (virtual ones on a
# CPU): the loss is a certified bound, the gradients have five bits, AdaComp exchanges
# them, the dense layers are split over pairs of devices, and checkpoints let an
# interrupted run go on. Then it attacks, certifies, explains and measures what it
# trained. `--quick` keeps it short; without it the network becomes much more robust.

# %%
import json
import tempfile
from pathlib import Path

report = Path(tempfile.mkdtemp()) / "report"
command = [sys.executable, "-m", "jaxmethods", "tour", "--quick", "--out", str(report)]
subprocess.run(command, check=True)
findings = json.loads((report / "findings.json").read_text())

# %% [markdown]
# The report is one page, `index.html`, with the numbers beside it as JSON. Certified
# accuracy can never exceed accuracy under attack: whatever is proven, no attack breaks.

# %%
for proven, held in zip(
    findings["accuracy"]["certified"], findings["accuracy"]["attacked"], strict=True
):
    assert proven <= held
assert findings["wire"]["ratio"] > 20
print(f"bytes sent: {findings['wire']['ratio']:.0f} times fewer than a dense mean")
print(f"report: {report / 'index.html'}")
