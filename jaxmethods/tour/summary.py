"""What a tour found, in a dozen lines of the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def print_summary(findings: Mapping[str, Any], out: Path) -> None:
    """Prints the findings of a finished tour."""
    accuracy, wire = findings["accuracy"], findings["wire"]
    memory, labels = findings["memory"], findings["labels"]
    data, gradient = findings["data"], findings["gradient"]["layers"]
    noise = max(layer["noise"] for layer in gradient.values())
    print(f"\n{data['name']}: {data['num_train']} training, {data['num_test']} test")
    print("\n   eps    attacked  certified")
    rows = zip(
        accuracy["eps"], accuracy["attacked"], accuracy["certified"], strict=True
    )
    for eps, attacked, certified in rows:
        print(f"  {eps:6.4f}  {attacked:8.1%}  {certified:8.1%}")
    lines = {
        "clean accuracy": f"{accuracy['clean']:.1%}",
        "gradient noise (5-bit BHQ)": f"at most {noise:.2g} of the squared gradient",
        "bytes sent a device and step": (
            f"{wire['sent_bytes']:,.0f} against {wire['dense_bytes']:,.0f} dense: "
            f"{wire['ratio']:.0f} times less"
        ),
        "parameters a device": (
            f"{memory['measured_bytes']:,} bytes, planned {memory['plan_bytes']:,}, "
            f"data parallel {memory['data_parallel_bytes']:,}"
        ),
        "planted label errors found": (
            f"{labels['found_in_top_fifth']:.0%} of {labels['planted']} in the top 20 %"
        ),
        "time": f"{findings['machine']['total_s']} s",
        "report": str((out / "index.html").resolve()),
    }
    print()
    for name, value in lines.items():
        print(f"  {name:<30} {value}")
