"""Runs every notebook's source, and checks or writes the `.ipynb` made from it.

`python colabs/execute.py` runs the sources and fails where a notebook is stale;
`python colabs/execute.py --write` writes the notebooks.
"""

import subprocess
import sys
import time
from pathlib import Path

import jupytext

FOLDER = Path(__file__).parent


def notebook_text(source: Path) -> str:
    """The notebook of a percent-format source, without outputs."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        }
    }
    return jupytext.writes(notebook, fmt="ipynb") + "\n"


def main() -> int:
    """Runs or writes the notebooks; returns the number of failures."""
    failures = 0
    for source in sorted(FOLDER.glob("[0-9]*.py")):
        target = source.with_suffix(".ipynb")
        if "--write" in sys.argv:
            target.write_text(notebook_text(source))
            continue
        if not target.is_file() or target.read_text() != notebook_text(source):
            print(f"{target.name} is stale: run python colabs/execute.py --write")
            failures += 1
        start = time.monotonic()
        code = subprocess.run([sys.executable, source], check=False).returncode
        print(f"{source.name}: exit {code}, {time.monotonic() - start:.0f} s")
        failures += code != 0
    return failures


if __name__ == "__main__":
    sys.exit(main())
