"""Batches and managers, read bit by bit, give what arrays give."""

import functools
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.influence import (
    _chunks,
    _walk,
    aggregate,
    opponents,
    proponents,
    self_influence,
    tracin,
)
from jaxmethods.influence._streams import (
    cut_batches,
    group_batches,
    is_stream,
    read_batches,
)
from tests.influence.definition import assert_close, draw


class Loader:
    """Iterates over batches as a data loader does."""

    def __init__(self, *batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Manager:
    """Stands for an orbax manager: counts what it restores, and what is alive."""

    def __init__(self, checkpoints):
        self.checkpoints, self.restored, self.alive = checkpoints, [], []
        self.most_alive = 0

    def all_steps(self):
        return [30, 10, 20][: len(self.checkpoints["w"])]

    def restore(self, step, args):
        k = sorted(self.all_steps()).index(step)
        self.restored.append(k)
        alive = sum(ref() is not None for ref in self.alive)
        self.most_alive = max(self.most_alive, alive)
        tree = jax.tree.map(lambda x: x[k] + 0, self.checkpoints)
        self.alive.append(weakref.ref(tree["w"]))
        return tree


def batches(x, *sizes):
    ends = np.cumsum(sizes)
    assert ends[-1] == len(x)
    return [x[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def loss(p, x):
    return jnp.sum(jnp.sin(x @ p["w"] + p["b"]))


def build(count, n, m):
    """(loss, checkpoints, rates, train, test): small, as it is compiled often."""
    checkpoints = {"w": draw(0, (count, 6, 4)) / 2, "b": draw(1, (count, 4))}
    rates = jnp.asarray([0.5, 0.25, 1.0])[:count]
    return loss, checkpoints, rates, draw(2, (n, 6)), draw(3, (m, 6))


@functools.cache
def case():
    return build(3, 23, 5)


ALL = {
    "tracin": (tracin, True),
    "aggregate": (aggregate, True),
    "self_influence": (self_influence, False),
    "proponents": (functools.partial(proponents, k=4), True),
    "opponents": (functools.partial(opponents, k=4), True),
}


def call(name, checkpoints=None, train=None, **options):
    loss, stacked, rates, examples, test = case()
    make, tested = ALL[name]
    sets = (examples if train is None else train, test)[: 1 + tested]
    scores = make(loss)
    return scores(
        stacked if checkpoints is None else checkpoints, rates, *sets, **options
    )


@functools.cache
def wanted(name):
    return call(name)


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), got, want)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(got))


def test_what_a_stream_is():
    x = np.ones((4, 2))
    for stream in (iter([x]), (x for _ in range(2)), Loader(x), map(np.sin, [x])):
        assert is_stream(stream)
    for arrays in (x, jnp.ones(3), [x, x], (x,), {"x": x}, None, 2.0, "text"):
        assert not is_stream(arrays)


@pytest.mark.parametrize("name", ALL)
def test_batches_give_what_arrays_give(name):
    train = np.asarray(case()[3])
    some = batches(train, 6, 6, 6, 5)
    assert_same(call(name, train=iter(some)), wanted(name))


@pytest.mark.parametrize("sizes", [(3, 9, 0, 11), (1,) * 23, (23,), (0, 20, 3)])
def test_batches_of_any_size(sizes):
    some = batches(case()[3], *sizes)
    name = "proponents" if 0 in sizes else "tracin"
    assert_same(call(name, train=Loader(*some)), wanted(name))
    if len(sizes) == 1:
        assert_same(call(name, train=(batch for batch in some)), wanted(name))


@pytest.mark.parametrize("name", ALL)
def test_a_manager_is_read_once_one_checkpoint_in_memory_at_a_time(name):
    manager = Manager(case()[1])
    assert_same(call(name, checkpoints=manager), wanted(name))
    assert manager.restored == [0, 1, 2]
    assert manager.most_alive == 0


def test_a_manager_is_read_once_a_block(monkeypatch):
    # Room for 8 examples of 6 numbers.
    monkeypatch.setattr(_walk, "HELD", 50)
    some = batches(case()[3], *[4] * 5, 3)
    for name in ("tracin", "opponents"):
        manager = Manager(case()[1])
        got = call(name, checkpoints=manager, train=iter(some))
        assert_same(got, wanted(name))
        assert manager.restored == [0, 1, 2] * 3
        assert manager.most_alive == 0
        manager = Manager(case()[1])
        assert_same(call(name, checkpoints=manager), wanted(name))
        assert manager.restored == [0, 1, 2] * 3


@pytest.mark.parametrize("name", ["tracin", "proponents", "aggregate"])
def test_little_room(name, monkeypatch):
    # For the gradients of two test examples, and the scores of some training ones.
    monkeypatch.setattr(_chunks, "BUDGET", 80)
    some = batches(case()[3], 10, 10, 3)
    assert_same(call(name, train=iter(some)), wanted(name))


def test_programs_are_compiled_once(monkeypatch):
    # What is compiled is traced, and what is traced is chunked.
    traced = []

    def counted(*args):
        traced.append(1)
        return _chunks.map_chunks(*args)

    monkeypatch.setattr(_walk, "map_chunks", counted)
    call("tracin", Manager(case()[1]), train=iter(batches(case()[3], *[5] * 4, 3)))
    assert sum(traced) == 1


def test_visits_and_a_preconditioner_go_along():
    _, checkpoints, _, train, _ = case()
    visits = np.random.default_rng(0).integers(0, 3, (3, 23)) / 4
    diagonal = jax.tree.map(lambda x: 0.5 + x**2, checkpoints)
    options = {"visits": visits, "precondition": diagonal}
    managed = {"visits": visits, "precondition": Manager(diagonal)}
    some = iter(batches(train, 9, 9, 5))
    got = call("opponents", Manager(checkpoints), some, **managed)
    assert_same(got, call("opponents", **options))


def test_progress_is_shown_where_wanted(capsys):
    loss, checkpoints, rates, train, test = case()
    tracin(loss, progress=False)(checkpoints, rates, iter([train]), test)
    tracin(loss)(checkpoints, rates, iter([train]), test)  # No terminal, not long.
    assert capsys.readouterr().err == ""
    tracin(loss, progress=True)(checkpoints, rates, iter([train]), test)
    shown = capsys.readouterr().err
    assert "checkpoint 1 of 3, examples up to 23" in shown
    assert shown.endswith("\n")
    self_influence(loss, progress=True)(Manager(checkpoints), rates, train)
    assert "[" in capsys.readouterr().err


def test_cutting_and_grouping():
    x = {"x": np.arange(17.0), "y": np.arange(34).reshape(17, 2)}
    cut = list(cut_batches([x], 5))
    assert [(b.start, b.count, len(b.examples["x"])) for b in cut] == [
        (0, 5, 5),
        (5, 5, 5),
        (10, 5, 5),
        (15, 2, 5),
    ]
    assert cut[-1].examples["x"].tolist() == [15, 16, 16, 16, 16]
    assert cut[-1].numbers(99).tolist() == [15, 16, 99, 99, 99]
    assert [[b.start for b in block] for block in group_batches(cut, 12)] == [
        [0, 5],
        [10, 15],
    ]
    keys = jax.random.split(jax.random.key(0), 3)
    (first, second) = cut_batches([keys], 2)
    assert (
        jax.random.key_data(second.examples).tolist()
        == [jax.random.key_data(keys)[2].tolist()] * 2
    )
    assert first.count == 2


def test_what_is_refused():
    loss, checkpoints, rates, train, test = case()
    scores = functools.partial(tracin(loss), checkpoints, rates)
    with pytest.raises(ValueError, match="train has no examples"):
        scores(iter([]), test)
    with pytest.raises(
        ValueError, match=r"batch 1 of train has .*wanted the same tree"
    ):
        scores(iter([train, train[:, :3]]), test)
    with pytest.raises(ValueError, match=r"batch 0 of train has leaves of shapes"):
        scores(iter([(train, test)]), test)
    with pytest.raises(ValueError, match=r"batches go in as an iterator: iter"):
        scores([train[:5], train[5:9]], test)
    with pytest.raises(ValueError, match=r"float32\[2\] for 3 checkpoints"):
        tracin(loss)(checkpoints, rates[:2], iter([train]), test)
    with pytest.raises(
        ValueError, match=r"visits has 20 numbers and train at least 23"
    ):
        scores(iter([train]), test, visits=np.ones(20))
    with pytest.raises(ValueError, match=r"visits has 30 numbers and train 23"):
        scores(iter([train]), test, visits=np.ones((3, 30)))
    with pytest.raises(TypeError, match=r"comes in batches, .*call it outside"):
        jax.jit(lambda test: scores(iter([train]), test))(test)
    with pytest.raises(TypeError, match=r"inside of jit, .*read in Python.*outside"):
        jax.jit(lambda: scores(iter([train]), test))()  # Nothing of its own is traced.
    with pytest.raises(TypeError, match="checkpoints from a manager"):
        manager = Manager(checkpoints)
        jax.jit(lambda train: self_influence(loss)(manager, rates, train))(train)
    spoiled = np.array(train)
    spoiled[17] = np.nan
    with pytest.raises(ValueError, match=r"not finite: the scores of train \[17\]"):
        scores(iter(batches(spoiled, 9, 9, 5)), test)


def test_a_manager_whose_checkpoints_differ():
    loss, checkpoints, rates, train, test = case()

    class Other(Manager):
        def restore(self, step, args):
            tree = super().restore(step, args)
            return tree if step < 30 else tree | {"w": tree["w"][:, :2]}

    hint = r"\('w',\) is float32\[6,2\] at the checkpoint of step 30"
    with pytest.raises(ValueError, match=hint):
        tracin(loss)(Other(checkpoints), rates, train, test)


def test_an_iterator_is_read_once():
    seen = []

    def loader():
        for number, batch in enumerate(batches(case()[3], 12, 11)):
            seen.append(number)
            yield batch

    call("self_influence", Manager(case()[1]), train=loader())
    assert seen == [0, 1]
    first = next(iter(read_batches(loader(), "train")))
    assert len(first) == 12
