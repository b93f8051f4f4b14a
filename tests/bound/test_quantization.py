"""Every quantised net lies in the box, and what is certified over it holds for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import bound, quantize


def apply(params, x):
    return jax.nn.relu(x @ params["w0"] + params["b0"]) @ params["w1"]


def make(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "w0": jax.random.normal(keys[0], (5, 8), dtype),
        "b0": jax.random.normal(keys[1], (8,), dtype),
        "w1": jax.random.normal(keys[2], (8, 3), dtype),
    }


def symmetric(w, bits, per):
    axes = None if per == "tensor" else tuple(range(w.ndim - 1))
    step = jnp.max(jnp.abs(w), axis=axes, keepdims=True) / (2 ** (bits - 1) - 1)
    return jnp.round(w / step) * step


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_rounded_weight_is_in_the_box_and_some_at_its_edge(bits, per):
    params = make()
    boxes = bound.quantization_box(params, bits, per=per)
    assert boxes["b0"] is params["b0"]
    for name in ("w0", "w1"):
        w, box = params[name], boxes[name]
        got = symmetric(w, bits, per)
        assert (box.lower <= got).all() and (got <= box.upper).all()
        # Of 24 weights and more some are moved by nearly half a step.
        assert (jnp.abs(got - w) / (box.upper - w)).max() > 0.8


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_box_holds_the_finer_grids_of_quantize(bits, aligned):
    params = make()
    q = quantize.ptq(bits, zero_aligned=aligned)
    for name in ("w0", "w1"):
        box = bound.quantization_box(params, bits)[name]
        got = q(None, params[name])
        assert (box.lower <= got).all() and (got <= box.upper).all()


def test_logits_of_the_quantised_net_are_within_the_bounds():
    params, xs = make(), jax.random.normal(jax.random.key(4), (20, 5))
    for bits in (4, 8):
        low_bit = {k: symmetric(w, bits, "tensor") for k, w in params.items()}
        low_bit["b0"] = params["b0"]
        boxes = bound.quantization_box(params, bits)
        for method in (bound.ibp, bound.crown):
            got = jax.jit(jax.vmap(method(apply), (None, 0)))(boxes, xs)
            values = jax.vmap(apply, (None, 0))(low_bit, xs)
            assert (got.lower <= values).all() and (values <= got.upper).all()


def test_more_bits_and_finer_grids_are_tighter():
    params, x = make(), jnp.ones(5)
    run = jax.jit(bound.crown(apply))
    widths = [
        float(
            jnp.subtract(
                *run(bound.quantization_box(params, bits, per=per), x)[::-1]
            ).sum()
        )
        for bits, per in ((4, "tensor"), (6, "tensor"), (8, "tensor"), (8, "channel"))
    ]
    assert all(np.diff(widths) < 0)


def test_what_is_no_weight_stays_and_the_dtype_too():
    others = {"steps": jnp.zeros((2, 2), int), "none": jnp.ones((0, 3)), "name": "a"}
    boxes = bound.quantization_box(make(jnp.bfloat16) | others, 4)
    assert all(boxes[name] is others[name] for name in others)
    assert boxes["w0"].lower.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "bits, per, error, hint",
    [
        (1, "tensor", ValueError, r"bits is 1; wanted 2\.\.64"),
        (2000, "tensor", ValueError, r"bits is 2000; wanted 2\.\.64"),
        (4.0, "tensor", TypeError, "bits .* wanted a Python int"),
        (4, "row", ValueError, "per is 'row'"),
    ],
)
def test_bad_arguments_are_refused(bits, per, error, hint):
    with pytest.raises(error, match=hint):
        bound.quantization_box(make(), bits, per=per)


def test_a_model_of_a_batch_of_one_has_the_margins_of_that_one():
    params, x = make(), jnp.linspace(-1.0, 1.0, 5)

    def of_a_batch(params, x):
        hidden = jax.nn.relu(x[None] @ params["w0"] + params["b0"][None])
        return (hidden @ params["w1"])[0]

    boxes = bound.quantization_box(params, 8)
    for method in (bound.ibp, bound.crown_ibp, bound.crown):
        got, wanted = (
            method(bound.margins(fn, 1))(boxes, x) for fn in (of_a_batch, apply)
        )
        for ends in zip(got, wanted, strict=True):
            np.testing.assert_allclose(*ends, rtol=1e-5)
