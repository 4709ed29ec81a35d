"""Test sets of other texts: how they are read, detokenized and cut."""

import json

import numpy as np
import pytest

from diffusion_lm.data import corpora, text, tokenizers

BYTES = tokenizers.load(name="bytes")
END = BYTES.end

# What the released functions of SEDD and MDLM (the same in both) make of these; all files at hand
# and 30,000 random strings of the marks that they look for were compared as well.
SEEN = [
    ("wikitext", " = The 's = = 3 @,@ 5 ( a ; b ) . \" quote \" it 's\n", " = The's == 3,5 (a; b). "
     "\"quote\" it's\n"),
    ("wikitext", "the boys ' N 7 ° C \n x", "the boys' 1 7°C\nx"),
    ("ptb", "mr. <unk> did n't pay $ N N or # N the boys ' mother 's a\\/b",
     "mr. ? didn't pay $1 1 or #1 the boys' mother's a/b"),
    ("lm1b", "\" Well , \" he said ( yes ) : it 's $ 5 / day at http : / / a.b ! \" End . \" ok ?",
     "\"Well,\" he said (yes): it's $5/day at http://a.b! \"End.\" ok?"),
    ("lambada", "  “Hi,” she said. \n", '\n"Hi," she said.'),
    ("lambada", " \n ", "\n"),
    ("scientific", "a ( b ) @-@ c , d . e .", "a (b)-c, d. e."),
    ("ag_news", " as ( it ) is . ", " as ( it ) is . "),
]  # fmt: skip


@pytest.mark.parametrize("dataset,given,wanted", SEEN)
def test_detokenizers(dataset, given, wanted):
    assert corpora.detokenize(given, dataset) == wanted


def made(path, content, dataset="ptb", protocol="joined", length=4, started=False):
    path.write_text(content)
    return corpora.corpus(
        str(path),
        dataset=dataset,
        protocol=protocol,
        tokenizer=BYTES,
        length=length,
        started=started,
    )


def documents(tmp_path, dataset, content):
    """What a file's documents read, by the tokens of one window after another."""
    whole = made(tmp_path / "file", content, dataset, length=1).splits["test"]
    text = BYTES.decode(whole.tokens.reshape(-1))
    assert text.endswith(tokenizers.END_TEXT) and text.count(tokenizers.END_TEXT) == whole.documents
    return text.split(tokenizers.END_TEXT)[:-1]


def test_files_are_read_as_their_loaders_do(tmp_path):
    assert documents(tmp_path, "wikitext", " \n = A = \n b \n") == ["", " = A =\n", " b\n"]
    assert documents(tmp_path, "ptb", " a b \n\n c\n") == ["a b", "", "c"]
    assert documents(tmp_path, "lm1b", "a x .\ny ?\n") == ["a x.", "y?"]
    rows = '"3","A ""B"" c","d, e\nf"\n"1", "g","h"\n'
    assert documents(tmp_path, "ag_news", rows) == ['A "B" c d, e\nf', "g h"]
    lines = [{"text": "abc"}, {"article": "d ( e )", "text": "no"}]
    lines = "\n\n".join(map(json.dumps, lines))
    assert documents(tmp_path, "scientific", lines) == ["abc", "d (e)"]
    assert documents(tmp_path, "lambada", '{"text": "a"}') == ["\na"]


def test_windows_of_each_protocol_by_hand(tmp_path, monkeypatch):
    """Documents ab, cde, f, g with ends make ab|cde|f|g| of 11 tokens."""
    monkeypatch.setattr(corpora, "GROUP", 3)
    a, b, c, d, e, f, g = b"abcdefg"
    wanted = {
        "joined": [[a, b, END, c], [d, e, END, f]],  # |g| left over
        "sedd": [[a, b, END, c], [d, e, END, f]],  # | left of three documents, g| of the last
        "mdlm": [[END, a, b, END], [END, END, c, END], [END, d, e, END], [END, END, f, END],
                 [END, g, END, END]],
    }  # fmt: skip
    dropped = {"joined": 3, "sedd": 3, "mdlm": 1}
    for protocol, windows in wanted.items():
        got = made(tmp_path / "x", "ab\ncde\nf\ng\n", protocol=protocol)
        np.testing.assert_array_equal(got.splits["test"].tokens, windows)
        assert got.splits["test"].dropped == dropped[protocol]
        assert got.splits["test"].documents == 4
        assert got.scored("test", 2) == 8
    begun = made(tmp_path / "x", "ab\ncde\nf\ng\n", protocol="mdlm", started=True)
    np.testing.assert_array_equal(begun.splits["test"].tokens, np.array(wanted["mdlm"])[:, 1:])
    assert begun.length == 3 and begun.scored("test", 2) == 6
    assert begun.protocol == got.protocol  # of the same text, the last that was made


def test_groups_lose_what_is_left_of_each(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "GROUP", 2)
    content = "a\nb\nc\nd\n"  # a|b|c|d|: two windows of 3 and 2 left; of each pair 1 window and 1
    joined, sedd = (
        made(tmp_path / "x", content, protocol=p, length=3).splits["test"]
        for p in ("joined", "sedd")
    )
    assert (len(joined.tokens), joined.dropped) == (2, 2)
    assert (len(sedd.tokens), sedd.dropped) == (2, 2)
    assert sedd.tokens.tolist() == [[97, END, 98], [99, END, 100]]
    assert joined.tokens.tolist() == [[97, END, 98], [END, 99, END]]


def test_a_folder_of_texts(tmp_path):
    (tmp_path / "b.txt").write_text("cd")
    (tmp_path / "a.jsonl").write_text('{"text": "ab ( c )"}\n')
    got = corpora.corpus(
        str(tmp_path), dataset="text", protocol="joined", tokenizer=BYTES, length=12, started=True
    )
    assert BYTES.decode(got.splits["test"].tokens[0]) == "ab ( c )<|endoftext|>cd<|endoftext|>"
    assert got.protocol == text.JOINED


def test_protocols_say_what_differs(tmp_path):
    said = {p: made(tmp_path / "x", "ab\n", protocol=p).protocol for p in corpora.PROTOCOLS}
    assert said["joined"]["detokenizer"] == "ptb"
    assert said["joined"]["remainder"] != said["sedd"]["remainder"] == said["mdlm"]["remainder"]
    assert said["sedd"]["wrap"] == "none" != said["mdlm"]["wrap"]


@pytest.mark.parametrize(
    "options,error,message",
    [
        ({"dataset": "c4"}, ValueError, "unknown dataset 'c4'; choices: text, wikitext"),
        ({"protocol": "gpt"}, ValueError, "unknown protocol 'gpt'; choices: joined, sedd, mdlm"),
        ({"length": 2, "protocol": "mdlm"}, ValueError, "3 tokens or more, got 2"),
        ({"path": "/no/such"}, FileNotFoundError, "wants a file, '/no/such' is none"),
        ({"path": "/no/such", "dataset": "text"}, FileNotFoundError, "neither a file nor"),
    ],
)
def test_mistakes_are_named_before_anything_is_read(tmp_path, options, error, message):
    (tmp_path / "x").write_text("a")
    given = {"path": str(tmp_path / "x"), "dataset": "ptb", "protocol": "joined", "length": 4}
    with pytest.raises(error, match=message):
        corpora.check(**given | options)


@pytest.mark.parametrize(
    "dataset,content,message",
    [
        ("ag_news", '"1","a"\n', "row 1: wanted class, title and description, got 2"),
        ("lambada", '{"text": "a"}\n[1]\n', "line 2: wanted a JSON object"),
        ("scientific", '{"text": 3}', "line 1: wanted a JSON object with a string"),
        ("scientific", "[" * 100_000, "line 1: wanted a JSON object"),
    ],
)
def test_broken_files_are_named(tmp_path, dataset, content, message):
    with pytest.raises(ValueError, match=f"x, {message}"):
        made(tmp_path / "x", content, dataset)


def test_text_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "x").write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match="not UTF-8 at byte 2"):
        corpora.corpus(
            str(tmp_path / "x"),
            dataset="ptb",
            protocol="sedd",
            tokenizer=BYTES,
            length=2,
            started=False,
        )
