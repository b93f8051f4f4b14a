"""The choice of an exchange: which, why, and that it exchanges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.shard import Candidate, Codec, adacomp, auto, int8, nbytes, wire
from jaxmethods.shard._auto import _default_candidates, _milliseconds

from .test_exchange import WORKERS, over_workers, stacked

GRADIENTS = {"w": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}


def chosen(bandwidth, workers=8, **options):
    return auto(GRADIENTS, "i", num_workers=workers, bandwidth=bandwidth, **options)


def test_slow_links_want_small_messages_and_fast_ones_the_mean():
    slow, fast = chosen(1e7), chosen(1e11)
    assert slow.name in ("adacomp", "dct") and fast.name == "mean"
    for choice in (slow, fast):
        assert choice.name == min(choice.seconds, key=choice.seconds.get)
        assert choice.reason.startswith(choice.name)
    # Of many workers all-to-all messages of a byte an entry are longer than a mean.
    many = chosen(1e8, workers=64).seconds
    assert many["int8 in two phases"] < many["mean"] < many["int8"]


def test_seconds_are_bytes_over_bandwidths():
    code = {"mean": Candidate(None), "int8": Candidate(int8(), reads=3)}
    got = chosen(1e6, workers=4, memory_bandwidth=1e9, candidates=code).seconds
    message = nbytes(
        jax.eval_shape(int8().encode, int8().init(GRADIENTS), GRADIENTS)[0]
    )
    assert got["mean"] == pytest.approx(2 * 3 / 4 * 4)
    touched = 3 * 4e6 + 4 * min(8 * message, 3 * 4e6)
    assert got["int8"] == pytest.approx(3 * message / 1e6 + touched / 1e9)


@pytest.mark.optimized
def test_what_it_predicts_is_what_is_sent():
    given = np.ones((WORKERS, 40, 30), np.float32)
    tree = given[0]
    for name in ("mean", "int8", "int8 in two phases", "adacomp"):
        every = auto(
            tree, "i", num_workers=WORKERS, bandwidth=1.0, memory_bandwidth=1e30
        )
        one = {name: _default_candidates()[name]}
        choice = auto(
            tree,
            "i",
            num_workers=WORKERS,
            bandwidth=1.0,
            memory_bandwidth=1e30,
            candidates=one,
        )
        assert choice.seconds[name] == pytest.approx(every.seconds[name])
        tx = choice.transformation
        state = jax.vmap(tx.init)(given)
        sent = wire(over_workers(tx.update))(given, state).total
        # Parts of two phases are filled up to one length.
        assert sent == pytest.approx(choice.seconds[name], rel=0.05)


def test_a_threshold_message_has_room_for_a_share_of_each_leaf():
    tree = {
        "embedding": jax.ShapeDtypeStruct((1000, 100), jnp.float32),
        **{str(i): jax.ShapeDtypeStruct((20, 50), jnp.float32) for i in range(20)},
        "bias": jax.ShapeDtypeStruct((20,), jnp.float32),
    }
    got = auto(tree, "i", num_workers=8, bandwidth=1.0, memory_bandwidth=1e30).seconds
    assert got["dct"] == pytest.approx(7 * 8 * (1000 + 20 * 10 + 1))
    # Leaves of one shape are counted once, and as often as they are there.
    message = jax.eval_shape(
        lambda g: adacomp(slots=8).encode(adacomp(slots=8).init(g), g)[0],
        jax.tree.map(lambda x: jnp.zeros(x.shape), tree),
    )
    assert got["adacomp"] == pytest.approx(7 * nbytes(message))


def test_a_codec_with_messages_of_its_own_is_counted_as_a_whole():
    whole = Codec(
        lambda tree: (),
        lambda state, tree: (sum(x.sum() for x in jax.tree.leaves(tree)), state),
        lambda message: message,
    )
    tree = [jnp.ones(3), jnp.ones(3)]
    got = auto(
        *(tree, "i"),
        num_workers=3,
        bandwidth=1.0,
        memory_bandwidth=1e30,
        candidates={"whole": Candidate(whole)},
    )
    assert got.seconds["whole"] == pytest.approx(2 * 4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "none"),
        (1e-6, "less than 0.01 ms"),
        (7e-5, "0.07 ms"),
        (3.6e-3, "3.6 ms"),
        (0.15, "150 ms"),
        (12.3, "12,300 ms"),
    ],
)
def test_milliseconds_are_plain(seconds, text):
    assert _milliseconds(seconds) == text


def test_the_plain_mean():
    choice = chosen(1e12)
    tx = choice.transformation
    got, _ = over_workers(tx.update)(stacked(), jax.vmap(tx.init)(stacked()))
    for name in stacked():
        want = np.broadcast_to(stacked()[name].mean(0), got[name].shape)
        np.testing.assert_allclose(got[name], want, rtol=1e-5, atol=1e-6)
    with pytest.raises(NameError, match="'i' is not bound here"):
        tx.update(GRADIENTS, tx.init(GRADIENTS))


def test_errors():
    with pytest.raises(
        ValueError, match="bandwidth is 0; wanted a finite number above"
    ):
        chosen(0)
    with pytest.raises(TypeError, match=r"bandwidth is .*; wanted a Python number"):
        chosen("fast")
    with pytest.raises(ValueError, match="memory_bandwidth is nan"):
        chosen(1.0, memory_bandwidth=float("nan"))
    with pytest.raises(ValueError, match="num_workers is 0; wanted at least 1"):
        chosen(1.0, workers=0)
    with pytest.raises(ValueError, match="candidates are empty"):
        chosen(1.0, candidates={})
    with pytest.raises(TypeError, match=r"is the function int8; wanted a Codec: call"):
        chosen(1.0, candidates={"int8": Candidate(int8)})
    with pytest.raises(TypeError, match="wanted a floating dtype"):
        auto({"w": jnp.ones(3, int)}, "i", num_workers=2, bandwidth=1.0)
