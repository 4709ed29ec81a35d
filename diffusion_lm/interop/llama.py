"""LLaMA's config.json, as transformers writes it, and the config of ours that matches."""

from typing import Any

from diffusion_lm.interop.model_config import LENGTH, choice, integer, real, trained
from diffusion_lm.types import Params

MOST_LAYERS = 1000


def run_config(kind: str, config: dict, shapes: dict[str, tuple]) -> dict:
    """A config of ours for a published model, see model_config.run_config. Raises ValueError for
    what is not there or not supported."""
    if not config:
        raise ValueError("a LLaMA wants config.json beside its weights, they do not say its heads")
    choice("model_type", config.get("model_type", "llama"), ("llama",))
    choice("hidden_act", config.get("hidden_act", "silu"), ("silu",))
    for name in ("attention_bias", "mlp_bias"):
        choice(name, config.get(name, False), (False,))
    choice("tie_word_embeddings", config.get("tie_word_embeddings", False), (False, True))
    rotary = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if type(rotary) is not dict:
        raise ValueError(f"config.json: rope_scaling must be an object, got {rotary!r:.60}")
    choice("rope_scaling", rotary.get("rope_type", rotary.get("type", "default")), ("default",))
    layers, width, heads, hidden = (
        integer(name, config.get(name))
        for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    )
    if layers > MOST_LAYERS:
        raise ValueError(
            f"config.json: num_hidden_layers must be at most {MOST_LAYERS}, got {layers}"
        )
    given = config.get("head_dim")
    choice("head_dim", width // heads if given is None else given, (width // heads,))
    network = {
        "name": "llama",
        "layers": layers,
        "width": width,
        "heads": heads,
        "kv_heads": integer("num_key_value_heads", config.get("num_key_value_heads") or heads),
        "hidden": hidden,
        "rotary_base": real("rope_theta", config.get("rope_theta", rotary.get("rope_theta", 1e4))),
        "epsilon": real("rms_norm_eps", config.get("rms_norm_eps", 1e-6)),
        "tied": config.get("tie_word_embeddings", False),
        "rows": integer("vocab_size", config.get("vocab_size")),
    }
    length = integer("max_position_embeddings", config.get("max_position_embeddings") or LENGTH)
    made = trained(network, min(length, LENGTH))
    made["train"]["ema"] = 0.0  # as they were trained; and a copy less of many parameters
    return made


def published_config(kind: str, config: Any, params: Params) -> dict:
    """A config.json as transformers reads it, of a config of ours."""
    network = config.network
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "float32",
        "vocab_size": len(params["embedding"]),
        "hidden_size": network.width,
        "num_hidden_layers": network.layers,
        "num_attention_heads": network.heads,
        "num_key_value_heads": network.kv_heads or network.heads,
        "intermediate_size": params["blocks"]["gate"].shape[-1],
        "max_position_embeddings": config.data.length,
        "rope_theta": network.rotary_base,
        "rms_norm_eps": network.epsilon,
        "tie_word_embeddings": network.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }
