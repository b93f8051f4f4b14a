"""Clean and attacked accuracy are those of the attacks, called by hand."""

from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import audit, robust
from jaxmethods.audit.levels import held
from jaxmethods.influence.faster import faster
from jaxmethods.robust.apgd import is_robust

from . import nets

MODULE = import_module("jaxmethods.audit.accuracy")
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


@pytest.mark.parametrize("norm, eps", [("linf", 0.1), ("l2", 0.2)])
def test_one_program_knows_what_apgd_leaves_for_each_objective(norm, eps):
    data, how = (logits, INPUTS, LABELS), {"norm": norm, "num_steps": 20}
    program = jax.jit(lambda goal: is_robust(*data, eps=eps, objective=goal, **how))
    found = []
    for number, name in enumerate(("ce", "dlr")):
        wanted = robust.apgd(*data, eps=eps, objective=name, **how).robust
        found.append(np.asarray(program(number)))
        assert (found[-1] == wanted).all() and 0 < wanted.sum() < len(LABELS)
    assert program._cache_size() == 1


def test_an_attack_ends_where_all_are_turned():
    calls = []

    def watched(x):
        jax.debug.callback(lambda: calls.append(0))
        return x @ jnp.array([[1.0, -1.0], [0.0, 1.0]])

    x, y = jnp.array([[0.6, 0.4], [0.5, 0.4]]), jnp.array([0, 0])
    for eps, least, most in [(0.3, 2, 10), (0.01, 51, 51)]:
        calls.clear()
        left = is_robust(watched, x, y, eps=eps, num_steps=50)
        jax.effects_barrier()
        assert left.tolist() == [eps < 0.1] * 2
        assert least <= len(calls) <= most


def test_what_pgd_turned_is_tried_first():
    tried = []

    def holds(level, inputs, labels):
        tried.append(inputs[:, 0].tolist())
        return inputs[:, 0] != level

    first = np.array([[False, True, False, True], [True, False, True, False]])
    inputs = np.arange(4.0)[:, None]
    found = held(holds, [3, 1], inputs, np.zeros(4), chunk=2, first=first)
    assert tried == [[1, 3], [0, 2], [0, 2], [1, 1]]
    assert found.tolist() == [[True, True, True, False], [True, False, True, False]]


def test_slopes_that_are_nan_are_none_and_do_not_stop_the_others():
    def apply(params, x):  # the slope of the norm is NaN where its row is 0
        lead = params * (x[0, 0] - 0.5) + 0.1 * jnp.linalg.norm(x[1])
        return jnp.stack([lead, -lead])

    inputs = np.zeros((4, 2, 2), np.float32)
    inputs[:, 0, 0] = [0.55, 0.45, 0.9, 0.1]
    labels = np.array([0, 1, 0, 1])
    data, how = (jnp.ones(()), inputs, labels), {"eps": [0.01, 0.1]}
    got = audit.accuracy(apply, *data, **how)
    assert got.clean == 1 and got.pgd == got.apgd == [1, 0.5] and got.blind == 0

    def unseen(params, x):  # NaN everywhere: 0 times an infinite slope
        lead = x.sum() * 0 + jnp.sign(x[0, 0] - 0.5)
        root = jnp.sqrt(0 * x).sum()
        return jnp.stack([lead, -lead]) + 0 * root

    with pytest.raises(ValueError, match="0 or NaN at each of the 4 inputs"):
        audit.accuracy(unseen, *data, **how)


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
        ValueError, match=r"are 0 or NaN at each of the 12 inputs .*; wanted a"
    ):
        audit.accuracy(apply, PARAMS, INPUTS, labels, eps=[0.3])
    # Nothing is turned within so little, and the gradient is there.
    got = audit.accuracy(nets.apply, PARAMS, INPUTS, LABELS, eps=[1e-6])
    assert got.pgd == got.apgd == [got.clean]


def test_inputs_that_attacks_see_nothing_of_are_counted():
    def apply(params, x):
        return nets.apply(params, jnp.where(x[0] > 0.5, jnp.round(8 * x) / 8, x))

    labels = np.array([int(apply(PARAMS, x).argmax()) for x in INPUTS])
    dark = INPUTS[:, 0] > 0.5
    labels[np.argmax(dark)] += 1  # wrong, and so nothing that is claimed
    labels %= 3
    got = audit.accuracy(apply, PARAMS, INPUTS, labels, eps=[1e-3])
    assert got.blind == (dark.sum() - 1) / 12 > 0
    assert audit.accuracy(nets.apply, PARAMS, INPUTS, LABELS, eps=[0.02]).blind == 0


def pooled(params, x):
    x = jax.lax.conv_general_dilated(
        x[None],
        params["conv"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = jax.lax.reduce_window(
        jax.nn.gelu(x), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    return x.reshape(-1) @ params["dense"]


def test_a_convolutional_model_is_attacked_as_it_is_by_a_faster_program(monkeypatch):
    random = np.random.default_rng(5)
    params = {
        "conv": random.standard_normal((3, 3, 1, 4)).astype("f"),
        "dense": random.standard_normal((16, 3)).astype("f"),
    }
    inputs, labels = nets.make_data(pooled, params, (4, 4, 1))

    def slope(apply, x):
        return jax.jacobian(lambda x: apply(params, x))(x)

    fast = faster(pooled)
    program = str(jax.make_jaxpr(lambda x: slope(fast, x))(inputs[0]))
    assert "select_and_scatter" not in program
    for x in inputs[:3]:
        np.testing.assert_allclose(fast(params, x), pooled(params, x), rtol=1e-5)
        np.testing.assert_allclose(
            slope(fast, x), slope(pooled, x), rtol=1e-5, atol=1e-5
        )
    data = pooled, params, inputs, labels
    plain = audit.accuracy(*data, eps=[0.05, 0.2])
    asked = []
    monkeypatch.setattr(MODULE, "_SMALL", 0)
    monkeypatch.setattr(MODULE, "faster", lambda fn: asked.append(fn) or faster(fn))
    assert audit.accuracy(*data, eps=[0.05, 0.2]) == plain and len(asked) == 1
    assert plain.apgd[1] < plain.apgd[0] <= plain.clean


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
