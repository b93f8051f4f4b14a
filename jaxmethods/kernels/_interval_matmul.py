"""A box through a matrix product: its center by W, its radius by |W|."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..core import check_choice
from ._batch_axes import mapped_in_front, outputs_like

_ROWS, _COLUMNS, _TERMS = 256, 512, 512  # of a block: 8 MB in float32, all buffers


def interval_matmul(
    center: jax.Array,
    radius: jax.Array,
    weights: jax.Array,
    *,
    implementation: str = "xla",
) -> tuple[jax.Array, jax.Array]:
    """The center and radius of a box's image under a matrix: (c @ W, r @ |W|).

    `implementation="pallas"` is a kernel for TPUs that reads each block of W once for
    both products. Up to some 128 rows the products wait for W, and XLA reads it twice:
    compiled for a TPU v5e in float32, 8 to 128 rows and W 8192 x 8192, each of the two
    is estimated at 860 000 to 910 000 cycles, at least 690 000 of them for the read;
    with 256 rows they wait for the matrix unit (1 620 000 cycles each), and with one
    row XLA reads W once by itself. So the kernel may halve the time of a few rows. It
    is not the default, since it has been compiled for TPU v4, v5e, v5p and v6e but
    measured on none, and since transforms that look for products do not see them in it.

    Args:
        center: floating (m, k).
        radius: (m, k), of the same dtype, at least 0.
        weights: (k, n), of the same dtype.
        implementation: "xla" or "pallas"; the latter on TPUs in float32 and bfloat16,
            and what "xla" does elsewhere. Under `vmap` over boxes alone their rows
            are put together in one product.

    Returns:
        Two arrays (m, n) of the dtype of the operands; sums in float32 or wider.

    Raises:
        ValueError: `implementation` is none of the two.

    Complexity:
        4 m k n flops at full precision, and k n numbers read: twice where XLA does not
        fuse the products, once for each 256 rows in the kernel.

    Example:
        >>> import jax.numpy as jnp
        >>> box, weights = jnp.ones((1, 2)), jnp.array([[1.0], [-2.0]])
        >>> center, radius = interval_matmul(box, box, weights)
        >>> center.tolist(), radius.tolist()
        ([[-1.0]], [[3.0]])

    References:
        Gowal et al. 2018, On the effectiveness of interval bound propagation for
        training verifiably robust models (arXiv 1810.12715).
    """
    check_choice(implementation, ("xla", "pallas"), "implementation")
    form = _products if implementation == "xla" else _by_platform
    return form(center, radius, weights)


def _products(
    center: jax.Array, radius: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The definition."""
    product = partial(jnp.matmul, precision="highest")
    return product(center, weights), product(radius, jnp.abs(weights))


@jax.custom_jvp
def _by_platform(center: jax.Array, radius: jax.Array, weights: jax.Array) -> Any:
    return _of_rows(center, radius, weights)


@_by_platform.defjvp
def _derivative(primals: Any, tangents: Any) -> Any:
    """That of the definition."""
    return _by_platform(*primals), jax.jvp(_products, primals, tangents)[1]


def _choose(center: jax.Array, radius: jax.Array, weights: jax.Array) -> Any:
    kinds = {x.dtype for x in (center, radius, weights)}
    known = kinds in ({jnp.dtype("float32")}, {jnp.dtype("bfloat16")})
    if not known or 0 in (*center.shape, *weights.shape):
        return _products(center, radius, weights)
    return jax.lax.platform_dependent(
        center, radius, weights, tpu=_fused, default=_products
    )


_of_rows = custom_vmap(_choose)


@_of_rows.def_vmap
def _of_many_rows(
    size: int, mapped: Any, center: jax.Array, radius: jax.Array, weights: jax.Array
) -> Any:
    """Boxes that share their weights are rows of one product, and not products each."""
    if mapped[2]:
        over = jax.vmap(_choose, [0 if m else None for m in mapped])
        return mapped_in_front(over)(center, radius, weights), (True, True)
    shape = (size, *center.shape[-2:])
    rows = (jnp.broadcast_to(x, shape) for x in (center, radius))
    rows = (x.reshape(-1, shape[-1]) for x in rows)
    outs = _of_rows(*rows, weights)
    return tuple(x.reshape(*shape[:2], -1) for x in outs), (True, True)


def _fused(
    center: jax.Array, radius: jax.Array, weights: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The Pallas kernel: both products of a block of W while it is in fast memory."""
    (num_rows, num_terms), num_columns = center.shape, weights.shape[1]
    height, width = min(_ROWS, num_rows), min(_COLUMNS, num_columns)
    depth = min(_TERMS, num_terms)
    rows = pl.BlockSpec((height, depth), lambda i, j, k: (i, k))
    out = pl.BlockSpec((height, width), lambda i, j, k: (i, j))
    middle, spread = pl.pallas_call(
        partial(_step, num_terms=num_terms),
        grid=tuple(
            pl.cdiv(size, block)
            for size, block in (
                (num_rows, height),
                (num_columns, width),
                (num_terms, depth),
            )
        ),
        in_specs=[rows, rows, pl.BlockSpec((depth, width), lambda i, j, k: (k, j))],
        out_specs=[out, out],
        out_shape=outputs_like(_products, center, radius, weights),
        scratch_shapes=[pltpu.VMEM((height, width), jnp.float32)] * 2,
        interpret=interpret,
        name="interval_matmul",
    )(center, radius, weights)
    return middle, spread


def _step(*refs: Any, num_terms: int) -> None:
    """One block of W: adds its share to both products."""
    center, radius, weights, *outs, middle, spread = refs
    block = pl.program_id(2)

    @pl.when(block == 0)
    def _():
        for total in (middle, spread):
            total[...] = jnp.zeros_like(total)

    def inside(x: jax.Array, axis: int) -> jax.Array:
        """Zeros for what the last block holds of terms that there are not."""
        if num_terms % depth == 0:
            return x
        place = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
        return jnp.where(block * depth + place < num_terms, x, jnp.zeros_like(x))

    depth = weights.shape[0]
    # Products of bfloat16 are exact in float32 as they are.
    full = weights.dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if full else None
    values = inside(weights[...], 0)
    for total, rows, factor in (
        (middle, center, values),
        (spread, radius, jnp.abs(values)),
    ):
        total[...] += jax.lax.dot(
            inside(rows[...], 1),
            factor,
            precision=precision,
            preferred_element_type=jnp.float32,
        )

    @pl.when(block == pl.num_programs(2) - 1)
    def _():
        for total, out in zip((middle, spread), outs, strict=True):
            out[...] = total[...].astype(out.dtype)
