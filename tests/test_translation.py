"""The translation evaluator: figures by hand and by sacreBLEU itself, and the row."""

import inspect
import json
import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import sacrebleu

from diffusion_lm import evaluate, names
from diffusion_lm.evaluators import translation

CAT, DOG = "the cat sat on the mat", "a dog ran over one hill"
PROTOCOL = {"candidates": 2, "choice": "mbr", "reranker": None, "sampler": "toy", "steps": 20}
PAIRS = [("die Katze sass", CAT), ("ein Hund lief", DOG), ("ja", "yes")]


class Translation(NamedTuple):
    """What run.translate yields, as far as the evaluator looks."""

    text: str
    candidates: list[str]
    calls: int
    protocol: dict


class Run(NamedTuple):
    translate: Callable | None
    data: SimpleNamespace


MADE = partial(translation.make, data=SimpleNamespace(of_sources={"source_length": 9}))


def run_of(texts, candidates=None, calls=None, pairs=PAIRS, asked=None):
    """A run whose translation of pair i is texts[i]."""
    candidates = candidates or [[text] for text in texts]
    calls = calls or [20] * len(texts)

    def translate(split, number, batch_size):
        if asked is not None:
            asked.append((split, number, batch_size))
        for index in range(number):
            yield Translation(texts[index], candidates[index], calls[index], PROTOCOL)

    windows = SimpleNamespace(texts=pairs, dropped=7)
    return Run(translate, SimpleNamespace(windows=lambda split: windows))


def scores(texts, references, sources=None, candidates=None):
    sources = sources or ["x"] * len(texts)
    return translation.scores(texts, references, sources, candidates or [[t] for t in texts])


def test_identical_texts():
    got = scores([CAT, DOG], [CAT, DOG])
    for name in ("bleu", "chrf", "rouge1", "rouge2", "rougeL"):
        assert got[name] == pytest.approx(100), name
    assert got["exact_match"] == got["length_ratio"] == 1
    assert got["repetition"] == got["source_copy"] == got["bleu_of_source"] == 0
    assert got["distinct_1"] == 11 / 12 and got["distinct_2"] == 1  # "the" twice
    assert got["self_bleu"] is None and got["oracle_bleu"] is None


def test_the_order_of_pairs_does_not_matter_and_that_of_words_does():
    texts, references = [CAT, "a dog"], [CAT.replace("mat", "hat"), DOG]
    assert scores(texts, references) == pytest.approx(scores(texts[::-1], references[::-1]))
    got = scores(["d c b a"], ["a b c d"])
    assert got["rouge1"] == 100 and got["rouge2"] == 0 and got["rougeL"] == 25
    # precisions 1, then exp-smoothed 1/2/3, 1/4/2, 1/8/1
    assert got["bleu"] == pytest.approx(100 * (1 / 6 * 1 / 8 * 1 / 8) ** 0.25)
    assert got["exact_match"] == 0 and got["length_ratio"] == 1


def test_empty_text():
    got = scores(["", ""], [CAT, DOG])
    for name in ("bleu", "chrf", "rouge1", "rougeL", "exact_match", "length_ratio"):
        assert got[name] == 0, name
    assert got["distinct_1"] is got["distinct_2"] is got["repetition"] is None
    assert scores([""], [""])["length_ratio"] is None
    half = scores([CAT, ""], [CAT, DOG])  # 6 of 12 words
    assert half["bleu"] == pytest.approx(100 * math.exp(1 - 12 / 6))
    assert half["exact_match"] == half["length_ratio"] == 0.5


def test_one_token():
    got = scores(["yes"], ["yes"])
    assert got["exact_match"] == 1 and got["rouge1"] == 100 and got["chrf"] == 100
    assert got["bleu"] == 0 and translation.sentence_bleu("yes", ["yes"]) == pytest.approx(100)
    assert got["distinct_1"] == 1 and got["distinct_2"] is None and got["repetition"] == 0


def test_rouge_by_hand():
    """F1 2/3, 1/2, 2/3 of one pair and 0 of the other; no stemmer, case aside."""
    got = translation.rouge(["A b c", "cats"], ["a b d", "cat"])
    assert got == pytest.approx({"rouge1": 100 / 3, "rouge2": 25, "rougeL": 100 / 3})


def test_distinct_repetition_and_length_by_hand():
    texts = ["a a a b", "b a", "a"]
    assert translation.distinct(texts, 1) == 2 / 7
    assert translation.distinct(texts, 2) == 3 / 4  # aa aa ab ba, none across texts
    assert translation.repetition(texts) == 2 / 7
    assert translation.length_ratio(texts, ["x", "y z", "w"]) == 7 / 4


def test_whitespace_does_not_break_an_exact_match():
    assert scores(["a  b ", "A b"], ["a b", "a b"])["exact_match"] == 0.5


def test_equals_sacrebleu():
    texts, references = ["the cat sat on a mat .", "One dog, he ran!"], [CAT + ".", DOG]
    got = scores(texts, references, sources=[DOG, "One dog, she ran!"])
    bleu, chrf = sacrebleu.corpus_bleu, sacrebleu.corpus_chrf
    assert got["bleu"] == bleu(texts, [references]).score > 0
    assert got["chrf"] == chrf(texts, [references]).score > 0
    assert got["source_copy"] == bleu(texts, [[DOG, "One dog, she ran!"]]).score > 0
    assert got["bleu_of_source"] == bleu([DOG, "One dog, she ran!"], [references]).score
    assert got["bleu_signature"] == (
        f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    )
    assert got["chrf_signature"].endswith(f"nw:0|space:no|version:{sacrebleu.__version__}")


def test_copies_of_the_source():
    old, new = ["thou shalt not kill him today"], ["you shall not kill him today"]
    got = scores(old, new, sources=old)
    assert got["source_copy"] == pytest.approx(100)
    assert got["bleu"] == got["bleu_of_source"] < 100


def test_self_bleu():
    assert translation.self_bleu([[CAT] * 3, [DOG] * 3, ["yes"] * 3, [""] * 3]) == 100
    assert translation.self_bleu([[CAT], [DOG]]) is None and translation.self_bleu([[]]) is None
    assert translation.self_bleu([["a b c d", "e f g h"]]) == 0
    # a source of one candidate says nothing; the third has two references, one of them equal
    one = sacrebleu.sentence_bleu(DOG, [CAT, CAT], use_effective_order=True).score
    assert translation.self_bleu([[CAT], [CAT, DOG, CAT]]) == pytest.approx((200 + one) / 3)


def test_oracle_takes_the_best_candidate():
    near = "the cat sat on the hat"
    candidates = [["x", near, CAT], ["a dog", DOG.replace("one", "a")]]
    got = scores([near, "a dog"], [CAT, DOG], candidates=candidates)
    best = sacrebleu.corpus_bleu([CAT, DOG.replace("one", "a")], [[CAT, DOG]]).score
    assert got["oracle_bleu"] == best > got["bleu"]
    only_wrong = scores([near], [DOG], candidates=[["x y", near]])
    assert only_wrong["oracle_bleu"] == only_wrong["bleu"]  # of equals the chosen text


@pytest.mark.parametrize("lists", [([], [], [], []), (["a"], ["a"], ["a"], [])])
def test_lists_that_do_not_fit_are_refused(lists):
    with pytest.raises(ValueError, match=f"at least one each, got {len(lists[0])}, .*, 0$"):
        translation.scores(*lists)


def test_row():
    asked, texts = [], [CAT, "a dog", "yes"]
    candidates = [[CAT, DOG], ["a dog", "ran"], ["yes", "no"]]
    run = run_of(texts, candidates, calls=[20, 20, 11], asked=asked)
    row = MADE(split="test", batch_size=2)(run)
    assert asked == [("test", 3, 2)]
    assert (row["kind"], row["split"], row["pairs"]) == ("translation", "test", 3)
    assert row["calls"] == 17
    assert PROTOCOL.items() <= row.items() and "distillation" not in row
    sources, references = [s for s, _ in PAIRS], [r for _, r in PAIRS]
    assert translation.scores(texts, references, sources, candidates).items() <= row.items()
    facts = row["protocol"]
    assert (facts["split"], facts["pairs"], row["dropped"]) == ("test", 3, 7)
    other = run_of(texts, candidates, pairs=[(s, r + "!") for s, r in PAIRS])
    assert MADE(split="test")(other)["protocol"]["data"] != facts["data"]
    assert facts["bleu"] == row["bleu_signature"] and facts["chrf"] == row["chrf_signature"]
    values = [v for name, v in row.items() if name != "protocol"]
    assert all(type(v) in (int, float, str, type(None)) for v in values)
    assert json.loads(json.dumps(row)) == row
    line = evaluate.describe({"step": 5, "evaluator": "translated"} | row)
    assert line.startswith(f"step 5 translated (test): BLEU {row['bleu']:.2f} (the sources' own ")
    assert line.endswith("candidates by mbr, 17 calls")


@pytest.mark.parametrize("limit,number", [(0, 3), (2, 2), (9, 3)])
def test_number_of_pairs(limit, number):
    asked = []
    row = MADE(max_pairs=limit)(run_of([CAT, DOG, "no"], asked=asked))
    assert asked == [("valid", number, 32)] and row["pairs"] == number
    assert row["exact_match"] == 2 / number  # of the first ones
    assert row["self_bleu"] is None and row["oracle_bleu"] is None


def test_data_without_pairs_is_refused():
    with pytest.raises(ValueError, match='needs pairs .config.data.name "pairs".'):
        translation.make(data=SimpleNamespace(of_sources={}))
    with pytest.raises(ValueError, match="at least one each"):
        MADE()(run_of([], pairs=[]))


@pytest.mark.parametrize("option", ["batch_size", "max_pairs"])
def test_options_that_do_not_fit_are_refused(option):
    with pytest.raises(ValueError, match=f"evaluators.{option} must be .* got -1"):
        MADE(**{option: -1})


@pytest.mark.parametrize("package", ["sacrebleu", "rouge_score"])
def test_packages_that_are_missing_are_named(monkeypatch, package):
    find = translation.importlib.util.find_spec
    hide = lambda name: None if name == package else find(name)  # noqa: E731
    monkeypatch.setattr(translation.importlib.util, "find_spec", hide)
    with pytest.raises(ModuleNotFoundError, match=r"wants the extra: pip install '.*\[pairs\]'$"):
        MADE()


def test_a_config_finds_it():
    assert names.find("evaluators.any", "translation") is translation.make
    options = dict(inspect.signature(translation.make).parameters)
    del options["data"]  # the house gives it
    assert {type(option.default) for option in options.values()} <= {int, str}
