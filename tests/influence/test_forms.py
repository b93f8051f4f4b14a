"""Which parameters have factors, and that both forms of each gradient are exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.extend.core import jaxprs_in_params

from jaxmethods.influence import forms, self_influence, tracin
from jaxmethods.influence._contract import (
    Factors,
    Lookups,
    Rows,
    inner,
    norm_stays_factored,
    pairs_stay_factored,
    squared_norm,
)
from jaxmethods.influence._gradients import alike, per_example, read_loss
from tests.influence.definition import (
    assert_close,
    at,
    draw,
    gradients,
    scores,
)

CASES = {}


def case(shapes, example, *, factored, words=None):
    """Adds a loss: its parameters' shapes, its example's, and which have factors.

    Args:
        words: The example is whole numbers below this.
    """

    def add(loss):
        CASES[loss.__name__] = (loss, shapes, example, words, set(factored.split()))
        return loss

    return add


def build(name, n=5, m=3):
    """(loss, params, train, test, factored) of a case, in the default precision."""
    loss, shapes, example, words, factored = CASES[name]
    params = {
        k: wide(draw(i, shape, max(1, np.prod(shape[:-1], dtype=int)) ** -0.5))
        for i, (k, shape) in enumerate(shapes.items())
    }

    def examples(seed, n):
        if words is None:
            return wide(draw(seed, (n, *example)))
        found = np.random.default_rng(seed).integers(0, words, (n, *example))
        return jnp.asarray(found, jnp.int32)

    return loss, params, examples(10, n), examples(11, m), factored


def wide(x):
    return jnp.asarray(np.asarray(x, float))


def squares(x):
    return jnp.sum(jnp.sin(x) ** 2)


@case({"wx": (3, 12), "wh": (4, 12), "b": (12,)}, (6, 3), factored="wx wh")
def gates_that_are_sliced(p, x):
    def cell(h, x):
        gates = x @ p["wx"][:, :8] + h @ p["wh"][:, :8] + p["b"][:8]
        z, r = jnp.split(jax.nn.sigmoid(gates), 2)
        n = jnp.tanh(x @ p["wx"][:, 8:] + (r * h) @ p["wh"][:, 8:] + p["b"][8:])
        h = (1 - z) * n + z * h
        return h, h

    return squares(lax.scan(cell, jnp.ones(4), x)[1])


@case(
    {"i": (3, 4), "f": (3, 2), "hi": (4, 4), "hf": (4, 2)}, (5, 3), factored="i f hi hf"
)
def kernels_that_are_joined(p, x):
    def cell(h, x):
        kernels = [jnp.concatenate([p[a], p[b]], 1) for a, b in ("if", ("hi", "hf"))]
        a, b = jnp.split(x @ kernels[0] + h @ kernels[1], [4], axis=-1)
        return jnp.tanh(a) * jnp.concatenate([b, b]), None

    return squares(lax.scan(cell, jnp.ones(4), x, reverse=True)[0])


@case({"w": (3, 4, 4), "v": (2, 4, 4)}, (4,), factored="w v")
def layers_that_are_scanned(p, x):
    def layer(h, w):
        # A loop in a loop: the inner one has its own layers, and all rounds share w.
        inner, _ = lax.scan(lambda h, v: (jnp.tanh(h @ v + h @ w), None), h, p["v"])
        return jnp.sin(inner), None

    return squares(lax.scan(layer, x, p["w"])[0])


@case({"w": (2, 3, 4, 4), "e": (2, 5, 4)}, (3,), factored="w e", words=5)
def tables_and_layers_of_two_loops(p, tokens):
    def outer(h, entry):
        w, e = entry

        def layer(h, w):
            return jnp.tanh(h @ w) + e[tokens].sum(0), None

        return lax.scan(layer, h, w, reverse=True)[0], None

    return squares(lax.scan(outer, jnp.ones(4), (p["w"], p["e"]))[0])


@case(
    {"e": (7, 3), "f": (7, 3), "g": (7, 3), "w": (3, 2)},
    (4,),
    factored="e f g w",
    words=11,
)
def look_ups_out_of_range(p, tokens):
    # Dropped, clipped, and clipped one at a time.
    a = jnp.take(p["e"], tokens, axis=0, mode="fill", fill_value=0.5)
    b = p["f"].at[tokens].get(mode="clip")
    c = jax.vmap(lambda t: lax.dynamic_index_in_dim(p["g"], t, 0, keepdims=False))
    return squares((a + b * c(tokens.astype(jnp.uint8))) @ p["w"])


@case({"e": (3, 7), "f": (2, 7, 3), "g": (7, 3)}, (4,), factored="e f g", words=7)
def look_ups_along_other_axes(p, tokens):
    rows = lax.dynamic_slice_in_dim(p["g"], tokens[0], 4)
    middle = p["f"][:, tokens]
    return squares(p["e"][:, tokens].T * rows) + squares(middle * rows[None])


@case({"e": (7, 3), "w": (3, 3)}, (4,), factored="e w", words=7)
def a_tied_table(p, tokens):
    def cell(h, token):
        h = jnp.tanh(h @ p["w"] + p["e"][token])
        return h, jax.nn.log_softmax(h @ p["e"].T)[tokens[0]]

    return lax.scan(cell, jnp.ones(3), tokens)[1].sum() + squares(p["e"][tokens[1]])


@case({"e": (9, 3), "w": (3, 3)}, (4,), factored="e w", words=5)
def a_table_of_two_parts(p, tokens):
    lower, upper = p["e"][:5], p["e"][5:]
    h = lower[tokens] @ p["w"] + upper[tokens % 4]
    return squares(h @ lower.T)


@case(
    {"q": (6, 2, 3), "kv": (6, 12), "o": (2, 3, 6), "c": (12, 6)},
    (5, 6),
    factored="q kv o c",
)
def attention(p, x):
    q = jnp.einsum("td,dhk->htk", x, p["q"])
    k, v = (
        jnp.einsum("td,dhk->htk", x, w.reshape(6, 2, 3))
        for w in jnp.split(p["kv"], 2, axis=1)
    )
    w = jax.nn.softmax(q @ k.swapaxes(1, 2))
    h = jnp.einsum("htk,hkd->td", w @ v, p["o"])
    # Stored by heads, and with its axes merged in the other order.
    c = p["c"].reshape(2, 6, 6).transpose(1, 0, 2).reshape(12, 6)
    return squares(jnp.concatenate([h, x], 1) @ c)


@case({"w": (3, 4, 2), "k": (3, 1, 6), "l": (2, 2, 2, 4)}, (3, 8, 4), factored="w k l")
def heads_and_depthwise_convolutions(p, x):
    h = jnp.tanh(jnp.einsum("hti,hio->hto", x, p["w"]))
    h = h.transpose(1, 0, 2).reshape(1, 8, 6)
    how = dict(padding="SAME", feature_group_count=6)
    h = lax.conv_general_dilated(
        h, p["k"], (1,), **how, dimension_numbers=("NWC", "WIO", "NWC")
    )
    how = dict(padding="VALID", feature_group_count=2)
    image = jnp.tanh(h.reshape(1, 4, 3, 4))
    image = lax.conv_general_dilated(
        image, p["l"], (1, 1), **how, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return squares(image)


@case(
    {"w": (4, 4), "v": (4, 4), "u": (4, 4), "t": (4, 4), "s": (4, 4)},
    (4,),
    factored="s",
)
def what_has_no_factors(p, x):
    def cell(carry, _):  # a weight that changes from round to round
        h, w = carry
        return (jnp.tanh(h @ w), 0.9 * w), w.sum()

    (h, _), out = lax.scan(cell, (x, p["w"]), None, length=3)
    h = lax.cond(x[0] > 0, lambda h: h @ p["v"], lambda h: h, h)
    h = h + h[:3] @ p["u"][:3] + h[1:] @ p["u"][1:]  # rows that overlap
    h = h + jnp.tanh(p["t"]) @ h
    return squares(h @ p["s"]) + out.sum()


@jax.custom_jvp
def clipped(x):
    return jnp.clip(x, -0.5, 0.5)


clipped.defjvp(lambda x, t: (clipped(*x), 3 * t[0]))


@jax.custom_vjp
def product(x, w):
    return x @ w


product.defvjp(
    lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, 7 * jnp.outer(r[0], g))
)


@case({"w": (4, 4), "v": (4, 4), "u": (4, 4)}, (4,), factored="w")
def derivatives_of_the_users(p, x):
    def cell(h, _):
        return clipped(
            jax.checkpoint(lambda h: jax.jit(jnp.matmul)(h, p["w"]))(h)
        ), None

    h = lax.scan(cell, x, None, length=2)[0]
    return squares(product(h, p["v"]) + h @ clipped(p["u"]))


def both_forms(recipe, other, params, train, test):
    """Inner products and norms from factors, and from gradients in full."""
    found = per_example(recipe, params, train, recipe.factored)
    asked = per_example(other, params, test, other.factored)

    def formed(gradients):
        return {
            i: g.whole() if isinstance(g, Factors) else g for i, g in gradients.items()
        }

    for a, b in ((found, asked), (formed(found), formed(asked))):
        pairs = sum(inner(b[i], a[i]) for i in a if i in b)
        yield pairs, sum(map(squared_norm, a.values()))


@pytest.mark.parametrize("name", CASES)
def test_both_forms_are_the_definition(name, x64):
    loss, params, train, test, factored = build(name)
    example = at(train, 0)
    recipe = read_loss(loss, params, example, range(len(params)))
    report = forms(loss)(params, example)
    assert {k for (k,), form in report.items() if form.kind == "factors"} == factored
    a, b = gradients(loss, params, train, test)
    assert (np.abs(a).max(0) > 0).mean() > 0.3
    fn = jax.jit(lambda *args: list(both_forms(recipe, recipe, *args)))
    for pairs, norms in fn(params, train, test):
        assert_close(pairs, b @ a.T, rtol=1e-11)
        assert_close(norms, (a**2).sum(1), rtol=1e-11)


@pytest.mark.parametrize("name", ["gates_that_are_sliced", "a_tied_table"])
def test_sequences_of_different_lengths(name, x64):
    loss, params, train, test, factored = build(name)
    test = test[:, :-1]
    pair = alike(
        *(read_loss(loss, params, at(x, 0), range(len(params))) for x in (train, test))
    )
    for recipe in pair:
        leaves = {block.leaf for block in recipe.factored.values()}
        assert {sorted(params)[leaf] for leaf in leaves} == factored
    a, b = gradients(loss, params, train, test)
    fn = jax.jit(lambda *args: list(both_forms(*pair, *args)))
    for pairs, _ in fn(params, train, test):
        assert_close(pairs, b @ a.T, rtol=1e-11)


def test_parts_used_by_one_of_the_sets_alone_are_whole(x64):
    def loss(p, x):
        w = p["w"][:, :2] if len(x) > 3 else p["w"]
        return squares(x @ w) + squares(x @ p["v"])

    params = {"w": draw(0, (3, 4)), "v": draw(1, (3, 4))}
    long, short = draw(2, (2, 5, 3)), draw(3, (2, 2, 3))
    pair = alike(*(read_loss(loss, params, at(x, 0), [0, 1]) for x in (long, short)))
    for recipe in pair:
        assert {b.leaf for b in recipe.factored.values()} == {0}
        assert recipe.whole == {1: "its products differ between train and test"}
    a, b = gradients(loss, params, long, short)
    fn = jax.jit(lambda *args: list(both_forms(*pair, *args)))
    for pairs, _ in fn(params, long, short):
        assert_close(pairs, b @ a.T, rtol=1e-6)


def test_forms_say_where():
    def report(name):
        loss, params, train, *_ = build(name)
        return {k: form.place for (k,), form in forms(loss)(params, train[0]).items()}

    found = report("gates_that_are_sliced")
    assert found["wx"].count("dot_general at ") == 2
    assert ".cell)" in found["wh"]
    assert found["b"].startswith("add at ")
    found = report("kernels_that_are_joined")
    assert found["i"].count("dot_general at ") == 1
    found = report("a_tied_table")
    assert found["e"].count("dot_general at ") == 1
    assert found["e"].count("dynamic_slice at ") == 2
    found = report("what_has_no_factors")
    assert found["w"].startswith("scan at ")
    assert found["v"].startswith("cond at ")
    assert found["u"] == "its products pair its axes in different ways"
    assert found["t"].startswith("tanh at ")
    found = report("derivatives_of_the_users")
    assert found["v"].startswith("custom_vjp_call at ")
    assert found["u"].startswith("custom_jvp_call at ")


def shapes_in(jaxpr):
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for body in jaxprs_in_params(equation.params):
            yield from shapes_in(getattr(body, "jaxpr", body))


def test_a_large_table_is_neither_spelled_out_nor_filled():
    size, length, n = 1009, 4, 6

    def loss(p, tokens):
        return squares(jnp.tanh(p["e"][tokens]).sum(0) @ p["w"])

    params = {"e": draw(0, (1, size, 8)), "w": draw(1, (1, 8, 3))}
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, 20, (n, length)))
    for fn, sets in (
        (tracin(loss), (tokens, tokens)),
        (self_influence(loss), (tokens,)),
    ):
        jaxpr = jax.make_jaxpr(functools.partial(fn, params, [1.0]))(*sets)
        large = {shape for shape in shapes_in(jaxpr.jaxpr) if size in shape}
        assert large <= {(size, 8), (1, size, 8)}
    want = scores(loss, params, [1.0], tokens, tokens)
    assert_close(tracin(loss)(params, [1.0], tokens, tokens), want, rtol=1e-5)


def test_a_loop_keeps_factors_and_no_gradient_of_its_weight():
    d, length, n = 32, 3, 7

    def loss(p, x):
        return squares(lax.scan(lambda h, x: (jnp.tanh(h @ p + x), None), x[0], x)[0])

    examples = jnp.ones((n, length, d))
    jaxpr = jax.make_jaxpr(self_influence(loss))(jnp.ones((1, d, d)), [1.0], examples)
    assert (n, d, d) not in set(shapes_in(jaxpr.jaxpr))


def test_a_bias_is_summed_where_it_is_broadcast():
    d, length, n = 5, 400, 3

    def loss(b, x):
        return squares(x + b[None])

    examples = draw(0, (n, length, d))
    recipe = read_loss(loss, jnp.ones(d), examples[0], [0])
    fn = functools.partial(per_example, recipe, stay=())
    found = fn(jnp.ones(d), examples)[0]
    assert found.shape == (n, d)
    jaxpr = jax.make_jaxpr(fn)(jnp.ones(d), examples).jaxpr
    assert max(map(np.prod, shapes_in(jaxpr))) == n * length * d


def test_the_cheaper_form():
    # Two sequences of 8, a matrix 16 x 32: 8 8 (16 + 32) > 16 32.
    assert not pairs_stay_factored(Rows(8), Rows(8), (16, 32))
    assert pairs_stay_factored(Rows(8), Rows(1), (16, 32))
    assert pairs_stay_factored(Rows(1), Rows(1), (16, 32))
    assert not pairs_stay_factored(Rows(1), Rows(1), (1, 32))
    # Of two look-ups the left product is a comparison.
    assert pairs_stay_factored(Rows(0, 8), Rows(0, 8), (100, 32))
    assert not pairs_stay_factored(Rows(0, 8), Rows(0, 8), (64, 32))
    assert not pairs_stay_factored(Rows(8, 0), Rows(8, 0), (100, 32))
    # A norm: the gradient is formed once, here for 8 16 32 + 16 32.
    assert norm_stays_factored(Rows(8), (16, 32))
    assert not norm_stays_factored(Rows(12), (16, 32))
    assert norm_stays_factored(Rows(1), (1, 32))
    assert norm_stays_factored(Rows(0, 8), (100, 32))
    assert not norm_stays_factored(Rows(0, 8), (30, 32))


@settings(max_examples=6, deadline=None)  # each shape compiles
@given(
    st.lists(st.integers(1, 5), min_size=6, max_size=6),
    st.integers(0, 3),
    st.integers(0, 2),
    st.integers(0, 2**20),
)
def test_inner_products_of_any_factors(sizes, look_ups, groups, seed):
    (n, m, rows, columns, p, q), rng = sizes, np.random.default_rng(seed)
    lead = (groups,) if groups else ()

    def factors(n, rows):
        left = jnp.asarray(rng.integers(-3, 4, (n, *lead, rows, p)), jnp.float32)
        if look_ups:
            numbers = rng.integers(0, p, (n, *lead, look_ups))
            left = Lookups(jnp.asarray(numbers, jnp.int32), left, p)
            spelled = np.concatenate([np.eye(p)[numbers], left.others], -2)
        else:
            spelled = np.asarray(left)
        right = rng.integers(-3, 4, (n, *lead, look_ups + rows, q))
        whole = np.einsum("n...tp,n...tq->n...pq", spelled, right)
        return Factors(left, jnp.asarray(right, jnp.float32)), whole

    (a, whole), (b, other) = factors(n, rows), factors(m, columns)
    fn = jax.jit(lambda *ab: (ab[0].whole(), ab[0].in_long_rows(), inner(*ab)))
    formed, long, products = fn(a, b)
    np.testing.assert_array_equal(formed, whole)
    turned = p > q and not look_ups
    np.testing.assert_array_equal(long.swapaxes(-1, -2) if turned else long, whole)
    norms = jax.jit(squared_norm)(a)
    pairs = whole.reshape(n, -1) @ other.reshape(m, -1).T
    np.testing.assert_array_equal(products, pairs)
    np.testing.assert_array_equal(norms, (whole.reshape(n, -1) ** 2).sum(1))
    if look_ups:
        matrix = rng.integers(-3, 4, (p, 2)).astype(np.float32)
        spelled = np.asarray(a.left @ matrix)
        assert spelled.shape == (n, *lead, look_ups + rows, 2)
        np.testing.assert_array_equal(
            np.einsum("n...tk,n...tq->n...kq", spelled, a.right),
            np.einsum("pk,n...pq->n...kq", matrix, whole),
        )


def test_ids_outside_a_table_have_no_gradient():
    """As `jax.grad` has it, although the value is read from the last row."""
    table = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))
    loss = lambda p, ids: jnp.sum(jnp.tanh(p["e"][ids]))  # noqa: E731
    train, test = jnp.asarray([[0, 9], [4, 1]]), jnp.asarray([[9, 9], [4, 2]])
    a, b = gradients(loss, {"e": table}, test, train)
    got = tracin(loss)([{"e": table}], [1.0], train, test)
    np.testing.assert_allclose(got, a @ b.T, rtol=1e-5, atol=1e-6)
