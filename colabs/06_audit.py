# %% [markdown]
# # How far can you trust a trained network?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxmethods/jaxmethods/blob/main/colabs/06_audit.ipynb)
#
# You trained a classifier, and its accuracy on the test set is good. How good is it
# when an input is a little off, and what of that is proven? What if its weights are
# rounded to eight bits? Which labels are wrong? You will ask all of this of a flax
# network and of an equinox one, in one call each, and see what the numbers do and do
# not say. About a minute on a CPU.

# %% [markdown]
# Install what is not there yet. On Colab this takes half a minute; in a clone of the
# repository it does nothing.

# %%
import importlib.util
import os
import subprocess
import sys
import tempfile

if importlib.util.find_spec("jaxmethods") is None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "jaxmethods[colab]"], check=True
    )

# %% [markdown]
# ## A network of flax, and labels of which some are wrong
#
# The digits come with the package, 8 x 8 pixels in [0, 1]. One training label in
# twenty gets another class, as happens to labels. The network is two convolutions and
# two dense layers, of one image or of a batch of them; which of both a model takes an
# audit finds out by itself.

# %%
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jaxmethods import audit, bound, data

digits = data.load_digits()
images, clean = digits.train
random = np.random.default_rng(0)
wrong = random.choice(len(clean), len(clean) // 20, replace=False)
labels = clean.copy()
labels[wrong] = (clean[wrong] + random.integers(1, 10, len(wrong))) % 10
test_images, test_labels = (array[:200] for array in digits.test)


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Conv(16, (3, 3), strides=2)(x))
        x = nn.relu(nn.Dense(64)(x.reshape(*x.shape[:-3], -1)))
        return nn.Dense(10)(x)


net = ConvNet()
fast = {"xla_backend_optimization_level": 0}  # compiles in a tenth of the time
params = jax.jit(net.init, compiler_options=fast)(jax.random.key(0), images[:1])

# %% [markdown]
# Training is plain Adam, and keeps its parameters five times along the way: what the
# course of a training says of labels its end may hide.


# %%
def fit(loss, params, steps=600, kept=5, rate=2e-3, batch=64):
    """Parameters at `kept` steps of the training; loss(params, images, labels, t)."""
    adam = optax.adam(rate)
    rows = random.integers(0, len(labels), (kept, steps // kept, batch))

    def step(carry, rows):
        params, state, t = carry
        some = jnp.asarray(images)[rows], jnp.asarray(labels)[rows]
        updates, state = adam.update(jax.grad(loss)(params, *some, t / steps), state)
        return (optax.apply_updates(params, updates), state, t + 1), None

    def stretch(carry, rows):
        carry, _ = jax.lax.scan(step, carry, rows)
        return carry, carry[0]

    run = jax.jit(lambda carry: jax.lax.scan(stretch, carry, rows)[1])
    stacked = run((params, adam.init(params), 0))
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(kept)]


def cross_entropy(params, images, labels, t):
    logits = net.apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


checkpoints = fit(cross_entropy, params)

# %% [markdown]
# ## One call
#
# An audit takes the function, its parameters, inputs and labels. Here it looks at 200
# images that were not trained on. `skip` leaves sections out; the labels come later,
# of the examples that were trained on.

# %%
config = audit.AuditConfig(
    eps=(0.01, 0.02, 0.05, 0.1, 0.15), bits=(10, 8, 6, 4, 2), skip=["labels"]
)
plain = audit.audit(
    net.apply, checkpoints[-1], test_images, test_labels, config, name="ConvNet"
)
print(plain)
assert not plain.problems

# %% [markdown]
# The numbers of a radius are to be read as two ends. PGD and APGD look for a change of
# at most `eps` a pixel that turns the answer: what they leave standing is an *upper*
# bound of what holds, because a better attack may exist. The certificate is a *lower*
# bound: at this radius no attack whatever turns these images. In between nobody knows.
# The same numbers come out of the functions by which they are computed; here is one by
# hand.

# %%
logits = jax.jit(net.apply)(checkpoints[-1], test_images)
accuracy = float((logits.argmax(-1) == test_labels).mean())
assert np.isclose(plain.accuracy.clean, accuracy)


@jax.jit
@jax.vmap
def proven(x, label):
    region = bound.Intersection(bound.Ball(x, 0.02), bound.Box(0.0, 1.0))
    margins = bound.margins(lambda x: net.apply(checkpoints[-1], x), label)
    return (bound.crown(margins, side="lower")(region).lower > 0).all()


by_hand = float(proven(test_images, test_labels).mean())
print(
    f"certified at 0.02: {plain.certificates.certified[1]:.3f}, by hand {by_hand:.3f}"
)
assert abs(plain.certificates.certified[1] - by_hand) < 0.006  # one image: rounding

# %% [markdown]
# `rounded` is how often the network is right with its weights rounded to so many bits;
# `certified` how often that is proven however they are rounded to nearest, over a box
# of half a step round every weight at once. All weights conspire in that box, which
# roundings do not: proofs end at bits at which the rounded network still does well.
#
# ## A network of equinox, trained to be certified
#
# A module of equinox is a pytree, arrays and all. `partition` takes the arrays apart,
# and `apply` puts them together again. This one is dense, and trained on the worst loss
# within a radius that grows to 0.1, as intervals bound it.

# %%
mlp = eqx.nn.MLP(64, 10, 64, 2, key=jax.random.key(1))
arrays, static = eqx.partition(mlp, eqx.is_array)


def apply(arrays, x):
    return eqx.combine(arrays, static)(x.ravel())


robust_loss = bound.robust_loss(apply, bounds=(0.0, 1.0))


def worst_case(arrays, images, labels, t):
    losses = jax.vmap(robust_loss, (None, 0, 0, None, None))
    return losses(arrays, images, labels, 0.1 * jnp.minimum(1.5 * t, 1.0), 0.0).mean()


trained = fit(worst_case, arrays, steps=1500)[-1]
certified = audit.audit(apply, trained, test_images, test_labels, config, name="MLP")
print(certified)
assert not certified.problems

# %% [markdown]
# Both in one picture: full lines are certified, dashed ones survive the attacks.

# %%
for report, color in ((plain, "C0"), (certified, "C1")):
    proofs, attacks = report.certificates, report.accuracy
    plt.plot(proofs.eps, proofs.certified, color=color, label=report.name)
    plt.plot(attacks.eps, np.minimum(attacks.pgd, attacks.apgd), "--", color=color)
    held = np.minimum(attacks.pgd, attacks.apgd)
    assert (np.array(proofs.certified) <= held).all()  # or a proof would be wrong
plt.xlabel("eps")
plt.ylabel("share of the test images")
plt.legend()
plt.show()
assert certified.certificates.certified[3] > plain.certificates.certified[3] + 0.3

# %% [markdown]
# The plain network is more often right, and nearly nothing of it is proven at a tenth
# of the range; the other one gave some accuracy for proofs. And its two lines lie close
# together: a network that was trained for its certificate leaves little in the dark.
#
# ## Which labels are wrong
#
# On the examples that a network was trained on, with the checkpoints of the training:
# an example that only its own gradient steps speak for is one that nothing else in the
# set agrees with.

# %%
found = audit.labels(
    net.apply, checkpoints[-1], images, labels, checkpoints=checkpoints
)
looked_at = found.ranking[: len(labels) // 10]
share = np.isin(wrong, looked_at).mean()
print(f"{share:.0%} of the {len(wrong)} wrong labels are in the first tenth")
_, axes = plt.subplots(1, 8, figsize=(10, 1.8))
for ax, suspect in zip(axes, found.suspects, strict=False):
    ax.imshow(images[suspect.index, ..., 0], cmap="gray_r")
    ax.set_title(f"{suspect.label}, was {clean[suspect.index]}", fontsize=9)
    ax.axis("off")
plt.show()
assert share > 0.8

# %% [markdown]
# ## When something does not fit
#
# A section that cannot run is one line that says what to do, and the others run all the
# same. Here labels are one-hot, and a plan of memory needs none.

# %%
report = audit.audit(net.apply, checkpoints[-1], test_images, np.eye(10)[test_labels])
for section, problem in report.problems.items():
    print(f"{section}: {problem}")
assert "argmax" in report.problems["accuracy"] and report.memory is not None

# %% [markdown]
# ## Page, JSON, command
#
# `write` makes a page of its own, with charts, tables and pictures, and a JSON.

# %%
folder = tempfile.mkdtemp()
plain.write(folder)
print(sorted(os.listdir(folder)))
print((len(plain.page()) + 500) // 1000, "kB of page")
assert "<script" not in plain.page()

# %% [markdown]
# From a terminal it is one command. The checkpoint is an orbax folder or an npz file
# whose names are paths such as `params/Dense_0/kernel`, the data an npz with `inputs`
# and `labels`; `--like` names parameters of the model's structure where dicts are not
# what it takes, as here the arrays of equinox:
#
# `jaxmethods audit model.py:apply weights.npz data.npz --like model.py:arrays`
#
# What to take along: accuracy under attack is a hope, a certificate is a proof, and the
# distance between them is what you do not know. Neither speaks of inputs further off
# than `eps`, nor of other changes than a bit of every pixel.
