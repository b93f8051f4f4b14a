"""Models of three libraries, one input or a batch a call, and what fits none."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmethods import audit, bound
from jaxmethods.audit.model import read_model

from . import nets

SHAPE = (4, 4, 1)
PARAMS = nets.make_params()
INPUTS, LABELS = nets.make_data(nets.apply, PARAMS)


class Linen(nn.Module):
    """Takes one input or a batch, and has running statistics."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(2, (3, 3))(x))
        x = nn.relu(x).reshape(*x.shape[:-3], -1)
        return nn.Dense(3)(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 2, (3, 3), strides=2, rngs=rngs)
        self.layers = nnx.List(
            [nnx.Linear(8, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)]
        )

    def __call__(self, x):
        x = nnx.relu(self.conv(x)).reshape(*x.shape[:-3], -1)
        return self.layers[1](nnx.relu(self.layers[0](x)))


def linen():
    net = Linen()
    params = net.init(jax.random.key(0), np.zeros((1, *SHAPE), "f"))
    return net.apply, params, lambda params, x: net.apply(params, x[None])[0]


def of_nnx():
    graph, state = nnx.split(Nnx(nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)

    def apply(params, x):
        return nnx.merge(graph, params)(x)

    return apply, params, apply


def equinox():
    conv, head = jax.random.split(jax.random.key(1))
    net = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(1, 2, 3, padding=1, key=conv),
            eqx.nn.Lambda(jax.nn.leaky_relu),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(32, 3, key=head),
        ]
    )
    params, static = eqx.partition(net, eqx.is_array)

    def apply(params, x):
        return eqx.combine(params, static)(jnp.moveaxis(x, -1, 0))

    return apply, params, apply


@pytest.mark.parametrize("make", [linen, of_nnx, equinox])
def test_every_library_is_audited_as_by_hand(make):
    apply, params, alone = make()
    inputs, labels = nets.make_data(alone, params, SHAPE, 10)
    settings = audit.AuditConfig(skip=["accuracy"], eps=[0.01, 0.4], bits=[12, 4])
    report = audit.audit(apply, params, inputs, labels, settings)
    assert report.problems == {}
    # The running statistics of linen are none.
    trained = params["params"] if make is linen else params
    assert report.num_parameters == sum(p.size for p in jax.tree.leaves(trained))

    @jax.jit
    @jax.vmap
    def lower(x, label, eps):
        region = bound.Intersection(bound.Ball(x, eps), bound.Box(0.0, 1.0))
        margins = bound.margins(lambda x: alone(params, x), label)
        return bound.crown(margins)(region).lower.min()

    small, large = (lower(inputs, labels, np.full(10, eps, "f")) for eps in (0.01, 0.4))
    small = np.asarray(small) > 0
    shares = [small.mean(), (small & (np.asarray(large) > 0)).mean()]
    assert report.certificates.certified == shares and shares[0] > shares[1]
    right = nets.right(alone, params, inputs, labels).mean()
    assert right == 0.8 and report.quantized.rounded[0] == right
    assert right >= report.quantized.certified[0] > report.quantized.certified[1]
    for suspect in report.labels.suspects:
        assert suspect.predicted == alone(params, inputs[suspect.index]).argmax()
    assert len(report.memory.layouts) == 5


@pytest.mark.parametrize("batched", [None, True, False])
def test_one_input_and_a_batch_are_told_apart(batched):
    def takes_both(params, x):
        return x @ params["w0"][:, :3]

    def takes_a_batch(params, x):
        return jnp.concatenate([x[:, :2], x[:, 2:] @ params["w0"][2:, :1]], 1)

    model = read_model(takes_both, PARAMS, INPUTS, batched=batched)
    np.testing.assert_allclose(
        model.apply(PARAMS, INPUTS[0]), takes_both(PARAMS, INPUTS[0]), rtol=1e-6
    )
    if batched is not False:
        model = read_model(takes_a_batch, PARAMS, INPUTS, batched=batched)
        wanted = takes_a_batch(PARAMS, INPUTS)[0]
        np.testing.assert_allclose(model.apply(PARAMS, INPUTS[0]), wanted, rtol=1e-6)
        assert model.num_classes == 3


def one_logit(params, x):
    return jax.lax.dot_general(x, params["w0"][:, :1], (((1,), (0,)), ((), ())))


def test_what_a_batch_returns_is_told_before_what_one_input_fails_with():
    hint = r"on float32\[1,5\] it returns float32\[1,1\], a single class .*-1\)\); wan"
    with pytest.raises(ValueError, match=hint) as told:
        read_model(one_logit, PARAMS, INPUTS)
    assert "dot_general" not in str(told.value)

    def of_rows(params, x):  # gives a matrix of one input too
        return one_logit(params, x.reshape(-1, 5))

    with pytest.raises(ValueError, match=hint):
        read_model(of_rows, PARAMS, INPUTS)

    def fixed(params, x):
        z = one_logit(params, x)
        return jnp.concatenate([0 * z, z], -1)  # as the message has it

    assert read_model(fixed, PARAMS, INPUTS).num_classes == 2


def test_what_fails_in_two_ways_is_told_of_both_with_the_hint_first():
    def apply(params, x):
        if x.ndim == 1:
            raise TypeError("rank 1")
        raise ValueError("kernel " + "x" * 900 + "(https://flax.example/a.html#b)")

    with pytest.raises(ValueError) as told:
        read_model(apply, PARAMS, INPUTS)
    text = str(told.value)
    assert text.index("is the checkpoint of") < text.index("rank 1") < text.index("ker")
    assert "http" not in text and len(text) < 700
    with pytest.raises(ValueError, match=r"fails on float32\[1,5\]; wanted") as told:
        read_model(apply, PARAMS, INPUTS, batched=True)
    assert "rank 1" not in str(told.value)


def test_modules_in_the_place_of_functions_are_told_what_to_give():
    with pytest.raises(TypeError, match=r"Linen; .*give net.apply in the place"):
        read_model(Linen(), PARAMS, INPUTS)
    with pytest.raises(TypeError, match=r"is the class Linen; wanted a function"):
        read_model(Linen, PARAMS, INPUTS)
    with pytest.raises(TypeError, match=r"return nnx.merge\(graphdef, params\)\(x\)"):
        read_model(Nnx(nnx.Rngs(0)), PARAMS, INPUTS)
    with pytest.raises(TypeError, match=r"eqx.combine\(params, static\)\(x\)"):
        read_model(eqx.nn.Linear(5, 3, key=jax.random.key(0)), PARAMS, INPUTS)
    wrapped = eqx.filter_jit(nets.apply)  # an equinox module that is such a function
    assert read_model(wrapped, PARAMS, INPUTS).num_classes == 3


def test_bytes_of_images_are_told_to_be_divided():
    inputs = np.ones((2, 5), np.uint8)
    with pytest.raises(
        TypeError, match=r"uint8\[2,5\]; wanted a floating .*/ 255 where"
    ):
        read_model(nets.apply, PARAMS, inputs)


@pytest.mark.parametrize("batched", [None, True])
def test_a_model_that_looks_at_the_batch_is_refused(batched):
    def apply(params, x):
        if x.ndim != 2:
            raise TypeError("a batch")
        return (x - train * x.mean(0, keepdims=True)) @ params["w0"]

    train = 1
    for inputs in (INPUTS, INPUTS[:1], INPUTS[[0, 0]]):
        with pytest.raises(ValueError, match=r"looks at the batch.*net.eval\(\)"):
            read_model(apply, PARAMS, inputs, batched=batched)
    train = 0
    for inputs in (INPUTS, INPUTS[:1]):
        assert read_model(apply, PARAMS, inputs, batched=batched).num_classes == 7


def test_what_fails_when_it_runs_is_told():
    def fails(x):
        raise RuntimeError("no device")

    def apply(params, x):
        shape = jax.ShapeDtypeStruct((*x.shape[:-1], 3), x.dtype)
        return jax.pure_callback(fails, shape, x)

    with pytest.raises(
        ValueError, match=r"fails when it runs.*no device.*; wanted log"
    ):
        read_model(apply, PARAMS, INPUTS)


def test_what_means_two_things_must_be_said():
    def apply(params, x):
        return x @ params["w0"] * x.ndim

    with pytest.raises(ValueError, match=r"different logits; say which.*--batched yes"):
        read_model(apply, PARAMS, INPUTS)
    assert read_model(apply, PARAMS, INPUTS, batched=True).num_classes == 7


@pytest.mark.parametrize(
    "apply, params, hint",
    [
        (3.0, PARAMS, r"apply is float 3.0; wanted a function \(params, x\)"),
        (
            lambda x: x,
            PARAMS,
            r"cannot be called as apply\(params, x\) .*; wrap it: def",
        ),
        (lambda p, x, train: x, PARAMS, r"missing a required argument: 'train'"),
        (nets.apply, {}, "without arrays; wanted some"),
        (nets.apply, {"f": jnp.tanh}, r"at f; wanted arrays alone: keep the rest in"),
        (nets.apply, {"w0": np.full(2, np.nan)}, "NaN or infinity at w0; .*diverged"),
        (
            nets.apply,
            {"w": PARAMS["w0"]},
            r"is the checkpoint of this.*KeyError: 'w0'$",
        ),
        (
            nets.apply,
            {**PARAMS, "w0": np.ones((4, 7))},
            r"of the shape that it was trai",
        ),
        (lambda p, x: (x, x), PARAMS, "it returns a tuple; wanted logits"),
        (lambda p, x: x.sum(), PARAMS, r"it returns float32\[\]; wanted logits"),
        (lambda p, x: x[..., :1], PARAMS, r"a single class \(of a sigmoid .*jnp.stack"),
        (lambda p, x: x.astype(int), PARAMS, r"it returns int32\[5\]; wanted logits"),
    ],
)
def test_no_model_is_told_with_what_to_do(apply, params, hint):
    with pytest.raises((TypeError, ValueError), match=hint):
        read_model(apply, params, INPUTS)
