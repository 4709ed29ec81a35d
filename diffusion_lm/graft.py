"""Starting a network from that of another run: to go on on another text, or with another objective,
a masked denoiser from an autoregressive model for example.
"""

import jax
import jax.numpy as jnp

from diffusion_lm.types import Params

ROWS = {"['embedding']": 0, "['head']": 1, "['head']['kernel']": 1}  # axis of tokens


def onto(params: Params, theirs: Params) -> Params:
    """`params` with every array of its network replaced by theirs.

    Where theirs has fewer tokens, as an autoregressive model has no mask, the further rows are the
    mean of its own; where it has more, these are left out. Raises ValueError for arrays that are
    missing there or of other shapes.
    """
    theirs = theirs.get("network", {})
    there = {jax.tree_util.keystr(p): a for p, a in jax.tree_util.tree_flatten_with_path(theirs)[0]}
    wrong = []

    def take(path, mine):
        name = jax.tree_util.keystr(path)
        if name not in there:
            wrong.append(f"{name} is not there")
            return mine
        found, axis = there[name], ROWS.get(name)
        if axis is not None and found.ndim == mine.ndim:
            missing = mine.shape[axis] - found.shape[axis]
            if missing > 0:
                mean = jnp.repeat(found.mean(axis, keepdims=True), missing, axis)
                found = jnp.concatenate([found, mean], axis)
            found = jax.lax.slice_in_dim(found, 0, mine.shape[axis], axis=axis)
        if found.shape != mine.shape:
            wrong.append(f"{name} has {there[name].shape} there and {mine.shape} here")
            return mine
        return found.astype(mine.dtype)

    network = jax.tree_util.tree_map_with_path(take, params["network"])
    if wrong:
        raise ValueError(
            f"config.train.start: {len(wrong)} arrays of the network do not fit: "
            f"{'; '.join(wrong)[:400]}"
        )
    return params | {"network": network}
