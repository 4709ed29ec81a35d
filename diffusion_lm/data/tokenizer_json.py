"""The tokenizer of a published model, kept in a workdir as tokenizer.json.

The format is that of Hugging Face's package tokenizers, of which this reads byte-level BPEs, such
as GPT-2's and SmolLM2's, whose merges stand in the order of the ids that they make.
"""

import json
import pathlib

from diffusion_lm.data import tokenizers

FILE = "tokenizer.json"
# The first of these that is there ends documents.
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "[EOS]")
DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
PLAIN = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")  # unset


def read(workdir: str | None) -> tuple[tokenizers.Tokenizer, str]:
    """(the tokenizer in a workdir, the content of its file)."""
    file = pathlib.Path(workdir).expanduser() / FILE if workdir else None
    if file is None or not file.is_file():
        raise FileNotFoundError(
            f"data.tokenizer 'file' wants {FILE} in the workdir, "
            + (f"but there is none in {workdir!r}" if workdir else "but there is no workdir yet")
        )
    content = file.read_text(encoding="utf-8")
    return parse(content), content


def parse(content: str) -> tokenizers.Tokenizer:
    """The tokenizer that a file describes; ValueError in one line for one that is not supported."""
    try:
        found = json.loads(content)
        model = found["model"]
        vocab, merges = dict(model["vocab"]), list(model["merges"])
        added = {token["content"]: token["id"] for token in found.get("added_tokens") or []}
        plain = [t["content"] for t in found.get("added_tokens") or [] if not t.get("special")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{FILE} is no tokenizer with model.vocab and merges: {error!r}") from None
    digits = _digits(found.get("pre_tokenizer"))
    fields = {f"model.{name}": model.get(name) for name in PLAIN}
    fields["normalizer"] = found.get("normalizer")
    for name, value in fields.items():
        if value not in (None, False, ""):
            raise ValueError(f"{FILE}: {name} {value!r:.60} is not supported, only null")
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"{FILE}: model.type {model['type']!r:.60} is not supported, only 'BPE'")
    if plain:
        raise ValueError(f"{FILE}: the added token {plain[0]!r:.60} is not special")
    ids = vocab | added
    typed = all(type(token) is str and type(i) is int for token, i in ids.items())
    if not typed or sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(f"{FILE}: {len(ids)} tokens must be strings with ids 0..{len(ids) - 1}")
    end = next((ids[name] for name in ENDS if name in added), None)
    if end is None:
        raise ValueError(f"{FILE}: no added token ends documents; wanted one of {', '.join(ENDS)}")
    _check_merges(vocab, merges, added)
    return tokenizers.published(
        [_bytes(token, added) for token in sorted(ids, key=ids.get)],
        [end, *sorted(set(added.values()) - {end})],
        digits=digits,
    )


def compose(tokens: list[str], merges: list[str], specials: list[int], *, digits: bool) -> str:
    """The content of a file: tokens by id, merges as "a b", the ids of special tokens."""
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    split = [DIGITS, BYTES] if digits else [BYTES]
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}
    model |= {"vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": i, "content": tokens[i], "special": True} | usual for i in specials
            ],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [s | {"trim_offsets": True} if s is BYTES else s for s in split],
            },
            "post_processor": None,
            "decoder": BYTES | {"trim_offsets": True},
            "model": model,
        },
        ensure_ascii=False,
    )


def _digits(split) -> bool:
    """Whether digits stand alone, by a section pre_tokenizer."""
    steps = split.get("pretokenizers") if type(split) is dict else None
    steps = [split] if steps is None else steps
    try:
        # where a step stands in the text is all that trim_offsets changes
        plain = [{k: v for k, v in step.items() if k != "trim_offsets"} for step in steps]
        plain = [BYTES | step if step["type"] == "ByteLevel" else step for step in plain]
    except (AttributeError, KeyError, TypeError):
        plain = None
    if plain not in ([BYTES], [DIGITS, BYTES]):
        raise ValueError(
            f"{FILE}: pre_tokenizer {json.dumps(split):.200} is not supported; choices: ByteLevel, "
            "alone or after Digits, with its own pattern, individual digits and no space before"
        )
    return plain != [BYTES]


def _check_merges(vocab: dict[str, int], merges: list, added: dict[str, int]) -> None:
    """Raises ValueError unless ids say as much as merges do."""
    last, made = -1, set()
    for merge in merges:
        pair = merge.split(" ") if type(merge) is str else merge
        if (
            type(pair) is not list
            or len(pair) != 2
            or not all(type(part) is str and part in vocab for part in pair)
        ):
            raise ValueError(f"{FILE}: the merge {merge!r:.60} is not of two tokens")
        token = "".join(pair)
        if vocab.get(token, -1) <= last:
            raise ValueError(
                f"{FILE}: the merge {merge!r:.60} makes id {vocab.get(token)} after id {last}: "
                "wanted merges in the order of the ids they make"
            )
        last = vocab[token]
        made.add(token)
    alone = [t for t in vocab if len(t) > 1 and t not in made and t not in added]
    if alone:
        raise ValueError(f"{FILE}: no merge makes the token {alone[0]!r:.60}")


_BYTE_OF = tokenizers.byte_of()


def _bytes(token: str, added: dict[str, int]) -> bytes:
    if token in added:
        return token.encode()
    try:
        return bytes(_BYTE_OF[c] for c in token)
    except KeyError:
        raise ValueError(f"{FILE}: the token {token!r:.60} is not written in bytes") from None
