# %% [markdown]
# # Which training examples did that?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxmethods/jaxmethods/blob/main/colabs/04_influence.ipynb)
#
# A network makes a mistake; somewhere in its training set are the examples that taught
# it. You will find label errors planted in real images, look at the examples that
# helped and harmed a prediction, store what is needed to ask again later, and correct
# a text classifier from ten sentences in seconds. About two minutes on a CPU.

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
# ## Planted label errors
#
# The digits come with the package: 8 x 8 pixels in [0, 1]. One label in ten is to be
# wrong, and wrong as people are: not any other digit, but the one that it looks most
# like. The network is a plain function, and so is its loss, which sees *one* example,
# without the leading axis.

# %%
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jaxmethods import data, influence
from jaxmethods.influence import debugging

digits = data.load_digits()
images = jnp.asarray(digits.train.images[:1000].reshape(-1, 64))
clean = jnp.asarray(digits.train.labels[:1000])
test = (
    jnp.asarray(digits.test.images.reshape(-1, 64)),
    jnp.asarray(digits.test.labels),
)


def net(params, x):
    x = jax.nn.relu(x @ params["w0"] + params["b0"])
    return x @ params["w1"] + params["b1"]


def loss(params, example):
    image, label = example
    return optax.softmax_cross_entropy_with_integer_labels(net(params, image), label)


# %% [markdown]
# Training is plain SGD; TracIn needs no more than a few checkpoints of it, stacked on
# axis 0, and the learning rate at each. Whatever lies in the tree of parameters counts:
# where running statistics of a batch normalisation lie there too, leave them out with
# `where=[("params",)]`, or close over them in the loss.


# %%
def trained(params, labels, rounds=5, steps=600, rate=0.3, batch=50):
    def step(params, key):
        rows = jax.random.randint(key, (batch,), 0, len(labels))
        some = images[rows], labels[rows]
        gradient = jax.grad(lambda p: jax.vmap(loss, (None, 0))(p, some).mean())(params)
        return jax.tree.map(lambda p, g: p - rate * g, params, gradient), None

    def round_(params, key):
        params, _ = jax.lax.scan(step, params, jax.random.split(key, steps))
        return params, params

    keys = jax.random.split(jax.random.key(2), rounds)
    return jax.lax.scan(round_, params, keys)[1], jnp.full(rounds, rate)


keys = jax.random.split(jax.random.key(1))
start = {
    "w0": jax.random.normal(keys[0], (64, 64)) / 8,
    "b0": jnp.zeros(64),
    "w1": jax.random.normal(keys[1], (64, 10)) / 8,
    "b1": jnp.zeros(10),
}


fit_digits = jax.jit(trained)


def last_of(checkpoints):
    return jax.tree.map(lambda p: p[-1], checkpoints)


# %% [markdown]
# A network that was taught the right labels says what each digit looks most like, next
# to what it is. With such labels on one digit in ten the training starts anew.

# %%
taught = last_of(fit_digits(start, clean)[0])
right = jax.nn.one_hot(clean, 10, dtype=bool)
likely = jnp.argmax(jnp.where(right, -jnp.inf, net(taught, images)), -1)
flipped = jax.random.uniform(jax.random.key(0), clean.shape) < 0.1
labels = jnp.where(flipped, likely, clean)
train = images, labels

checkpoints, rates = fit_digits(start, labels)
last = last_of(checkpoints)
answers = jnp.argmax(net(last, test[0]), -1)
learned = jnp.argmax(net(last, images), -1) == labels
print(f"{int(flipped.sum())} of {len(labels)} labels are wrong")
print(f"{jnp.mean(learned[flipped]):.0%} of these the network has learned by heart")
print(f"test accuracy {jnp.mean(answers == test[1]):.3f}")

# %% [markdown]
# An example whose own gradient step lowers its own loss a lot stands alone: nothing
# else in the set argues for it. That is *self-influence*, and ranked by it wrong labels
# come first. But where the network has learned a wrong label by heart little loss is
# left, and little gradient: the end of the training hides what its course shows. So
# compare five checkpoints with the last alone; and either with the plain loss, the
# baseline that belongs beside any such claim.

# %%
own = jax.jit(influence.self_influence(loss))
losses = jax.vmap(lambda p: jax.vmap(loss, (None, 0))(p, train))(checkpoints)
end = jax.tree.map(lambda p: p[-1:], checkpoints)
suspicion = own(checkpoints, rates, train)
rankings = {
    "self-influence, five checkpoints": suspicion,
    "self-influence, the last alone": own(end, rates[-1:], train),
    "loss, five checkpoints": losses.sum(0),
    "loss, the last alone": losses[-1],
}
share = np.arange(1, len(labels) + 1) / len(labels)
early = {}
for name, score in rankings.items():
    order = jnp.argsort(-score)
    found = jnp.cumsum(flipped[order]) / flipped.sum()
    plt.plot(share, found, label=name)
    early[name] = float(found[len(labels) // 10 - 1])
    print(f"{name:<33} finds {early[name]:.0%} in the first tenth")
plt.plot(share, share, ":", color="gray", label="by chance")
plt.xlabel("share of the training set that is looked through")
plt.ylabel("share of the wrong labels found")
plt.legend()
plt.show()

# %% [markdown]
# Two lessons. The course of the training finds more than its end, by either score. And
# summed over that course the plain loss finds as much as self-influence, for a forward
# pass: where wrong labels are all that is sought it is enough. What no loss tells is
# *which other examples* moved a prediction, and that is what comes next.

# %%
for what in ("self-influence", "loss"):
    gain = early[f"{what}, five checkpoints"] - early[f"{what}, the last alone"]
    assert gain > 0.05, gain
names = "self-influence, five checkpoints", "loss, five checkpoints"
assert abs(early[names[0]] - early[names[1]]) < 0.05

# %% [markdown]
# The ten most suspicious images, with the label that the training set gives them.


# %%
def show(rows, titles):
    _, axes = plt.subplots(1, len(rows), figsize=(1.2 * len(rows), 1.7))
    for axis, row, title in zip(axes, rows, titles, strict=True):
        axis.imshow(np.asarray(row).reshape(8, 8), cmap="gray_r")
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    plt.show()


order = jnp.argsort(-suspicion)[:10]
show(images[order], [f"label {int(labels[i])}" for i in order])

# %% [markdown]
# ## Who helped, who harmed
#
# `proponents` and `opponents` find the training examples that lowered and raised the
# loss of a test example the most. They carry the best few along and never hold the
# matrix of all scores, so the training set may also be a stream of batches, and the
# checkpoints an orbax manager. Here is a test digit that the network gets wrong, or
# nearly so.

# %%
logits = net(last, test[0])
sure = jnp.take_along_axis(jax.nn.log_softmax(logits), test[1][:, None], 1)[:, 0]
asked = jax.tree.map(lambda x: x[jnp.argsort(sure)[:1]], test)
helped = influence.proponents(loss, 5)(checkpoints, rates, train, asked)
harmed = influence.opponents(loss, 5)(checkpoints, rates, train, asked)
title = f"is {int(asked[1][0])}, read\nas {int(jnp.argmax(net(last, asked[0])))}"
rows = [0, *helped.indices[0], *harmed.indices[0]]
show(
    [asked[0][0], *images[jnp.asarray(rows[1:])]],
    [
        title,
        *(
            f"{kind}\nas {int(labels[i])}"
            for kind, i in zip(["helped"] * 5 + ["harmed"] * 5, rows[1:], strict=True)
        ),
    ],
)

# %% [markdown]
# The whole matrix is one call. It is exact for any loss: weights that enter through
# products never have a gradient formed, and `forms` says what happens to each
# parameter. `aggregate` sums over a test set at the price of one directional
# derivative.

# %%
scores = influence.tracin(loss)(checkpoints, rates, train, test)
summed = influence.aggregate(loss)(checkpoints, rates, train, test)
print("scores", scores.shape, "agree:", bool(jnp.allclose(scores.sum(0), summed, 1e-2)))
example = jax.tree.map(lambda x: x[0], train)
for path, form in influence.forms(loss)(last, example).items():
    print(path, form.kind)
harmful = jnp.argsort(summed)[:100]
print(
    f"of the 100 most harmful on the test set {flipped[harmful].mean():.0%} are wrong"
)

# %% [markdown]
# Sketched gradients make a store that is written once and asked many times, larger than
# memory if need be. The scores are unbiased at any number of kept entries.

# %%
build, reopen = influence.datastore(loss, project=512, progress=False)
with tempfile.TemporaryDirectory() as folder:
    store = build(jax.random.key(3), folder, checkpoints, rates, train)
    sketched = store.scores(test)
agreement = np.corrcoef(np.asarray(scores).ravel(), np.asarray(sketched).ravel())[0, 1]
print(f"512 numbers a checkpoint in place of 4810: correlation {agreement:.3f}")

# %% [markdown]
# ## Correct a text classifier from ten sentences
#
# A small text classifier is trained on sentences that are positive or negative. "Not"
# is among their words, but never turns the meaning. The sentences are made from
# templates here, so that nothing has to be downloaded; the method is that of Malon, Li
# and Kruus, who use real test suites.

# %%
GOOD = "great lovely superb fine charming brilliant pleasant delightful".split()
BAD = "awful dull terrible poor boring dreadful nasty horrid".split()
THINGS = "food film room service story music plot place view staff".split()
FORMS = [
    "the {thing} is {word}",
    "what a {word} {thing}",
    "i think the {thing} was {word} and {other}",
    "a {word} and {other} {thing} in a {filler} town",
    "the {thing} is not only {word} but {other}",
    "not a soul would call the {thing} less than {word}",
]
FILLERS = "small large quiet busy old".split()
TEXT = " ".join([*FORMS, *GOOD, *BAD, *THINGS, *FILLERS])
VOCABULARY = sorted({word for word in TEXT.split() if "{" not in word})
IDS = {word: i + 1 for i, word in enumerate(VOCABULARY)}
random = np.random.default_rng(0)


def sentence(form, label):
    words = random.choice(GOOD if label else BAD, 2, replace=False)
    picked = {"thing": random.choice(THINGS), "filler": random.choice(FILLERS)}
    text = form.format(word=words[0], other=words[1], **picked).split()
    return [IDS[w] for w in text] + [0] * (12 - len(text))


def sentences(forms, number, label=None):
    kinds = random.integers(0, 2, number) if label is None else np.full(number, label)
    rows = [sentence(random.choice(forms), kind) for kind in kinds]
    return jnp.asarray(rows), jnp.asarray(kinds)


original, held_out = sentences(FORMS, 2000), sentences(FORMS, 500)
NEGATED = ["the {thing} is not {word}", "i think the {thing} was not {word}"]
words, _ = sentences(NEGATED, 210, 1)
suite = words, jnp.zeros(len(words), int)  # not great: negative
bug = jax.tree.map(lambda x: x[:10], suite)
unseen = jax.tree.map(lambda x: x[10:], suite)


def classify(params, tokens):
    x = params["emb"][tokens] * (tokens > 0)[..., None]
    windows = jnp.concatenate([x[:-2], x[1:-1], x[2:]], -1)
    h = jax.nn.relu(windows @ params["filters"] + params["b"])
    return h.max(0) @ params["out"]


def text_loss(params, example):
    tokens, label = example
    logits = classify(params, tokens)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def predict(params, tokens):
    return jnp.argmax(jax.vmap(classify, (None, 0))(params, tokens), -1)


keys = jax.random.split(jax.random.key(4), 3)
begin = {
    "emb": jax.random.normal(keys[0], (len(IDS) + 1, 16)) / 2,
    "filters": jax.random.normal(keys[1], (48, 48)) / 7,
    "b": jnp.zeros(48),
    "out": jax.random.normal(keys[2], (48, 2)) / 7,
}
optimizer = optax.adam(3e-3)


def fit(params):
    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (64,), 0, len(original[1]))
        some = jax.tree.map(lambda x: x[rows], original)
        gradient = jax.grad(lambda p: jax.vmap(text_loss, (None, 0))(p, some).mean())(
            params
        )
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(5), 200)
    return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]


def accuracy(params, some):
    return float(jnp.mean(predict(params, some[0]) == some[1]))


text = jax.jit(fit)(begin)
print(f"held out {accuracy(text, held_out):.3f}, negated {accuracy(text, unseen):.3f}")

# %% [markdown]
# It reads *not great* as *great*. Ten such sentences are enough to say what is meant,
# but all ten carry the label "negative": fitted alone they teach little more than to
# say that. *In-danger* sampling looks through the original set for sentences that such
# a fit breaks, and fits them together with the ten.


# %%
def table(method, **how):
    run = jax.jit(
        lambda key: debugging.debug(
            text_loss,
            predict,
            text,
            bug,
            original,
            key,
            method=method,
            optimizer=optax.adam(1e-2),
            **how,
        )
    )
    done = run(jax.random.key(6))
    print(
        f"{method:<11} negated {accuracy(done.params, unseen):.3f}  held out "
        f"{accuracy(done.params, held_out):.3f}  {int(done.steps):>3} steps  "
        f"{float(done.passes):.3f} passes"
    )
    return done.params


print(
    f"{'before':<11} negated {accuracy(text, unseen):.3f}  held out "
    f"{accuracy(text, held_out):.3f}"
)
table("debug_only")
table("l2_penalty", weight=0.1)
table("kl", logits=jax.vmap(classify, (None, 0)))
table("random")
corrected = table("in_danger")

# %% [markdown]
# Which words did a training sentence and a test sentence meet in? `words` scores
# through the embedding table alone, exactly 0 where no word is shared, and
# `word_shares` splits a score over the words of the test sentence.

# %%
shares = influence.word_shares(text_loss, ("emb",), exclude=(0,))
asked = jax.tree.map(lambda x: x[:1], held_out)
some = jax.tree.map(lambda x: x[:200], original)
found = shares([text], [1.0], some, asked)[0]
best = int(jnp.argmax(found.sum(-1)))
names = {i: word for word, i in IDS.items()}
print("trained on:", " ".join(names[int(i)] for i in some[0][best] if i))
for token, value in zip(asked[0][0], found[best], strict=True):
    if token:
        print(f"{names[int(token)]:<12} {value:+.2e}")
