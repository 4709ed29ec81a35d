"""Published weights in and out, and what hostile files get."""

import json
import math
import os
import pathlib
import pickle
import struct
import zipfile

import jax
import numpy as np
import pytest

from diffusion_lm import main, parallel
from diffusion_lm.data import tokenizer_json
from diffusion_lm.interop import __main__ as interop
from diffusion_lm.interop import layouts, safetensors
from diffusion_lm.networks import dit, gpt2, llama

FOLDER = pathlib.Path(__file__).parent / "reference"
ALPHABET = "abcdefghijklmnopqrstuvwxyz .,\n"  # and the end token: the 31 ids of the references
SIZES = {"n_blocks": 2, "n_heads": 2, "cond_dim": 8, "dropout": 0.1}
CONFIGS = {
    "sedd": {
        "model": SIZES | {"hidden_size": 16, "length": 16, "scale_by_sigma": True},
        "graph": {"type": "absorb"},
        "noise": {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20},
        "tokens": 257,
    },
    "mdlm": SIZES
    | {"hidden_dim": 16, "model_length": 16, "vocab_size": 258, "time_conditioning": False},
    "mdlm_ar": {
        "config": {"model": SIZES | {"hidden_size": 16, "length": 16, "causal": True}},
        "vocab_size": 258,
    },
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": 257},
    "llama": {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "hidden_size": 16,
        "intermediate_size": 24,
        "max_position_embeddings": 16,
        "vocab_size": 257,
    },
}


def tensors_of(kind, rows=258, width=16):
    """Random tensors of a tiny model as its project names them."""
    size = {"layers": 2, "width": width, "heads": 2}
    if kind == "gpt2":
        size |= {"positions": 16}
        network = gpt2.make(inputs=257, outputs=257, causal=True, **size)
    elif kind == "llama":
        more = {"kv_heads": 1, "hidden": 24, "tied": False}
        network = llama.make(inputs=257, outputs=257, causal=True, **size, **more)
    else:
        size |= {"condition_width": 8}
        network = dit.make(inputs=rows, outputs=rows, causal=kind == "mdlm_ar", **size)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32) * 0.1, shapes)
    tensors, names = layouts.to_theirs(params), [layouts.BUFFER]
    if kind == "gpt2":
        names = ["h.0.attn.bias", "h.1.attn.bias"]
    elif kind == "llama":
        names = ["layers.0.self_attn.rotary_emb.inv_freq"]
    return tensors | {name: layouts.constant(kind, name, size) for name in names}


def publish(folder, kind, tensors=None, config=None, prefix=""):
    """A folder as the project of a kind publishes it."""
    folder.mkdir(parents=True)
    tensors = tensors_of(kind) if tensors is None else tensors
    named = {name if name == layouts.HEAD else prefix + name: v for name, v in tensors.items()}
    with open(folder / "model.safetensors", "wb") as file:
        safetensors.write(file, named)
    (folder / "config.json").write_text(json.dumps(CONFIGS[kind] if config is None else config))
    return folder


def write_raw(path, header, data=b"", length=None):
    """A file with any header: JSON-able or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    path.write_bytes(struct.pack("<Q", length) + text + data)


def encode(dtype, values):
    """Bytes of float32 values in a dtype of safetensors; BF16 keeps their upper halves."""
    values = np.asarray(values, np.float32)
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def write_as(path, tensors, dtype):
    header, data = {}, b""
    for name, value in tensors.items():
        raw = encode(dtype, value)
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": offsets}
        data += raw
    write_raw(path, header, data)


def read(path):
    header = safetensors.read_header(str(path))
    return {name: safetensors.read(name, tensor) for name, tensor in header.items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].shape == other[name].shape, name
        np.testing.assert_array_equal(one[name].view(np.uint32), other[name].view(np.uint32), name)


def import_args(source, kind, workdir, text, *more):
    return [
        "import", f"--from={source}", f"--kind={kind}", f"--workdir={workdir}",
        "--config.data.source=files", f"--config.data.path={text}", "--config.data.tokenizer=bytes",
        "--config.train.batch_size=8", *more,
    ]  # fmt: skip


def refused(capsys, argv, *words):
    """The call is refused in one line that has the words."""
    assert interop.main([str(a) for a in argv]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("diffusion_lm: "), line
    for word in words:
        assert word in line, line
    return line


def test_an_imported_gpt2_is_the_energy_of_edlm(tmp_path, text_file, capsys):
    """Imported weights are a run like any other: EDLM takes them as its autoregressive model."""
    source = publish(tmp_path / "published", "gpt2")
    assert interop.main(import_args(source, "gpt2", tmp_path / "gpt2", text_file)) == 0
    base = {
        "data": {"name": "text", "source": "files", "path": text_file, "tokenizer": "bytes"},
        "network": {"name": "transformer", "layers": 1, "width": 16, "heads": 2},
        "objective": {"name": "md4"},
        "optimizer": {"name": "adamw", "warmup": 0},
        "sampler": {"name": "ancestral", "num_steps": 2},
        "train": {"steps": 1, "batch_size": 8, "num_samples": 0},
    }
    base["data"]["length"] = 16
    parts = {"proposal": str(tmp_path / "md4"), "ar": str(tmp_path / "gpt2")}
    corrected = base | {
        "objective": {"name": "edlm", "energy": "coar", **parts},
        "sampler": {"name": "importance", "num_steps": 2},
        "evaluators": {"valid": {"name": "likelihood", "batch_size": 8, "max_windows": 8}},
        "train": {"steps": 0, "batch_size": 8, "num_samples": 0},
    }
    for name, config in (("md4", base), ("edlm", corrected)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(config))
        assert main.main([f"--config={path}", f"--workdir={tmp_path / name}"]) == 0
    capsys.readouterr()
    scores = []
    for name in ("edlm", "gpt2"):
        limit = "--config.evaluators.valid.max_windows=8"
        assert main.main([f"--workdir={tmp_path / name}", "--mode=eval", limit]) == 0
        scores.append(json.loads(capsys.readouterr().out)["nats_per_token"])
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)  # coar's likelihood is GPT-2's own


@pytest.mark.parametrize("kind", layouts.KINDS)
def test_a_published_model_is_scored_sampled_trained_and_given_back(
    kind, tmp_path, text_file, capsys
):
    prefix = layouts.USUAL.get(kind, "")
    source = publish(tmp_path / "published", kind, prefix=prefix)
    workdir, back = str(tmp_path / "run"), tmp_path / "back"
    assert interop.main(import_args(source, kind, workdir, text_file)) == 0
    assert "tensors" in capsys.readouterr().out
    assert main.main([f"--workdir={workdir}", "--mode=eval"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["step"] == 0 and np.isfinite(row["nats_per_token"])
    assert row["kind"] == ("exact" if kind in ("mdlm_ar", "gpt2", "llama") else "upper bound")
    assert main.main([f"--workdir={workdir}", "--mode=sample", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"]
    assert interop.main(["export", f"--workdir={workdir}", f"--to={back}"]) == 0
    assert "no tokenizer files" in capsys.readouterr().out
    assert_same(read(back / "model.safetensors"), read(source / "model.safetensors"))
    assert json.loads((back / "config.json").read_text()) == CONFIGS[kind]
    argv = [f"--config={workdir}/config.json", f"--workdir={workdir}", "--config.train.steps=1"]
    argv += ["--config.train.num_samples=0", "--config.optimizer.learning_rate=3e-4"]
    assert main.main(argv) == 0
    assert "going on from step 0" in capsys.readouterr().out
    refused(capsys, ["export", f"--workdir={workdir}", f"--to={back}"], "not empty")
    refused(capsys, import_args(source, kind, workdir, text_file), "not empty")
    again = tmp_path / "again"
    assert interop.main(["export", f"--workdir={workdir}", f"--to={again}"]) == 0
    new, old = read(again / "model.safetensors"), read(source / "model.safetensors")
    assert new.keys() == old.keys()
    names = {"gpt2": "h.1.attn.c_attn.weight", "llama": "layers.1.self_attn.q_proj.weight"}
    name = prefix + names.get(kind, "blocks.1.attn_qkv.weight")
    assert 0 < np.abs(new[name] - old[name]).max() < 1e-2


@pytest.mark.parametrize(
    "kind,name", [("sedd", "sedd_absorb"), ("mdlm", "mdlm_dit"), ("mdlm_ar", "mdlm_ar")]
)
def test_references_come_back_bit_for_bit(kind, name, tmp_path, text_file):
    """A file alone: sizes by its tensors."""
    source, workdir = FOLDER / f"{name}.weights.safetensors", tmp_path / "run"
    more = ["--config.data.tokenizer=characters", f"--config.data.alphabet={ALPHABET}"]
    more += ["--config.data.length=32", "--config.train.ema=0.0"]
    assert interop.main(import_args(source, kind, workdir, text_file, *more)) == 0
    made = json.loads((workdir / "config.json").read_text())
    assert made["network"]["heads"] == 2 and made["network"]["rows"] == 32
    assert interop.main(["export", f"--workdir={workdir}", f"--to={tmp_path / 'back'}"]) == 0
    assert_same(read(tmp_path / "back" / "model.safetensors"), read(source))
    # by the exported config.json, which is ours now, it is the same model
    other = tmp_path / "other"
    assert interop.main(import_args(tmp_path / "back", kind, other, text_file, *more)) == 0
    made["data"]["length"] = 32
    assert json.loads((other / "config.json").read_text()) == made


def test_shards_prefixes_and_averages(tmp_path, text_file, capsys):
    """Two files with an index; plain and averaged weights of other values in them."""
    plain = tensors_of("mdlm")
    average = {name: value + 1 for name, value in plain.items() if name != layouts.BUFFER}
    folder = publish(tmp_path / "published", "mdlm")
    os.remove(folder / "model.safetensors")
    both = {f"module.backbone.{name}": value for name, value in plain.items()}
    both |= {f"ema.module.backbone.{name}": value for name, value in average.items()}
    names, where = sorted(both), {}
    for i in range(2):
        shard = f"model-0000{i + 1}-of-00002.safetensors"
        with open(folder / shard, "wb") as file:
            safetensors.write(file, {name: both[name] for name in names[i::2]})
        where |= dict.fromkeys(names[i::2], shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    args = import_args(folder, "mdlm", tmp_path / "run", text_file)
    refused(capsys, args, "--ema=ema or --ema=none")
    refused(capsys, [*args, "--ema=shadow"], "'shadow.'", "ema, module")
    for ema, wanted in (("ema", average), ("none", plain)):
        workdir, back = tmp_path / ema, tmp_path / f"{ema}_back"
        args = import_args(folder, "mdlm", workdir, text_file, f"--ema={ema}")
        assert interop.main(args) == 0
        assert interop.main(["export", f"--workdir={workdir}", f"--to={back}"]) == 0
        wanted = {layouts.BUFFER: plain[layouts.BUFFER]} | wanted
        got = read(back / "model.safetensors")
        assert_same(got, {f"module.backbone.{name}": value for name, value in wanted.items()})
    index.write_text(json.dumps({"weight_map": where | {"more": where[names[0]]}}))
    args = import_args(folder, "mdlm", tmp_path / "run", text_file, "--ema=ema")
    refused(capsys, args, "disagree on 1 tensors: more")


@pytest.mark.parametrize("dtype", ["F64", "F16", "BF16"])
def test_other_types_become_float32(dtype, tmp_path, text_file, capsys):
    kept = {"F64": 24, "F16": 11, "BF16": 8}[dtype]  # digits that the type has beside float32's 24
    tensors = {}
    for name, value in tensors_of("sedd").items():
        fraction, exponent = np.frexp(value)
        tensors[name] = np.ldexp(np.round(fraction * 2**kept) / 2**kept, exponent)
        tensors[name] = np.where(np.abs(value) < 1e-4, 0, tensors[name]).astype(np.float32)
    del tensors[layouts.BUFFER]
    folder = publish(tmp_path / "published", "sedd")
    write_as(folder / "model.safetensors", tensors, dtype)
    workdir, back = tmp_path / "run", tmp_path / "back"
    assert interop.main(import_args(folder, "sedd", workdir, text_file)) == 0
    assert "rounded" not in capsys.readouterr().out
    assert interop.main(["export", f"--workdir={workdir}", f"--to={back}"]) == 0
    got = read(back / "model.safetensors")
    del got[layouts.BUFFER]
    assert_same(got, tensors)


def test_lost_digits_are_said(tmp_path, text_file, capsys):
    folder = publish(tmp_path / "published", "mdlm_ar")
    path = folder / "model.safetensors"
    write_as(path, tensors_of("mdlm_ar"), "F64")
    content = bytearray(path.read_bytes())
    content[8 + struct.unpack("<Q", content[:8])[0]] ^= 1  # the lowest bit of the first number
    path.write_bytes(content)
    assert interop.main(import_args(folder, "mdlm_ar", tmp_path / "run", text_file)) == 0
    assert "1 float64 tensors were rounded" in capsys.readouterr().out


def test_mdlm_of_text8(tmp_path, capsys):
    """35 ids, the mask at 4; a tokenizer of the other 34, with special ones among the first."""
    special = ["[CLS]", "[SEP]", "[BOS]", "[EOS]", "[PAD]", "[RESERVED]", "[UNK]"]
    tokens = [*special, *"abcdefghijklmnopqrstuvwxyz", "Ġ"]
    config = CONFIGS["mdlm"] | {"vocab_size": 35, "mask_index": 4}
    folder = publish(tmp_path / "published", "mdlm", tensors_of("mdlm", rows=35), config)
    content = tokenizer_json.compose(tokens, [], list(range(7)), digits=False)
    (folder / "tokenizer.json").write_text(content)
    (tmp_path / "text.txt").write_text("anarchism originated as a term of abuse " * 100)
    text, workdir = f"--config.data.path={tmp_path / 'text.txt'}", tmp_path / "run"
    split = "--config.data.split=position"
    more = ["--config.data.tokenizer=file", text, split]
    assert interop.main(import_args(folder, "mdlm", workdir, "", *more)) == 0
    made = json.loads((workdir / "config.json").read_text())
    assert (made["network"]["mask"], made["network"]["rows"]) == (4, 35)
    capsys.readouterr()
    argv = [f"--workdir={workdir}", "--mode=sample", "--num_steps=2", "--json", "--prompt=an abuse"]
    assert main.main(argv) == 0
    assert json.loads(capsys.readouterr().out)["text"].startswith("an abuse")


def test_all_that_does_not_fit_is_listed(tmp_path, text_file, capsys):
    tensors = tensors_of("sedd")
    del tensors["blocks.1.norm2.weight"], tensors["sigma_map.mlp.0.bias"]
    tensors["blocks.0.attn_out.weight"] = np.zeros((16, 8), np.float32)
    tensors["blocks.2.norm1.weight"] = np.zeros(16, np.float32)
    folder = publish(tmp_path / "published", "sedd", tensors)
    args = import_args(folder, "sedd", tmp_path / "run", text_file)
    refused(
        capsys,
        args,
        "2 missing: blocks.1.norm2.weight, sigma_map.mlp.0.bias",
        "1 unexpected: blocks.2.norm1.weight",
        "blocks.0.attn_out.weight [16, 8] (wanted [16, 16])",
    )
    args = import_args(folder, "mdlm_ar", tmp_path / "run", text_file)
    refused(capsys, args, "unexpected: blocks.0.adaLN_modulation.bias")
    folder = publish(tmp_path / "other", "sedd")
    args = import_args(folder, "sedd", tmp_path / "run", text_file)
    refused(capsys, [*args, "--config.data.tokenizer=gpt2"], "257 token ids", "50257")
    refused(capsys, [*args, "--config.network.width=32"], "of another shape")
    refused(capsys, [*args, "--config.network.name=transformer"], "network 'dit'")
    refused(capsys, [*args, "--config.data.lenght=3"], "did you mean config.data.length")
    other = ["--config.objective.name=ar", "--config.sampler.name=autoregressive"]
    refused(capsys, [*args, *other], "does not fit objective 'ar'")
    assert not (tmp_path / "run").exists()


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
TWO = ONE | {"data_offsets": [4, 8]}
F = b"\0\0\0\0"


class Evil:
    """A pickle of it would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


def archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Evil()))


HOSTILE = {
    "pickle": (lambda p: p.write_bytes(pickle.dumps(Evil())), "pickle"),
    "old pickle": (
        lambda p: p.write_bytes(pickle.dumps(Evil(), protocol=0)),
        "no safetensors file",
    ),
    "torch archive": (archive, "pickle"),
    "empty": (lambda p: p.write_bytes(b""), "0 bytes"),
    "text": (lambda p: p.write_bytes(b"hello, this is a text"), "no safetensors file"),
    "huge header": (lambda p: write_raw(p, {}, length=2**62), "its header should have"),
    "long header": (lambda p: write_raw(p, {"a": ONE}, F, length=10_000), "cut short"),
    "no JSON": (lambda p: write_raw(p, b"{hello}"), "not JSON"),
    "deep JSON": (lambda p: write_raw(p, b"[" * 200_000), "not JSON"),
    "no UTF-8": (lambda p: write_raw(p, b'{"\xff": 1}'), "not JSON"),
    "huge number": (lambda p: write_raw(p, b'{"a": ' + b"9" * 5000 + b"}"), "not JSON"),
    "infinity": (lambda p: write_raw(p, b'{"a": Infinity}'), "Infinity"),
    "a list": (lambda p: write_raw(p, []), "no JSON object"),
    "no entry": (lambda p: write_raw(p, {"a": 3}), "wanted dtype, shape and data_offsets"),
    "metadata": (lambda p: write_raw(p, {"__metadata__": {"a": [1]}}), "__metadata__"),
    "object dtype": (lambda p: write_raw(p, {"a": ONE | {"dtype": "O"}}, F), "unknown dtype 'O'"),
    "list dtype": (lambda p: write_raw(p, {"a": ONE | {"dtype": ["F32"]}}, F), "unknown dtype"),
    "negative shape": (lambda p: write_raw(p, {"a": ONE | {"shape": [-1]}}, F), "in 0..2"),
    "real shape": (lambda p: write_raw(p, {"a": ONE | {"shape": [1.0]}}, F), "in 0..2"),
    "boolean shape": (lambda p: write_raw(p, {"a": ONE | {"shape": [True]}}, F), "in 0..2"),
    "other size": (lambda p: write_raw(p, {"a": ONE | {"shape": [2]}}, F), "want 8 bytes"),
    "huge shape": (lambda p: write_raw(p, {"a": ONE | {"shape": [2**62, 4]}}, F), "bytes"),
    "many axes": (lambda p: write_raw(p, {"a": ONE | {"shape": [1] * 99}}, F), "8 axes"),
    "out of range": (lambda p: write_raw(p, {"a": TWO}, F), "leaves a gap"),
    "far out": (
        lambda p: write_raw(p, {"a": ONE, "b": TWO | {"data_offsets": [2**40, 2**40 + 4]}}, F),
        "leaves a gap",
    ),
    "backwards": (lambda p: write_raw(p, {"a": ONE | {"data_offsets": [4, 0]}}, F), "-4"),
    "overlap": (lambda p: write_raw(p, {"a": ONE, "b": ONE}, F), "overlaps"),
    "truncated": (lambda p: write_raw(p, {"a": ONE, "b": TWO}, F), "cut short"),
    "trailing": (lambda p: write_raw(p, {"a": ONE}, F + F), "something behind"),
    "twice": (
        lambda p: write_raw(p, b'{"a": %s, "a": %s}' % ((json.dumps(ONE).encode(),) * 2), F),
        "'a' is there twice",
    ),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_files_are_refused(fault, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "in" / "model.safetensors"
    path.parent.mkdir()
    make, word = HOSTILE[fault]
    make(path)
    before = sorted(tmp_path.rglob("*"))
    for source in (path, path.parent):
        argv = ["import", f"--from={source}", "--kind=sedd", f"--workdir={tmp_path / 'run'}"]
        line = refused(capsys, argv, word, "model.safetensors")
        assert len(line) < 600
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "checkpoint.ckpt"])
def test_a_folder_of_pickles_is_refused(name, tmp_path, capsys):
    (tmp_path / name).write_bytes(pickle.dumps(Evil()))
    argv = ["import", f"--from={tmp_path}", "--kind=mdlm", f"--workdir={tmp_path / 'run'}"]
    refused(capsys, argv, "no safetensors files", name, "pickles")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(value, tmp_path, text_file, capsys):
    tensors = tensors_of("mdlm_ar")
    tensors["blocks.1.mlp.0.weight"][3, 2] = value
    folder = publish(tmp_path / "published", "mdlm_ar", tensors)
    argv = import_args(folder, "mdlm_ar", tmp_path / "run", text_file)
    refused(capsys, argv, "blocks.1.mlp.0.weight", "1 values of 1024", str(value))
    assert os.listdir(tmp_path) == ["published"]


def test_names_that_meet_without_prefixes_are_refused(tmp_path, capsys):
    tensors = {"a": np.zeros(1, np.float32), "module.a": np.zeros(1, np.float32)}
    folder = publish(tmp_path / "published", "mdlm_ar", tensors)
    argv = ["import", f"--from={folder}", "--kind=mdlm", f"--workdir={tmp_path / 'run'}"]
    refused(capsys, argv, "two tensors are named 'a'")


def test_frequencies_of_another_base_are_refused(tmp_path, text_file, capsys):
    tensors = tensors_of("sedd")
    tensors[layouts.BUFFER] = tensors[layouts.BUFFER] ** 1.1
    folder = publish(tmp_path / "published", "sedd", tensors)
    refused(capsys, import_args(folder, "sedd", tmp_path / "run", text_file), "inv_freq")


@pytest.mark.parametrize(
    "shard",
    ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x.safetensors", "x.bin", ""],
)
def test_shards_lie_beside_their_index(shard, tmp_path, capsys):
    index = tmp_path / "in" / "model.safetensors.index.json"
    index.parent.mkdir()
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    write_raw(tmp_path / "other.safetensors", {"a": ONE}, F)
    argv = ["import", f"--from={index.parent}", "--kind=sedd", f"--workdir={tmp_path / 'run'}"]
    refused(capsys, argv, "no plain file name")
    index.write_text(json.dumps({"weight_map": ["a"]}))
    refused(capsys, argv, "weight_map")


@pytest.mark.parametrize(
    "config,word",
    [
        ([], "must be a JSON object"),
        ("{", "is not JSON"),
        ({"model": 3}, "model must be an object"),
        ({"model": {"n_blocks": "2"}}, "n_blocks must be an integer"),
        ({"model": {"n_blocks": True}}, "n_blocks must be an integer"),
        ({"model": {"n_blocks": 10**12}}, "n_blocks must be an integer"),
        ({"model": {"n_blocks": 1001}}, "at most 1000"),
        ({"model": {"hidden_size": -16}}, "hidden_size"),
        ({"model": {"hidden_size": 32, "n_heads": 2}}, "of another shape"),
        ({"model": {"n_blocks": 3}}, "missing: blocks.2."),
        ({"model": {"n_heads": 3}}, "multiple of 2 x heads"),
        ({"model": {"dropout": "0.1"}}, "dropout must be a number"),
        ({"model": {"scale_by_sigma": False}}, "scale_by_sigma"),
        ({"tokens": 256}, "of another shape"),
        ({"model": {"hidden_size": 2**24, "n_heads": 2}, "tokens": 2**24 - 1}, "of another shape"),
        ({"graph": {"type": "other"}}, "absorb, uniform"),
        ({"noise": {"type": ["geometric"]}}, "loglinear, geometric"),
        ({"mask_index": 258}, "mask_index must lie in 0..257"),
    ],
)
def test_mistaken_configs_are_named(config, word, tmp_path, text_file, capsys):
    folder = publish(tmp_path / "published", "sedd")
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    refused(capsys, import_args(folder, "sedd", tmp_path / "run", text_file), word)
    assert os.listdir(tmp_path) == ["published"]


def test_only_runs_with_a_published_layout_go_out(tmp_path, capsys, text_file):
    refused(capsys, ["export", f"--workdir={tmp_path}", f"--to={tmp_path / 'x'}"], "no run in")
    source = publish(tmp_path / "published", "mdlm")
    workdir = tmp_path / "run"
    assert interop.main(import_args(source, "mdlm", workdir, text_file)) == 0
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    for section, field, value, word in (
        ("network", "name", "transformer", "no published layout"),
        ("network", "hidden", 48, "network.hidden"),
        ("objective", "name", "genmd4", "no published layout"),
    ):
        changed = config | {section: config[section] | {field: value}}
        if field == "name":
            changed[section] = {"name": value}
        path.write_text(json.dumps(changed))
        refused(capsys, ["export", f"--workdir={workdir}", f"--to={tmp_path / 'x'}"], word)
    assert not (tmp_path / "x").exists()


def test_uniform_sedd_has_no_mask(tmp_path, text_file, capsys):
    config = json.loads(json.dumps(CONFIGS["sedd"]))
    config["graph"]["type"], config["model"]["scale_by_sigma"] = "uniform", False
    config["noise"]["type"] = "geometric"
    folder = publish(tmp_path / "published", "sedd", tensors_of("sedd", rows=257), config)
    workdir = tmp_path / "run"
    assert interop.main(import_args(folder, "sedd", workdir, text_file)) == 0
    made = json.loads((workdir / "config.json").read_text())
    assert made["schedule"]["name"] == "geometric" and made["objective"]["graph"] == "uniform"
    assert main.main([f"--workdir={workdir}", "--mode=sample"]) == 0


@pytest.mark.parametrize(
    "layers,width,heads,tensors,parameters",
    [(12, 768, 12, 131, 169_627_218), (24, 1024, 16, 251, 424_477_010)],
)
def test_published_sizes(layers, width, heads, tensors, parameters):
    """SEDD and MDLM, small and medium: how many tensors and how many numbers there are in all."""
    network = dit.make(inputs=50258, outputs=50257, layers=layers, width=width, heads=heads)
    abstract = jax.eval_shape(network.init, jax.random.key(0))
    shapes = [layouts.shape_of(abstract, place) for place in layouts.places(abstract).values()]
    assert len(shapes) + 1 == tensors  # and the constant
    assert sum(map(math.prod, shapes)) == parameters


def test_help_needs_no_jax_and_unknown_kinds_are_named(capsys, tmp_path):
    with pytest.raises(SystemExit):
        interop.main(["--help"])
    assert "--kind=sedd" in capsys.readouterr().out
    argv = ["import", f"--from={tmp_path}", "--kind=bert", f"--workdir={tmp_path / 'run'}"]
    refused(capsys, argv, "'bert'", "sedd, mdlm, mdlm_ar, gpt2, llama")


def gpt2_logits(w, tokens, heads=2):
    """GPT-2 by its published tensors and their names, in float64 NumPy: [L] -> [L, V]."""

    def norm(name, h):
        h = h - h.mean(-1, keepdims=True)
        return (
            h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"]
            + (w[f"{name}.bias"])
        )

    def dense(name, h):
        return h @ w[f"{name}.weight"] + w[f"{name}.bias"]

    w = {name: value.astype(np.float64) for name, value in w.items()}
    length = len(tokens)
    h = w["wte.weight"][tokens] + w["wpe.weight"][:length]
    for i in range(2):
        q, k, v = np.split(dense(f"h.{i}.attn.c_attn", norm(f"h.{i}.ln_1", h)), 3, axis=-1)
        parts = []
        for n in range(heads):
            at = slice(n * q.shape[1] // heads, (n + 1) * q.shape[1] // heads)
            scores = q[:, at] @ k[:, at].T / np.sqrt(q.shape[1] // heads)
            scores = np.where(w[f"h.{i}.attn.bias"][0, 0, :length, :length] > 0, scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            parts.append(weights / weights.sum(-1, keepdims=True) @ v[:, at])
        h = h + dense(f"h.{i}.attn.c_proj", np.concatenate(parts, axis=-1))
        m = dense(f"h.{i}.mlp.c_fc", norm(f"h.{i}.ln_2", h))
        m = 0.5 * m * (1 + np.tanh(np.sqrt(2 / np.pi) * (m + 0.044715 * m**3)))
        h = h + dense(f"h.{i}.mlp.c_proj", m)
    return norm("ln_f", h) @ w["wte.weight"].T


def test_gpt2_is_as_published_and_its_cache_gives_the_same():
    tensors = {name: value * 5 for name, value in tensors_of("gpt2").items()}
    network = gpt2.make(
        inputs=257, outputs=257, causal=True, layers=2, width=16, heads=2, positions=16
    )
    abstract = jax.eval_shape(network.init, jax.random.key(0))
    params = layouts.to_ours(abstract, tensors.__getitem__)
    tokens = np.random.default_rng(1).integers(0, 257, (2, 12))
    want = np.stack([gpt2_logits(tensors, row) for row in tokens])
    got = network.head(params, network.trunk(params, tokens))
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-5)
    cache, decode = network.cache(2, 12), jax.jit(network.decode)
    for at in range(12):
        logits, cache = decode(params, cache, tokens[:, at], at)
        np.testing.assert_allclose(logits, want[:, at], atol=1e-4, rtol=1e-5)
    with pytest.raises(ValueError, match="16 positions, got 17"):
        network.cache(2, 17)
    with pytest.raises(ValueError, match="objective 'ar'"):
        gpt2.make(inputs=257, outputs=256)
    named = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        axes = parallel.logical_axes(gpt2.AXES, path)
        assert axes is None or len(axes) == leaf.ndim
        named.add(axes)
    assert set(gpt2.AXES.values()) <= named


def test_gpt2_head_is_its_embedding(tmp_path, text_file, capsys):
    tensors = {f"transformer.{name}": value for name, value in tensors_of("gpt2").items()}
    head = {"lm_head.weight": tensors["transformer.wte.weight"]}
    folder = publish(tmp_path / "published", "gpt2", tensors | head)
    args = import_args(folder, "gpt2", tmp_path / "run", text_file)
    assert interop.main(args) == 0
    back = tmp_path / "back"
    assert interop.main(["export", f"--workdir={tmp_path / 'run'}", f"--to={back}"]) == 0
    assert_same(read(back / "model.safetensors"), tensors)
    long = import_args(folder, "gpt2", tmp_path / "more", text_file, "--config.data.length=17")
    refused(capsys, long, "16 positions, got 17 tokens")
    head = {"lm_head.weight": tensors["transformer.wte.weight"] + 1}
    folder = publish(tmp_path / "other", "gpt2", tensors | head)
    args = import_args(folder, "gpt2", tmp_path / "more", text_file)
    refused(capsys, args, "GPT-2's head is its embedding")
