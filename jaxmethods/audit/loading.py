"""Models, checkpoints and data by name; what cannot be read is one sentence."""

import importlib
import importlib.util
import inspect
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np

from ..core import describe, leaf_paths
from .problems import one_line
from .saving import BEFORE, LINES
from .stored import read_orbax


def load_function(text: str) -> Any:
    """What `module:name` stands for.

    Args:
        text: A module, importable or the path of a `.py` file, and a name in it, which
            may have dots, such as `model:net.apply`.

    Raises:
        ValueError: The text has another form; the module is not found, fails or has no
            such name.

    Example:
        >>> load_function("math:sqrt")(4.0)
        2.0
    """
    place, colon, name = text.rpartition(":")
    if not (place and colon and name):
        raise ValueError(f"{text!r} names no function; wanted MODULE:FUNCTION.")
    try:
        found = _module(place)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"the module {place!r} cannot be imported ({one_line(error, named=True)}); "
            "wanted a module on the path or in this folder, or a .py file."
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            # Numbers and arrays have none.
            names = [n for n in getattr(found, "__dict__", ()) if n[:1] != "_"]
            raise ValueError(
                f"{place} has no {name!r}; wanted one of its names: "
                f"{', '.join(names[:12]) or 'there are none'}."
            )
        found = getattr(found, part)
    return found


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        # As `python -m` has it; a console script has not.
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        spec = importlib.util.find_spec(place)
        origin = None if spec is None else spec.origin
        return _loaded(origin) or importlib.import_module(place)
    path = Path(place).resolve()
    if loaded := _loaded(str(path)):
        return loaded
    # No library has this name; dots would make it a package's.
    name = quote(str(path), safe="").replace(".", "%2E")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file {place}")
    # It imports what lies beside it, as `python file.py` does.
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _loaded(file: str | None) -> Any:
    """The module of a file that ran; classes of a second run would be others."""
    for module in list(sys.modules.values()) if file else ():
        # Not `getattr`: lazy modules would import what is not there.
        if getattr(module, "__dict__", {}).get("__file__") == file:
            return module
    return None


def load_checkpoints(
    path: Path, *, subtree: str | None = None, like: str | None = None
) -> list[Any]:
    """The parameters in a checkpoint, oldest first where there are several.

    Args:
        path: An npz file, whose names are paths such as "Dense_0/kernel", or a folder
            that orbax wrote: of one checkpoint, or of a `CheckpointManager`, of which
            the last five are read.
        subtree: Where in it the parameters lie, such as "params"; None: everywhere.
        like: `module:name` of parameters of the structure that the model takes, or of a
            function that makes them; None: dicts and lists as they were saved.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: It holds something else, or is damaged; names and shapes are not
            those of `like`.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"no checkpoint {path}; wanted an npz file or a folder that orbax wrote."
        )
    trees = [_nested(_read_npz(path), path)] if path.is_file() else read_orbax(path)
    if subtree is not None:
        trees = [_inside(tree, subtree, path) for tree in trees]
    if like is not None:
        template = _template(like)
        trees = [_as(template, tree, like) for tree in trees]
    return trees


def load_data(
    path: Path, *, inputs: str = "inputs", labels: str = "labels"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Inputs and labels of an npz file; None where there are no labels.

    Args:
        path: The file.
        inputs: What it calls the inputs.
        labels: What it calls the labels.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no npz file, or has no inputs.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no data {path}; wanted an npz file, such as "
            "numpy.savez(path, inputs=x, labels=y) writes."
        )
    found = _read_npz(path)
    if inputs not in found:
        raise ValueError(
            f"{path} has no array {inputs!r} but {', '.join(found) or 'none'}; say "
            "which are the inputs with --inputs NAME."
        )
    return found[inputs], found.get(labels)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    why, hint, cause = _other_format(path), "", None
    if why is None:
        try:
            with np.load(path) as stored:
                found = {name: stored[name] for name in stored.files}
            others = [n for n, a in found.items() if not isinstance(a, np.ndarray)]
            if not others:
                return found
            why = f"it holds {others[0]}, which is no array"
            hint = ": of a model of PyTorch write p.detach().numpy() of each"
        except Exception as error:  # of numpy, zipfile or zlib
            # Numpy would have the file run what it holds.
            objects = "allow_pickle" in str(error)
            why = "it holds Python objects" if objects else one_line(error)
            cause = error
    raise ValueError(
        f"{path} cannot be read as an npz file ({why}); wanted what numpy.savez "
        f"writes, arrays of numbers alone{hint or _HINTS.get(why, '')}."
    ) from cause


def _other_format(path: Path) -> str | None:
    """What a file is that is no zip file; None for one that is."""
    with path.open("rb") as file:
        start = file.read(6)
        if start.startswith(b"PK"):
            return None
        if start == b"\x93NUMPY":
            file.seek(0)
            with suppress(ValueError):  # of objects, or cut off
                np.lib.format.read_array(file, allow_pickle=False)
            several = path.suffix == ".eqx" or file.read(1)
            return _EQUINOX if several else "a single array"
    if path.suffix in (".pkl", ".pickle") or start[:2] in _PICKLED:
        return _PICKLE
    if path.suffix == ".msgpack" or start[:1] in _MAPS:
        return _MSGPACK
    return "it is of another format"


_EQUINOX = "it is of equinox.tree_serialise_leaves, one array after the other"
_PICKLE = "it is a pickle"
_MSGPACK = "it is msgpack, as of flax.serialization.to_bytes"
_HINTS = {
    _EQUINOX: f": {BEFORE['equinox']}; {LINES['equinox']}; and --like MODULE:params",
    _PICKLE: ": load it in Python, where you trust it, and save its arrays",
    _MSGPACK: ": variables = flax.serialization.msgpack_restore(path.read_bytes()); "
    f"{BEFORE['flax linen']}; {LINES['flax linen']}",
}
_PICKLED = [b"\x80" + bytes([protocol]) for protocol in range(2, 6)]
_MAPS = [bytes([byte]) for byte in (*range(0x81, 0x90), 0xDE, 0xDF)]


def _nested(flat: dict[str, np.ndarray], path: Path) -> Any:
    """Arrays by path as dicts in dicts; unnamed ones as a list."""
    if flat and all(name == f"arr_{i}" for i, name in enumerate(flat)):
        return list(flat.values())
    tree: dict[str, Any] = {}
    for name, array in flat.items():
        *parents, last = name.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last in place:
            raise ValueError(
                f"{path} holds {name!r} beside an array of which the name is a part, "
                "or part of it; wanted names that are paths of arrays alone."
            )
        place[last] = array
    return tree


def _inside(tree: Any, subtree: str, path: Path) -> Any:
    for name in subtree.split("/"):
        if not isinstance(tree, dict) or name not in tree:
            names = list(tree) if isinstance(tree, dict) else [type(tree).__name__]
            raise ValueError(
                f"{path} has no {subtree!r}: at {name!r} there is "
                f"{', '.join(map(str, names))}; give one of them with --subtree."
            )
        tree = tree[name]
    return tree


def _template(like: str) -> Any:
    found = load_function(like)
    if not inspect.isfunction(found):
        return found
    try:
        return found()
    except Exception as error:
        raise ValueError(
            f"{like} fails when it is called ({one_line(error, named=True)}); wanted "
            "parameters, or a function without arguments that makes them."
        ) from error


def _as(template: Any, tree: Any, like: str) -> Any:
    """The arrays of a tree in the structure of another one, by their paths."""
    leaves, treedef = jax.tree.flatten(template)
    arrays = jax.tree.leaves(tree)
    if not isinstance(tree, list):
        named = dict(zip(map(_path, leaf_paths(tree)), arrays, strict=True))
        wanted = list(map(_path, leaf_paths(template)))
        for name, leaf in zip(wanted, leaves, strict=True):
            if _is_random(name, leaf):
                named.setdefault(name, leaf)
        if missing := [name for name in wanted if name not in named]:
            raise ValueError(
                f"the checkpoint has no {missing[0]!r}, which {like} has; it has "
                f"{', '.join(list(named)[:8])}: save the parameters of this structure."
            )
        arrays = [named[name] for name in wanted]
    if len(arrays) != len(leaves):
        raise ValueError(
            f"the checkpoint has {len(arrays)} arrays and {like} {len(leaves)}; wanted "
            "as many: save jax.tree.leaves of these parameters."
        )
    arrays = list(map(_keyed, arrays, leaves))
    for name, array, leaf in zip(leaf_paths(template), arrays, leaves, strict=True):
        if np.shape(array) != np.shape(leaf):
            raise ValueError(
                f"the checkpoint has {describe(array)} at {_path(name)!r} and {like} "
                f"{describe(leaf)}; wanted the same shape: is it another model's?"
            )
    return treedef.unflatten(arrays)


def _is_random(name: str, leaf: Any) -> bool:
    """Whether it is a key or a count of `nnx.Rngs`: no parameter, often not saved."""
    return "rngs" in name.split("/") and not jnp.issubdtype(leaf.dtype, jnp.inexact)


def _keyed(array: Any, leaf: Any) -> Any:
    """The data of a key as a key, where one is wanted."""
    if not _is_key(leaf) or _is_key(array):
        return array
    if np.shape(array) != jax.random.key_data(leaf).shape:
        return array
    return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _path(path: tuple[Any, ...]) -> str:
    # Of nnx, variables are saved with or without the last step to their value.
    return "/".join(map(str, path)).removesuffix("/value")
