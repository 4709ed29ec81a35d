"""What published models say of themselves in config.json, and the configs of ours that match;
LLaMA's are in llama.py."""

import re
from typing import Any, NamedTuple

from diffusion_lm.interop.layouts import BUFFER
from diffusion_lm.types import Params


class Sizes(NamedTuple):
    """What a published model says of itself."""

    layers: int
    width: int
    heads: int
    hidden: int
    condition_width: int
    rows: int  # of the embedding, the mask's too
    mask: int | None  # the mask's row; None: the last, if there is one
    length: int
    dropout_rate: float
    time_input: bool
    graph: str  # SEDD's
    noise: dict  # our section `schedule`


MOST = 2**24  # of any size
LENGTH = 1024  # that all were trained at


def sizes(kind: str, config: dict, shapes: dict[str, tuple]) -> Sizes:
    """Sizes by a config.json ({}: none) and, where it is silent, by tensors' shapes. Raises
    ValueError for what is not there, of the wrong type or not supported."""
    model, rest = _sections(config)
    names = {"embedding": "vocab_embed.embedding", "up": "blocks.0.mlp.0.bias"}
    if kind == "gpt2":
        names = {"embedding": "wte.weight", "up": "h.0.mlp.c_fc.bias"}
    embedding, up = (shapes.get(name, ()) for name in names.values())
    sigma, half = shapes.get("sigma_map.mlp.2.bias", ()), shapes.get(BUFFER, ())
    found = (re.match(r"(?:blocks|h)\.(\d{1,4})\.", name) for name in shapes)
    numbers = [int(match[1]) for match in found if match]

    def size(*names, found=()):
        """An integer that stands under one of the names, or the first that is found."""
        for name in names:
            value = model.get(name, rest.get(name))
            if value is not None:
                return integer(name, value)
        if not found:
            raise ValueError(
                f"neither config.json nor the tensors say {names[0]}; config.json may name it"
            )
        return found[0]

    width = size("hidden_size", "hidden_dim", "n_embd", found=embedding[1:2])
    graph, noise = "absorbing", {"name": "linear"}
    if kind == "sedd":
        graph = _section(rest, "graph").get("type", "absorb")
        graph = {"absorb": "absorbing", "uniform": "uniform"}[
            choice("graph.type", graph, ("absorb", "uniform"))
        ]
        scaled = graph == "absorbing"
        choice("model.scale_by_sigma", model.get("scale_by_sigma", scaled), (scaled,))
        given = _section(rest, "noise")
        if choice("noise.type", given.get("type", "loglinear"), ("loglinear", "geometric")) == (
            "geometric"
        ):
            ends = [real(f"noise.{n}", given.get(n)) for n in ("sigma_min", "sigma_max")]
            noise = {"name": "geometric", "minimum": ends[0], "maximum": ends[1]}
    if kind == "gpt2":  # what the network does not have
        choice("activation_function", rest.get("activation_function", "gelu_new"), ("gelu_new",))
        choice("layer_norm_epsilon", rest.get("layer_norm_epsilon", 1e-5), (1e-5,))
        choice("tie_word_embeddings", rest.get("tie_word_embeddings", True), (True,))
        for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
            choice(name, rest.get(name, False), (False,))
        choice("scale_attn_weights", rest.get("scale_attn_weights", True), (True,))
    tokens = rest.get("tokens")
    if kind == "sedd" and tokens is not None:
        rows = size("tokens") + (graph == "absorbing")
    else:
        rows = size("vocab_size", found=embedding[:1])
    mask = model.get("mask_index", rest.get("mask_index"))
    if mask is not None and (type(mask) is not int or not 0 <= mask < rows):
        raise ValueError(f"config.json: mask_index must lie in 0..{rows - 1}, got {mask!r:.60}")
    rate = model.get("dropout", rest.get("dropout", rest.get("resid_pdrop", 0.1)))
    timed = model.get("time_conditioning", rest.get("time_conditioning", False))
    choice("time_conditioning", timed, (False, True))
    layers = size("n_blocks", "n_layer", found=[max(numbers) + 1] if numbers else [])
    if layers > 1000:
        raise ValueError(f"config.json: n_blocks must be at most 1000, got {layers}")
    return Sizes(
        layers=layers,
        width=width,
        heads=size("n_heads", "n_head", found=[width // (2 * half[0])] if half and half[0] else []),
        hidden=up[0] if up else 4 * width,
        condition_width=size("cond_dim", found=sigma) if kind in ("sedd", "mdlm") else 128,
        rows=rows,
        mask=None if mask == rows - 1 else mask,
        length=size("length", "model_length", "n_positions", found=[LENGTH]),
        dropout_rate=real("dropout", rate),
        time_input=kind == "sedd" or (kind == "mdlm" and bool(timed)),
        graph=graph,
        noise=noise,
    )


def _sections(config: dict) -> tuple[dict, dict]:
    """(the network's section, the whole): SEDD's and MDLM's configs have "model", some a "config"
    around it; those of transformers are flat."""
    inner = _section(config, "config")
    rest = inner | {k: v for k, v in config.items() if k != "config"}
    return _section(rest, "model"), rest


def _section(config: dict, name: str) -> dict:
    value = config.get(name, {})
    if type(value) is not dict:
        raise ValueError(f"config.json: {name} must be an object, got {value!r:.60}")
    return value


def integer(name: str, value: Any) -> int:
    """A value of a config.json. Raises ValueError if it is no integer in 1..MOST."""
    if type(value) is not int or not 0 < value <= MOST:
        raise ValueError(f"config.json: {name} must be an integer in 1..{MOST}, got {value!r:.60}")
    return value


def real(name: str, value: Any) -> float:
    """A value of a config.json. Raises ValueError if it is no number in [0, 1e9)."""
    if type(value) not in (int, float) or not 0 <= value < 1e9:
        raise ValueError(f"config.json: {name} must be a number from 0 on, got {value!r:.60}")
    return float(value)


def choice(name: str, value: Any, choices: tuple) -> Any:
    """A value of a config.json. Raises ValueError if it is none of the choices."""
    if value not in choices:
        raise ValueError(
            f"config.json: {name} {value!r:.60} is not supported; choices: "
            + ", ".join(str(c) for c in choices)
        )
    return value


def run_config(kind: str, config: dict, shapes: dict[str, tuple]) -> dict:
    """A config of ours for a published model: its network, and the settings it was trained with;
    see `sizes`."""
    s = sizes(kind, config, shapes)
    network = {
        "name": "dit",
        "layers": s.layers,
        "width": s.width,
        "heads": s.heads,
        "hidden": s.hidden,
        "condition_width": s.condition_width,
        "dropout_rate": s.dropout_rate,
        "rows": s.rows,
        "mask": s.mask,
        "told": "sigma" if kind == "sedd" else "t",
    }
    if kind == "gpt2":
        common = ("name", "layers", "width", "heads", "hidden", "dropout_rate", "rows")
        network = {name: network[name] for name in common} | {"positions": s.length}
        network["name"] = "gpt2"
    objective = {
        "sedd": {"name": "sedd", "graph": s.graph},
        "mdlm": {"name": "md4", "time_input": s.time_input},
        "mdlm_ar": {"name": "ar"},
        "gpt2": {"name": "ar"},
    }[kind]
    sampler = {
        "sedd": {"name": "score", "num_steps": 128},
        "mdlm": {"name": "ancestral", "num_steps": 128},
        "mdlm_ar": {"name": "autoregressive"},
        "gpt2": {"name": "autoregressive"},
    }[kind]
    made = trained(network, s.length) | {"objective": objective, "sampler": sampler}
    return made | {"schedule": s.noise}


def trained(network: dict, length: int) -> dict:
    """A config of an autoregressive network on the default text, in GPT-2's tokens, with the
    settings that SEDD and MDLM were trained with."""
    return {
        "data": {"name": "text", "source": "sotu", "tokenizer": "gpt2", "length": length},
        "network": network,
        "objective": {"name": "ar"},
        "optimizer": {
            "name": "adamw",
            "learning_rate": 3e-4,
            "decay": "constant",
            "warmup": 2500,
            "clip": 1.0,
        },
        "sampler": {"name": "autoregressive"},
        "evaluators": {"valid": {"name": "likelihood", "draws": 4, "batch_size": 8}},
        "train": {"steps": 0, "batch_size": 512, "ema": 0.9999},
    }


def kind_of(config: Any) -> str:
    """The layout that a run of ours can be written in. Raises ValueError if there is none."""
    network, objective = config.network, config.objective
    if network.name in ("gpt2", "llama") and objective.name == "ar":
        return network.name
    name = {"sedd": "sedd", "md4": "mdlm", "ar": "mdlm_ar"}.get(objective.name)
    if network.name != "dit" or name is None:
        raise ValueError(
            f"no published layout holds network {network.name!r} with objective "
            f"{objective.name!r}: wanted network 'dit' and one of sedd, md4, ar; or ar and 'gpt2' "
            "or 'llama'"
        )
    wanted = {}
    if name == "sedd":
        wanted = {"network.told": "sigma", "objective.time_input": True}
        wanted["objective.parametrization"] = "score"
    elif name == "mdlm" and objective.time_input:
        wanted = {"network.told": "t"}
    if network.hidden not in (0, 4 * network.width):
        wanted["network.hidden"] = 4 * network.width
    for field, value in wanted.items():
        section, _, key = field.partition(".")
        if config[section][key] != value:
            raise ValueError(
                f"kind {name!r} cannot hold {field} {config[section][key]!r}, only {value!r}"
            )
    return name


def published_config(kind: str, config: Any, params: Params) -> dict:
    """A config.json as the original project of a kind reads it, of a config of ours."""
    network, length, rows = config.network, config.data.length, len(params["embedding"])
    if kind == "gpt2":
        named = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
        sized = {"vocab_size": rows, "n_positions": network.positions, "n_embd": network.width}
        sized |= {
            "n_layer": network.layers,
            "n_head": network.heads,
        }
        sized["n_inner"] = network.hidden or None
        drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), network.dropout_rate)
        end = {"bos_token_id": rows - 1, "eos_token_id": rows - 1}
        return named | sized | drop | end | {"activation_function": "gelu_new"}
    common = {
        "cond_dim": network.condition_width,
        "n_blocks": network.layers,
        "n_heads": network.heads,
        "dropout": network.dropout_rate,
    }
    mask = {} if network.mask is None else {"mask_index": network.mask}
    if kind == "mdlm":
        named = {"model_type": "mdlm", "architectures": ["MDLM"], "torch_dtype": "float32"}
        sized = {"vocab_size": rows, "model_length": length, "hidden_dim": network.width}
        return named | sized | common | mask | {"time_conditioning": config.objective.time_input}
    absorbing = kind == "mdlm_ar" or config.objective.graph == "absorbing"
    model = {"name": "ours", "type": "ddit", "hidden_size": network.width, "length": length}
    model |= common | {"scale_by_sigma": absorbing}
    if kind == "mdlm_ar":
        return {"model": model | {"causal": True}, "vocab_size": rows} | mask
    schedule = config.schedule
    noise = {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20}
    if schedule.name == "geometric":
        noise = {"type": "geometric", "sigma_min": schedule.minimum, "sigma_max": schedule.maximum}
    graph = {"type": "absorb" if absorbing else "uniform", "file": "data", "report_all": False}
    return {"model": model, "graph": graph, "noise": noise, "tokens": rows - absorbing} | mask
