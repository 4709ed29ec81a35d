"""How published models name and lay out what ours hold.

sedd      SEDD's adaLN transformer (louaaron/sedd-small, -medium)
mdlm      MDLM's, the same layout (kuleshov-group/mdlm-owt)
mdlm_ar   MDLM's autoregressive baseline: without sigma and adaLN
gpt2      GPT-2 (openai-community/gpt2)
llama     LLaMA and what is built like it (HuggingFaceTB/SmolLM2-135M)
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from diffusion_lm.types import Params

KINDS = ("sedd", "mdlm", "mdlm_ar", "gpt2", "llama")
# That may stand before names.
PREFIXES = ("module.", "_orig_mod.", "backbone.", "transformer.", "model.")
USUAL = {"mdlm": "backbone.", "llama": "model."}  # of what did not come with another
HEAD = "lm_head.weight"  # of GPT-2 and LLaMA, which is not in the model
BUFFER = "rotary_emb.inv_freq"  # a constant of SEDD and MDLM
BUFFERS = re.compile(r"layers\.\d{1,4}\.self_attn\.rotary_emb\.inv_freq")  # of old LLaMAs
MASK = re.compile(r"h\.\d{1,4}\.attn\.bias")  # of GPT-2: which positions see which


class Place(NamedTuple):
    """Where a tensor is in our parameters."""

    path: tuple[str, ...]
    layer: int | None  # of those that are stacked over layers
    fed: int  # how many leading axes of ours are a matrix's input; 0: no such matrix
    turned: bool  # theirs is [out, in], of torch's Linear; else [in, out], of GPT-2's Conv1D


# Their name -> ours and `fed` of a Place.
BLOCK = {
    "norm1.weight": ("norm1/scale", 0),
    "attn_qkv.weight": ("attention/qkv", 1),
    "attn_out.weight": ("attention/out", 2),
    "norm2.weight": ("norm2/scale", 0),
    "mlp.0.weight": ("up/kernel", 1),
    "mlp.0.bias": ("up/bias", 0),
    "mlp.2.weight": ("down/kernel", 1),
    "mlp.2.bias": ("down/bias", 0),
    "adaLN_modulation.weight": ("modulation/kernel", 1),
    "adaLN_modulation.bias": ("modulation/bias", 0),
}
WHOLE = {
    "vocab_embed.embedding": ("embedding", 0),
    "sigma_map.mlp.0.weight": ("condition/in/kernel", 1),
    "sigma_map.mlp.0.bias": ("condition/in/bias", 0),
    "sigma_map.mlp.2.weight": ("condition/out/kernel", 1),
    "sigma_map.mlp.2.bias": ("condition/out/bias", 0),
    "output_layer.norm_final.weight": ("output/norm/scale", 0),
    "output_layer.linear.weight": ("head/kernel", 1),
    "output_layer.linear.bias": ("head/bias", 0),
    "output_layer.adaLN_modulation.weight": ("output/modulation/kernel", 1),
    "output_layer.adaLN_modulation.bias": ("output/modulation/bias", 0),
}


GPT2_BLOCK = {
    "ln_1.weight": ("norm1/scale", 0),
    "ln_1.bias": ("norm1/bias", 0),
    "attn.c_attn.weight": ("qkv/kernel", 1),
    "attn.c_attn.bias": ("qkv/bias", 0),
    "attn.c_proj.weight": ("out/kernel", 2),
    "attn.c_proj.bias": ("out/bias", 0),
    "ln_2.weight": ("norm2/scale", 0),
    "ln_2.bias": ("norm2/bias", 0),
    "mlp.c_fc.weight": ("up/kernel", 1),
    "mlp.c_fc.bias": ("up/bias", 0),
    "mlp.c_proj.weight": ("down/kernel", 1),
    "mlp.c_proj.bias": ("down/bias", 0),
}
GPT2_WHOLE = {
    "wte.weight": ("embedding", 0),
    "wpe.weight": ("place", 0),
    "ln_f.weight": ("output/scale", 0),
    "ln_f.bias": ("output/bias", 0),
}
LLAMA_BLOCK = {
    "input_layernorm.weight": ("norm1/scale", 0),
    "self_attn.q_proj.weight": ("q", 1),
    "self_attn.k_proj.weight": ("k", 1),
    "self_attn.v_proj.weight": ("v", 1),
    "self_attn.o_proj.weight": ("out", 2),
    "post_attention_layernorm.weight": ("norm2/scale", 0),
    "mlp.gate_proj.weight": ("gate", 1),
    "mlp.up_proj.weight": ("up", 1),
    "mlp.down_proj.weight": ("down", 1),
}
LLAMA_WHOLE = {
    "embed_tokens.weight": ("embedding", 0),
    "norm.weight": ("output/scale", 0),
    HEAD: ("head", 1),
}


def places(params: Params) -> dict[str, Place]:
    """Their names and the places, of a network's parameters, abstract or not."""
    whole, block, stem, turned = WHOLE, BLOCK, "blocks", True
    if "gate" in params["blocks"]:
        whole, block, stem = LLAMA_WHOLE, LLAMA_BLOCK, "layers"
    elif "place" in params:
        whole, block, stem, turned = GPT2_WHOLE, GPT2_BLOCK, "h", False
    out = {}
    for name, (path, fed) in whole.items():
        out[name] = Place(tuple(path.split("/")), None, fed, turned)
    for layer in range(params["blocks"]["norm1"]["scale"].shape[0]):
        for name, (path, fed) in block.items():
            out[f"{stem}.{layer}.{name}"] = Place(("blocks", *path.split("/")), layer, fed, turned)
    return {name: place for name, place in out.items() if _get(params, place.path) is not None}


def _get(tree, path):
    for key in path:
        tree = tree.get(key)
        if tree is None:
            return None
    return tree


def shape_of(params: Params, place: Place) -> tuple[int, ...]:
    """The shape that their tensor has."""
    shape = _get(params, place.path).shape[0 if place.layer is None else 1 :]
    if not place.fed:
        return (math.prod(shape),) if place.path[-1] == "bias" else shape
    sides = math.prod(shape[: place.fed]), math.prod(shape[place.fed :])
    return sides[::-1] if place.turned else sides


def to_ours(abstract: Params, read: Callable[[str], np.ndarray]) -> Params:
    """Parameters like `abstract`, numpy, of `read(name) -> float32 array`."""
    out = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), abstract)
    for name, place in places(abstract).items():
        leaf, value = _get(out, place.path), read(name)
        target = leaf[...] if place.layer is None else leaf[place.layer]
        target[...] = (value.T if place.fed and place.turned else value).reshape(target.shape)
    return out


def to_theirs(params: Params) -> dict[str, np.ndarray]:
    """Their tensors by name, of our parameters as numpy arrays."""
    out = {}
    for name, place in places(params).items():
        value = _get(params, place.path)
        value = value if place.layer is None else value[place.layer]
        shape = shape_of(params, place)
        if place.fed and place.turned:
            value = value.reshape(shape[::-1]).T
        out[name] = np.ascontiguousarray(value.reshape(shape))
    return out


def constant_shape(kind: str, name: str, network: dict) -> tuple[int, ...] | None:
    """The shape of a tensor that is no parameter, by our options of the network; None if it is
    one, or unknown."""
    if kind == "gpt2":
        length = network["positions"]
        return (1, 1, length, length) if MASK.fullmatch(name) else None
    known = BUFFERS.fullmatch(name) if kind == "llama" else name == BUFFER
    return (network["width"] // network["heads"] // 2,) if known else None


def constant(kind: str, name: str, network: dict) -> np.ndarray:
    """What it holds: which positions see which, or the rotary frequencies."""
    if kind == "gpt2":
        return np.tri(network["positions"], dtype=np.float32)[None, None]
    size, base = network["width"] // network["heads"], network.get("rotary_base", 1e4)
    exponent = np.arange(0, size, 2).astype(np.float32) / np.float32(size)  # as torch rounds
    return np.float32(1) / np.float32(base) ** exponent
