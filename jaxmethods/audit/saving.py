"""How to save parameters such that an audit can read them, library by library."""

# Library -> the line that saves, with the names of the library's own documents.
LINES = {
    "flax linen": 'np.savez("weights.npz", **flatten_dict(variables, sep="/"))',
    "flax nnx": 'np.savez("weights.npz", *jax.tree.leaves(params))',
    "equinox": 'np.savez("weights.npz", *jax.tree.leaves(params))',
    "orbax": "with ocp.StandardCheckpointer() as saver: saver.save(folder, params)",
}
# What comes before it, in the module of the model: what the line saves.
BEFORE = {
    "flax linen": "from flax.traverse_util import flatten_dict",
    # Keys of dropout cannot be saved as numbers.
    "flax nnx": "graphdef, params, rest = nnx.split(net, (nnx.Param, nnx.BatchStat), "
    "...)",
    "equinox": "params, static = eqx.partition(net, eqx.is_array)",
    "orbax": 'folder = Path("weights").resolve()',
}
# The function of the model, and what the command needs besides.
APPLY = {
    "flax linen": "apply = net.apply",
    "flax nnx": "apply = lambda params, x: nnx.merge(graphdef, params, rest)(x)",
    "equinox": "apply = lambda params, x: eqx.combine(params, static)(x)",
}
LIKE = {"flax nnx": "--like model.py:params", "equinox": "--like model.py:params"}


def saving_text() -> str:
    """The lines as a text for the help of the command."""
    parts = ["How to save what CHECKPOINT names (np is numpy, ocp orbax.checkpoint):"]
    for library, line in LINES.items():
        parts.append(f"  {library}{':' if library not in LIKE else ''}")
        if library in LIKE:
            parts[-1] += f", audited with {LIKE[library]}:"
        lines = [BEFORE[library], line, APPLY.get(library)]
        parts += [f"    {text}" for text in lines if text]
    return "\n".join(parts) + "\n"
