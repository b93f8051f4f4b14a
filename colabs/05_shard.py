# %% [markdown]
# # What should be where, and what must travel?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxmethods/jaxmethods/blob/main/colabs/05_shard.ipynb)
#
# Eight devices train one network. Give each a copy of everything, and memory and wires
# fill up with the few layers that hold most of the parameters. You will have a plan
# made that splits those and copies the rest, and hold its bytes and its memory against
# the compiled program; then send a fiftieth of the bytes and learn nearly as much; and
# in the end train without any exchange among all. About a minute on a CPU.

# %% [markdown]
# Install the package if it is not there yet. On Colab this takes half a minute; in a
# clone of the repository it does nothing.
#
# The eight devices are virtual: one process takes the CPU for eight, which must be said
# before jax is used. They compute in turns, so nothing here gets faster; but what each
# of them holds and sends is what a real one would. On a pod leave out the line with
# "cpu", start the program once a host, and call `shard.initialize()`, which finds the
# other processes; each then hands in its own part of a batch, by
# `jax.make_array_from_process_local_data`. Plans and steps stay as they are.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("jaxmethods") is None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "jaxmethods[colab]"], check=True
    )

import jax

from jaxmethods import data, shard

jax.config.update("jax_platforms", "cpu")
shard.initialize(num_processes=1, num_cpu_devices=8)
print(jax.device_count(), "devices")
assert jax.device_count() == 8

# %% [markdown]
# ## A network and its images
#
# The digits come with the package, 8 x 8 pixels in [0, 1]. The network is a small VGG:
# convolutions, which compute much and weigh little, then dense layers, which are the
# opposite. It is a plain function, as is the loss, a mean over examples.

# %%
from itertools import pairwise

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def convolve(x, kernel):
    channels = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=channels
    )
    return jax.nn.relu(x)


def pool(x):
    window = (1, 2, 2, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")


def net(params, x):
    x = pool(convolve(x, params["conv0"]))
    x = pool(convolve(x, params["conv1"]))
    x = jax.nn.relu(x.reshape(len(x), -1) @ params["dense0"])
    x = jax.nn.relu(x @ params["dense1"])
    return x @ params["head"]


def loss(params, batch):
    images, labels = batch
    logits = net(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


random = np.random.default_rng(0)
shapes = {
    "conv0": (3, 3, 1, 16),
    "conv1": (3, 3, 16, 24),
    "dense0": (96, 256),
    "dense1": (256, 256),
    "head": (256, 10),
}
params = {
    name: np.sqrt(2 / np.prod(shape[:-1]), dtype="f")
    * random.standard_normal(shape, "f")
    for name, shape in shapes.items()
}
print(f"{sum(kernel.size for kernel in params.values()):,} parameters")

# %% [markdown]
# Batches of 64 images, 8 a device, six times through the training set.

# %%
digits = data.load_digits()
orders = [random.permutation(len(digits.train.labels))[: 22 * 64] for _ in range(6)]
batches = [
    (digits.train.images[rows], digits.train.labels[rows])
    for rows in np.concatenate(orders).reshape(-1, 64)
]
batch = batches[0]


@jax.jit
def is_right(params):
    return jnp.argmax(net(params, digits.test.images), -1) == digits.test.labels


def accuracy(params):
    """On the test images, by one device, wherever the parameters lie."""
    return float(is_right(jax.device_get(params)).mean())


print(f"{len(batches)} batches of {len(batch[1])}")

# %% [markdown]
# ## A plan
#
# The devices form a grid: D groups of K members. Groups share nothing but gradients;
# inside a group a layer may be split. `plan` reads the layers out of the loss, counts
# what each would send, and chooses. With K = 2:


# %%
def grid(K):
    devices = np.array(jax.devices()).reshape(-1, K)
    return Mesh(devices, ("data", "model"))


optimizer = optax.adam(1e-3)
plan = shard.plan(loss, params, batch, mesh=grid(2), optimizer=optimizer)
print(plan)
choices = " ".join(row.choice for row in plan.rows)
assert choices == "replicate replicate column row replicate"

# %% [markdown]
# A row is a parameter; flops and bytes are those of one device in one step, "wire" is
# what it sends. The convolutions stay whole on all devices. `dense0` is split by
# columns and `dense1` by rows, so that what leaves the first is just what the second
# needs, and nothing is exchanged in between. The head is too narrow to bother.
#
# The rule is that of SplitBrain: a copied kernel of p numbers sends about 2 p for its
# gradient, a split one sends rows of activations, of which there are as many as
# examples. That is why it helps where much is held for little work:

# %%
for name, rows in (("convolutions", plan.rows[:2]), ("dense", plan.rows[2:])):
    flops = sum(row.flops for row in rows) / sum(row.flops for row in plan.rows)
    weight = sum(params[row.path[0]].size for row in rows)
    weight /= sum(kernel.size for kernel in params.values())
    print(f"{name:<12} {flops:.0%} of the flops, {weight:.0%} of the parameters")

placed = plan.place(params)
for name, kernel in placed.items():
    part = kernel.addressable_shards[0].data.shape
    print(f"{name}: {kernel.shape}, of which a device has {part}")
assert placed["dense0"].addressable_shards[0].data.shape == (96, 128)

# %% [markdown]
# ## Choose K
#
# `plan.apply` takes a training step that was written for one device, and returns it
# jitted and spread. Is it what was planned? For each K we compile it and ask the
# program: `shard.wire` reads from its collectives the bytes that a device sends, and
# XLA says what it allocates. Parameters and optimizer state are arguments, and where
# they are donated they are also what the results take.


# %%
def step(params, state, batch):
    value, gradients = jax.value_and_grad(loss)(params, batch)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value


plans, compiled, sent, held = {}, {}, {}, {}
for K in (1, 2, 4, 8):
    plans[K] = shard.plan(loss, params, batch, mesh=grid(K), optimizer=optimizer)
    run = plans[K].apply(step, batch_argument=2, donate_argnums=(0, 1))
    arguments = (
        plans[K].place(params),
        plans[K].place_optimizer(optimizer.init(params)),
        batch,
    )
    sent[K] = shard.wire(run)(*arguments).total
    compiled[K] = run.lower(*arguments).compile(), arguments
    held[K] = compiled[K][0].memory_analysis()


def kilobytes(number):
    return f"{number / 1000:7.0f} kB"


print(f"{'':<6}sent, predicted  compiled    params + Adam  compiled")
for K, plan in plans.items():
    lasting = plan.parameter_bytes + plan.optimizer_bytes
    numbers = plan.wire_bytes, sent[K], lasting, held[K].alias_size_in_bytes
    print(f"K = {K}", *map(kilobytes, numbers), sep="   ")
    # The program also sends one number, the loss, and Adam counts its steps.
    assert 0 <= sent[K] - plan.wire_bytes < 8
    assert 0 <= held[K].alias_size_in_bytes - lasting < 8

# %% [markdown]
# All that was planned is there, to the byte. The picture adds what lives for a step
# only: gradients, and activations that wait for the backward pass. That part is an
# estimate, since XLA reuses some buffers and adds others; crosses are what it takes in
# all.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
below = np.zeros(4)
names = "K = 1", "K = 2", "K = 4", "K = 8"
for part in ("parameter", "optimizer", "gradient", "activation"):
    height = [
        sum(getattr(row, f"{part}_bytes") for row in plan.rows) / 1e6
        for plan in plans.values()
    ]
    left.bar(names, height, bottom=below, label=part)
    below += height
total = {
    K: m.argument_size_in_bytes
    + m.output_size_in_bytes
    + m.temp_size_in_bytes
    - m.alias_size_in_bytes
    for K, m in held.items()
}
left.plot(names, np.array([*total.values()]) / 1e6, "kx", label="compiled, all")
left.set(title="memory of a device", ylabel="MB")
left.legend()
right.bar(names, [p.wire_bytes / 1e6 for p in plans.values()], color="silver")
right.plot(names, np.array([*sent.values()]) / 1e6, "kx", label="compiled")
right.set(title="sent by a device, in a step", ylabel="MB")
right.legend()
plt.show()
for K, plan in plans.items():
    print(f"K = {K}: {plan.memory_bytes / total[K]:.0%} of the memory was foreseen")
    assert 0.5 < plan.memory_bytes / total[K] < 1.1
assert plans[8].wire_bytes == plans[4].wire_bytes and total[8] < total[4]

# %% [markdown]
# K = 4 and K = 8 send the same, by different means: at 8 there is one group, whose
# members have no gradients of split layers to exchange, but gather more activations.
# K = 8 holds the least, so here one would take it. (On many hosts, K should divide the
# devices of one: then nothing but gradients crosses between hosts.)
#
# And the losses? They are those of one device, to rounding, so K is a matter of bytes
# alone. Two times through the data with each:

# %%
curves = {}
for K, (run, (here, state, _)) in compiled.items():
    curves[K] = []
    for each in batches[:44]:
        here, state, value = run(here, state, each)
        # Read at each step: with several in flight, virtual devices can lock up.
        curves[K].append(float(value))
    plt.plot(curves[K], lw=10 / K, color=f"C{int(np.log2(K))}", label=f"K = {K}")
    print(f"K = {K}: loss {value:.6f}, accuracy {accuracy(here):.3f}")
plt.xlabel("step")
plt.ylabel("loss")
plt.legend()
plt.show()
apart = max(np.abs(np.subtract(curves[1], curve)).max() for curve in curves.values())
print(f"at most {apart:.0e} apart in {len(curves[1])} steps")
assert apart < 1e-4

# %% [markdown]
# ## A larger network, on paper
#
# A plan needs shapes, no arrays and no compilation. So let us ask for a real VGG: the
# one of 11 layers, for images of 32 x 32 pixels and with dense layers of 4096. Which K
# is best depends on the batch.

# %%
WIDTHS = 64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0  # 0 is a pooling


def vgg_loss(params, batch):
    x, labels = batch
    kernels = iter(params["convolutions"])
    for width in WIDTHS:
        x = convolve(x, next(kernels)) if width else pool(x)
    x = x.reshape(len(x), -1)
    for kernel in params["dense"][:-1]:
        x = jax.nn.relu(x @ kernel)
    logits = x @ params["dense"][-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


channels = [3, *filter(None, WIDTHS)]
vgg = {
    "convolutions": [floats(3, 3, a, b) for a, b in pairwise(channels)],
    "dense": [floats(512, 4096), floats(4096, 4096), floats(4096, 10)],
}


def vgg_plan(K, examples, **options):
    """With `examples` a device."""
    batch = floats(8 * examples, 32, 32, 3), jax.ShapeDtypeStruct((8 * examples,), int)
    momentum = optax.sgd(0.1, momentum=0.9)
    return shard.plan(vgg_loss, vgg, batch, mesh=grid(K), optimizer=momentum, **options)


examples = 8, 16, 32, 64, 128, 256, 512
least = {}
for K in (1, 2, 4, 8):
    made = [vgg_plan(K, number) for number in examples]
    least[K] = made[0].parameter_bytes
    plt.semilogx(
        examples, [p.wire_bytes / 1e6 for p in made], "o-", base=2, label=f"K = {K}"
    )
    saved = 1 - least[K] / least[1]
    print(f"K = {K}: {least[K] / 1e6:.1f} MB of parameters, {saved:.1%} saved")
split = sum(4 * kernel.size for kernel in vgg["dense"][:-1]) / least[1]
print(f"in the limit {split:.1%}")
assert all(jnp.isclose(1 - least[K] / least[1], split * (1 - 1 / K)) for K in least)
assert made[-1].parameter_bytes == least[1]  # K = 8, 512 examples
plt.xlabel("examples a device")
plt.ylabel("MB sent by a device, in a step")
plt.legend()
plt.show()

# %% [markdown]
# The larger the batch, the smaller the K that sends least; where splitting does not pay
# at all the plan copies everything and warns, as for K = 8 at 512. What is saved of the
# parameters are the split layers, up to two thirds of the whole: the paper's figure.
#
# So far the least bytes were sought. With `memory_limit` a plan also shards layers
# fully, over all devices, if it has to, in the order of bytes saved for bytes sent; and
# if nothing helps, it says how far it got.

# %%
full = vgg_plan(1, 128, memory_limit=300_000_000)
print(full)
print(f"{full.memory_bytes / 1e6:.0f} MB, {full.wire_bytes / 1e6:.0f} MB sent")
assert full.memory_bytes < 3e8
try:
    vgg_plan(1, 128, memory_limit=100_000_000)
except ValueError as error:
    print(error)

# %% [markdown]
# ## Compressed exchange in three lines
#
# The other way to send less: everything everywhere, as with K = 1, but gradients in
# small messages. A *codec* makes them, and remembers what it left out, to send it
# later. AdaComp cuts each layer into short bins and sends the entries that are large in
# their bin, each as one sign, with one scale a layer.
#
# Three lines are new in a data-parallel step. (1) The chain: any optimizer may follow
# the exchange. (2) The cast: gradients of parameters that `shard_map` knows to be alike
# on all come out summed, at the full price, before an exchange could see them. (3) The
# state: what is owed is each worker's own, the optimizer's part is alike on all.

# %%
OWN, ALIKE = P("data"), P()
workers = Mesh(np.array(jax.devices()), ("data",))
momentum = optax.sgd(optax.cosine_decay_schedule(0.05, len(batches)), momentum=0.9)
adacomp = shard.adacomp(slots=4)
optimizer = optax.chain(shard.exchange(adacomp, "data"), momentum)  # (1)


def data_parallel(optimizer):
    def worker(params, state, batch):
        mine = jax.lax.pcast(params, "data", to="varying")  # (2)
        value, gradients = jax.value_and_grad(loss)(mine, batch)
        owed, rest = state
        owed = jax.tree.map(lambda x: x[0], owed)
        updates, (owed, rest) = optimizer.update(gradients, (owed, rest))
        owed = jax.tree.map(lambda x: x[None], owed)
        params = optax.apply_updates(params, updates)
        return params, (owed, rest), jax.lax.pmean(value, "data")

    state = OWN, ALIKE  # (3)
    specs = dict(in_specs=(ALIKE, state, OWN), out_specs=(ALIKE, state, ALIKE))
    return jax.jit(jax.shard_map(worker, mesh=workers, **specs))


# %% [markdown]
# What is owed has a leading axis of workers, of which each sees one row. All is put
# where the step wants it, or its second call would compile anew.


# %%
def place(tree, spec):
    return jax.device_put(tree, NamedSharding(workers, spec))


def on_each(tree):
    return place(jax.tree.map(lambda x: jnp.stack([x] * 8), tree), OWN)


def start(optimizer):
    owed, rest = optimizer.init(params)
    return place(params, ALIKE), (on_each(owed), place(rest, ALIKE))


def bytes_of(codec):
    """That leave a worker: its message, to seven others."""
    message, _ = jax.eval_shape(codec.encode, codec.init(params), params)
    return 7 * shard.nbytes(message)


compressed = shard.wire(data_parallel(optimizer))(*start(optimizer), batch).total
print(f"{compressed:,.0f} bytes, {sent[1] / compressed:.0f} times less than the mean")
print(f"a worker's messages {bytes_of(adacomp):,}, without slots ", end="")
print(f"{bytes_of(shard.adacomp()):,}")
assert compressed == bytes_of(adacomp) + 7  # and the loss
assert sent[1] / compressed > 40

# %% [markdown]
# `slots` is how many entries of a bin a message has room for. Shapes in a compiled
# program cannot depend on the data, so it is room that travels, used or not: without
# `slots` there is room for all, at 1.6 bits an entry. What finds no room is not lost.
# Here are twenty gradients of `dense0` that one worker has, the part of them that it
# sent, and what it still owes. The first is the sum of the others. (The picture has a
# corner of the layer, the check all of it.)


# %%
def send(state, batch):
    gradient = jax.grad(loss)(params, batch)["dense0"]
    message, state = adacomp.encode(state, gradient)
    return state, (gradient, adacomp.decode(message))


twenty = [jax.tree.map(lambda x: x[:8], each) for each in batches[:20]]
twenty = jax.tree.map(lambda *x: jnp.stack(x), *twenty)
state, history = jax.lax.scan(send, adacomp.init(params["dense0"]), twenty)
gradient, message = (x.sum(0) for x in history)
limit = 3 * gradient.std()
images = {"gradients": gradient, "= sent": message, "+ residue": state.residue}
figure, axes = plt.subplots(1, 3, figsize=(10, 2.6), layout="constrained")
for ax, (title, image) in zip(axes, images.items(), strict=True):
    shown = ax.imshow(image[:40, :80], cmap="RdBu_r", vmin=-limit, vmax=limit)
    ax.set_title(title)
    ax.axis("off")
figure.colorbar(shown, ax=axes)
plt.show()
off = jnp.abs(message + state.residue - gradient).max()
entries = (history[1] != 0).mean()
print(f"{entries:.2%} of the entries were sent a step; the sum is off by {off:.0e}")
assert off < 1e-5 * jnp.abs(gradient).max()

# %% [markdown]
# Does it learn? Here it is beside the mean, DCT and top-k. DCT sends in full what
# reaches a threshold, renewed every ten steps here; top-k sends the largest 1 %. Both
# have room for 3 entries in 250, with one byte each for the place.

# %%
codecs = {
    "adacomp": adacomp,
    "dct": shard.dct(sparsity=0.99, life=10, index=shard.LocalPlaces(250, 3)),
    "top_k": shard.top_k(sparsity=0.99, block=250),
}
exchanges = {name: shard.exchange(codec, "data") for name, codec in codecs.items()}
exchanges = {"mean": shard.mean_exchange("data"), **exchanges}
costs = {name: bytes_of(codec) for name, codec in codecs.items()}
costs["mean"] = plans[1].wire_bytes


def train(run, here, state):
    """Parameters after all batches, and the accuracy after each 22."""
    curve = []
    for number, each in enumerate(batches, 1):
        here, state, value = run(here, state, each)
        assert np.isfinite(float(value))
        if number % 22 == 0:
            curve.append(accuracy(here))
    return here, curve


reached = {}
for name, transformation in exchanges.items():
    optimizer = optax.chain(transformation, momentum)
    _, curve = train(data_parallel(optimizer), *start(optimizer))
    reached[name] = curve[-1]
    so_far = np.arange(1, len(curve) + 1) * 22 * costs[name] / 1e6
    plt.semilogx(so_far, curve, "o-", label=name)
    print(f"{name:<8} {costs[name]:>9,.0f} bytes a step, accuracy {curve[-1]:.3f}")
plt.xlabel("MB sent by a device")
plt.ylabel("accuracy on the test images")
plt.legend()
plt.show()
assert reached["adacomp"] > reached["mean"] - 0.03
assert max(reached["dct"], reached["top_k"]) < reached["adacomp"]

# %% [markdown]
# AdaComp learned nearly what the mean did, with a small part of the bytes. The other
# two are late: 1 % of the entries is little for six times through 1,437 images. That is
# the bargain of all codecs. Error feedback loses nothing, but what is owed arrives
# later, and how late is too late only a training can tell.
#
# ## When not to
#
# Compression takes time, too, and a mean by all-reduce sends each number less than
# twice however many workers there are, while a message goes to all of them. `auto`
# weighs that by a model of link and memory, and says why. Our network on three links:

# %%
for bandwidth in (1e7, 1e9, 1e11):
    choice = shard.auto(params, "data", num_workers=8, bandwidth=bandwidth)
    print(f"{bandwidth:.0e} bytes a second: {choice.reason}")
assert choice.name == "mean"

# %% [markdown]
# What goes into the chain is `choice.transformation`. Read `auto` as arithmetic: it
# does not know what a codec does to a training.
#
# ## Both
#
# Layers split inside a group, messages between groups. `hybrid_training` takes a plan
# and a chain, and does what was written out by hand above, cast and state included.

# %%
hybrid = shard.splitbrain(loss, params, batch, mesh=grid(2))
optimizer = optax.chain(shard.exchange(adacomp, "data"), momentum)
init_state, hybrid_step = shard.hybrid_training(hybrid, loss, optimizer)
run = jax.jit(hybrid_step)
placed = hybrid.place(params)
state = jax.jit(init_state)(placed)
both = shard.wire(run)(placed, state, batch).total
_, curve = train(run, placed, state)
print(f"{both:,.0f} bytes; the plan alone {hybrid.wire_bytes:,.0f}")
print(f"accuracy {curve[-1]:.3f}")
assert both < hybrid.wire_bytes / 2

# %% [markdown]
# ## No exchange among all
#
# Last, no common gradient at all: every worker trains its own parameters, and now and
# then takes the mean of them with a few neighbours. Who they are is a graph. Its
# spectral gap says how fast the workers agree: each round shrinks the distance from
# their mean at least by the factor 1 - gap. For `one_peer`, which sends to one other
# worker a round, each time another, a cycle of rounds counts as one. (For powers of two
# `chord` is `exp2`, and its line lies below.)

# %%
NAMES = "ring", "root", "halton", "chord", "exp2", "one_peer"
sizes = 4, 8, 16, 32, 64
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name in NAMES:
    gaps = [shard.spectral_gap(shard.graph(name, size)) for size in sizes]
    left.loglog(sizes, gaps, "o-", base=2, label=name)
left.set(title="spectral gap", xlabel="workers")
left.legend()

own = jax.random.normal(jax.random.key(1), (16, 1000))
distance = jnp.linalg.norm(own - own.mean(0))
rounds = jnp.arange(12)
for name in NAMES:
    graph = shard.graph(name, 16)

    def round_(x, step, graph=graph):
        def reduce(x):
            return shard.stochastic_reduce(x, "data", graph, step)

        x = jax.vmap(reduce, axis_name="data")(x)
        return x, jnp.linalg.norm(x - own.mean(0)) / distance

    left_over = jax.lax.scan(round_, own, rounds)[1]
    right.semilogy(rounds + 1, left_over, "o-", label=name)
    if not graph.cycles:
        bound = (1 - shard.spectral_gap(graph)) ** (rounds + 1)
        assert jnp.all(left_over < bound + 1e-6)
right.set(title="disagreement of 16 workers", xlabel="round")
plt.show()
assert left_over[3] < 1e-6 < left_over[2]  # one_peer: 16 = 2⁴

# %% [markdown]
# The simplest graph is the slowest, and `one_peer`, with the same bytes a round, is
# exact after four of them. `decentralized` wraps an optimizer: every five steps it
# averages over the graph, and in between the workers drift apart. Parameters and state
# are each worker's own here, so all have the leading axis.

# %%
adam, one_peer = optax.adam(1e-3), shard.graph("one_peer", 8)
optimizer = shard.decentralized(adam, one_peer, "data", every=5)


def worker(params, state, batch):
    params, state = jax.tree.map(lambda x: x[0], (params, state))
    gradients = jax.grad(loss)(params, batch)
    updates, state = optimizer.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    return jax.tree.map(lambda x: x[None], (params, state))


def disagreement(stacked):
    leaves = jax.tree.leaves(jax.device_get(stacked))
    return np.sqrt(sum(np.sum((x - x.mean(0)) ** 2) for x in leaves))


run = jax.shard_map(worker, mesh=workers, in_specs=(OWN,) * 3, out_specs=(OWN, OWN))
run, here, state = jax.jit(run), on_each(params), on_each(optimizer.init(params))
apart = []
for each in batches:
    here, state = run(here, state, each)
    apart.append(disagreement(here))
plt.plot(apart)
plt.xlabel("step")
plt.ylabel("distance of the workers from their mean")
plt.show()
mean = accuracy(jax.tree.map(lambda x: x.mean(0), here))
one = accuracy(jax.tree.map(lambda x: x[0], here))
size = sum(kernel.nbytes for kernel in params.values())
print(f"{size / 5:,.0f} bytes a step; the mean of all gradients {sent[1]:,.0f}")
print(f"accuracy of a worker {one:.3f}, of the mean of all {mean:.3f}")
assert all(apart[i] < apart[i - 1] for i in range(4, len(apart), 5)) and mean > 0.9

# %% [markdown]
# What to take along: `plan` says what to split and what that sends and holds, before
# anything is compiled, and `wire` checks it; the losses do not depend on it. A codec
# sends less still, and `exchange` makes it a link of the optimizer's chain, but it is
# late with what it owes: `auto` tells where bytes matter, your own training whether
# late is good enough. Between layers `threshold_cut` and `cut_gather` do for
# activations what a codec does for gradients, and `run_workers` lets processes average
# with neighbours at their own speed.
