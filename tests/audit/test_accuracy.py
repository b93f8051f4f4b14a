"""Clean and attacked accuracy are those of the attacks, called by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import audit, robust

from . import nets

PARAMS = nets.make_params()
INPUTS, LABELS = nets.make_data(nets.apply, PARAMS)
EPS = [0.02, 0.1, 0.3]


def logits(inputs):
    return jax.vmap(lambda x: nets.apply(PARAMS, x))(inputs)


def losses(inputs):
    return -jax.nn.log_softmax(logits(inputs))[jnp.arange(len(LABELS)), LABELS]


@pytest.mark.parametrize("norm, bounds", [("linf", (0.0, 1.0)), ("l2", None)])
def test_shares_are_what_the_attacks_leave(norm, bounds):
    got = audit.accuracy(
        nets.apply,
        PARAMS,
        INPUTS,
        LABELS,
        eps=EPS[::-1],  # any order
        norm=norm,
        bounds=bounds,
        chunk=5,
    )
    how = {"norm": norm, "bounds": bounds or (-np.inf, np.inf)}

    @jax.jit
    def survives(eps):
        end = robust.pgd(
            losses,
            INPUTS,
            eps=eps,
            step_size=eps / 8,
            num_steps=20,
            keep_best=True,
            **how,
        ).x
        ends = [
            robust.apgd(
                logits, INPUTS, LABELS, eps=eps, num_steps=100, objective=name, **how
            ).robust
            for name in ("ce", "dlr")
        ]
        return logits(end).argmax(-1) == LABELS, ends[0] & ends[1]

    right = nets.right(nets.apply, PARAMS, INPUTS, LABELS)
    kept = [right, right]
    assert got.eps == EPS and got.norm == norm and got.clean == right.mean()
    for number, eps in enumerate(EPS):
        kept = [
            old & np.asarray(new) for old, new in zip(kept, survives(eps), strict=True)
        ]
        assert [got.pgd[number], got.apgd[number]] == [k.mean() for k in kept]
    # The radii tell apart: a larger one turns more.
    assert got.clean == 10 / 12 and got.apgd[0] > got.apgd[2]


def test_two_classes_have_no_ratio_of_logits_and_are_attacked_all_the_same():
    params = nets.make_params(classes=2)
    inputs, labels = nets.make_data(nets.apply, params)
    got = audit.accuracy(nets.apply, params, inputs, labels, eps=[0.5])
    assert got.apgd[0] < got.clean == 10 / 12


@pytest.mark.parametrize("classes", [2, 3])
def test_a_model_too_sure_for_floats_is_attacked_all_the_same(classes):
    weights = np.random.default_rng(2).standard_normal((5, classes)).astype("f")
    inputs = np.random.default_rng(3).uniform(size=(30, 5)).astype("f")

    def apply(params, x):
        return 3000 * ((x - 0.5) @ params)

    logits = (inputs - 0.5) @ weights
    labels = logits.argmax(-1)
    got = audit.accuracy(apply, weights, inputs, labels, eps=[0.1], bounds=None)
    # Of a linear model the largest change of a margin is known.
    apart = weights[:, labels].T[..., None] - weights[None]
    lead = np.take_along_axis(logits, labels[:, None], 1) - logits
    holds = (lead > 0.1 * np.abs(apart).sum(1)) | (
        np.arange(classes) == labels[:, None]
    )
    assert got.pgd == got.apgd == [holds.all(1).mean()] and 0.1 < got.pgd[0] < 0.9


def test_a_model_without_gradients_gets_no_number():
    def apply(params, x):
        return nets.apply(params, jnp.round(8 * x) / 8)

    labels = np.array([int(apply(PARAMS, x).argmax()) for x in INPUTS])
    with pytest.raises(
        ValueError, match=r"are 0 at each of the 12 inputs .*; wanted a"
    ):
        audit.accuracy(apply, PARAMS, INPUTS, labels, eps=[0.3])
    # Nothing is turned within so little, and the gradient is there.
    got = audit.accuracy(nets.apply, PARAMS, INPUTS, LABELS, eps=[1e-6])
    assert got.pgd == got.apgd == [got.clean]


def test_a_logit_that_is_nan_is_never_right():
    def apply(params, x):
        return jnp.log(x @ params)  # NaN where the product is negative

    inputs = np.array([[0.9, 0.1], [0.1, 0.9]], "f")
    params = np.array([[1.0, 0.5], [-1.0, 0.5]], "f")
    got = audit.accuracy(apply, params, inputs, [0, 0], eps=[1e-3])
    assert got.clean == 0.5


@pytest.mark.parametrize(
    "change, hint",
    [
        ({"labels": LABELS[:5]}, r"labels is int64\[5\]; wanted one label an input"),
        ({"labels": np.eye(3)[LABELS]}, r"of one-hot rows take labels.argmax\(-1\)"),
        ({"labels": LABELS[:, None]}, r"take labels\[:, 0\]"),
        ({"labels": LABELS.astype(float)}, r"labels.astype\(int\)"),
        ({"labels": LABELS + 2}, r"the model has 3 logits; wanted 0..2"),
        ({"labels": LABELS - 1}, r"labels reach from -1 to 1"),
        ({"labels": None}, r"there are no labels; wanted \(12,\) integers"),
        ({"inputs": INPUTS + 1}, r"outside of bounds .* --bounds=LOW,HIGH"),
        ({"inputs": INPUTS * np.nan}, r"first in number 0, 12 in all; .* leave these"),
        ({"inputs": (INPUTS * 255).astype("u1")}, r"cast it with .astype"),
        ({"inputs": INPUTS[:0]}, r"wanted \(n, ...\), at least one input"),
        ({"eps": []}, r"eps has no radii; wanted at least one"),
        ({"eps": [0.1, -1.0]}, r"eps is -1.0; wanted"),
        ({"norm": "l1"}, r"norm is 'l1'; wanted one of \['linf', 'l2'\]"),
        ({"bounds": (1.0, 0.0)}, r"wanted \(low, high\) with low < high"),
        ({"bounds": (0, 1, 2)}, r"bounds is \(0, 1, 2\); wanted \(low, high\)"),
        ({"eps": 0.1}, r"eps is 0.1; wanted a sequence of radii"),
        ({"chunk": 0}, r"chunk is 0; wanted at least 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_told_with_what_to_do(change, hint):
    data = {"inputs": INPUTS, "labels": LABELS} | change
    with pytest.raises((TypeError, ValueError), match=hint):
        audit.accuracy(nets.apply, PARAMS, **data)
