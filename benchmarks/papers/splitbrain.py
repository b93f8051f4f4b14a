"""VGG on CIFAR-10 split over groups of devices: memory, bytes, time, equal losses.

    python -m benchmarks.papers.splitbrain [--data FOLDER] [--quick] [--out DIR]

SplitBrain (Lai, Kadav, Kruus 2021, arXiv:2112.15317) replicates convolutions and splits
wide dense layers over groups of K devices: up to 67 % less memory, the paper says. Here
8 virtual devices form 8 / K groups. Everything is one training step, SGD with momentum,
of a net with three dense layers, by the plan of `shard.splitbrain` and, with
`shard.modulo_layer` by hand, by the schemes A, B and C:

- bytes: VGG-11 with dense layers 512-4096-4096-10, from compiled programs of which none
  runs and nothing is allocated. Parameters and momentum are the program's arguments
  without the batch; all memory adds temporaries and results; `sent` is `shard.wire`.
  Beside them the plan's predictions, and the paper's count with every dense layer
  split: c + f / K parameters, 2 (N - 1) / N c + 2 (D - 1) / D f / K numbers sent for
  gradients and 2 (K - 1) B for each width that the group gathers;
- the 67 %: F (1 - 1 / K) is saved where a share F of the parameters is dense;
- the number of images a device from which splitting sends more;
- time, on one core that all 8 devices share: convolutions cost there what they cost one
  device, so what is saved is work done twice, not what a pod of devices saves. An
  eighth of the processor's time stands for a device's; a link of some speed is
  simulated by adding the bytes over the speed, without latency and without overlap;
- losses: a net of 3 convolutions, dense layers 512-256-256-10, 100 steps of 64 images
  of CIFAR-10 (3,805 images of exact pixels), beside training on one device.

`--quick` takes fewer cases, and digits that ship with the package. `--out` takes the
folder for `splitbrain.json` and the plot `splitbrain.png`.

Last result, one core of an x86_64 machine with much else running, jax 0.10.2, 434 s
(432 CPU s). VGG-11, MB a device, of all memory the plan's estimate in brackets:

           parameters, momentum  all memory, by images a device       sent
           compiled     formula  8          64         128            8      64     128
    K = 1  225.2          225.2  450 (345)  451 (398)  560 (458)  197.0   197.0   197.0
    K = 2  149.6 -33.5 %  149.5  235 (232)  314 (284)  478 (345)  121.8   123.8   126.2
    K = 4  111.9 -50.3 %  111.6  186 (175)  276 (228)  441 (288)   84.6    90.8    97.9
    K = 8   93.0 -58.7 %   92.7  173 (147)  270 (200)  446 (261)   66.9    81.3    97.9

The plan's parameters and momentum are the compiled program's to the byte, what it says
is sent lacks 7 bytes, of the loss. The formulas split the last layer too, which
the plan replicates: 0.2 to 0.3 MB. The estimate of all memory is 1 to 41 % too low: XLA
holds gradients before and after an all-reduce, and convolutions take buffers. Counted
with them, at 128 images K = 4 saves 21 % and K = 8 no more.

    sent, MB  plan   A      B      C      64 images:  plan   A      B      C
    K = 2     121.8  122.0  122.1  122.1              123.8  125.9  126.5  126.1
    K = 4      84.6   85.4   85.6   85.4               90.8   97.1   98.7   97.5
    K = 8      66.9   68.7   69.2   68.8               81.3   96.0   99.7   96.9

By hand the second layer's sums go to all members, by the plan to the owner of a row. In
temporaries A, B and C do not differ, nor from the plan by more than 13 MB: gathered
rows are little beside what convolutions keep.

What arguments save, in brackets all memory, with 8 images a device; the formula is
within 0.1 points:

                                              dense   K = 2      4          8
    VGG-11, 512-4096-4096-10                  67.2 %  33.5 (48)  50.3 (59)  58.7 (62)
    VGG-16, 512-4096-4096-10                  56.3 %  28.1 (42)  42.1 (49)  49.1 (52)
    VGG-16, 25088-4096-4096-1000, 224 pixels  89.4 %  44.7 (21)  67.0 (31)  78.2 (35)
    VGG-11, 512-512-512-10                     5.4 %   2.7 (4)    4.0 (5)    4.7 (5)

So 67 % is what VGG-16 of ImageNet's size saves of its parameters at K = 4, and the
limit of VGG-11. Splitting sends more beyond 2,048 images a device (K = 2), 1,024 (4)
and 512 (8), which is f / (K (512 + 4096)), of the split f; that is where the plan stops
splitting, and the compiled program sends within 0.03 % of K = 1. A step of VGG-11 of
half the width, 4 images a device, in ms; one device takes 284 for all 32:

              processor  an eighth  MB sent  with 1 Gbit/s  10 Gbit/s
    K = 1           768         96     49.3            491        135
    K = 2           506         63     30.5            307         88
    K = 4           351         44     21.2            214         61
    K = 8           319         40     16.8            174         53
    K = 4, A        327         41     21.4            212         58
    K = 4, B        378         47     21.5            219         64
    K = 4, C        374         47     21.4            218         64

The largest difference of a loss from training on one device, 100 steps, plan and
schemes; `reversed` is one device again, the rows of each batch in reversed order:

                                 loss          K = 1   2 to 8             reversed
    float64, ReLU, max-pooling   2.30 to 1.82  9e-16   9e-16              9e-16
    float32, GELU, mean-pooling  2.31 to 2.11  5e-7    5e-7 to 7e-7       5e-7
    float32, ReLU, max-pooling   2.30 to 1.82  5e-7    5e-7 to 4.4e-4     4.4e-4

In float64 every K and scheme trains as one device does. In float32 so does a smooth
net. With ReLU and max-pooling a sum that is 0 to rounding, or two equal ones, send a
gradient one way or the other, after some 70 steps here: not within 1e-5, and no
closer on one device when the rows of a batch change places.
"""

import json
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxmethods import shard
from jaxmethods.data import load_digits

from ..harness import race
from ..zoo.vgg import DEVICES as N
from ..zoo.vgg import VGG_11, VGG_16, Vgg, abstract, arguments, grid, placed, trainer
from ..zoo.vgg import training_step as step_of
from .command_line import read_options, timed

MEMBERS, SCHEMES = (1, 2, 4, 8), "ABC"
MOMENTUM = optax.sgd(0.003, 0.9)
FULL = Vgg("VGG-11, 512-4096-4096-10", 32, VGG_11, (512, 4096, 4096, 10))
WIDTHS = (
    FULL,
    Vgg("VGG-16, 512-4096-4096-10", 32, VGG_16, (512, 4096, 4096, 10)),
    Vgg("VGG-16, 25088-4096-4096-1000", 224, VGG_16, (25088, 4096, 4096, 1000)),
    Vgg("VGG-11, 512-512-512-10", 32, VGG_11, (512, 512, 512, 10)),
)
SMALL = Vgg("small VGG", 32, (8, 0, 16, 0, 32, 0), (512, 256, 256, 10))
PAIR = {("dense0",): "column", ("dense1",): "row"}
BATCH = 64  # images of a training step, of all devices
LINKS = (1e9, 1e10)  # bits a second
# XLA's default on CPU runs ahead at the price of memory, an accelerator's does not; and
# machine code that nothing runs need not be fast.
COMPILED = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_backend_optimization_level": 0,
}


def planned(net: Vgg, members: int, images: int, **options: Any) -> shard.Plan:
    """What `shard.splitbrain` chooses, with momentum counted."""
    return shard.plan(
        net.loss,
        *abstract(net, N * images),
        mesh=grid(members),
        optimizer=MOMENTUM,
        **options,
    )


def formulas(net: Vgg, members: int, images: int) -> dict[str, float]:
    """Bytes a device by the paper's count, every dense layer split."""
    groups = N // members
    convolutions, dense = net.count("conv"), net.count("dense")
    sent = 2 * (N - 1) / N * convolutions + 2 * (groups - 1) / groups * dense / members
    # The rows that the group gathers for a layer, and their gradients.
    sent += 2 * (members - 1) * images * sum(net.dense[:2])
    if members == 1:
        sent = 2 * (N - 1) / N * net.count()
    held = 2 * (convolutions + dense / members)
    return {"held_formula": 4 * held, "wire_formula": 4 * sent}


def sent(net: Vgg, plan: shard.Plan, images: int, scheme: str = "") -> float:
    """Bytes that a device sends in a compiled step."""
    step = step_of(net, MOMENTUM, plan, scheme)
    args = arguments(net, MOMENTUM, plan, N * images)
    return shard.wire(step)(*args).total


def compiled(net: Vgg, members: int, images: int, scheme: str = "") -> dict[str, Any]:
    """Bytes a device of a compiled step, of its plan and by the formulas."""
    plan = planned(net, members, images)
    step = step_of(net, MOMENTUM, plan, scheme)
    args = arguments(net, MOMENTUM, plan, N * images)
    found = step.lower(*args).compile(compiler_options=COMPILED).memory_analysis()
    batch = sum(x.size * x.dtype.itemsize for x in args[2]) // N
    kept = found.output_size_in_bytes - found.alias_size_in_bytes
    whole = found.argument_size_in_bytes + found.temp_size_in_bytes + kept
    return {
        "net": net.name,
        "members": members,
        "images": images,
        "scheme": scheme or "plan",
        "split": {r.path[0]: r.choice for r in plan.rows if r.choice != "replicate"},
        "held": found.argument_size_in_bytes - batch,
        "held_plan": plan.parameter_bytes + plan.optimizer_bytes,
        "temporary": found.temp_size_in_bytes,
        "memory": whole,
        "memory_plan": plan.memory_bytes,
        "wire_plan": plan.wire_bytes,
        **formulas(net, members, images),
    }


def study_bytes(net: Vgg, quick: bool) -> list[dict[str, Any]]:
    """Memory and wire of one net, by members, images a device and scheme."""
    rows = []
    for images in (8,) if quick else (8, 64, 128):
        print(
            f"\n{net.name}, {images} images a device, MB a device\n"
            f"{'':10}{'parameters + momentum':>30}{'':8}{'tem-':>9}{'all memory':>18}"
            f"{'':8}{'sent':>24}\n{'':10}{'compiled':>10}{'plan':>10}{'formula':>10}"
            f"{'less':>8}{'porary':>9}{'compiled':>10}{'plan':>8}{'less':>8}"
            f"{'compiled':>10}{'plan':>7}{'formula':>9}"
        )
        first: dict[str, Any] = {}
        for members in (1, 8) if quick else MEMBERS:
            by_hand = SCHEMES if members > 1 and images < 128 else ""
            for scheme in ["", *("C" if quick and by_hand else by_hand)]:
                row = compiled(net, members, images, scheme)
                plan = planned(net, members, images)
                row["wire"] = sent(net, plan, images, scheme)
                first = first or row
                for name in ("held", "memory"):
                    row[f"{name}_less"] = 1 - row[name] / first[name]
                rows.append(row)
                print(bytes_line(row), flush=True)
    return rows


def bytes_line(row: dict[str, Any]) -> str:
    """A row of the table of bytes."""
    label = f"K = {row['members']}" if row["scheme"] == "plan" else ""
    label = label or f"  scheme {row['scheme']}"
    mega = {k: v / 1e6 for k, v in row.items() if isinstance(v, int | float)}
    by_plan = row["scheme"] == "plan"
    held, memory, wire = (
        mega[f"{k}_plan"] if by_plan else float("nan")
        for k in ("held", "memory", "wire")
    )
    return (
        f"{label:10}{mega['held']:10.1f}{held:10.1f}{mega['held_formula']:10.1f}"
        f"{row['held_less']:8.1%}{mega['temporary']:9.1f}{mega['memory']:10.1f}"
        f"{memory:8.1f}{row['memory_less']:8.1%}{mega['wire']:10.1f}{wire:7.1f}"
        f"{mega['wire_formula']:9.1f}"
    ).replace("nan", "  -")


def study_widths(nets: tuple[Vgg, ...], members: tuple[int, ...]) -> list[Any]:
    """What splitting saves by the widths of a net; prints a table."""
    print(
        "\nsaved by splitting: formula / arguments of the compiled program / all its "
        f"memory, 8 images a device\n{'':30}{'dense':>7}"
        + "".join(f"{f'K = {k}':>21}" for k in members)
    )
    rows = []
    for net in nets:
        share = net.count("dense") / net.count()
        first = compiled(net, 1, 8)
        cells = []
        for k in members:
            row = compiled(net, k, 8)
            row |= {"share": share, "formula_less": share * (1 - 1 / k)}
            for name in ("held", "memory"):
                row[f"{name}_less"] = 1 - row[name] / first[name]
            rows.append(row)
            saved = [row[f"{n}_less"] for n in ("formula", "held", "memory")]
            cells.append(" / ".join(f"{100 * x:.1f}" for x in saved))
        print(f"{net.name:30}{share:7.1%}" + "".join(f"{c:>21}" for c in cells))
    return rows


def study_crossing(net: Vgg, members: tuple[int, ...]) -> list[dict[str, Any]]:
    """From how many images a device splitting sends more; prints a table."""
    print(
        f"\n{net.name}, images a device from which splitting sends more\n"
        f"{'':10}{'formula':>9}{'plan':>9}{'split up to':>13}{'compiled there':>16}"
    )
    rows = []
    for k in members:
        whole = planned(net, 1, 8).wire_bytes
        one, two = (planned(net, k, b, choices=PAIR).wire_bytes for b in (8, 16))
        crossing = 8 + 8 * (whole - one) / (two - one)
        split, widths = net.count("dense0", "dense1"), sum(net.dense[:2])
        last, more = 8, int(2 * crossing)  # planned as split, planned as a whole
        while more - last > 1:
            middle = (last + more) // 2
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of nothing to split
                plan = planned(net, k, middle)
            chosen = any(row.choice != "replicate" for row in plan.rows)
            last, more = (middle, more) if chosen else (last, middle)
        images = round(crossing)
        plan = planned(net, k, images, choices=PAIR)
        wire = sent(net, plan, images)
        row = {
            "members": k,
            "formula": split / (k * widths),
            "plan": crossing,
            "last_split": last,
            "wire": wire,
            "over_data_parallel": wire / whole - 1,
        }
        rows.append(row)
        print(
            f"{f'K = {k}':10}{row['formula']:9.1f}{crossing:9.1f}{last:13}"
            f"{wire / 1e6:10.2f} MB, {row['over_data_parallel']:+.3%}",
            flush=True,
        )
    return rows


def study_time(net: Vgg, images: int, quick: bool) -> list[dict[str, Any]]:
    """Times a step of all devices of this machine, in turns; prints a table."""
    rng, rows = np.random.default_rng(0), N * images
    params = net.init(rng, np.float32)
    pixels = rng.standard_normal((rows, net.side, net.side, 3), np.float32)
    batch = pixels, rng.integers(10, size=rows, dtype=np.int32)
    cases = [(0, ""), *((k, "") for k in MEMBERS), *((4, s) for s in SCHEMES)]
    cases = [(0, ""), (1, ""), (8, "")] if quick else cases
    contestants, wire = {}, {}
    for members, scheme in cases:
        plan, *held, target = placed(net, MOMENTUM, members, params, batch)
        step = step_of(net, MOMENTUM, plan, scheme)
        given = jax.device_put(batch, target)
        name = f"K = {members}" + f", {scheme}" * bool(scheme)
        name = name if members else "one device"
        wire[name] = 0.0
        if plan is not None:
            by_hand = scheme and sent(net, plan, images, scheme)
            wire[name] = by_hand or plan.wire_bytes

        def once(held: Any = held, step: Any = step, given: Any = given) -> Any:
            held[0], held[1], loss = step(*held, given)  # held before is donated
            return held, loss

        contestants[name] = once
    taken = race(contestants, rounds=3 if quick else 5)
    print(
        f"\na step of {net.name}, {images} images a device, {N} devices of one machine"
        f"\n{'':14}{'CPU ms':>8}{'ms':>8}{'an eighth':>11}{'MB sent':>9}"
        f"{'at 1 Gbit/s':>13}{'10 Gbit/s':>11}"
    )
    found = []
    for name, timing in taken.items():
        share = timing.cpu_s if name == "one device" else timing.cpu_s / N
        links = [share + 8 * wire[name] / link for link in LINKS]
        row = {"name": name, "cpu_s": timing.cpu_s, "wall_s": timing.median_s}
        row |= {"device_s": share, "wire": wire[name], "simulated_s": links}
        found.append(row)
        print(
            f"{name:14}{1e3 * timing.cpu_s:8.0f}{1e3 * timing.median_s:8.0f}"
            f"{1e3 * share:11.0f}{wire[name] / 1e6:9.1f}"
            f"{1e3 * links[0]:13.0f}{1e3 * links[1]:11.0f}"
        )
    return found


def load_images(folder: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10 images of exact pixels, or the shipped digits at 32 x 32 in 3 channels.

    Normalized, with labels.
    """
    if folder is None:
        images, labels = load_digits().train
        images = images.repeat(4, 1).repeat(4, 2).repeat(3, 3)
    else:
        with np.load(folder / "cifar10_exact_3805_761.npz") as stored:
            images, labels = stored["x_train"] / 255, stored["y_train"]
    images = (images - images.mean((0, 1, 2))) / images.std((0, 1, 2))
    return images, labels.astype(np.int32)


def study_losses(
    net: Vgg, dtype: Any, data: tuple[np.ndarray, np.ndarray], quick: bool
) -> dict[str, Any]:
    """Trains on one device and split in all ways; prints the largest differences."""
    rng, (images, labels) = np.random.default_rng(0), data
    batches = []
    for _ in range(10 if quick else 100):
        rows = rng.integers(len(labels), size=BATCH)
        batches.append((images[rows].astype(dtype), labels[rows]))
    turned = [tuple(x[::-1] for x in batch) for batch in batches]
    train = partial(trainer, net, MOMENTUM, dtype, batches[0])
    one_device = train(0)
    alone = one_device(batches)
    off = {"reversed": np.abs(one_device(turned) - alone)}
    members = (4,) if quick else MEMBERS
    kind = "GELU, mean-pooling" if net.smooth else "ReLU, max-pooling"
    print(
        f"\n{np.dtype(dtype).name}, {kind}: {len(batches)} steps, loss "
        f"{alone[0]:.2f} to {alone[-10:].mean():.2f}; largest difference from one "
        f"device\n{'rows reversed':16}{off['reversed'].max():10.1e} on one device"
        f"\n{'':16}" + "".join(f"{f'K = {k}':>10}" for k in members)
    )
    for scheme in ("", "C") if quick else ("", *SCHEMES):
        cells = []
        for k in members:
            if scheme and k == 1:
                cells.append("-")
                continue
            gap = np.abs(train(k, scheme)(batches) - alone)
            off[f"K = {k}, {scheme or 'plan'}"] = gap
            cells.append(f"{gap.max():.1e}")
        label = f"scheme {scheme}" if scheme else "plan"
        print(f"{label:16}" + "".join(f"{c:>10}" for c in cells), flush=True)
    return {
        "dtype": np.dtype(dtype).name,
        "kind": kind,
        "losses": alone.tolist(),
        "differences": {name: gap.tolist() for name, gap in off.items()},
    }


def plot(path: Path, found: dict[str, Any]) -> None:
    """Draws memory, bytes sent, times, and what losses differ by."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    (memory, wire), (time, loss) = axes
    rows = [row for row in found["bytes"] if row["scheme"] == "plan"]
    most = max(row["images"] for row in rows)
    shown = [row for row in rows if row["images"] == most]
    labels = [f"K = {row['members']}" for row in shown]
    held = np.array([row["held"] for row in shown]) / 1e6
    rest = np.array([row["memory"] for row in shown]) / 1e6 - held
    memory.bar(labels, held, label="parameters and momentum")
    memory.bar(labels, rest, bottom=held, label="all else")
    memory.plot(labels, [row["held_plan"] / 1e6 for row in shown], "k_", ms=24)
    planned = [row["memory_plan"] / 1e6 for row in shown]
    memory.plot(labels, planned, "kx", ms=10, label="all, planned")
    memory.set(ylabel="MB a device", title=f"memory, {most} images a device")
    for k in dict.fromkeys(row["members"] for row in rows):
        of_k = [row for row in rows if row["members"] == k]
        images = [row["images"] for row in of_k]
        (line,) = wire.plot(images, [row["wire_plan"] / 1e6 for row in of_k])
        sent, color = [row["wire"] / 1e6 for row in of_k], line.get_color()
        wire.plot(images, sent, "o", color=color, label=f"K = {k}")
    wire.set(xlabel="images a device", ylabel="MB sent a device and step")
    wire.set(title="sent: plan (lines), compiled (dots)", ylim=(0, None))
    names = [row["name"] for row in found["time"]]
    time.barh(names, [1e3 * row["cpu_s"] for row in found["time"]])
    time.invert_yaxis()
    time.set(xlabel="CPU ms a step, all devices", title="time on one machine")
    for i, training in enumerate(found["training"]):
        for name, gaps in training["differences"].items():
            alone = name == "reversed"
            label = f"{training['dtype']}, {training['kind']}" if alone else None
            most = np.maximum(np.maximum.accumulate(gaps), 1e-17)
            style = dict(color=f"C{i}", lw=3 if alone else 1, alpha=0.6, label=label)
            loss.plot(most, "--" if alone else "-", **style)
    loss.set(
        yscale="log", xlabel="step", ylabel="largest difference of the loss so far"
    )
    loss.set(title="from one device (dashed: itself, rows reversed)")
    for axis in (memory, wire, loss):
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=130)


def main() -> None:
    options = read_options(
        "splitbrain", __doc__, data="cifar10", quick="fewer cases, the shipped digits"
    )
    jax.config.update("jax_num_cpu_devices", N)
    # Threads for the collectives of eight devices to wait on, and some to work with.
    os.environ["NPROC"] = "32"
    quick, found = options.quick, {}
    members = (4,) if quick else MEMBERS[1:]
    with timed():
        found["bytes"] = study_bytes(FULL, quick)
        found["widths"] = study_widths(WIDTHS[2:3] if quick else WIDTHS, members)
        found["crossing"] = study_crossing(FULL, members)
        part = 8 if quick else 2
        scaled = Vgg(
            f"VGG-11 of 1/{part} the width",
            32,
            tuple(width // part for width in VGG_11),
            (512 // part, 4096 // part, 4096 // part, 10),
        )
        found["time"] = study_time(scaled, 4, quick)
        data = load_images(None if quick else options.data)
        smooth = SMALL._replace(smooth=True)
        nets = [smooth] if quick else [smooth, SMALL]
        found["training"] = [study_losses(x, np.float32, data, quick) for x in nets]
        with jax.enable_x64(True):
            found["training"].append(study_losses(SMALL, np.float64, data, quick))
    if options.out:
        content = json.dumps(found, indent=1)
        (options.out / "splitbrain.json").write_text(content + "\n")
        plot(options.out / "splitbrain.png", found)


if __name__ == "__main__":
    main()
