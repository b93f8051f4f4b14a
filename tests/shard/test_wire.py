"""Bytes on the wire: each collective, loops, branches, and the text forms of HLO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods.shard import wire
from jaxmethods.shard._wire import _bytes_sent

N = 8
OWN = P("i")
BYTES = 16 * 24 * 4  # of a device
RING = [(i, (i + 1) % N) for i in range(N)]


def rows():
    return jnp.ones((N * 16, 24))


def on_line(fn, outs=OWN):
    mesh = Mesh(np.array(jax.devices()), ("i",))
    return jax.shard_map(fn, mesh=mesh, in_specs=OWN, out_specs=outs, check_vma=False)


@pytest.mark.parametrize(
    ("fn", "outs", "sent"),
    [
        (lambda x: lax.psum(x, "i"), P(), 2 * 7 / 8 * BYTES),
        (lambda x: lax.all_gather(x, "i"), P(), 7 * BYTES),
        (lambda x: lax.all_gather(x > 0, "i"), P(), 7 * BYTES / 4),
        (lambda x: lax.psum_scatter(x, "i", tiled=True), P("i"), 7 / 8 * BYTES),
        (lambda x: lax.all_to_all(x, "i", 0, 0, tiled=True), P("i"), 7 / 8 * BYTES),
        (lambda x: lax.ppermute(x, "i", RING), P("i"), BYTES),
        (lambda x: lax.ppermute(x, "i", [(0, 1)]), P("i"), BYTES),
        (lambda x: jnp.sin(x), P("i"), 0),
    ],
    ids="psum gather bytes scatter all_to_all ring one nothing".split(),
)
@pytest.mark.optimized
def test_collectives(fn, outs, sent):
    got = wire(on_line(fn, outs=outs))(rows())
    assert got.total == sent
    assert sum(got.collectives.values()) == sent
    assert len(got.collectives) == (sent > 0)


@pytest.mark.optimized
def test_groups_of_a_mesh():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    for axis, group in {"data": 4, "model": 2}.items():
        fn = jax.shard_map(
            lambda x, axis=axis: lax.psum(x, axis),
            mesh=mesh,
            in_specs=P(("data", "model")),
            out_specs=P("model" if axis == "data" else "data"),
        )
        assert wire(fn)(rows()).total == 2 * (group - 1) / group * BYTES


@pytest.mark.optimized
def test_a_loop_counts_once_a_round():
    def rounds(x):
        def twice(c):
            return lax.scan(lambda c, _: (lax.psum(jnp.sin(c), "i"), None), c, None, 2)

        return lax.fori_loop(0, 3, lambda _, c: twice(c)[0], x)

    assert wire(on_line(rounds))(rows()).total == 6 * 2 * 7 / 8 * BYTES


@pytest.mark.optimized
def test_a_loop_of_unknown_length_warns():
    def loop(x):
        return lax.while_loop(
            lambda c: c[0, 0] < 1e6, lambda c: 1 + lax.psum(c, "i"), x
        )

    with pytest.warns(UserWarning, match="does not know its number of rounds"):
        assert wire(on_line(loop))(rows()).total == 2 * 7 / 8 * BYTES


@pytest.mark.optimized
def test_a_condition_that_sends_is_asked_once_more_than_the_body_runs():
    def loop(x):
        return lax.while_loop(lambda c: lax.psum(c, "i")[0, 0] < 1e6, jnp.sin, x)

    with pytest.warns(UserWarning, match="does not know its number of rounds"):
        assert wire(on_line(loop))(rows()).total == 2 * 7 / 8 * BYTES
    known = PROGRAM.replace("ROUNDS", '"known_trip_count":{"n":"3"}')
    assert _bytes_sent(known) == {"a": 3 * 100, "b": 4 * 2 * 7 / 8 * 4}


PROGRAM = """HloModule m, num_partitions=8
%body (p: f32[25]) -> f32[25] {
  ROOT %a = f32[25]{0} collective-permute(%p), source_target_pairs={{0,1}}
}
%condition (p: f32[25]) -> f32[] {
  ROOT %b = f32[] all-reduce(%c), replica_groups={}, to_apply=%add
}
ENTRY %main (p: f32[25]) -> f32[25] {
  ROOT %while.1 = f32[25]{0} while(%p), condition=%condition, body=%body, \
backend_config={ROUNDS}
}"""


@pytest.mark.optimized
def test_branches_within_loops():
    def step(i, x):
        branches = [lambda x: lax.ppermute(x, "i", RING), jnp.sin, lambda x: -x]
        return lax.switch(i % 3, branches, x)

    got = wire(on_line(lambda x: lax.fori_loop(0, 6, step, x)))(rows())
    assert got.total == 6 * BYTES


@pytest.mark.optimized
def test_all_to_all_of_several_arrays_and_dtypes():
    def exchange(x):
        pair = x, (x > 0).astype(jnp.int8)
        return [lax.all_to_all(part, "i", 0, 0, tiled=True) for part in pair]

    assert wire(on_line(exchange))(rows()).total == 7 / 8 * (BYTES + BYTES / 4)


@pytest.mark.optimized
def test_bfloat16_is_summed_as_float32_here():
    sent = wire(on_line(lambda x: lax.psum(x.astype(jnp.bfloat16), "i"), P()))(rows())
    assert sent.total == 2 * 7 / 8 * BYTES


@pytest.mark.optimized
def test_what_the_partitioner_inserts_in_each_round():
    mesh = Mesh(np.array(jax.devices()[::-1]).reshape(4, 2), ("data", "model"))
    at = lambda *axes: jax.sharding.NamedSharding(mesh, P(*axes))  # noqa: E731

    def layers(x, kernels):
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, kernels)[0]

    jitted = jax.jit(
        layers,
        in_shardings=(at("data"), at(None, "data")),
        out_shardings=at("data"),
    )
    sent = wire(jitted)(jnp.ones((16, 24)), jnp.ones((3, 24, 24)))
    assert sent.total == 3 * 3 / 4 * 24 * 24 * 4  # gathers a kernel in each round


@pytest.mark.optimized
def test_the_branch_that_sends_most_counts():
    def branch(x):
        return lax.cond(
            x[0, 0] > 0, lambda x: lax.ppermute(x, "i", RING), lambda x: x + 1, x
        )

    assert wire(on_line(branch))(rows()).total == BYTES


@pytest.mark.optimized
def test_a_compiled_program_is_measured_at_once():
    fn = jax.jit(on_line(lambda x: lax.psum(x, "i"), P()))
    report = wire(fn.lower(rows()).compile())
    assert report == wire(fn)(rows()) and report.total == 2 * 7 / 8 * BYTES


def test_shapes_serve_and_jitted_functions_too():
    mesh = Mesh(np.array(jax.devices()), ("i",))
    sharding = jax.sharding.NamedSharding(mesh, P("i"))
    shape = jax.ShapeDtypeStruct((N * 4,), jnp.float32, sharding=sharding)
    assert wire(jax.jit(lambda x: x.sum()))(shape).total == 2 * 7 / 8 * 4


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("f32[64]{0} all-reduce(%a), replica_groups=[2,4]<=[8]", 2 * 3 / 4 * 256),
        ("f32[64]{0} all-reduce(%a), replica_groups=[4,2]<=[2,4]T(1,0)", 256),
        ("f32[64]{0} all-reduce(%a), replica_groups={}", 2 * 7 / 8 * 256),
        ("f32[64]{0} all-reduce(%a), replica_groups={{0,1},{2,3}}", 256),
        (
            "f32[64]{0} all-reduce(%a), replica_groups=mesh['a'=2,'b'=4] {'b'}",
            2 * 3 / 4 * 256,
        ),
        (
            "f32[64]{0} all-reduce(%a), replica_groups=mesh['a'=8] {'a':(2)4}",
            2 * 3 / 4 * 256,
        ),
        (
            "(bf16[2]{0}, bf16[16]{0}) all-gather-start(%a), replica_groups={}",
            7 / 8 * 32,
        ),
        (
            "(f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%a), "
            "source_target_pairs={{0,1},{1,0}}",
            16,
        ),
        ("f32[4]{0} collective-permute(%a), source_target_pairs={{0,0},{1,1}}", 0),
        ("(f32[2]{0}, s8[8]{0}) all-to-all(%a, %b), replica_groups={}", 7 / 8 * 16),
        ("f8e4m3fn[64]{0} all-reduce(%a), replica_groups={}", 2 * 7 / 8 * 64),
        ("f32[8]{0} reduce-scatter(%a), replica_groups={}, to_apply=%add", 7 * 32),
        ("f32[8]{0} add(%all-reduce.1, %b)", 0),
        ('f32[8]{0} add(%a, %b), metadata={op_name="my all-reduce(x)"}', 0),
        ("f32[64]{0} all-reduce(%a), replica_groups={{0},{1,2,3}}", 2 * 2 / 3 * 256),
        (
            "f32[64]{0} all-reduce(%a), replica_groups=mesh['a'=2,'b'=4], "
            "device_ids=([4,2]T(1,0)) {'b'}",
            2 * 3 / 4 * 256,
        ),
        ("f32[64]{0:T(128)} all-reduce-start(%a), replica_groups={}", 7 / 4 * 256),
        ("(f32[8]{0}, s8[4]{0}) all-reduce-start(%a, %b), replica_groups={}", 63),
        ("f32[64]{0} all-reduce-done(%s)", 0),
        (
            "((f32[8]{0}, s8[8]{0}), (f32[64]{0:T(8,128)}, s8[64]{0})) "
            "all-gather-start(%a, %b), replica_groups={}",
            7 / 8 * 320,
        ),
        ("((f32[64]{0}), f32[8]{0}, u32[]) reduce-scatter-start(%a)", 7 * 32),
        (
            "((f32[2]{0}, f32[2]{0}), (f32[2]{0}, f32[2]{0})) all-to-all-start(%a, %b),"
            " replica_groups={{0,1},{2,3}}",
            8,
        ),
        (
            "((f32[4]{0}, f32[2]{0}), (f32[4]{0}, f32[2]{0}), u32[], u32[]) "
            "collective-permute-start(%a, %b), source_target_pairs={{0,1},{1,0}}",
            24,
        ),
    ],
)
def test_text_forms(line, sent):
    header = "HloModule m, num_partitions=8\nENTRY %main (a: f32[]) -> f32[] {\n"
    hlo = f"{header}%x = {line}\n}}"
    assert sum(_bytes_sent(hlo).values()) == sent


@pytest.mark.parametrize(
    "start",
    [
        "((f32[8]), f32[8], u32[]) async-start(%p), calls=%inside",
        "f32[8]{0} call(%p), to_apply=%inside",
        "f32[8]{0} fusion(%p), kind=kCustom, calls=%inside",
        'f32[8]{0} custom-call(%p), custom_call_target="x", '
        "called_computations={%none, %inside}",
    ],
)
def test_what_a_computation_sends_counts_where_it_is_called(start):
    """And once: not again where an async operation is done."""
    hlo = f"""HloModule m, num_partitions=8
%none (p: f32[8]) -> f32[8] {{
  ROOT %n = f32[8]{{0}} negate(%p)
}}
%inside (p: f32[8]) -> f32[8] {{
  ROOT %a = f32[8]{{0}} all-to-all(%p), replica_groups={{}}, dimensions={{0}}
}}
ENTRY %main (p: f32[8]) -> f32[8] {{
  %s = {start}
  %u = ((f32[8]), f32[8], u32[]) async-update(%s), calls=%inside
  ROOT %d = f32[8]{{0}} async-done(%u), calls=%inside
}}"""
    assert _bytes_sent(hlo) == {"a": 7 / 8 * 32}
