# %% [markdown]
# # How much too large is a sketched inverse?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxmethods/jaxmethods/blob/main/colabs/03_sketch.ipynb)
#
# A random projection turns a tall matrix into a short one with nearly the same Gram
# matrix, and its expectation is exactly right. The *inverse* of that Gram matrix is
# not: it comes out too large, and least squares, Newton steps and standard errors with
# it. You will see which rows of a real matrix weigh, look at the bias of inversion,
# take it out with one scalar, average over workers, and solve least squares and
# logistic regression with what is left. Under a minute on a CPU.

# %% [markdown]
# Install the package if it is not there yet. On Colab this takes half a minute; in a
# clone of the repository it does nothing.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("jaxmethods") is None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "jaxmethods[colab]"], check=True
    )

# %% [markdown]
# ## A sketch in three lines
#
# The matrix: 1,437 digits of 8 x 8 pixels, which come with the package. Three pixels
# are dark in all of them and go; the other columns are scaled to length 1.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jaxmethods import data, sketch

digits = data.load_digits().train
pixels = jnp.asarray(digits.images.reshape(-1, 64))
lit = np.flatnonzero(pixels.any(0))
A = pixels[:, lit] / jnp.linalg.norm(pixels[:, lit], axis=0)
n, d = A.shape
print(f"{n} rows, {d} columns, condition number {jnp.linalg.cond(A):.0f}")
assert (n, d) == (1437, 61)

# %% [markdown]
# A sketch S is a linear operator of shape (m, n), drawn from a key. `S @ A` has m rows;
# four times as many as columns is a good choice. S is scaled so that in expectation
# `S @ A` has the Gram matrix of A.
#
# How near is it? For an answer without units we look at an orthonormal basis U of the
# columns: A = U R, so `S @ A` is `(S @ U) @ R` and says the same as `S @ U`. There the
# exact Gram matrix is the identity, and the eigenvalues of a sketched one should be 1.

# %%
m = 4 * d
S = sketch.sparse_stack(jax.random.key(0), m, n)
short = S @ A

U, R = jnp.linalg.qr(A)
size = jnp.linalg.eigvalsh((S @ U).T @ (S @ U))
print(f"{A.shape} -> {short.shape}, eigenvalues {size[0]:.2f} to {size[-1]:.2f}")
assert jnp.allclose(short, (S @ U) @ R, atol=1e-5)
assert 0.1 < size[0] < 1 < size[-1] < 2.4

# %% [markdown]
# They spread over (1 ± √(d/m))², here 0.25 to 2.25: of a sketch this small nothing more
# can be asked. What can be asked is that it be right on average.
#
# ## Which rows weigh
#
# The leverage of a row says how much the fit hangs on it alone: between 0 and 1, the
# number of columns in sum. `leverage_scores` has them exactly, from a QR decomposition;
# `approximate_leverage_scores` to a small factor, from a sketch and one product with A.

# %%
leverage = sketch.leverage_scores(A)
scores = sketch.approximate_leverage_scores(jax.random.key(1), A)
order = jnp.argsort(-leverage)
plt.semilogy(scores[order], ".", color="silver", label="approximate")
plt.semilogy(leverage[order], label="exact")
plt.axhline(d / n, ls=":", color="black", label="d / n, if all rows were alike")
plt.xlabel("row, the largest leverage first")
plt.legend()
plt.show()
print(f"sums {leverage.sum():.3f} and {scores.sum():.1f}")
assert jnp.isclose(leverage.sum(), d, rtol=1e-4)
assert jnp.all(scores > leverage / 4) and scores.sum() < 2 * d

# %% [markdown]
# Most rows have about what is due to them, but the first few far more. Here are these;
# a cross marks the pixel that the fewest digits use. One pixel is lit in a single
# image, so a fit can spend that pixel's weight on that image: its leverage is 1. A
# sketch that misses the row misses the direction.

# %%
counts = (pixels > 0).sum(0)
figure, axes = plt.subplots(1, 6, figsize=(12, 2.4))
for ax, row in zip(axes, order, strict=False):
    ax.imshow(pixels[row].reshape(8, 8), cmap="gray_r")
    rarest = jnp.argmin(jnp.where(pixels[row] > 0, counts, n))
    ax.plot(rarest % 8, rarest // 8, "x", color="C3")
    ax.set_title(f"leverage {leverage[row]:.2f}\npixel lit in {counts[rarest]}")
    ax.axis("off")
plt.show()
assert leverage[order[0]] > 0.999 and counts[lit].min() == 1
assert (leverage > 0.5).sum() == 7

# %% [markdown]
# ## Right on average, until it is inverted
#
# Five families, 512 sketches of each. `gaussian` is dense and the yardstick.
# `sparse_stack` has four entries a column and knows nothing of A. `less` draws a few
# dozen rows of A by their scores for each row that it makes, and adds them with random
# signs. `countsketch` has one entry a column, `sample_rows` just draws rows.
# Independent sketches are a `vmap` over keys. The mean Gram matrix is right in all five
# families, up to what 512 draws leave.

# %%
families = {
    "gaussian": lambda key: sketch.gaussian(key, m, n),
    "sparse_stack": lambda key: sketch.sparse_stack(key, m, n),
    "less": lambda key: sketch.less(key, scores, m),
    "countsketch": lambda key: sketch.countsketch(key, m, n),
    "sample_rows": lambda key: sketch.sample_rows(key, scores, m),
}
keys = jax.random.split(jax.random.key(2), 512)
grams = {}
for name, draw in families.items():
    small = jax.jit(jax.vmap(lambda key, draw=draw: draw(key) @ U))(keys)
    grams[name] = jnp.einsum("kij,kil->kjl", small, small)
    off = jnp.abs(grams[name].mean(0) - jnp.eye(d)).max()
    print(f"{name:<13} largest entry of the mean Gram matrix - I: {off:.3f}")
    assert off < 0.1

# %% [markdown]
# Now the inverses. A sketch that lost a direction has none; we leave such draws out and
# count them, as the theory does. Inverting is convex, so spread in the eigenvalues
# lifts the mean: by m / (m - d - 1) for a Gaussian sketch, exactly.

# %%
inverses = {}
for name, gram in grams.items():
    kept = jnp.linalg.eigvalsh(gram)[:, 0] > 1e-3
    inverses[name] = jnp.linalg.inv(gram[kept])
    mean = jnp.trace(inverses[name].mean(0)) / d
    print(f"{name:<13} {mean:.3f}, {len(gram) - kept.sum()} of {len(gram)} lost")
wishart = m / (m - d - 1)
print(f"m / (m - d - 1) = {wishart:.3f}")
gaussian = jnp.trace(inverses["gaussian"].mean(0)) / d
assert jnp.isclose(gaussian, wishart, rtol=0.01)
assert all(len(inverses[name]) == len(keys) for name in ("sparse_stack", "less"))

# %% [markdown]
# A third too large, and 512 draws of it do not make it smaller. `S.debias(d)` is the
# scalar that mends it, known beforehand: (m - d) / m for most families. Two have none,
# and say so.

# %%
key = jax.random.key(3)
scalar = families["less"](key).debias(d)
print(f"less: {scalar}, gaussian: {families['gaussian'](key).debias(d):.4f}")
assert scalar == (m - d) / m
for name in ("countsketch", "sample_rows"):
    try:
        families[name](key).debias(d)
    except ValueError as error:
        print(f"{name}: {error}")
    else:
        raise AssertionError(name)

# %% [markdown]
# ## A picture of the bias
#
# Back to pixels. The diagonal of inv(AᵀA) has a meaning in statistics: it is the
# variance of each pixel's weight in a regression, in units of that of the noise. Below
# is the mean over the sketches relative to the exact one, pixel by pixel, before and
# after the scalar (for the last two, which have none, that of the others).

# %%
unwhiten = jnp.linalg.inv(R)


def variances(inverse):
    return jnp.diag(unwhiten @ inverse @ unwhiten.T)


ratios = {
    name: variances(inverse.mean(0)) / variances(jnp.eye(d))
    for name, inverse in inverses.items()
}
figure, axes = plt.subplots(2, len(ratios), figsize=(12, 5), layout="constrained")
for column, (name, ratio) in zip(axes.T, ratios.items(), strict=True):
    for ax, factor, when in zip(column, (1, scalar), ("before", "after"), strict=True):
        image = np.full(64, np.nan)
        image[lit] = factor * ratio
        shown = ax.imshow(image.reshape(8, 8), cmap="RdBu_r", vmin=0.6, vmax=1.4)
        ax.set_title(f"{name}, {when}")
        ax.axis("off")
figure.colorbar(shown, ax=axes, label="variance of a weight / exact")
plt.show()

# %% [markdown]
# Before, everything is red. After, the first three are white, which is the claim for
# `less`: one scalar serves all directions, as if the sketch were dense. (`sparse_stack`
# ends a little below 1: it never adds up neighbouring rows, so on a matrix of only a
# few times m rows it does better than the scalar assumes.) The last two keep stains
# where the rare pixels are: what is wrong there is not one factor, so none mends it.

# %%
print(f"{'':<13}  before            after")
for name, ratio in ratios.items():
    low, high = ratio.min(), ratio.max()
    after = f"{scalar * low:.2f} to {scalar * high:.2f}"
    print(f"{name:<13} {low:.2f} to {high:.2f}      {after}")
for name in ("gaussian", "sparse_stack", "less"):
    assert ratios[name].min() > 1.25
    assert jnp.abs(scalar * ratios[name] - 1).max() < 0.04
for name in ("countsketch", "sample_rows"):
    assert ratios[name].max() > 1.15 * ratios[name].min()

# %% [markdown]
# ## Many workers
#
# The reason to care: q workers each sketch the same matrix, and the mean of their
# inverses is taken. That divides the variance by q and leaves the bias. Here is the
# error of the mean, in the basis U where the exact inverse is I. The lines of
# `gaussian` are there, under those of `less`.


# %%
def error(estimates, q):
    groups = estimates[: len(estimates) // q * q].reshape(-1, q, d, d).mean(1)
    return jnp.sqrt(((groups - jnp.eye(d)) ** 2).sum((1, 2)).mean() / d)


workers = 2 ** np.arange(9)
for i, name in enumerate(("gaussian", "less", "sample_rows")):
    for factor, style in ((1, ":"), (scalar, "-")):
        curve = [error(factor * inverses[name], q) for q in workers]
        label = f"{name}{', debiased' if factor != 1 else ''}"
        plt.loglog(workers, curve, style, color=f"C{i}", label=label)
plt.xlabel("workers")
plt.ylabel("error of the mean, relative")
plt.legend(loc="lower left")
plt.show()
raw, debiased = inverses["less"], scalar * inverses["less"]
print(f"less, 256 workers: {error(raw, 256):.3f} and {error(debiased, 256):.3f}")
assert error(raw, 256) > 0.3 and error(debiased, 1) / error(debiased, 256) > 14
assert error(scalar * inverses["sample_rows"], 256) > 3 * error(debiased, 256)

# %% [markdown]
# Without the scalar little is gained after some ten workers; with it the error still
# falls as 1/√q at 256. `inverse_gram` does all this in one call: scores, sketches,
# scalar and mean. It takes a ridge, and the names of mesh axes, too.

# %%
inverse_of = jax.jit(partial(sketch.inverse_gram, m=m, workers=64))
found = R @ inverse_of(jax.random.key(4), A) @ R.T
print(f"inverse_gram, 64 workers: {error(found[None], 1):.3f}")
assert jnp.isclose(error(found[None], 1), error(debiased, 64), rtol=0.1)

# %% [markdown]
# ## Least squares
#
# Is the digit an eight? b says so with 1 or -1, and x is to fit it by least squares.
# *Sketch and solve* does it on `S @ A` and `S @ b`. It leaves more of b than the least
# that can be left: for a Gaussian sketch d / (m - d - 1) more, in expectation and
# squares, and for `less` about as much.

# %%
b = jnp.where(digits.labels == 8, 1.0, -1.0)
exact = np.linalg.lstsq(np.asarray(A, float), np.asarray(b, float))[0]
least = jnp.sum((A @ exact - b) ** 2)


def excess(key, m):
    S = sketch.less(key, scores, m)
    x = jnp.linalg.lstsq(S @ A, S @ b)[0]
    return jnp.sum((A @ x - b) ** 2) / least - 1


for ratio in (4, 16):
    rows = ratio * d
    mean = jax.jit(jax.vmap(partial(excess, m=rows)))(keys[:64]).mean()
    theory = d / (rows - d - 1)
    print(f"m = {rows}: {mean:.3f} above the least, theory {theory:.3f}")
    assert jnp.isclose(mean, theory, rtol=0.1)

# %% [markdown]
# Four times the rows buy a factor of five: for six digits the sketch would have more
# rows than any data. `lstsq` takes the sketch for what it is good at, the shape of A:
# with it some ten steps of conjugate gradients on all rows end at the accuracy of the
# arithmetic, whatever the condition number. `error` says what may be left.

# %%
solution = sketch.lstsq(jax.random.key(5), A, b)
off = np.linalg.norm(solution.x - exact) / np.linalg.norm(exact)
print(f"off by {off:.0e}, its own estimate of |A (x - x*)| {solution.error:.0e}")
assert off < 1e-5 and solution.rank == d
assert jnp.isclose(solution.residual**2, least, rtol=1e-5)

# %% [markdown]
# It has the gradient of the exact solution. Ask how the fit at a row moves with that
# row's own label, and you get an old friend: the leverage. The image with the pixel
# that no other has is fitted as it is labelled, however that is.


# %%
def fitted(b, row):
    return A[row] @ sketch.lstsq(jax.random.key(5), A, b).x


moves = jax.jit(jax.vmap(jax.grad(fitted), (None, 0)))(b, order[:5])
own = moves[jnp.arange(5), order[:5]]
print("gradient", own.round(4), "leverage", leverage[order[:5]].round(4), sep="\n")
assert jnp.allclose(own, leverage[order[:5]], atol=1e-4)

# %% [markdown]
# ## Newton steps
#
# Newton's method needs a Hessian at each step, here AᵀA, and can do with a sketch of
# it, as long as each step has a new one. Two scalars matter. `debias` mends the mean of
# the inverse. But a step that is right on average still has variance, and the best
# length for it is 1 - d / m. With α = d / m, the squared error is multiplied in
# expectation, at each step and whatever the condition number, by about
#
# | step | factor | m = 2 d | m = 4 d |
# |---|---|---|---|
# | plain | 1 - 2 / (1 - α) + 1 / (1 - α)³ | 5 | 0.70 |
# | debiased | α / (1 - α) | 1 | 0.33 |
# | debiased, length 1 - α | α | 0.5 | 0.25 |
#
# `scale_by_newton_sketch` is the last of these as an optax transformation, so the other
# two are it with a longer step.

# %%
STEPS = 8


def squared_errors(key, length, m):
    newton = sketch.scale_by_newton_sketch(key, lambda x: A, m)
    optimizer = optax.chain(newton, optax.scale(-length))

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(A.T @ (A @ x - b), state, x)
        x = optax.apply_updates(x, updates)
        return (x, state), jnp.sum((A @ (x - exact)) ** 2)

    x = jnp.zeros(d)
    errors = jax.lax.scan(step, (x, optimizer.init(x)), length=STEPS)[1]
    return jnp.append(jnp.sum((A @ exact) ** 2), errors)


# %% [markdown]
# Sixteen runs of each, with the same sketches; the factors of the table are the thin
# lines.

# %%
names = "plain", "debiased", "newton_sketch"
figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
for ax, ratio in zip(axes, (2, 4), strict=True):
    rest = 1 - 1 / ratio
    factors = 1 - 2 / rest + rest**-3, 1 / rest - 1, 1 - rest
    runs = jax.vmap(partial(squared_errors, m=ratio * d), (0, None))
    lengths = jnp.array([rest**-2, 1 / rest, 1])
    curves = jax.jit(jax.vmap(runs, (None, 0)))(keys[:16], lengths).mean(1)
    for i, (curve, factor) in enumerate(zip(curves, factors, strict=True)):
        measured = (curve[-1] / curve[0]) ** (1 / STEPS)
        ax.semilogy(curve / curve[0], "o-", color=f"C{i}", label=names[i])
        ax.semilogy(factor ** np.arange(STEPS + 1), color=f"C{i}", lw=0.5)
        print(f"m = {ratio} d, {names[i]:<14} {factor:.2f}, measured {measured:.2f}")
        assert jnp.isclose(measured, factor, rtol=0.2)
    ax.set(title=f"m = {ratio} d", xlabel="step")
axes[0].set_ylabel("squared error, relative to the start")
axes[1].legend()
plt.show()

# %% [markdown]
# From the same 122 rows: one diverges, one stands still, one gains a bit a step.
#
# ## A Hessian that moves
#
# Least squares was for the picture; in logistic regression the Hessian changes with x.
# `newton_sketch` asks for the objective and for `root`: a matrix whose Gram is the
# Hessian. Here that is the rows of A, each times √(p (1 - p)). The ridge has its own
# place, since it is known and not to be sketched.

# %%
RIDGE = 0.01


def objective(x):
    return jax.nn.softplus(-b * (A @ x)).sum() + 0.5 * RIDGE * jnp.sum(x**2)


def root(x):
    p = jax.nn.sigmoid(A @ x)
    return A * jnp.sqrt(p * (1 - p))[:, None]


def minimise(key, num_steps):
    return sketch.newton_sketch(
        key, objective, root, jnp.zeros(d), m, num_steps=num_steps, ridge=RIDGE
    )


found = jax.jit(partial(minimise, num_steps=20))(jax.random.key(6))
slope = jnp.linalg.norm(jax.grad(objective)(found.params))
at_start = jnp.linalg.norm(jax.grad(objective)(jnp.zeros(d)))
print(f"gradient {at_start:.0e} at the start, {slope:.0e} at the end")
assert slope < 1e-4 * at_start

# %% [markdown]
# `decrement` tells on the way how far above its minimum the objective still is, so it
# serves as a rule to stop. Beside it the true distance after four steps.

# %%
early = jax.jit(partial(minimise, num_steps=4))(jax.random.key(6))
true = objective(early.params) - objective(found.params)
plt.semilogy(found.decrement, "o-", label="decrement")
plt.semilogy(4, true, "x", ms=10, color="C3", label="true distance")
plt.xlabel("step")
plt.ylabel("objective above its minimum")
plt.legend()
plt.show()
print(f"after four steps {true:.3g}, decrement {found.decrement[4]:.3g}")
assert 0.5 < true / found.decrement[4] < 2

# %% [markdown]
# What to take along: a sketch is right on average and its inverse is not; `S.debias(d)`
# mends that for `less` and `sparse_stack` as for a dense sketch, and no scalar does for
# `countsketch`; average after debiasing; for accuracy use the sketch to precondition,
# as `lstsq` does, or draw it anew at each step, as `newton_sketch` does.
