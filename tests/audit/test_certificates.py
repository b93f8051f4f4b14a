"""Certified shares are those of `bound`, called by hand, and they are sound."""

import jax
import numpy as np
import pytest

from jaxmethods import audit, bound
from jaxmethods.audit.quantized import rounded

from . import nets

PARAMS = nets.make_params()
INPUTS, LABELS = nets.make_data(nets.apply, PARAMS)
EPS = [0.01, 0.05, 0.2]
BITS = [12, 8, 6, 3]


@pytest.mark.parametrize(
    "method, norm, bounds",
    [("crown", "linf", (0.0, 1.0)), ("ibp", "l2", None)],
)
def test_shares_are_what_bound_proves(method, norm, bounds):
    got = audit.certificates(
        nets.apply,
        PARAMS,
        INPUTS,
        LABELS,
        eps=EPS,
        norm=norm,
        bounds=bounds,
        method=method,
        chunk=5,
    )

    @jax.jit
    @jax.vmap
    def lower(x, label, eps):
        region = bound.Ball(x, eps, {"linf": np.inf, "l2": 2}[norm])
        if bounds is not None:
            region = bound.Intersection(region, bound.Box(0.0, 1.0))
        margins = bound.margins(lambda x: nets.apply(PARAMS, x), label)
        return getattr(bound, method)(margins)(region).lower

    proven = np.ones(len(LABELS), bool)
    for number, eps in enumerate(EPS):
        radii = np.full(len(LABELS), eps, "f")
        proven &= np.asarray(lower(INPUTS, LABELS, radii) > 0).all(-1)
        assert got.certified[number] == proven.mean()
    assert got.certified[0] > got.certified[-1] and got.method == method


def test_what_is_certified_no_point_of_the_ball_turns():
    one = {"eps": EPS, "bounds": None}
    random = np.random.default_rng(2)
    sides = random.choice([-1.0, 1.0], (500, 5))
    for x, label in zip(INPUTS[:4], LABELS[:4], strict=True):
        got = audit.certificates(nets.apply, PARAMS, x[None], label[None], **one)
        for eps, certified in zip(EPS, got.certified, strict=True):
            points = (x + eps * sides).astype("f")
            right = nets.right(nets.apply, PARAMS, points, label)
            assert right.all() or not certified


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_quantized_shares_are_what_bound_proves_of_boxes_of_weights(per):
    data = nets.apply, PARAMS, INPUTS, LABELS
    got = audit.quantized(*data, bits=BITS[::-1], per=per, chunk=5)

    @jax.jit
    def lower(box):
        def one(x, label):
            return bound.crown_ibp(bound.margins(nets.apply, label))(box, x).lower

        return jax.vmap(one)(INPUTS, LABELS)

    random = np.random.default_rng(3)
    proven = np.ones(len(LABELS), bool)
    assert got.bits == BITS and got.per == per
    for number, bits in enumerate(BITS):
        box = bound.quantization_box(PARAMS, bits, per=per)
        proven &= np.asarray(lower(box) > 0).all(-1)
        assert got.certified[number] == proven.mean()
        nearest = to_nearest(bits, per)
        share = nets.right(nets.apply, nearest, INPUTS, LABELS).mean()
        assert got.rounded[number] == share >= got.certified[number]
        # Any weights of the box: half a step to either side.
        for _ in range(20):
            some = {
                name: w
                if name == "b0"
                else random.uniform(box[name].lower, box[name].upper).astype("f")
                for name, w in PARAMS.items()
            }
            assert nets.right(nets.apply, some, INPUTS, LABELS)[proven].all()
    assert got.certified[0] > got.certified[1] > got.certified[-1]


def to_nearest(bits, per):
    """Weights on 2 ** bits - 1 values from -max |w| to max |w|."""
    found = dict(PARAMS)
    for name in ("w0", "w1"):
        w = PARAMS[name]
        top = np.abs(w).max(0, keepdims=True) if per == "channel" else np.abs(w).max()
        step = top / (2 ** (bits - 1) - 1)
        found[name] = (np.round(w / step) * step).astype("f")
    return found


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [2, 5, 8, 24, 64])
def test_rounded_weights_lie_in_the_box(bits, per):
    params = {**PARAMS, "zero": np.zeros((2, 3), "f"), "count": np.array([[7]])}
    box, got = (
        bound.quantization_box(params, bits, per=per),
        rounded(params, bits, per=per),
    )
    for name in ("w0", "w1", "zero"):
        assert (box[name].lower <= got[name]).all()
        assert (got[name] <= box[name].upper).all()
    assert got["b0"] is params["b0"] and got["count"] is params["count"]


def test_what_does_not_fit_is_told_with_what_to_do():
    data = nets.apply, PARAMS, INPUTS, LABELS
    with pytest.raises(ValueError, match=r"method is 'lp'; wanted one of \['ibp'"):
        audit.certificates(*data, method="lp")
    with pytest.raises(ValueError, match=r"bits is 1; wanted 2..64"):
        audit.quantized(*data, bits=[8, 1])
    with pytest.raises(ValueError, match="bits has no numbers; wanted at least one"):
        audit.quantized(*data, bits=[])
    with pytest.raises(ValueError, match="no weights to quantize; wanted a floating"):
        audit.quantized(lambda p, x: x[:3] + p, np.zeros(3, "f"), INPUTS, LABELS)
