"""What an audit asks of a model: the logits of one input, and labels that fit them."""

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ..core import check_floating, describe, leaf_paths
from .problems import one_line

Apply = Callable[[Any, jax.Array], jax.Array]

# Rounding of half precision stays below, another meaning of the axes does not.
_SAME = 0.02
_MOST = 240  # letters of an error of another library
_BODIES = {
    "flax.nnx": "nnx.merge(graphdef, params)(x), with graphdef, params = "
    "nnx.split(net)",
    "equinox": "eqx.combine(params, static)(x), with params, static = "
    "eqx.partition(net, eqx.is_array)",
}


class Model(NamedTuple):
    """A checked model and the inputs to look at.

    Attributes:
        apply: `apply(params, x) -> (num_classes,)`, of one input.
        params: A pytree of arrays.
        inputs: (n, ...) floating.
        num_classes: Two or more.
    """

    apply: Apply
    params: Any
    inputs: np.ndarray
    num_classes: int


class _Wrong(NamedTuple):
    """Why a function gives no logits of an input."""

    came: str
    what: str
    fails: bool = False


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Cross entropy of one example, in nats."""
    return jax.nn.logsumexp(logits) - logits[label]


def example_loss(
    apply: Apply, params: Any, example: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """The natural loss of one (input, label): what influence is measured on."""
    x, label = example
    return cross_entropy(apply(params, x), label)


def logits_of(apply: Apply, params: Any, inputs: jax.Array) -> jax.Array:
    """The logits (n, num_classes) of a batch, one input at a time."""
    return jax.vmap(lambda x: apply(params, x))(inputs)


def read_model(
    apply: Apply, params: Any, inputs: ArrayLike, *, batched: bool | None = None
) -> Model:
    """Checks a model on the shapes of its inputs, and how many it takes at once.

    Args:
        apply: `apply(params, x) -> logits`, where x is one input and the logits are
            (num_classes,), or x is a batch of them.
        params: A pytree of arrays.
        inputs: (n, ...) floating, finite.
        batched: Whether `apply` takes a batch; None: found out.

    Returns:
        A `Model`, whose `apply` takes one input.

    Raises:
        TypeError: `apply` is no function of (params, x); parameters are no arrays;
            inputs are not floating.
        ValueError: `apply` fails on the inputs or returns anything but logits; it
            takes one input and a batch, with different logits; values are not finite.

    Example:
        >>> model = read_model(lambda w, x: x @ w, jnp.ones((3, 2)), jnp.ones((5, 3)))
        >>> model.num_classes
        2
    """
    _check_signature(apply)
    params = _check_params(params)
    # Of objects and texts jax tells less.
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "OSUMm":
        raise TypeError(f"inputs is {describe(inputs)}; wanted an array of numbers.")
    if getattr(inputs, "dtype", None) == np.uint8:
        raise TypeError(
            f"inputs is {describe(inputs)}; wanted a floating dtype: cast it with "
            ".astype(np.float32), and / 255 where the model was trained on 0 to 1."
        )
    inputs = np.asarray(check_floating(inputs, "inputs"))
    if inputs.ndim < 2 or not inputs.size:
        raise ValueError(
            f"inputs is {describe(inputs)}; wanted (n, ...), at least one input with "
            "at least one axis of its own."
        )
    if not np.isfinite(inputs).all():
        finite = np.isfinite(inputs).all(tuple(range(1, inputs.ndim)))
        raise ValueError(
            f"inputs holds NaN or infinity, first in number {np.argmin(finite)}, "
            f"{np.sum(~finite)} in all; wanted finite values: leave these out."
        )
    one = jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype)
    of_one = _logits(apply, params, one, ())
    of_batch: int | _Wrong | None = None
    if batched is not False:
        many = jax.ShapeDtypeStruct((1, *one.shape), one.dtype)
        of_batch = _logits(apply, params, many, (1,))
    if batched:
        of_one = of_batch

    def alone(params: Any, x: jax.Array) -> jax.Array:
        return apply(params, x[None])[0]

    if isinstance(of_one, _Wrong):
        if batched is None and isinstance(of_batch, int):
            _check_alone(apply, params, inputs)
            return Model(alone, params, inputs, of_batch)
        other = [of_batch] if isinstance(of_batch, _Wrong) and not batched else []
        raise ValueError(_told([of_one, *other]))
    assert of_one is not None
    if batched:
        _check_alone(apply, params, inputs)
    elif batched is None and isinstance(of_batch, int):
        _check_same(apply, alone, params, inputs[0])
    return Model(alone if batched else apply, params, inputs, of_one)


def is_network(found: Any) -> bool:
    """Whether it is what flax linen and haiku call a network, and not its function."""
    # A function of others may well have an attribute `apply`, but no `init` too.
    return all(callable(getattr(found, part, None)) for part in ("init", "apply"))


def check_labels(labels: Any, num_inputs: int, num_classes: int) -> np.ndarray:
    """Returns labels as an array, or raises unless they are one class an input.

    Args:
        labels: (num_inputs,) integers in 0..num_classes-1.
        num_inputs: How many.
        num_classes: Of the model.
    """
    if labels is None:
        raise ValueError(
            f"there are no labels; wanted ({num_inputs},) "
            "integers (--labels names another array of the file)."
        )
    labels = np.asarray(labels)
    wanted = f"wanted one label an input, ({num_inputs},) integers"
    if labels.shape != (num_inputs,):
        hint = ""
        if labels.shape == (num_inputs, 1):
            hint = ": take labels[:, 0]"
        elif labels.ndim == 2:
            hint = ": of one-hot rows take labels.argmax(-1)"
        raise ValueError(f"labels is {describe(labels)}; {wanted}{hint}.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels is {describe(labels)}; {wanted}: labels.astype(int).")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels reach from {labels.min()} to {labels.max()} and the model has "
            f"{num_classes} logits; wanted 0..{num_classes - 1}."
        )
    return labels.astype(np.int32)


def check_range(inputs: np.ndarray, bounds: tuple[float, float] | None) -> None:
    """Raises ValueError where an input lies outside of what entries may be."""
    if bounds is None:
        return
    wrong = f"bounds is {bounds!r}; wanted (low, high) with low < high, or None."
    try:
        low, high = map(float, bounds)
    except (TypeError, ValueError):
        raise ValueError(wrong) from None
    if not low < high:
        raise ValueError(wrong)
    least, most = float(inputs.min()), float(inputs.max())
    if least < low or most > high:
        raise ValueError(
            f"inputs reach from {least:.4g} to {most:.4g}, outside of bounds {bounds}; "
            "wanted the range that entries may have, as bounds=(low, high) or "
            "--bounds=LOW,HIGH; None or none where there is no such range."
        )


def _check_signature(apply: Any) -> None:
    name = getattr(apply, "__name__", type(apply).__name__)
    if isinstance(apply, type):
        raise TypeError(
            f"apply is the class {name}; wanted a function (params, x): of a flax "
            "module net make apply = net.apply."
        )
    if is_network(apply):
        raise TypeError(
            f"apply is a network with init and apply, {name}; wanted its function "
            "(params, x): give net.apply in the place of net."
        )
    if not callable(apply):
        raise TypeError(f"apply is {describe(apply)}; wanted a function (params, x).")
    try:
        signature = inspect.signature(apply)
    except (TypeError, ValueError):
        return  # some builtins have none
    try:
        signature.bind("params", "x")
    except TypeError as error:
        body = f"{name}(...)"
        for kind in type(apply).__mro__:
            found = [b for library, b in _BODIES.items() if library in kind.__module__]
            body = found[0] if found else body
        raise TypeError(
            f"{name}{signature} cannot be called as apply(params, x) ({error}); wrap "
            f"it: def apply(params, x): return {body}."
        ) from None


def _check_params(params: Any) -> Any:
    """The parameters as arrays of jax."""
    leaves, treedef = jax.tree.flatten(params)
    if not leaves:
        raise TypeError(f"params is {describe(params)}, without arrays; wanted some.")
    arrays = []
    for path, leaf in zip(leaf_paths(params), leaves, strict=True):
        name = "/".join(map(str, path)) or "params"
        dtype = getattr(leaf, "dtype", None) or np.asarray(leaf).dtype
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            arrays.append(leaf)
            continue
        if not any(jnp.issubdtype(dtype, kind) for kind in (np.number, np.bool_)):
            raise TypeError(
                f"params hold {describe(leaf)} at {name}; wanted arrays alone: keep "
                "the rest in the function (equinox.partition, nnx.split)."
            )
        array = jnp.asarray(leaf)
        if jnp.issubdtype(array.dtype, jnp.inexact) and not jnp.isfinite(array).all():
            raise ValueError(
                f"params hold NaN or infinity at {name}; wanted finite values: take a "
                "checkpoint from before the training diverged."
            )
        arrays.append(array)
    return treedef.unflatten(arrays)


def _logits(
    apply: Apply, params: Any, x: jax.ShapeDtypeStruct, axes: tuple[int, ...]
) -> int | _Wrong:
    """The number of classes, or why there is none."""
    came = describe(x)
    # A new function each time: jax remembers how a traced one failed.
    try:
        out = jax.eval_shape(lambda p, v: apply(p, v), params, x)
    except Exception as error:
        return _Wrong(came, _short(error), fails=True)
    shape = getattr(out, "shape", None)
    if shape is None:
        return _Wrong(came, f"it returns a {type(out).__name__}")
    floating = jnp.issubdtype(out.dtype, jnp.floating)
    if shape[:-1] != axes or not shape or not floating:
        return _Wrong(came, f"it returns {describe(out)}")
    if shape[-1] < 2:
        return _Wrong(
            came,
            f"it returns {describe(out)}, a single class (of a sigmoid of one logit z "
            f"return jnp.{'concatenate' if axes else 'stack'}([0 * z, z]"
            f"{', -1' if axes else ''}))",
        )
    return shape[-1]


def _short(error: Exception) -> str:
    """What failed, without the page that flax gives for further reading."""
    text = re.sub(r"\s*\(https?://[^)]*\)", "", str(error))
    return f"{type(error).__name__}: {one_line(Exception(text), limit=_MOST)}"


def _told(wrong: Sequence[_Wrong]) -> str:
    """What does not fit, the attempt first that came furthest."""
    returned = [attempt for attempt in wrong if not attempt.fails]
    single = [attempt for attempt in returned if "single class" in attempt.what]
    hint = (
        "is the checkpoint of this function, and are the inputs of the shape that it "
        "was trained on? (--subtree takes a part of a checkpoint, --like gives it a "
        "structure)"
    )
    if returned:
        first = (single or returned)[0]
        return (
            f"apply(params, x) fits neither one input nor a batch: on {first.came} "
            f"{first.what}; wanted logits of shape (classes,): {hint}"
        )
    different = {attempt.what: attempt for attempt in reversed(wrong)}
    causes = "; ".join(
        f"on {attempt.came} {attempt.what}"
        for attempt in wrong
        if different[attempt.what] is attempt
    )
    tried = "one input and on a batch" if len(wrong) > 1 else wrong[0].came
    return (
        f"apply(params, x) fails on {tried}; wanted logits of shape (classes,): {hint} "
        f"What failed: {causes}"
    )


def _check_alone(apply: Apply, params: Any, inputs: np.ndarray) -> None:
    # One more input than there are, so that not all are the same.
    other = inputs[:1].reshape(1, -1)[:, ::-1].reshape(inputs[:1].shape)
    rows = np.concatenate([inputs[:7], other])
    together, *alone = _run(apply, params, rows, *(row[None] for row in rows))
    if not _alike(np.concatenate(alone), together):
        raise ValueError(
            "apply(params, x) gives an input other logits alone than in a batch: it "
            "looks at the batch, as batch normalization does in training, or is no "
            "pure function; wanted the model as it is used (use_running_average=True, "
            "net.eval())."
        )


def _run(apply: Apply, params: Any, *inputs: np.ndarray) -> list[np.ndarray]:
    # It runs a few times: optimising it would cost more.
    fast = {"xla_backend_optimization_level": 0}
    run = jax.jit(lambda p, x: apply(p, x), compiler_options=fast)
    try:
        return [np.asarray(run(params, x), np.float64) for x in inputs]
    except Exception as error:
        raise ValueError(
            f"apply(params, x) fails when it runs on {describe(inputs[0])} "
            f"({one_line(error, named=True)}); wanted logits."
        ) from error


def _check_same(apply: Apply, alone: Apply, params: Any, x: np.ndarray) -> None:
    if not _alike(*_run(apply, params, x), *_run(alone, params, x)):
        raise ValueError(
            f"apply(params, x) takes one input ({describe(x)}) and a batch of one, "
            "with different logits; say which is meant: batched=True or False "
            "(--batched yes or no)."
        )


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether logits agree up to rounding; infinities and NaN have to be the same."""
    if one.shape != other.shape:
        return False
    size = np.abs(other[np.isfinite(other)]).max(initial=1e-6)
    return np.allclose(one, other, rtol=0, atol=_SAME * size, equal_nan=True)
