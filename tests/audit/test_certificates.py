"""Certified shares are those of `bound`, called by hand, and they are sound."""

from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import audit, bound
from jaxmethods.audit.certificates import AT_ONCE, chosen, inputs_at_once, is_certified
from jaxmethods.audit.cost import Cost
from jaxmethods.audit.levels import held
from jaxmethods.audit.quantized import is_certified_for_weights, rounded

from . import nets

MODULE = import_module("jaxmethods.audit.certificates")
QUANTIZED = import_module("jaxmethods.audit.quantized")
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


@pytest.mark.parametrize("few, method", [(10**9, "crown"), (10, "crown_ibp")])
def test_crown_is_taken_where_its_operations_are_few(monkeypatch, few, method):
    monkeypatch.setattr(MODULE, "_FEW", few)
    costs = iter([Cost(400, 1), Cost(1000, 1), Cost(1, 1)])
    monkeypatch.setattr(MODULE, "cost", lambda *_: next(costs))
    data = nets.apply, PARAMS, INPUTS, LABELS
    got = audit.certificates(*data, eps=EPS)
    monkeypatch.undo()
    assert got == audit.certificates(*data, eps=EPS, method=method)
    assert got.method == method


def test_twice_the_inputs_cost_twice_as_much(monkeypatch):
    def needs(method):
        return Cost(entries={"crown": 100, "crown_ibp": 10}[method], largest=1)

    monkeypatch.setattr(MODULE, "_FEW", 1000)
    assert chosen("auto", needs, 10)[0] == "crown"
    assert chosen("auto", needs, 11) == ("crown_ibp", Cost(10, 1))
    assert chosen("crown", needs, 11) == ("crown", Cost(100, 1))


def test_crown_is_taken_where_it_costs_little_more_than_crown_ibp(monkeypatch):
    monkeypatch.setattr(MODULE, "_FEW", 1)
    for entries, method in ((20, "crown"), (21, "crown_ibp")):
        costs = {"crown": Cost(entries, 1), "crown_ibp": Cost(10, 1)}
        assert chosen("auto", costs.get, 100) == (method, costs[method])


@pytest.mark.parametrize("method", ["crown", "crown_ibp", "ibp"])
def test_where_arrays_are_large_fewer_inputs_and_rows_are_taken(monkeypatch, method):
    data = nets.apply, PARAMS, INPUTS, LABELS
    whole = audit.certificates(*data, eps=EPS, method=method)
    calls = []

    def watched(*args, **options):
        calls.append(options["num_rows"])
        assert args[2].shape == (1, 5)
        return is_certified(*args, **options)

    monkeypatch.setattr(MODULE, "AT_ONCE", 40)
    monkeypatch.setattr(MODULE, "is_certified", watched)
    monkeypatch.setattr(MODULE, "cost", lambda *_: Cost(70, 70))
    assert audit.certificates(*data, eps=EPS, method=method) == whole
    assert calls == [None if method == "ibp" else 10]


def test_where_arrays_are_large_fewer_inputs_have_their_weights_bounded(monkeypatch):
    data = nets.apply, PARAMS, INPUTS, LABELS
    whole = audit.quantized(*data, bits=[8, 4])
    sizes = []

    def watched(*args, **options):
        sizes.append(len(args[2]))
        return is_certified_for_weights(*args, **options)

    monkeypatch.setattr(QUANTIZED, "cost", lambda *_: Cost(70, AT_ONCE // 3))
    monkeypatch.setattr(MODULE, "on_cpu", lambda: False)
    monkeypatch.setattr(QUANTIZED, "is_certified_for_weights", watched)
    assert audit.quantized(*data, bits=[8, 4]) == whole
    assert sizes == [3]


def test_cpus_take_as_many_inputs_as_their_memory_is_quick_with(monkeypatch):
    assert inputs_at_once(Cost(0, 2**18)) == 4 and inputs_at_once(Cost(0, 2**30)) == 1
    monkeypatch.setattr(MODULE, "on_cpu", lambda: False)
    assert inputs_at_once(Cost(0, 2**18)) == AT_ONCE // 2**18


def test_what_rounded_weights_get_wrong_is_not_bounded(monkeypatch):
    asked = []

    def watched(holds, levels, *data, **options):
        asked.append(options.get("start"))
        return held(holds, levels, *data, **options)

    monkeypatch.setattr(QUANTIZED, "held", watched)
    audit.quantized(nets.apply, PARAMS, INPUTS, LABELS, bits=[8, 4])
    nearest = to_nearest(8, "tensor")
    right = nets.right(nets.apply, nearest, INPUTS, LABELS)
    assert asked[:2] == [None, None] and (asked[2] == right).all()
    assert not right[list(nets.WRONG)].any()


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


def test_grids_finer_than_half_precision_leave_weights_alone():
    weight = jnp.array([[0.3, -0.7], [1.5, 0.01]], jnp.float16)
    for bits in (20, 24):
        assert np.array_equal(rounded(weight, bits), weight)


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
    with pytest.raises(
        ValueError, match=r"method is 'lp'; wanted one of \['auto', 'ibp'"
    ):
        audit.certificates(*data, method="lp")
    with pytest.raises(ValueError, match=r"bits is 1; wanted 2..64"):
        audit.quantized(*data, bits=[8, 1])
    with pytest.raises(ValueError, match="bits has no numbers; wanted at least one"):
        audit.quantized(*data, bits=[])
    with pytest.raises(ValueError, match="no weights to quantize; wanted a floating"):
        audit.quantized(lambda p, x: x[:3] + p, np.zeros(3, "f"), INPUTS, LABELS)
