"""Models, checkpoints and data by name; what cannot be read is one sentence."""

import importlib
import importlib.util
import inspect
import sys
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..core import describe, leaf_paths
from .problems import one_line
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
            names = [n for n in vars(found) if not n.startswith("_")]
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
        return importlib.import_module(place)
    path = Path(place)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up.
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


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
    trees = [_nested(_read_npz(path))] if path.is_file() else read_orbax(path)
    if subtree is not None:
        trees = [_inside(tree, subtree, path) for tree in trees]
    if like is not None:
        template = load_function(like)
        template = template() if inspect.isfunction(template) else template
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
    try:
        stored = np.load(path)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read as an npz file ({one_line(error)}); wanted what "
            "numpy.savez writes, arrays of numbers alone."
        ) from error


def _nested(flat: dict[str, np.ndarray]) -> Any:
    """Arrays by path as dicts in dicts; unnamed ones as a list."""
    if flat and all(name == f"arr_{i}" for i, name in enumerate(flat)):
        return list(flat.values())
    tree: dict[str, Any] = {}
    for name, array in flat.items():
        *parents, last = name.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
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


def _as(template: Any, tree: Any, like: str) -> Any:
    """The arrays of a tree in the structure of another one, by their paths."""
    leaves, treedef = jax.tree.flatten(template)
    arrays = jax.tree.leaves(tree)
    if not isinstance(tree, list):
        named = dict(zip(map(_path, leaf_paths(tree)), arrays, strict=True))
        wanted = list(map(_path, leaf_paths(template)))
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
    for name, array, leaf in zip(leaf_paths(template), arrays, leaves, strict=True):
        if np.shape(array) != np.shape(leaf):
            raise ValueError(
                f"the checkpoint has {describe(array)} at {_path(name)!r} and {like} "
                f"{describe(leaf)}; wanted the same shape: is it another model's?"
            )
    return treedef.unflatten(arrays)


def _path(path: tuple[Any, ...]) -> str:
    # Of nnx, variables are saved with or without the last step to their value.
    return "/".join(map(str, path)).removesuffix("/value")
