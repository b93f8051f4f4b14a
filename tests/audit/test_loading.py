"""Functions, checkpoints and data by name, and a sentence for what cannot be read."""

import gc
import pickle
import sys
import zipfile
from pathlib import Path

import equinox as eqx
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from jaxmethods.audit.loading import load_checkpoints, load_data, load_function
from jaxmethods.audit.saving import APPLY, BEFORE, LIKE, LINES

TREE = {"params": {"a": [np.ones(2, "f"), np.zeros((2, 3), "f")], "b": np.float32(4)}}
MODULE = """
import numpy as np
class net:
    @staticmethod
    def apply(params, x): return x
like = {"a": [np.zeros(2), np.zeros((2, 3))], "b": np.zeros(())}
def make(): return like
def needs(key): return like
other = {"a": [np.zeros(2), np.zeros((2, 2))], "b": np.zeros(())}
more = {**like, "c": np.zeros(1)}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that is found in this folder."""
    (tmp_path / "audited_net.py").write_text(MODULE)
    (tmp_path / "broken_net.py").write_text("raise SystemExit('no GPU')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # this folder is added to it
    monkeypatch.delitem(sys.modules, "audited_net", raising=False)
    return tmp_path


def load_module(name):
    load_function(f"{name}:net")
    return sys.modules[name]


def save(folder, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)
    return folder


def same(got, wanted):
    return jax.tree.all(jax.tree.map(np.array_equal, got, wanted))


@pytest.mark.parametrize("place", ["audited_net", "audited_net.py"])
def test_functions_of_modules_and_of_files(module, place):
    assert load_function(f"{place}:net.apply")(1, 2) == 2


def test_a_file_runs_once_beside_its_neighbours_and_replaces_no_library(module):
    (module / "beside").mkdir()
    (module / "beside" / "audited_layers.py").write_text("number = 5")
    source = "from audited_layers import number\nclass numpy: pass\n"
    (module / "beside" / "numpy.py").write_text(source)
    first = load_function("beside/numpy.py:numpy")
    assert load_function(f"{module}/beside/../beside/numpy.py:numpy") is first
    assert load_function("beside/numpy.py:number") == 5
    apply = load_function("audited_net.py:net.apply")
    assert load_function("audited_net:net.apply") is apply
    assert sys.modules["numpy"] is np and sys.modules[first.__module__].numpy is first


@pytest.mark.parametrize(
    "name, hint",
    [
        ("audited_net", "names no function; wanted MODULE:FUNCTION"),
        ("absent_net:apply", r"ModuleNotFoundError: .*; wanted a module on the path"),
        ("absent_net.py:apply", "no file absent_net.py.*or a .py file"),
        ("broken_net:apply", r"SystemExit: no GPU.*wanted a module"),
        ("math:pi.x", "math has no 'pi.x'; wanted one of its names: there are none"),
        ("audited_net:appply", "has no 'appply'; wanted one of its names: .*net"),
    ],
)
def test_functions_that_are_not_there_are_told(module, name, hint):
    with pytest.raises(ValueError, match=hint):
        load_function(name)


def test_an_npz_is_nested_by_path_or_a_list(module):
    flat = {"params/b": TREE["params"]["b"], "params/c/d": np.arange(3)}
    np.savez("named.npz", **flat)
    (got,) = load_checkpoints(module / "named.npz", subtree="params")
    assert same(got, {"b": flat["params/b"], "c": {"d": flat["params/c/d"]}})
    np.savez("list.npz", *jax.tree.leaves(TREE))
    (got,) = load_checkpoints(module / "list.npz")
    assert same(got, jax.tree.leaves(TREE))
    for like in ("like", "make"):
        (got,) = load_checkpoints(module / "list.npz", like=f"audited_net:{like}")
        assert same(got, TREE["params"])


def test_orbax_folders_of_one_tree_and_of_a_manager(tmp_path):
    (got,) = load_checkpoints(save(tmp_path / "one", TREE))
    assert same(got, TREE)
    with ocp.CheckpointManager(tmp_path / "many") as manager:
        for step in range(7):
            tree = {"w": np.full(2, step, "f")}
            manager.save(step, args=ocp.args.StandardSave(tree))
        manager.wait_until_finished()
    got = load_checkpoints(tmp_path / "many")
    assert [tree["w"][0] for tree in got] == [2, 3, 4, 5, 6]
    (last,) = load_checkpoints(tmp_path / "many" / "6")
    assert last["w"][0] == 6


def test_orbax_items_of_the_usual_name_are_taken(tmp_path):
    with ocp.CheckpointManager(tmp_path) as manager:
        items = {
            "params": ocp.args.StandardSave({"w": np.ones(2)}),
            "state": ocp.args.StandardSave({"mu": np.ones(2)}),
        }
        manager.save(0, args=ocp.args.Composite(**items))
        manager.wait_until_finished()
    assert list(load_checkpoints(tmp_path)[0]) == ["w"]


class Net(nnx.Module):
    def __init__(self):
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=nnx.Rngs(0))])


@pytest.mark.parametrize("pure", [True, False])
def test_states_of_nnx_come_back_as_they_are_taken(module, monkeypatch, pure):
    graph, state = nnx.split(Net())
    saved = nnx.to_pure_dict(state) if pure else state
    save(module / "nnx", saved)
    target = load_module("audited_net")
    monkeypatch.setattr(target, "like", nnx.to_pure_dict(state))
    (got,) = load_checkpoints(module / "nnx", like="audited_net:like")
    x = jnp.ones(2)
    wanted = Net().layers[0](x)
    np.testing.assert_array_equal(nnx.merge(graph, got).layers[0](x), wanted)


class Noisy(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(1))


@pytest.mark.parametrize("saved", ["state", "pure", "parameters"])
def test_keys_of_dropout_are_keys_again(module, monkeypatch, saved):
    graph, state = nnx.split(Noisy())
    trees = {"state": state, "pure": nnx.to_pure_dict(state)}
    trees["parameters"] = nnx.to_pure_dict(nnx.state(Noisy(), nnx.Param))
    save(module / "nnx", trees[saved])
    monkeypatch.setattr(load_module("audited_net"), "like", state)
    (got,) = load_checkpoints(module / "nnx", like="audited_net:like")
    keys = [nnx.merge(graph, s).drop.rngs.key.get_value() for s in (got, state)]
    assert keys[0].dtype == keys[1].dtype
    np.testing.assert_array_equal(*map(jax.random.key_data, keys))


def test_equinox_models_come_back_from_leaves(module, monkeypatch):
    net = eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(0))
    params, static = eqx.partition(net, eqx.is_array)
    np.savez("leaves.npz", *jax.tree.leaves(params))
    target = load_module("audited_net")
    monkeypatch.setattr(target, "like", jax.tree.map(jnp.zeros_like, params))
    (got,) = load_checkpoints(module / "leaves.npz", like="audited_net:like")
    x = jnp.ones(2)
    np.testing.assert_array_equal(eqx.combine(got, static)(x), net(x))


class Whole(nnx.Module):
    """With all that is hard to save: statistics, keys, layers in a list."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs)])
        self.norm = nnx.BatchNorm(3, use_running_average=True, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.norm(self.layers[0](x)))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x))


def networks():
    linen, x = Linen(), jnp.ones(2)
    variables = linen.init(jax.random.key(0), x)
    mlp = eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(0))
    return {
        "flax linen": (
            {"net": linen, "variables": variables},
            linen.apply(variables, x),
        ),
        "flax nnx": ({"net": (net := Whole())}, net(x)),
        "equinox": ({"net": mlp}, mlp(x)),
        "orbax": ({"params": variables}, linen.apply(variables, x)),
    }


@pytest.mark.parametrize("library", LINES)
def test_what_is_saved_as_the_help_says_is_read(module, monkeypatch, library):
    given, wanted = networks()[library]
    scope = {"np": np, "jax": jax, "nnx": nnx, "eqx": eqx, "ocp": ocp, "Path": Path}
    scope |= given
    for line in (BEFORE[library], LINES[library], APPLY.get(library)):
        exec(line or "apply = None", scope)
    like = None
    if library in LIKE:
        assert LIKE[library] == "--like model.py:params"
        empty = jax.tree.map(jnp.zeros_like, scope["params"])
        monkeypatch.setattr(load_module("audited_net"), "like", empty)
        like = "audited_net:like"
    file = "weights" if library == "orbax" else "weights.npz"
    (got,) = load_checkpoints(module / file, like=like)
    apply = scope["apply"] or Linen().apply
    np.testing.assert_array_equal(apply(got, jnp.ones(2)), wanted)


def test_other_formats_are_told_how_to_be_saved(tmp_path):
    tree = {"a": np.ones(2, "f"), "b": np.ones(3, "f")}
    eqx.tree_serialise_leaves(
        tmp_path / "m.eqx", eqx.nn.Linear(2, 3, key=jax.random.key(0))
    )
    eqx.tree_serialise_leaves(tmp_path / "one.eqx", np.ones(2))
    (tmp_path / "m.model").write_bytes((tmp_path / "m.eqx").read_bytes())
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(tree))
    (tmp_path / "m.bin").write_bytes(pickle.dumps(tree))
    (tmp_path / "m.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    (tmp_path / "packed").write_bytes(flax.serialization.to_bytes(tree))
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as file:
        file.writestr("archive/data.pkl", b"")
    equinox = r"equinox.tree_serialise_leaves.*eqx.partition\(.*np.savez\(.*--like"
    hints = dict.fromkeys(["m.eqx", "one.eqx", "m.model"], equinox)
    hints |= dict.fromkeys(["m.pkl", "m.bin"], "it is a pickle.*where you trust it")
    hints |= dict.fromkeys(["m.msgpack", "packed"], "msgpack_restore.*flatten_dict")
    hints["m.pt"] = "holds archive/data.pkl, which is no array.*PyTorch"
    for name, hint in hints.items():
        with pytest.raises(ValueError, match=hint) as told:
            load_checkpoints(tmp_path / name)
        text = str(told.value)
        assert "allow_pickle" not in text and "unsafe" not in text
        assert "cannot be read as an npz file" in text and "wanted what numpy" in text


@pytest.mark.parametrize(
    "how, hint",
    [
        (
            {"subtree": "weights"},
            "has no 'weights': at 'weights' there is params; give",
        ),
        ({"subtree": "params/b/c"}, "at 'c' there is ndarray"),
        ({"like": "audited_net:more"}, "no 'a/0', which audited_net:more has"),
        (
            {"subtree": "params", "like": "audited_net:other"},
            r"float32\[2,3\] at 'a/1'",
        ),
        ({"subtree": "params", "like": "audited_net:more"}, "has no 'c', which"),
        (
            {"like": "audited_net:needs"},
            "fails when it is called .*; wanted parameters",
        ),
        ({"like": "audited_net:none"}, "has no 'none'; wanted one of its names"),
    ],
    ids=str,
)
def test_checkpoints_of_another_structure_are_told(module, how, hint):
    flat = {"params/a/0": TREE["params"]["a"][0], "params/a/1": TREE["params"]["a"][1]}
    np.savez("flat.npz", **flat, **{"params/b": TREE["params"]["b"]})
    with pytest.raises(ValueError, match=hint):
        load_checkpoints(module / "flat.npz", **how)


def test_a_list_of_another_length_is_told(module):
    np.savez("two.npz", np.ones(2), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"2 arrays and audited_net:like 3; wanted as"):
        load_checkpoints(module / "two.npz", like="audited_net:like")


def test_checkpoints_that_are_none_are_told(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint .*; wanted an npz file or"
    ):
        load_checkpoints(tmp_path / "absent")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(
        ValueError, match=r"cannot be read as an npz file .*numpy.savez"
    ):
        load_checkpoints(tmp_path / "text.npz")
    for names in (["a", "a/b"], ["a/b", "a"], ["a", "a/b/c"]):
        np.savez(tmp_path / "names.npz", **dict.fromkeys(names, np.ones(1)))
        with pytest.raises(ValueError, match=r"names.npz holds .*; wanted names that"):
            load_checkpoints(tmp_path / "names.npz")
    np.savez_compressed(tmp_path / "bad.npz", a=np.random.default_rng(0).random(500))
    content = bytearray((tmp_path / "bad.npz").read_bytes())
    content[200:1200] = bytes(range(250)) * 4
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad.npz cannot be read as an npz file"):
        load_checkpoints(tmp_path / "bad.npz")
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        ValueError, match="no single checkpoint but nothing; wanted what"
    ):
        load_checkpoints(tmp_path / "folder")


# Orbax leaves coroutines of a loop that it closed, which warn when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_orbax_folder_is_refused(tmp_path):
    damaged = save(tmp_path / "damaged", TREE)
    for part in damaged.rglob("*"):
        if part.is_file() and "METADATA" not in part.name:
            part.unlink()
    with pytest.raises(ValueError, match=r"damaged cannot be read \(.*save it again"):
        load_checkpoints(damaged)
    gc.collect()


def test_data_are_arrays_by_name(tmp_path):
    np.savez(tmp_path / "d.npz", inputs=np.ones((2, 3)), labels=[0, 1], y=[1, 1])
    inputs, labels = load_data(tmp_path / "d.npz")
    assert inputs.shape == (2, 3) and labels.tolist() == [0, 1]
    assert load_data(tmp_path / "d.npz", labels="y")[1].tolist() == [1, 1]
    assert load_data(tmp_path / "d.npz", labels="z")[1] is None
    with pytest.raises(
        ValueError, match="no array 'x' but inputs, labels, y; say which"
    ):
        load_data(tmp_path / "d.npz", inputs="x")
    with pytest.raises(
        FileNotFoundError, match=r"numpy.savez\(path, inputs=x, labels=y"
    ):
        load_data(tmp_path / "absent.npz")
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"a single array.*; wanted what numpy.savez"):
        load_data(tmp_path / "one.npy")
    np.savez(tmp_path / "objects.npz", inputs=np.array([{}], object))
    with pytest.raises(ValueError, match=r"holds Python objects.*of numbers") as told:
        load_data(tmp_path / "objects.npz")
    assert "allow_pickle" not in str(told.value)
