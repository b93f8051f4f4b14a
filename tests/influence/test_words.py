"""TracIn through an embedding table: definition, laws, composition and errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxmethods.influence import _chunks, tracin, word_shares, words
from tests.influence.definition import assert_close, at, draw, gradients

VOCABULARY, WIDTH, PLACES = 9, 4, 5
PARAMS = {"emb": draw(0, (2, VOCABULARY, WIDTH)), "w": draw(1, (2, WIDTH, 3))}
RATES = jnp.asarray([0.5, 0.25])


def texts(seed, n, places=PLACES):
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, (n, places))
    return jnp.asarray(ids, jnp.int32)


TRAIN, TEST = texts(2, 6), texts(3, 4)


def head(p, rows):
    """A loss of looked-up rows in which places interact."""
    return jnp.sum(jnp.sin(jnp.tanh(rows.reshape(-1, WIDTH)).sum(0) @ p["w"]))


def by_index(p, tokens):
    return head(p, p["emb"][tokens])


def by_take(p, tokens):
    return head(p, jnp.take(p["emb"], tokens, axis=0))


def clipped(p, tokens):
    return head(p, jnp.take(p["emb"], 2 * tokens - 3, axis=0, mode="clip"))


def negative(p, tokens):
    return head(p, p["emb"][tokens - VOCABULARY])


def filled(p, tokens):
    return head(p, p["emb"].at[tokens + 2].get(mode="fill", fill_value=0.5))


def two_look_ups(p, tokens):
    first = p["emb"][tokens[:2]]
    return head(p, first) * jnp.sum(
        jnp.take(p["emb"], tokens[1:].reshape(2, 2), axis=0)
    )


def one_at_a_time(p, tokens):
    rows = [p["emb"][tokens[0]], p["emb"][tokens[1] - 1], p["emb"][tokens[2:3]]]
    return head(p, jnp.concatenate([r.reshape(1, WIDTH) for r in rows]))


def mapped(p, tokens):
    return head(p, jax.vmap(lambda t: p["emb"][t])(tokens))


def inside_calls(p, tokens):
    look_up = jax.checkpoint(jax.jit(lambda emb, t: jnp.tanh(emb[t])))
    return head(p, look_up(p["emb"], tokens))


def in_a_loop(p, tokens):
    def step(h, t):
        h = jnp.tanh(h + p["emb"][t])
        return h, h

    return head(p, lax.scan(step, jnp.zeros(WIDTH), tokens)[1])


def transposed(p, tokens):
    return head(p, jnp.take(p["emb"].T, tokens, axis=1).T)


def by_flax(p, tokens):
    embed = nn.Embed(VOCABULARY, WIDTH)
    return head(p, embed.apply({"params": {"embedding": p["emb"]}}, tokens))


LOSSES = (
    by_index,
    by_take,
    clipped,
    negative,
    filled,
    two_look_ups,
    one_at_a_time,
    mapped,
    inside_calls,
    in_a_loop,
    transposed,
    by_flax,
)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_definition(loss):
    want, size = 0.0, VOCABULARY * WIDTH  # The table comes first.
    for k, rate in enumerate([0.5, 0.25]):
        a, b = gradients(loss, at(PARAMS, k), TRAIN, TEST)
        want = want + rate * b[:, :size] @ a[:, :size].T
    got = jax.jit(words(loss, ("emb",)))(PARAMS, RATES, TRAIN, TEST)
    assert got.dtype == jnp.float32
    assert_close(got, want, 1e-5)


def test_half_precision_look_ups():
    def loss(p, tokens):
        return head(p, p["emb"].astype(jnp.bfloat16)[tokens].astype(jnp.float32))

    want = FUNCTIONS[()](PARAMS, RATES, TRAIN, TEST)
    # bfloat16 has 8 bits: the gradients are off by some of its steps.
    assert_close(words(loss, ("emb",))(PARAMS, RATES, TRAIN, TEST), want, 0.05)


def test_rows_that_are_matrices():
    table = {"deep": ({"table": draw(5, (1, VOCABULARY, 2, 3))},)}
    path = ("deep", 0, "table")

    def loss(p, tokens):
        rows = p["deep"][0]["table"][tokens]
        return jnp.sum(jnp.sin(jnp.einsum("tij,sji->tsi", rows, rows.swapaxes(1, 2))))

    want = tracin(loss)(table, [1.0], TRAIN, TEST)
    assert_close(words(loss, path)(table, [1.0], TRAIN, TEST), want, 1e-5)


def test_the_golden(shared, x64):
    with np.load(shared / "goldens" / "16-tracin.npz") as file:
        data = {k[5:]: jnp.asarray(file[k]) for k in file if k.startswith("txt__")}
    start = "params__"
    params = {k.removeprefix(start): v for k, v in data.items() if k.startswith(start)}

    def loss(p, example):
        h = p["emb.weight"][example[0]].mean(0)
        h = jnp.tanh(p["fc1.weight"] @ h + p["fc1.bias"])
        logits = p["fc2.weight"] @ h + p["fc2.bias"]
        return jax.nn.logsumexp(logits) - logits[example[1]]

    train, test = ((data[f"x_{s}"], data[f"y_{s}"]) for s in ("train", "test"))
    got = words(loss, ("emb.weight",))(params, data["lr"], train, test)
    assert_close(got, data["influence_layer__emb"], 1e-9)


FUNCTIONS = {
    exclude: jax.jit(words(by_index, ("emb",), exclude=exclude))
    for exclude in ((), (1,), tuple(range(0, 9, 2)), tuple(range(1, 9, 2)))
}
SHARES = jax.jit(word_shares(by_index, ("emb",), exclude=(1,)))
ids = st.integers(0, VOCABULARY - 1)


@settings(max_examples=25, deadline=None)
@given(st.lists(ids, min_size=25, max_size=25))
def test_only_shared_words_that_count(tokens):
    train, test = np.split(np.asarray(tokens, np.int32).reshape(5, PLACES), [3])
    found = {k: fn(PARAMS, RATES, train, test) for k, fn in FUNCTIONS.items()}
    whole, _, odd, even = found.values()
    assert_close(np.add(odd, even), whole, 1e-4)
    for exclude, score in found.items():
        shared = test[:, None, :, None] == train[None, :, None, :]
        shared &= ~np.isin(test, exclude)[:, None, :, None]
        assert not np.asarray(score)[~shared.any((2, 3))].any()


@settings(max_examples=25, deadline=None)
@given(st.lists(ids, min_size=25, max_size=25))
def test_shares_add_up_and_follow_the_places(tokens):
    train, test = np.split(np.asarray(tokens, np.int32).reshape(5, PLACES), [3])
    got = SHARES(PARAMS, RATES, train, test)
    assert got.shape == (2, 3, PLACES)
    assert_close(got.sum(-1), FUNCTIONS[1,](PARAMS, RATES, train, test), 1e-4)
    held = (test[:, None, :, None] == train[None, :, None, :]).any(-1)
    assert not np.asarray(got)[~held | (test == 1)[:, None]].any()


def test_training_and_test_texts_of_different_lengths():
    train, test = texts(6, 5, places=3), texts(7, 4, places=7)
    shares = jax.jit(word_shares(by_index, ("emb",)))(PARAMS, RATES, train, test)
    assert shares.shape == (4, 5, 7)
    want = jax.jit(tracin(by_index, where=[("emb",)]))(PARAMS, RATES, train, test)
    assert_close(shares.sum(-1), want, 1e-5)


def test_a_tied_output_layer_is_no_word():
    def tied(p, tokens, output):
        h = jnp.tanh(p["emb"][tokens[:-1]]).cumsum(0) @ output.T
        return jnp.sum(jax.nn.logsumexp(h, -1) - h[jnp.arange(4), tokens[1:]])

    def loss(p, tokens):
        return tied(p, tokens, p["emb"])

    def untied(p, tokens):
        return tied(p, tokens, lax.stop_gradient(p["emb"]))

    @jax.jit
    def every(*args):
        return words(loss, ("emb",))(*args), *(tracin(f)(*args) for f in (untied, loss))

    got, want, both = every(PARAMS, RATES, TRAIN, TEST)
    assert_close(got, want, 1e-5)
    asked, known = (np.asarray(x)[:, :-1] for x in (TEST, TRAIN))
    none = ~(asked[:, None, :, None] == known[None, :, None]).any((2, 3))
    assert none.any()
    assert not np.asarray(got)[none].any()
    assert np.asarray(both)[none].all()


def test_chunks_vmap_and_devices(monkeypatch):
    train = texts(4, 16)
    score = words(by_index, ("emb",))
    want = score(PARAMS, RATES, train, TEST)
    several = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), PARAMS)
    got = jax.jit(jax.vmap(score, (0, None, None, None)))(several, RATES, train, TEST)
    assert_close(got[0], want, 1e-5)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        lambda train: word_shares(by_index, ("emb",))(PARAMS, RATES, train, TEST),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P(None, "data"),
    )
    assert_close(jax.jit(mapped)(train).sum(-1), want, 1e-5)
    monkeypatch.setattr(_chunks, "BUDGET", 1)
    assert_close(score(PARAMS, RATES, train, TEST), want, 1e-5)


def test_no_text_no_row():
    assert words(by_index, ("emb",))(PARAMS, RATES, TRAIN, TEST[:0]).shape == (0, 6)
    shares = word_shares(by_index, ("emb",))(PARAMS, RATES, TRAIN, TEST[:0])
    assert shares.shape == (0, 6, PLACES)


def test_memory_does_not_hold_a_table_a_text():
    params = {"emb": jnp.zeros((1, 5000, 8)), "w": jnp.zeros((1, 8, 3))}

    def loss(p, tokens):
        return jnp.sum(jnp.sin(p["emb"][tokens] @ p["w"]))

    train = jax.ShapeDtypeStruct((512, PLACES), jnp.int32)
    fn = jax.jit(lambda train: words(loss, ("emb",))(params, [1.0], train, TEST))
    used = fn.lower(train).compile().memory_analysis().temp_size_in_bytes
    assert used < 0.05 * 512 * 5000 * 8 * 4


def test_batches_visits_and_a_text_that_is_not_finite():
    visits = jnp.arange(6.0)
    score = words(by_index, ("emb",))
    want = visits[None] * FUNCTIONS[()](PARAMS, RATES, TRAIN, TEST)
    got = score(PARAMS, RATES, iter([TRAIN[:4], TRAIN[4:]]), TEST, visits=visits)
    assert_close(got, want, 1e-5)

    def loss(p, example):
        return by_index(p, example[0]) * example[1]

    scaled = TRAIN, jnp.ones(6).at[2].set(jnp.nan)
    with pytest.raises(ValueError, match=r"not finite: the score.* of train.*2"):
        words(loss, ("emb",))(PARAMS, RATES, scaled, (TEST, jnp.ones(4)))


def test_bad_tables():
    def run(loss, table, **options):
        return words(loss, table, **options)(PARAMS, RATES, TRAIN, TEST)

    with pytest.raises(ValueError, match=r"nowhere.*known paths .*'emb'"):
        run(by_index, ("nowhere",))
    both = {"deep": PARAMS}
    with pytest.raises(
        ValueError, match=r"'deep',\) names 2 parameters; wanted the pa"
    ):
        words(lambda p, t: by_index(p["deep"], t), ("deep",))(both, RATES, TRAIN, TEST)
    with pytest.raises(
        ValueError, match=r"not look \('w',\) up by index; wanted whole"
    ):
        run(by_index, ("w",))
    with pytest.raises(ValueError, match=r"9; wanted 0\.\.8"):
        run(by_index, ("emb",), exclude=(0, 9))
    with pytest.raises(ValueError, match=r"-1; wanted 0\.\.8"):
        run(by_index, ("emb",), exclude=[-1])
    with pytest.raises(TypeError, match=r"exclude is int 1; .*: exclude=\(1,\)"):
        run(by_index, ("emb",), exclude=1)
    with pytest.raises(TypeError, match=r"exclude is float 1\.0; wanted a Python"):
        run(by_index, ("emb",), exclude=[1.0])


@jax.custom_jvp
def looked_up(table, tokens):
    return table[tokens]


looked_up.defjvp(lambda p, t: (looked_up(*p), t[0][p[1]]))


def some_entries(p, tokens):
    return jnp.sum(p["emb"][tokens, 1:3])


def columns(p, tokens):
    return jnp.sum(jnp.take(p["emb"], tokens % WIDTH, axis=1))


def half_the_rows(p, tokens):
    return jnp.sum(p["emb"][:, :2][tokens])


def in_a_branch(p, tokens):
    return lax.cond(tokens[0] > 0, lambda: p["emb"][tokens].sum(), lambda: 0.0)


def with_its_own_derivative(p, tokens):
    return jnp.sum(looked_up(p["emb"], tokens))


@pytest.mark.parametrize(
    ("loss", "hint"),
    [
        (some_entries, r"used by gather at .*\(some_entries\).*wanted whole rows"),
        (
            columns,
            "a part of .*'emb'.* is looked up; wanted whole rows of it, words on",
        ),
        (half_the_rows, "a part of .*'emb'.* is looked up; wanted whole rows"),
        (in_a_branch, r"used by cond at .*\(in_a_branch\).*outside branches"),
        (with_its_own_derivative, "custom_jvp_call .* and custom derivatives"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_look_ups_that_are_not_followed(loss, hint):
    with pytest.raises(NotImplementedError, match=hint):
        words(loss, ("emb",))(PARAMS, RATES, TRAIN, TEST)
