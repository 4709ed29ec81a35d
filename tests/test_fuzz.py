"""Mutated configs and files: refused in one line that helps, or read; nothing else, and quickly.

DIFFUSION_LM_FUZZ=N makes N mutations of every kind of file, to be run for long.
"""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from test_interop import publish
from test_llama import PUBLISHED, composed, tensors_of, write_gguf
from test_runs import ROOT

from diffusion_lm import build, config
from diffusion_lm.data import pairs, text, tokenizer_json
from diffusion_lm.data import sources as texts
from diffusion_lm.interop import gguf, safetensors, sources

NUMBER = int(os.environ.get("DIFFUSION_LM_FUZZ", 60))
RNG = np.random.default_rng(0)
LETTERS = "abcdefghijklmnopqrstuvwxyz_"

# Configs of every kind of section, over data that are there at once.
MARKOV = {"data.name": "markov", "data.vocab_size": 8, "data.length": 16, "data.order": 2}
MARKOV |= {"data.train_windows": 64, "data.other_windows": 64, "train.start": "random"}
CONFIGS = {
    "md4_markov": MARKOV,
    "genmd4_sotu": MARKOV,
    "sedd_sotu": MARKOV,
    "ar_markov": MARKOV,
    "md4_digits": {},
    "difformer_toy": {"data.pairs": 100},
}


@pytest.fixture(scope="module")
def bases():
    """name -> (what the config file says, overrides, fields and values)."""
    out = {}
    for name, changes in CONFIGS.items():
        given = config.load(str(ROOT / f"configs/{name}.py"))
        overrides = [f"{field}={value}" for field, value in changes.items()]
        out[name] = given, overrides, config.flatten(config.resolve(given, overrides))
    return out


def mistyped(field):
    """A field with one letter lost, doubled, changed or swapped with the next."""
    at = int(RNG.integers(len(field)))
    if field[at] == ".":
        at += 1
    before, letter, after = field[:at], field[at], field[at + 1 :]
    new = LETTERS[RNG.integers(len(LETTERS))]
    ways = (before + after, before + 2 * letter + after, before + new + after)
    return str(RNG.choice([*ways, before + after[:1] + letter + after[1:]]))


def wrong(value):
    """What a field of this type cannot take."""
    if isinstance(value, bool):
        return RNG.choice(["maybe", "2", "yes"])
    if isinstance(value, int):
        return RNG.choice(["x7", "2.5", "", "1e3", "none", "True"])
    return RNG.choice(["x7", "", "none", "1,2"])


def refusal(given, overrides):
    """What is said before anything compiles; None if nothing is."""
    begun = time.monotonic()
    try:
        resolved = config.resolve(given, overrides)
        setup = build.setup(resolved)
        build.check_batches(resolved, setup, train=True)
        build.translator(resolved, setup)
        return None
    except (ValueError, OSError) as error:
        assert "\n" not in str(error)
        return str(error)
    finally:
        assert time.monotonic() - begun < 3, overrides


def test_typos_are_refused_with_what_was_meant(bases):
    suggested = 0
    for number in range(100):
        given, overrides, fields = bases[list(bases)[number % len(bases)]]
        field = str(RNG.choice(list(fields)))
        typo = mistyped(field)
        if typo in fields or field.startswith("evaluators.") and field.endswith(".name"):
            continue  # a new label is no mistake
        said = refusal(given, [*overrides, f"{typo}={fields[field]}"])
        assert said and ("did you mean" in said or "choices: " in said), (typo, said)
        suggested += f"did you mean config.{field}?" in said
    assert suggested > 75  # some typos are nearer to another field


def test_wrong_types_are_refused(bases):
    for number in range(60):
        given, overrides, fields = bases[list(bases)[number % len(bases)]]
        known = [f for f, value in fields.items() if isinstance(value, (bool, int, float))]
        field = str(RNG.choice(known))
        value = wrong(fields[field])
        said = refusal(given, [*overrides, f"{field}={value}"])
        assert said and f"config.{field} must be " in said, (field, value, said)


def test_numbers_out_of_range_are_refused(bases):
    """Every number of every config, as -7 and as nan where it may have a fraction."""
    tried = 0
    for given, overrides, fields in bases.values():
        for field, value in fields.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            for bad in ("-7", "nan") if isinstance(value, float) else ("-7",):
                said = refusal(given, [*overrides, f"{field}={bad}"])
                assert said and field.rpartition(".")[2] in said, (field, bad, said)
                assert re.search("must|wanted|does not fit|choices", said), said
                tried += 1
    assert tried > 150


def test_names_that_are_not_there_are_refused_with_the_choices(bases):
    for given, overrides, fields in bases.values():
        for field, name in fields.items():
            if field.endswith(".name"):
                said = refusal(given, [*overrides, f"{field}={name}z"])
                assert said and "choices: " in said and name in said, (field, said)


@pytest.mark.parametrize(
    "flag", ["--config.optimizer.lerning_rate=1", "--config.train.batch_size=-5", "--wrokdir=x"]
)
def test_the_command_line_answers_quickly(flag, tmp_path):
    """In CPU seconds, of which others on the machine take none away."""
    argv = [sys.executable, "-m", "diffusion_lm.main", f"--config={ROOT / 'configs/md4_markov.py'}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*argv, f"--workdir={tmp_path / 'run'}", flag], cwd=ROOT, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and took < 3, (took, done.stderr)
    assert re.search("did you mean|at least 1", done.stderr) and not (tmp_path / "run").exists()


# Files.

INTERESTING = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]
PIECES = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"null", b"-1", b"1e999", b"\\ud800", b"\xff"]
PIECES += [b"\0", b"\n", b'"a":', b"[" * 3000, b"9" * 5000, b'{"a":' * 3000, b"NaN", b"true"]


def mutated(content, rng):
    """One to four changes: bits, numbers, pieces of JSON, parts lost, doubled or moved."""
    out = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at, way = int(rng.integers(len(out) + 1)), rng.integers(7)
        if rng.random() < 0.5:  # headers come first
            at = min(at, int(rng.integers(400)))
        far = at + int(rng.integers(1, 65))
        if way == 0 and at < len(out):
            out[at] ^= 1 << int(rng.integers(8))
        elif way == 1:
            size = int(rng.choice([1, 2, 4, 8]))
            number = INTERESTING[rng.integers(len(INTERESTING))] % 256**size
            out[at : at + size] = number.to_bytes(size, "little")
        elif way == 2:
            out[at:at] = PIECES[rng.integers(len(PIECES))]
        elif way == 3:
            out[at:far] = PIECES[rng.integers(len(PIECES))]
        elif way == 4:
            del out[at:far]
        elif way == 5:
            out[at:at] = out[at:far]
        else:
            del out[at:]
    return bytes(out)


class _TooLong(Exception):
    pass


@contextlib.contextmanager
def bounded(seconds=10, megabytes=300):
    """Fails where a hostile file takes long or much memory."""

    def ring(*_):
        raise _TooLong

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < megabytes * 1024, f"{grown // 1024} MB"


def read_safetensors(path):
    for name, tensor in safetensors.read_header(str(path)).items():
        safetensors.read(name, tensor)


def read_folder(path):
    """As an import does, config.json, index and all, before it builds anything."""
    found = sources.opened(str(path.parent), "llama")
    for name, tensor in found.tensors.items():
        found.read(name, tensor)


def read_gguf(path):
    file = gguf.read_header(str(path))
    for name, tensor in file.tensors.items():
        gguf.read(name, tensor)
    if file.tokenizer is not None:
        tokenizer_json.parse(file.tokenizer)


def read_tokenizer(path):
    coder, _ = tokenizer_json.read(str(path.parent))
    with contextlib.suppress(ValueError):  # a character without a token
        coder.decode(coder.encode("the 12 in é漢🙂"))


def read_text(path):
    text.make(source="files", tokenizer="bytes", length=4, path=str(path))


def read_archive(path):
    list(texts.read([path]))


def read_pairs(path):
    pairs.make(source="jsonl", tokenizer="characters", length=40, path=str(path.parent))


def read_config(path):
    config.resolve(config.load(str(path)), [])


@pytest.fixture(scope="module")
def valid_files(tmp_path_factory):
    """kind -> (file, what reads it)."""
    folder = tmp_path_factory.mktemp("valid")
    tensors = {"a.weight": np.ones((4, 3), np.float32), "b": np.arange(5, dtype=np.float32)}
    with open(folder / "model.safetensors", "wb") as file:
        safetensors.write(file, tensors)
    publish(folder / "published", "mdlm_ar")
    index = {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (folder / "indexed").mkdir()
    (folder / "indexed/model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "indexed/model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "tokenizer.json").write_text(composed())
    (folder / "text.txt").write_text("Grüße, 漢字.\n\nAnother paragraph.\n\n" * 5)
    lines = [json.dumps({"text": f"document {n}, Grüße"}) for n in range(9)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    (folder / "run.json").write_text(
        json.dumps(config.load(f"{ROOT}/configs/md4_markov.py").to_dict())
    )
    with tarfile.open(folder / "text.xz", "w:xz") as archive:
        archive.add(folder / "text.txt", "text.txt")
    (folder / "pairs").mkdir()
    lines = [json.dumps({"src": f"source {n}", "trg": f"Grüße {n}"}) for n in range(9)]
    (folder / "pairs/train.jsonl").write_text("\n".join(lines))
    kinds = {
        "archive": ("text.xz", read_archive),
        "pairs": ("pairs/train.jsonl", read_pairs),
        "safetensors": ("model.safetensors", read_safetensors),
        "config.json": ("published/config.json", read_folder),
        "index": ("indexed/model.safetensors.index.json", read_folder),
        "tokenizer.json": ("tokenizer.json", read_tokenizer),
        "txt": ("text.txt", read_text),
        "jsonl": ("text.jsonl", read_text),
        "config": ("run.json", read_config),
    }
    found = {kind: (folder / name, reader) for kind, (name, reader) in kinds.items()}
    with contextlib.suppress(ImportError):
        import gguf as _  # noqa: F401

        write_gguf(folder / "model.gguf", tensors_of(PUBLISHED()), "Q4_1")
        found["gguf"] = folder / "model.gguf", read_gguf
    return found


FOUND = {"config": [21222, 24182], "gguf": [95433]}  # by long runs
KINDS = ["safetensors", "config.json", "index", "tokenizer.json", "txt", "jsonl", "config", "gguf"]
KINDS += ["archive", "pairs"]


def test_sections_and_names_of_another_type_are_refused_in_one_line():
    base = config.load(f"{ROOT}/configs/md4_markov.py").to_dict()
    sections = ("data", "network", "objective", "schedule", "sampler", "optimizer")
    strange = (4, None, "x", [1], {"a": {"b": 1}}, True, "", "a b")
    bad = [
        base | {s: value} for s in (*sections, "train", "mesh", "evaluators") for value in strange
    ]
    bad += [base | {s: base.get(s, {}) | {"name": v}} for s in sections for v in strange]
    bad += [base | {"evaluators": {"v": value}} for value in (*strange, {"name": 4})]
    bad += [base | {"seed": value} for value in strange[1:]]
    bad += [base | {"rules": value} for value in strange if type(value) is not dict]
    for given in bad:
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            config.resolve(config.ConfigDict(given), [])
    with pytest.raises(ValueError, match="config.optimizer must be a section, got 'muon'"):
        config.resolve(config.ConfigDict(base | {"optimizer": "muon"}), [])


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_refused_in_one_line_or_read(kind, valid_files):
    if kind not in valid_files:
        pytest.skip("wants the package gguf")
    path, read = valid_files[kind]
    content, refused = path.read_bytes(), 0
    read(path)
    for number in [*range(NUMBER), *FOUND.get(kind, [])]:
        bad = mutated(content, np.random.default_rng([number, KINDS.index(kind)]))
        path.write_bytes(bad)
        try:
            with bounded():
                read(path)
        except (ValueError, OSError) as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 2000, (number, error)
        except BaseException as error:
            raise AssertionError(f"mutation {number}: {error!r}") from error
    path.write_bytes(content)
    assert 0 < refused, refused
