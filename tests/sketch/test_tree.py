"""Sketches of pytrees: as of the long vector, linear, one psum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxmethods import sketch

from .families import FAMILIES


def gradients(seed=0):
    r = np.random.default_rng(seed)
    shapes = {"w": (4, 5), "none": (0, 3), "b": (), "v": (2, 3, 2)}
    return {
        k: jnp.asarray(r.integers(-9, 10, s), jnp.float32) for k, s in shapes.items()
    }


@pytest.mark.parametrize("family", ["sparse_stack", "gaussian", "srht", "less"])
def test_a_tree_is_a_long_vector(family):
    S, tree = FAMILIES[family].new(jax.random.key(0), 16, 33), gradients()
    both = jax.jit(lambda S, tree: (sketch.tree(S, tree), S @ ravel_pytree(tree)[0]))
    np.testing.assert_allclose(*both(S, tree), rtol=1e-5, atol=1e-5)


def test_gradient_is_the_adjoint_leaf_by_leaf():
    S, tree = sketch.sparse_stack(jax.random.key(0), 16, 33), gradients()
    y = np.float32(np.random.default_rng(1).standard_normal(16))
    got = jax.jit(jax.grad(lambda tree, S: y @ sketch.tree(S, tree)))(tree, S)
    got = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(got)])
    np.testing.assert_allclose(got, S.T @ y, rtol=1e-5)


def test_sketch_of_a_sum_over_a_mesh_is_the_sum_of_sketches():
    trees = [gradients(seed) for seed in range(8)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
    mesh = Mesh(np.array(jax.devices()), ("workers",))
    S = sketch.sparse_stack(jax.random.key(0), 16, 33)

    def local(tree):
        own = jax.tree.map(lambda leaf: leaf[0], tree)
        return jax.lax.psum(sketch.tree(S, own), "workers")

    run = jax.shard_map(local, mesh=mesh, in_specs=P("workers"), out_specs=P())
    total = jax.tree.map(lambda leaf: leaf.sum(0), stacked)
    np.testing.assert_array_equal(jax.jit(run)(stacked), jax.jit(sketch.tree)(S, total))


def test_leaves_of_mixed_dtypes_promote():
    S = sketch.sparse_stack(jax.random.key(0), 4, 3)
    tree = [jnp.ones(2, jnp.bfloat16), jnp.ones(1)]
    assert jax.eval_shape(sketch.tree, S, tree).dtype == jnp.float32
    low = [tree[0], jnp.ones(1, jnp.bfloat16)]
    assert jax.eval_shape(sketch.tree, S, low).dtype == jnp.bfloat16


def test_errors():
    S = sketch.sparse_stack(jax.random.key(0), 16, 34)
    with pytest.raises(ValueError, match=r"holds 33 numbers in 4 leaves; wanted 34"):
        sketch.tree(S, gradients())
    with pytest.raises(TypeError, match=r"the leaf \['w'\] is int32\[34\]"):
        sketch.tree(S, {"w": jnp.ones(34, int)})
    with pytest.raises(ValueError, match="holds 0 numbers in 0 leaves"):
        sketch.tree(S, {})
