"""A folder of rows of numbers, larger than memory: written once, read many times.

The rows lie in shards, a `.npy` file each. The index, a small json beside them, says
what they are and which shards are whole; it is replaced after each shard. So a run that
was broken off can go on, and a file that is missing or was changed since is found.
"""

import json
import os
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

INDEX = "index.json"
FORMAT = 1


@dataclass(frozen=True)
class Shard:
    """One file.

    Attributes:
        name: Of the file.
        rows: How many rows it has.
        checksum: Of its numbers.
        source: A checksum of what the rows were made of.
    """

    name: str
    rows: int
    checksum: int
    source: int


@dataclass
class Shards:
    """The shards of a folder.

    Attributes:
        folder: Where they are.
        about: What they are: what json can say.
        shards: Those that are whole, in order.
        complete: Whether these are all.
        verified: The names of those whose numbers were looked through.
    """

    folder: Path
    about: dict[str, Any]
    shards: list[Shard] = field(default_factory=list)
    complete: bool = False
    verified: set[str] = field(default_factory=set)

    @property
    def num_rows(self) -> int:
        """The number of rows in all."""
        return sum(shard.rows for shard in self.shards)

    def append(self, rows: np.ndarray, source: int) -> None:
        """Writes one more shard."""
        name = f"rows-{len(self.shards):05d}.npy"
        part = self.folder / f"{name}.part"
        with part.open("wb") as file:
            np.save(file, rows)
        os.replace(part, self.folder / name)
        self.shards.append(Shard(name, len(rows), checksum(rows), source))
        self.save()

    def save(self) -> None:
        """Writes the index."""
        index = {
            "format": FORMAT,
            "jax": jax.__version__,
            "complete": self.complete,
            "about": self.about,
            "shards": [asdict(shard) for shard in self.shards],
        }
        part = self.folder / f"{INDEX}.part"
        part.write_text(json.dumps(index, indent=1))
        os.replace(part, self.folder / INDEX)

    def read(self, shard: Shard) -> np.ndarray:
        """The rows of a shard, on disk until they are used; looked through once.

        Raises:
            FileNotFoundError: The file is not there.
            ValueError: It is not what was written.
        """
        rows = self.find(shard)
        if shard.name not in self.verified:
            if checksum(rows) != shard.checksum:
                raise ValueError(_damaged(self.folder / shard.name))
            self.verified.add(shard.name)
        return rows

    def find(self, shard: Shard) -> np.ndarray:
        """The same, with a look at the size alone."""
        path = self.folder / shard.name
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing; wanted the {shard.rows} rows that were written "
                "to it: bring it back, or build the store anew in another folder."
            )
        try:
            rows = np.load(path, mmap_mode="r")
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(_damaged(path)) from error
        if len(rows) != shard.rows:
            raise ValueError(_damaged(path))
        return rows


def begin_shards(folder: Path, about: dict[str, Any]) -> Shards:
    """A folder to write to: a new one, or one in which the same was begun.

    Raises:
        ValueError: Something else is in the folder; the message names what differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / INDEX).exists():
        shards = load_shards(folder)
        check_same(shards.about, about, folder)
        return shards
    others = sorted(path.name for path in folder.iterdir())
    if others:
        raise ValueError(
            f"{folder} holds {others[:5]} and no {INDEX}; wanted an empty or new "
            "folder, or one in which the same store was begun."
        )
    shards = Shards(folder, about)
    shards.save()
    return shards


def load_shards(folder: Path) -> Shards:
    """The shards of a folder, their numbers unread.

    Raises:
        FileNotFoundError: There is no index.
        ValueError: It cannot be read.
    """
    path = folder / INDEX
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; wanted a folder that was built.")
    try:
        index = json.loads(path.read_text())
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']}, wanted {FORMAT}")
        shards = [Shard(**shard) for shard in index["shards"]]
        return Shards(folder, index["about"], shards, index["complete"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); wanted the index that was written: "
            "bring it back, or build the store anew in another folder."
        ) from error


def check_same(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    """Raises ValueError where a store was made of something else, which it names."""
    for name, value in wanted.items():
        if found.get(name) != value:
            before, now = _difference(found.get(name), value)
            raise ValueError(
                f"{folder} was built with other {name}: {before}, now {now}; wanted "
                "what it was built with, or another folder."
            )


def checksum(array: Any, start: int = 0) -> int:
    """A checksum of the bytes of an array, after those that gave `start`."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return zlib.crc32(flat.view(np.uint8).data, start)


def _damaged(path: Path) -> str:
    return (
        f"{path} is not what was written: it was cut or changed since; wanted the file "
        "as it was: bring it back, or build the store anew in another folder."
    )


def _difference(found: Any, wanted: Any) -> tuple[str, str]:
    """Two values that differ, or the first entries of theirs that do."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [*found, *wanted]
        key = next(k for k in keys if found.get(k) != wanted.get(k))
        before, now = (f"{key} {x.get(key, 'missing')}" for x in (found, wanted))
        return before, now
    if isinstance(found, list) and isinstance(wanted, list):
        pairs = enumerate(zip(found, wanted, strict=False))
        for i, (a, b) in pairs:
            if a != b:
                return f"number {i} {a}", f"{b}"
    return f"{found}", f"{wanted}"
