"""Small classifiers to audit: dense, with some of the labels wrong."""

import jax
import jax.numpy as jnp
import numpy as np

WRONG = (3, 8)


def apply(params, x):
    hidden = jax.nn.relu(x @ params["w0"] + params["b0"])
    return hidden @ params["w1"]


def make_params(number=0, classes=3):
    random = np.random.default_rng(number)
    return {
        "w0": random.standard_normal((5, 7)).astype("f"),
        "b0": random.standard_normal(7).astype("f") / 4,
        "w1": random.standard_normal((7, classes)).astype("f"),
    }


def make_data(fn, params, shape=(5,), count=12):
    """Inputs in [0, 1] with the labels that a model gives them, but for two."""
    inputs = np.random.default_rng(1).uniform(size=(count, *shape)).astype("f")
    logits = np.asarray(jax.vmap(lambda x: fn(params, x))(inputs))
    labels = logits.argmax(-1)
    for number in WRONG:
        labels[number] = logits[number].argmin()
    return inputs, labels


def loss(params, example, fn=apply):
    x, label = example
    logits = fn(params, x)
    return jax.nn.logsumexp(logits) - logits[label]


def right(fn, params, inputs, labels):
    logits = jax.vmap(lambda x: fn(params, x))(jnp.asarray(inputs))
    return np.asarray(logits.argmax(-1)) == labels
