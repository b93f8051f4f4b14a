"""Two tasks for workers that train together: digits by convolutions, text by an LSTM.

`digits(split)` classifies images with the zoo's conv net, `sentiment(folder)` phrases
of film reviews.
"""

import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmethods.data import Split

from .nets import NETS, cnn

LENGTH, NUM_WORDS, EMBEDDING, HIDDEN, FORGET_BIAS = 12, 4000, 32, 64, 1.0
PAD, UNKNOWN, FIRST_WORD = range(3)
PARTS = ("train", "dev")
CLIP = 1.0
CONVOLUTION_STEPS, LSTM_STEPS = 1200, 2800


class Task(NamedTuple):
    """A net to train, its data, and the optimizer that suits it.

    Attributes:
        name: Of the task.
        logits: `logits(params, inputs) -> (..., classes)`.
        shapes: Name -> shape of the parameters, a flat dict.
        kinds: Name -> "convolution", "dense" or "recurrent", of those with 2 axes or
            more.
        train: Inputs (n, ...) and labels (n, ...).
        test: Likewise.
        clip: The norm that a worker's gradient is clipped to, before the exchange.
        optimizer: From a number of steps to an optax optimizer.
        batch: Examples of a step, over all workers.
        steps: To train.
        one_by_one: Whether the gradients of several workers are quicker one after the
            other than by vmap: convolutions with kernels of their own are, on CPUs.
    """

    name: str
    logits: Callable[[Any, jax.Array], jax.Array]
    shapes: dict[str, tuple[int, ...]]
    kinds: dict[str, str]
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    clip: float
    optimizer: Callable[[int], optax.GradientTransformation]
    batch: int
    steps: int
    one_by_one: bool

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        """Random weights of unit gain through rectifiers, biases of 0."""
        params = {}
        for i, (name, shape) in enumerate(sorted(self.shapes.items())):
            fan_in = np.prod(shape[:-1]) if len(shape) > 1 else np.inf
            fan_in = 1 if name == "embedding" else fan_in
            gain = 2 if self.kinds.get(name) == "convolution" else 1
            drawn = jax.random.normal(jax.random.fold_in(key, i), shape)
            params[name] = np.sqrt(gain / fan_in) * drawn
        return params

    def loss(self, params: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Mean cross-entropy."""
        logits = self.logits(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def digits(split: Split, *, steps: int, num_train: int = 20_000) -> Task:
    """Images, by convolutions of 16 and 32 channels and dense layers of 100 and 10."""
    shapes = {
        name: value.shape if value.ndim < 4 or value.shape[0] > 1 else value.shape[3:]
        for name, value in NETS["cnn"]().params.items()
    }
    kinds = {"k": "convolution", "l": "convolution", "w0": "dense", "w1": "dense"}

    def optimizer(steps: int) -> optax.GradientTransformation:
        return optax.sgd(optax.cosine_decay_schedule(0.05, steps), 0.9)

    images, labels = split.train
    return Task(
        f"conv net, {split.name}",
        jax.vmap(cnn, (None, 0)),
        shapes,
        kinds,
        (images[:num_train], labels[:num_train]),
        tuple(split.test),
        CLIP,
        optimizer,
        batch=128,
        steps=steps,
        one_by_one=True,
    )


def sentiment(folder: Path, *, steps: int) -> Task:
    """Whether a phrase of SST-2 is positive, by an LSTM of 64 cells over its words.

    Args:
        folder: Holds `phrases_train.tsv.gz` and `phrases_dev.tsv.gz`.
        steps: To train.
    """
    train, test = (_phrases(folder / f"phrases_{part}.tsv.gz") for part in PARTS)
    counts = Counter(word for phrase, _ in train for word in phrase)
    known = [word for word, _ in counts.most_common(NUM_WORDS - FIRST_WORD)]
    ids = {word: i for i, word in enumerate(known, FIRST_WORD)}

    def encoded(phrases: list[tuple[list[str], int]]) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.full((len(phrases), LENGTH), PAD, np.int32)
        for row, (phrase, _) in zip(tokens, phrases, strict=True):
            numbers = [ids.get(word, UNKNOWN) for word in phrase[:LENGTH]]
            row[: len(numbers)] = numbers
        return tokens, np.array([label for _, label in phrases], np.int32)

    def optimizer(steps: int) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(0.01, steps))

    return Task(
        "LSTM, SST-2",
        _lstm,
        {
            "embedding": (NUM_WORDS, EMBEDDING),
            "input": (EMBEDDING, 4 * HIDDEN),
            "recurrent": (HIDDEN, 4 * HIDDEN),
            "gate_bias": (4 * HIDDEN,),
            "head": (HIDDEN, 2),
            "head_bias": (2,),
        },
        {
            "embedding": "dense",
            "input": "recurrent",
            "recurrent": "recurrent",
            "head": "dense",
        },
        encoded(train),
        encoded(test),
        CLIP,
        optimizer,
        batch=128,
        steps=steps,
        one_by_one=False,
    )


def _phrases(path: Path) -> list[tuple[list[str], int]]:
    """Words and label of each row, under a header."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:]
    return [(text.split(), int(label)) for text, label in rows]


def _lstm(params: Any, tokens: jax.Array) -> jax.Array:
    """Logits (n, 2), of the mean hidden state over the words of each phrase."""
    there = (tokens != PAD).T[..., None]
    embedded = params["embedding"][tokens.T]
    entering = embedded @ params["input"] + params["gate_bias"]

    def step(state: Any, entering: jax.Array) -> tuple[Any, jax.Array]:
        hidden, cell = state
        gates = entering + hidden @ params["recurrent"]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        kept = jax.nn.sigmoid(f + FORGET_BIAS) * cell
        cell = kept + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    none = jnp.zeros((tokens.shape[0], HIDDEN))
    _, hidden = jax.lax.scan(step, (none, none), entering)
    mean = (there * hidden).sum(0) / jnp.maximum(there.sum(0), 1)
    return mean @ params["head"] + params["head_bias"]


def enlarged(split: Split) -> Split:
    """8 x 8 images at 28 x 28, for the zoo's net: each pixel 3 x 3, and a border."""
    parts = [
        part._replace(
            images=np.pad(
                part.images.repeat(3, 1).repeat(3, 2), ((0, 0), (2, 2), (2, 2), (0, 0))
            )
        )
        for part in (split.train, split.test)
    ]
    return Split(split.name, *parts)
