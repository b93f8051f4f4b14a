"""What compresses gradients: numpy definitions, pieces, and the kernels.

The kernels run in interpret mode here; for a TPU they are lowered, not run.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods.kernels import (
    _bin_slots,
    _by_pieces,
    _magnitude_of_rank,
    _threshold_bits,
    bin_signs,
    bin_slots,
    by_pieces,
    finite_sum,
    largest_of_rows,
    magnitude_of_rank,
    pack_bits,
    threshold_bits,
)

PLATFORMS = ("tpu", "cuda", "cpu")


@pytest.fixture
def short_pieces(monkeypatch):
    """Pieces of 64 entries, of bins at least one."""
    monkeypatch.setattr(_by_pieces, "_ENTRIES", 64)
    monkeypatch.setattr(_by_pieces, "_ROW", 16)


def vectors(seed, size):
    """Two vectors with ties, zeros, and sums that are zero."""
    r = np.random.default_rng(seed)
    one, other = r.integers(-6, 7, (2, size)).astype(np.float32)
    other[: size // 8] = -one[: size // 8]
    one[-5:] += np.float32(0.25)
    return one, other


def chosen(residue, gradient, bin_size, slots, factor):
    """AdaComp's rule, bin by bin."""
    codes, tops = [], []
    bits = 6 if bin_size <= 64 else 14
    for start in range(0, len(gradient), bin_size):
        piece = slice(start, start + bin_size)
        total = residue[piece] + gradient[piece]
        pushed = abs(total + (factor - 1) * gradient[piece])
        tops.append(abs(total).max())
        passing = np.flatnonzero((pushed >= tops[-1]) & (total != 0))
        first = passing[np.argsort(-pushed[passing], kind="stable")][:slots]
        found = [j | (2 if total[j] < 0 else 1) << bits for j in first]
        codes.append(found + [0] * (slots - len(found)))
    return np.array(codes), np.array(tops)


SHAPES = [(1, 1, 1), (37, 10, 3), (300, 50, 4), (301, 100, 8), (64, 64, 2)]


@pytest.mark.parametrize("size, bin_size, slots", SHAPES, ids=str)
@pytest.mark.parametrize("factor", [1.0, 2.0, 3.0])
def test_slots_of_bins(size, bin_size, slots, factor, short_pieces):
    residue, gradient = vectors(0, size)
    options = dict(bin_size=bin_size, slots=slots, scale_factor=factor)
    got = bin_slots(residue, gradient, **options)
    codes, tops = chosen(residue, gradient, bin_size, slots, factor)
    assert got.codes.dtype == (np.uint8 if bin_size <= 64 else np.uint16)
    np.testing.assert_array_equal(got.codes, codes)
    np.testing.assert_array_equal(got.tops, tops)
    np.testing.assert_array_equal(got.total, residue + gradient)


@pytest.mark.parametrize("size, bin_size", [(37, 10), (301, 100), (3, 3)])
def test_signs_of_bins_are_all_slots(size, bin_size, short_pieces):
    residue, gradient = vectors(1, size)
    signs, tops = bin_signs(residue, gradient, bin_size=bin_size)
    codes, want = chosen(residue, gradient, bin_size, bin_size, 2.0)
    np.testing.assert_array_equal(tops, want)
    bits = 6 if bin_size <= 64 else 14
    start = bin_size * np.arange(len(codes))[:, None]
    places = (start + codes % 2**bits)[codes > 0]
    dense = np.zeros(size, np.int8)
    dense[places] = np.where(codes[codes > 0] >> bits == 2, -1, 1)
    np.testing.assert_array_equal(signs, dense)


@pytest.mark.optimized
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bin_that_is_not_finite_says_so(bad):
    residue, gradient = vectors(2, 12800)  # XLA's maxima of such rows lose a NaN
    gradient[77] = bad
    find = jax.jit(partial(bin_slots, bin_size=50, slots=2))
    codes, tops, _ = find(residue, gradient)
    assert np.flatnonzero(~np.isfinite(tops)).tolist() == [1]
    assert not codes[1].any() and codes[-1].any()
    assert np.isnan(bin_signs(residue, gradient, bin_size=50)[1][1])


@pytest.mark.parametrize("slots", [1, 3, 7])
def test_largest_of_rows_by_rounds_and_by_top_k(slots):
    rank = np.random.default_rng(3).integers(0, 5, (20, 9)).astype(np.float32)
    for form in (largest_of_rows, lambda x, c: _bin_slots._in_rounds(c, x)):
        height, place = form(jnp.asarray(rank), slots)
        order = np.argsort(-rank, 1, kind="stable")[:, :slots]
        np.testing.assert_array_equal(height, np.take_along_axis(rank, order, 1))
        np.testing.assert_array_equal(
            np.where(height > 0, place, -1), np.where(height > 0, order, -1)
        )


@pytest.mark.parametrize("size", [128, 129, 191, 1000])
def test_pieces_are_put_together(size, short_pieces):
    x, y = vectors(4, size)

    def pairs(x, y):
        total = jnp.pad(x + y, (0, -x.size % 2)).reshape(-1, 2)
        return total.max(1), total

    whole, pieces = pairs(x, y), by_pieces(pairs, x, y, unit=2)
    for a, b in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(a, b)
    rows = jnp.stack([x, y])
    several = jax.vmap(lambda z: by_pieces(jnp.abs, z))(rows)
    np.testing.assert_array_equal(several, abs(rows))
    assert bool(finite_sum(x, y))
    for bad in (np.nan, np.inf):
        y[-1] = bad
        assert not bool(finite_sum(x, y))
        assert bool(finite_sum(x))


def test_a_leaf_in_pieces_is_sent_as_in_one(short_pieces):
    residue, gradient = vectors(5, 333)
    many = bin_slots(residue, gradient, bin_size=20, slots=3)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    spec = P("data")

    def local(r, g):
        return bin_slots(r[0], g[0], bin_size=20, slots=3).codes[None]

    shared = jax.shard_map(local, mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    pairs = [np.stack([x, -x]) for x in (residue, gradient)]
    codes = jax.jit(shared)(*pairs)
    np.testing.assert_array_equal(codes[0], many.codes)
    np.testing.assert_array_equal(codes[1] % 2**6, many.codes % 2**6)


@pytest.mark.parametrize("size", [5, 64, 4096, 5001])
def test_bits_above_a_threshold(size):
    gradient, error = vectors(6, size)
    for threshold in (0.0, 3.0):
        total, words, count, finite = threshold_bits(gradient, error, threshold)
        want = gradient + error
        mask = (abs(want) >= threshold) & (want != 0)
        np.testing.assert_array_equal(total, want)
        np.testing.assert_array_equal(words, pack_bits(jnp.asarray(mask)))
        assert int(count) == mask.sum() and bool(finite)
    gradient[3] = np.nan
    assert not bool(threshold_bits(gradient, error, 1.0).finite)


@pytest.mark.parametrize(
    "size, bin_size, slots",
    [(128 * 128, 128, 3), (130 * 128 - 5, 128, 9), (150 * 256, 256, 1)],
)
def test_the_kernel_of_slots_is_its_definition(size, bin_size, slots):
    residue, gradient = vectors(7, size)
    gradient[1000] = np.nan
    residue, gradient = map(jnp.asarray, (residue, gradient))
    options = (bin_size, slots, 2.0)
    want = _bin_slots._by_pieces(options, residue, gradient)
    fused = jax.jit(partial(_bin_slots._fused, options, interpret=True))
    for a, b in zip(fused(residue, gradient), want, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("size", [4096, 5001, 10 * 4096, 9 * 4096 - 130])
def test_the_kernel_of_bits_is_its_definition(size, monkeypatch):
    monkeypatch.setattr(_threshold_bits, "_ROWS", 256)
    gradient, error = vectors(8, size)
    fused = jax.jit(partial(_threshold_bits._fused, interpret=True))
    for bad in (0.0, np.inf):
        gradient[size // 2] = bad
        operands = jnp.asarray(gradient), jnp.asarray(error), jnp.float32(4)
        want = _threshold_bits._bits(*operands)
        for a, b in zip(fused(*operands), want, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_lowering_for_each_platform(batch):
    x = jnp.ones((*batch, 130 * 256))
    slots = partial(bin_slots, bin_size=256, slots=4)
    for fn, operands in (
        (slots, (x, x)),
        (partial(threshold_bits, threshold=1.0), (x, x)),
    ):
        for implementation in ("xla", "pallas"):
            one = partial(fn, implementation=implementation)
            many = jax.jit(jax.vmap(one) if batch else one)
            for platform in PLATFORMS:
                export = jax.export.export(many, platforms=[platform])
                found = "tpu_custom_call" in export(*operands).mlir_module()
                assert found == (platform == "tpu" and implementation == "pallas")


def test_bins_across_rows_are_no_kernel():
    x = jnp.ones(500 * 200)
    for bin_size, slots in ((500, 4), (50, 4), (128, 65)):
        fn = partial(bin_slots, bin_size=bin_size, slots=slots, implementation="pallas")
        export = jax.export.export(jax.jit(fn), platforms=["tpu"])
        assert "tpu_custom_call" not in export(x, x).mlir_module()


def test_errors():
    x = jnp.ones(4)
    with pytest.raises(ValueError, match=r"implementation is 'triton'.*xla.*pallas"):
        bin_slots(x, x, bin_size=2, slots=1, implementation="triton")
    with pytest.raises(ValueError, match=r"implementation is 'triton'.*xla.*pallas"):
        threshold_bits(x, x, 1.0, implementation="triton")


@pytest.mark.parametrize("kind", ["normal", "tied", "first entries large"])
def test_a_guess_of_the_rank_is_never_believed(kind, monkeypatch):
    monkeypatch.setattr(_magnitude_of_rank, "_SMALL", 64)
    monkeypatch.setattr(_magnitude_of_rank, "_SAMPLE", 256)
    x = np.random.default_rng(9).standard_normal(6001).astype(np.float32)
    if kind == "tied":
        x = np.round(x)
    if kind == "first entries large":
        x[:: len(x) // 256] *= 100  # all that is sampled
    down = np.sort(abs(x))[::-1]
    find = jax.jit(magnitude_of_rank)
    for rank in (0, 59, 3000, 6000):
        assert float(find(x, rank)) == down[rank]
