"""A conv net and an LSTM trained by workers that exchange AdaComp's messages.

    python -m benchmarks.papers.adacomp [--data FOLDER] [--seeds N] [--quick]
                                        [--out DIR]

AdaComp (Chen et al. 2017, arXiv:1712.02679): bins of 50 entries in convolutions and of
500 in dense and recurrent layers, vectors sent as they are, beside the plain mean and
top-k, each in `optax.chain` with the same clipping and the same optimizer, by 4 workers
(8 in one row) that share a batch of 128:

- the zoo's conv net (convolutions of 16 and 32 channels, dense layers of 100 and 10) on
  20,000 images of MNIST, SGD with momentum;
- an LSTM of 64 cells on the phrases of SST-2, the 4,000 most frequent words embedded in
  32 numbers, Adam.

For each: the accuracy on the test set, median and range over seeds; the points below
the plain mean, seed by seed, their median; and how many times smaller a message is than
the gradient in float32, of the whole net and by kind of layer, in two ways:
`ecr_wire`, of all bytes that leave with a message, free slots, scales and vectors
included, and after it `ecr_paper`, of 8 or 16 bits an entry that is sent and nothing
else, as the paper counts. A message goes to all other workers, each of them; an
all-reduce of the dense gradient sends 2 (N - 1) / N gradients. `psum/wire` compares the
two as the compiled programs of N devices have them. `digits` sends a ternary digit for
every entry, sent or not; a number of slots is what a bin has room for.

`--quick` trains the conv net alone, on the digits that ship with the package. `--out`
takes the folder for `adacomp.json` and the plot `adacomp.png`, filled dots for
`ecr_wire` and hollow ones for `ecr_paper`.

Last result, one core of an x86_64 machine with much else running, jax 0.10.2, 3 seeds,
1,106 CPU seconds for all; ecr_wire / ecr_paper:

    conv net            accuracy in %         points  all         convolution  dense
    mean                97.84 (97.82-97.92)     0.00    1            1           1
    top-k 1 %           97.89 (97.88-97.90)    -0.05   50           50          50
    adacomp, 4 slots    97.73 (97.68-97.74)     0.14  173 / 447     49 / 90    249 / 568
    top-k 0.2 %         97.54 (97.47-97.55)     0.35  246          235         250
    adacomp, 2 slots    97.57 (97.52-97.67)     0.25  296 / 658     97 / 131   496 / 839
    adacomp, digits     97.78 (97.78-97.80)     0.06   20 / 314     20 / 78     20 / 375
      4 slots, N = 8    97.04 (96.93-97.17)     0.88  173 / 464     49 / 93    249 / 591

    LSTM                                              all         recurrent    dense
    mean                88.43 (88.02-88.67)     0.00    1            1           1
    top-k 1 %           88.24 (88.00-88.70)     0.43   50           50          50
    adacomp, 4 slots    87.85 (87.81-87.97)     0.46  175 / 688    241 / 389   248 / 807

With 4 slots a bin the bytes that leave are 49 times fewer for convolutions and 249
times fewer for dense layers at a seventh of a point; more than half of the slots stay
free. 8 workers with 16 examples each, instead of 4 with 32, lose 0.9 points in as many
steps. The advantage over `psum` is half of ecr_wire with 4 workers, a quarter with 8:
messages go to everyone. The LSTM's loss shrinks with the length of the training: of
1,600 steps at twice the learning rate adacomp and top-k lost 0.7 points each.
"""

import json

import jax

from jaxmethods.data import load_digits, load_mnist
from jaxmethods.shard import adacomp, top_k

from ..zoo.tasks import CONVOLUTION_STEPS, LSTM_STEPS, digits, enlarged, sentiment
from ..zoo.workers import Setting, plot, study
from .command_line import read_options, timed


def bits(kind: str) -> int:
    """Of an entry on the paper's wire: a place in a bin of 50 or of 500, and a sign."""
    return 8 if kind == "convolution" else 16


def settings(kind: str) -> list[Setting]:
    """Of "quick", "LSTM" and "convolutions"; the plain mean first."""
    mean = Setting("mean", None)
    four = Setting("adacomp, 4 slots", adacomp(slots=4), bits)
    if kind == "quick":
        return [mean, four]
    found = [mean, Setting("top-k 1 %", top_k(sparsity=0.99)), four]
    if kind == "LSTM":
        return found
    return [
        *found,
        Setting("top-k 0.2 %", top_k(sparsity=0.998)),
        Setting("adacomp, 2 slots", adacomp(slots=2), bits),
        Setting("adacomp, digits", adacomp(), bits),
        four._replace(name="adacomp, 4 slots, N = 8", workers=8),
    ]


def main() -> None:
    options = read_options(
        "adacomp", __doc__, seeds="of each training", quick="the shipped digits"
    )
    jax.config.update("jax_num_cpu_devices", 8)  # for the bytes, nothing runs on them
    with timed():
        if options.quick:
            task = digits(enlarged(load_digits()), steps=200)
            rows = study(task, settings("quick"), 1)
        else:
            task = digits(load_mnist(options.data / "mnist"), steps=CONVOLUTION_STEPS)
            rows = study(task, settings("convolutions"), options.seeds)
            task = sentiment(options.data / "sst2", steps=LSTM_STEPS)
            rows += study(task, settings("LSTM"), options.seeds)
    if options.out:
        (options.out / "adacomp.json").write_text(json.dumps(rows, indent=1) + "\n")
        plot(options.out / "adacomp.png", rows, "ecr_paper")


if __name__ == "__main__":
    main()
