"""What of one text stands in another, against a count by hand."""

import json

import numpy as np
import pytest

from diffusion_lm import overlap


def covered(test, train, n):
    """Words of each test document under n-grams of train, by sets."""
    grams = {tuple(d[i : i + n]) for d in train for i in range(len(d) - n + 1)}
    out = []
    for d in test:
        under = set()
        for i in range(len(d) - n + 1):
            if tuple(d[i : i + n]) in grams:
                under |= set(range(i, i + n))
        out.append(len(under))
    return out


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_the_count_is_that_of_sets(n, chunk, monkeypatch):
    monkeypatch.setattr(overlap, "_CHUNK", chunk)
    rng = np.random.default_rng(n)
    texts = [list(rng.choice(list("abcdefgh"), rng.integers(0, 40))) for _ in range(33)]
    test, train = texts[:30], [*texts[30:], max(texts[:30], key=len)[:20]]
    got = overlap.overlap(map(" ".join, test), map(" ".join, train), n)
    assert got.copied.tolist() == covered(test, train, n)
    assert 0 < got.copied.sum() and (got.copied.sum() < got.sizes.sum() or n == 1)
    assert got.documents == 30 and got.short == sum(len(d) < n for d in test)
    assert got.words == sum(len(d) for d in test if len(d) >= n)


def test_spaces_case_and_punctuation_hide_nothing_and_order_matters():
    def share(a, b):
        got = overlap.overlap(iter([a]), iter([b]), 3)
        return got.copied.tolist(), got.words

    assert share("The  cat, sat -- on", "the CAT sat.") == ([3], 4)
    assert share("c b a", "a b c") == ([0], 3)
    assert share("a b", "a b") == ([0], 0)
    assert share("é ü ß", "É Ü ß") == ([3], 3)


def test_grams_do_not_cross_documents():
    got = overlap.overlap(iter(["a b c d"]), iter(["a b", "c d"]), 3)
    assert got.copied.tolist() == [0]


def test_command(tmp_path, capsys):
    words = [f"w{i}" for i in range(40)]
    (tmp_path / "test.jsonl").write_text(
        "".join(
            json.dumps({"text": " ".join(w)}) + "\n" for w in (words[:20], words[30:], ["x"] * 15)
        )
    )
    (tmp_path / "train.txt").write_text("before " + " ".join(words[5:]))
    given = [f"--of={tmp_path}/test.jsonl", f"--in={tmp_path}/train.txt"]
    assert overlap.main(given) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("15 of 35 words (42.86 %) stand in 13-grams of")
    assert "1 of 3 documents have any, 1 are shorter than 13 words" in out[0]
    assert out[1:] == ["  document 0: 75 %  " + " ".join(words[:20])[:60]]
    assert overlap.main([*given, "--n=5", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["words_copied"] == 25 and said["documents_with_overlap"] == 2
    assert [row["document"] for row in said["worst"]] == [1, 0]


@pytest.mark.parametrize("more,message", [
    (["--n=0"], "--n must be at least 1, got 0"),
    (["--of_dataset=c4"], "unknown dataset 'c4'; choices: text"),
    (["--in=/no/such"], "neither a file nor a folder"),
])  # fmt: skip
def test_mistakes_end_in_one_line(tmp_path, capsys, more, message):
    (tmp_path / "a.txt").write_text("a")
    assert overlap.main([f"--of={tmp_path}/a.txt", f"--in={tmp_path}/a.txt", *more]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
