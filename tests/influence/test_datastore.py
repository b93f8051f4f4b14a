"""Embeddings on disk give the scores, survive a break and refuse what is not theirs."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.influence import _chunks, _walk, datastore, tracin
from tests.influence.definition import assert_close
from tests.influence.test_streams import Manager, batches, build

KEY = jax.random.key(7)


@functools.cache
def case():
    return build(2, 20, 4)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Room for 8 examples of 6 numbers in a shard."""
    monkeypatch.setattr(_walk, "HELD", 50)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_walk, "HELD", 50)
        built(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy of a store that was built once, as building compiles."""
    return shutil.copytree(original, tmp_path / "copy")


def built(folder, project=6, **changes):
    loss, checkpoints, rates, train, _ = case()
    given = {"checkpoints": checkpoints, "rates": rates, "train": train, "key": KEY}
    given |= changes
    key = [] if project is None else [given.pop("key")]
    given.pop("key", None)
    build, _ = datastore(given.pop("loss", loss), project=project)
    names = ("checkpoints", "rates", "train")
    positional = [given.pop(name) for name in names]
    return build(*key, folder, *positional, **given)


@pytest.mark.parametrize("project", [None, 6])
def test_scores_and_tops_are_those_of_tracin(project, tmp_path, monkeypatch):
    loss, checkpoints, rates, train, test = case()
    store = built(tmp_path / "new" / "store", project)
    assert (store.num_examples, store.numbers) == (20, 2 * (project or 28))
    scores = tracin(loss, project=project)
    key = [] if project is None else [KEY]
    want = scores(*key, checkpoints, rates, train, test)
    assert_close(store.scores(test), want, 1e-5)
    assert len(list((tmp_path / "new" / "store").glob("*.npy"))) == 3
    monkeypatch.setattr(_chunks, "BUDGET", 200)  # Some rows of a shard at a time.
    assert_close(store.scores(test[:3]), want[:3], 1e-5)
    for top, sign in ((store.proponents, -1), (store.opponents, 1)):
        found = top(test, 5)
        at = np.argsort(sign * np.asarray(want), 1, kind="stable")[:, :5]
        np.testing.assert_array_equal(found.indices, at)
        assert_close(found.scores, np.take_along_axis(want, at, 1), 1e-5)


def test_self_influence_is_the_norm_of_what_is_kept(folder):
    loss, checkpoints, rates, train, _ = case()
    store = datastore(loss, project=6).open(folder, checkpoints)
    # The diagonal of the scores, sketched alike on both sides: unbiased as they are.
    scores = jax.jit(tracin(loss, project=6))(KEY, checkpoints, rates, train, train)
    assert_close(store.self_influence(), np.diag(scores), 1e-5)
    seen = "20 examples, 12 numbers each, of 2 checkpoints"
    assert repr(store) == f"Store({seen}, in '{folder}')"


def test_no_self_influence_with_visits(tmp_path):
    store = built(tmp_path, visits=np.ones(20))
    with pytest.raises(ValueError, match=r"with visits, .* call self_influence\(loss"):
        store.self_influence()


def test_opened_again(tmp_path):
    loss, checkpoints, _, _, test = case()
    want = built(tmp_path).scores(test)
    store = datastore(loss, project=6).open(tmp_path, checkpoints)
    np.testing.assert_array_equal(store.scores(test), want)
    manager = Manager(checkpoints)
    store = datastore(loss, project=6).open(str(tmp_path), manager)
    np.testing.assert_array_equal(store.scores(test), want)
    assert manager.most_alive == 0


def test_visits_a_preconditioner_batches_and_a_manager(tmp_path):
    loss, checkpoints, rates, train, test = case()
    visits = np.random.default_rng(0).integers(0, 3, (2, 20)) / 4
    diagonal = jax.tree.map(lambda x: 0.5 + x**2, checkpoints)
    options = {"visits": visits, "precondition": diagonal}
    rates = rates.at[0].set(0.0)
    want = tracin(loss)(checkpoints, rates, train, test, **options)
    stream = iter(batches(train, 5, 5, 5, 5))
    manager = Manager(checkpoints)
    store = built(
        tmp_path, None, checkpoints=manager, rates=rates, train=stream, **options
    )
    assert_close(store.scores(test), want, 1e-5)
    opened = datastore(loss).open(tmp_path, checkpoints, precondition=diagonal)
    assert_close(opened.scores(test), want, 1e-5)
    with pytest.raises(ValueError, match="built with other parameters"):
        datastore(loss).open(tmp_path, checkpoints)


def test_a_build_that_broke_off_goes_on(tmp_path):
    loss, checkpoints, _, train, test = case()
    want = built(tmp_path / "whole").scores(test)

    def breaking():
        yield from batches(train[:12], 4, 4, 4)
        raise OSError("no more")

    folder = tmp_path / "broken"
    with pytest.raises(OSError, match="no more"):
        built(folder, train=breaking())
    before = sorted(folder.glob("*.npy"))
    assert len(before) == 1
    with pytest.raises(ValueError, match=r"broken off after 8 examples.*build again"):
        datastore(loss, project=6).open(folder, checkpoints)
    times = [path.stat().st_mtime_ns for path in before]
    stream = iter(batches(train, *[4] * 5))
    assert_close(built(folder, train=stream).scores(test), want, 1e-5)
    assert [path.stat().st_mtime_ns for path in before] == times
    # Once more, there is nothing left to do.
    stream = iter(batches(train, *[4] * 5))
    assert_close(built(folder, train=stream).scores(test), want, 1e-5)


OTHERS = {
    "key": {"key": jax.random.key(8)},
    "learning_rates": {"rates": jnp.asarray([0.5, 0.3])},
    "checkpoints": {"checkpoints": jax.tree.map(lambda x: 2 * x, case()[1])},
    "project": {"project": 5},
    "visits": {"visits": np.ones(20)},
    "training examples or batches: examples 7..13": {"train": case()[3].at[9].set(0)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_is_of_one_build(name, folder):
    with pytest.raises(ValueError, match=f"other {name}"):
        built(folder, **OTHERS[name])


def test_more_or_fewer_training_examples(tmp_path):
    train = case()[3]
    some = functools.partial(batches, train)
    built(tmp_path, train=iter(some(8, 8, 4)))
    with pytest.raises(ValueError, match=r"20 training examples, now .* fewer"):
        built(tmp_path, train=iter(some(8, 8, 4)[:2]))
    with pytest.raises(ValueError, match=r"20 training examples, now .* more"):
        built(tmp_path, train=iter([*some(8, 8, 4), train[:8]]))


def test_opening_with_other_models(folder):
    loss, checkpoints, _, _, test = case()
    store = functools.partial(datastore, loss, project=6)
    wider = checkpoints | {"w": jnp.ones((2, 6, 5))}
    with pytest.raises(ValueError, match=r"parameters: \('w',\) float32\[6,4\], now"):
        store().open(folder, wider)
    with pytest.raises(ValueError, match=r"other checkpoints: number 1"):
        store().open(folder, jax.tree.map(lambda x: x.at[1].add(1e-3), checkpoints))
    with pytest.raises(ValueError, match=r"other where: .*\('b',\), now"):
        store(where=[("w",)]).open(folder, checkpoints)
    with pytest.raises(ValueError, match="other project: 6, now None"):
        datastore(loss).open(folder, checkpoints)
    with pytest.raises(ValueError, match=r"k is 21; wanted 1\.\.20"):
        store().open(folder, checkpoints).proponents(test, 21)


def test_a_test_set_on_which_the_loss_does_other_things(tmp_path):
    def loss(p, x):
        extra = jnp.sum(p["w"] ** 3) if len(x) > 3 else 0.0
        return jnp.sum(jnp.sin(x @ p["w"])) + extra

    params = {"w": jnp.ones((1, 2, 2))}
    build, _ = datastore(loss, project=3)
    store = build(KEY, tmp_path, params, jnp.ones(1), jnp.ones((5, 3, 2)))
    assert store.scores(jnp.ones((2, 2, 2))).shape == (2, 5)
    with pytest.raises(ValueError, match=r"float32\[4,2\] have gradients laid out"):
        store.scores(jnp.ones((2, 4, 2)))


def test_damaged_files_are_named(folder):
    loss, checkpoints, _, _, test = case()
    path = folder / "rows-00001.npy"
    whole = path.read_bytes()
    reopen = functools.partial(datastore(loss, project=6).open, folder, checkpoints)
    for damaged in (whole[:-8], b"nothing"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"rows-00001\.npy is not what was"):
            reopen()
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    store = reopen()  # Of the right size.
    with pytest.raises(ValueError, match=r"rows-00001\.npy is not what was"):
        store.scores(test)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"rows-00001\.npy is missing"):
        reopen()
    path.write_bytes(whole)
    assert store.scores(test).shape == (4, 20)


def test_a_damaged_index_is_named(folder):
    loss, checkpoints, *_ = case()
    reopen = functools.partial(datastore(loss, project=6).open, folder, checkpoints)
    index = folder / "index.json"
    text = index.read_text()
    index.unlink()
    with pytest.raises(FileNotFoundError, match=r"index\.json is missing"):
        reopen()
    for damaged in (text[:-20], "{}", "[]", text.replace('"format": 1', '"format": 9')):
        index.write_text(damaged)
        with pytest.raises(ValueError, match=r"index\.json cannot be read"):
            reopen()
    about = json.loads(text)
    about["about"]["sketch"] += 1  # A sketch drawn in another way.
    index.write_text(json.dumps(about))
    with pytest.raises(ValueError, match="other sketch"):
        reopen()


def test_what_is_refused(tmp_path):
    loss, checkpoints, rates, train, _ = case()
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(ValueError, match=r"holds \['letter\.txt'\] and no index"):
        built(tmp_path)
    with pytest.raises(ValueError, match="project is 0; wanted at least 1"):
        datastore(loss, project=0)
    with pytest.raises(TypeError, match="key is str 'folder'; wanted a typed key"):
        datastore(loss, project=6).build("folder", checkpoints, rates, train, train)
    with pytest.raises(ValueError, match=r"not finite: the scores of train \[13\]"):
        built(tmp_path / "spoiled", train=train.at[13, 2].set(jnp.nan))
