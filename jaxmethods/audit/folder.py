"""The folder that a report goes to, looked at before the work starts."""

import shutil
from pathlib import Path


def check_writable(out: Path, room: int) -> None:
    """Makes a folder, or raises unless it can be written and its disk has room.

    Args:
        out: The folder.
        room: Bytes that will be written, at most.

    Raises:
        OSError: It cannot be written, or its disk is full.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"the report folder {out} cannot be written ({error.strerror}); choose "
            "another with --out."
        ) from error
    free = shutil.disk_usage(out).free
    if free < room:
        raise OSError(
            f"the disk of the report folder {out} has {free / 1e6:.1f} MB left; wanted "
            f"{room / 1e6:.0f} MB for the report and what belongs to it: make room, or "
            "choose another with --out."
        )


def write_files(out: Path, files: dict[str, str], hint: str) -> None:
    """Writes texts to a folder.

    Args:
        out: The folder, which is there.
        files: Name -> content.
        hint: What to do where one cannot be written.

    Raises:
        OSError: A file cannot be written; says which.
    """
    for name, content in files.items():
        try:
            (out / name).write_text(content)
        except OSError as error:
            raise OSError(
                f"{out / name} cannot be written ({error.strerror}); {hint}"
            ) from error
