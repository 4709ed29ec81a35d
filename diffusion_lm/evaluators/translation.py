"""Translations of a split against their references: BLEU, chrF, ROUGE, diversity and copying."""

import functools
import hashlib
import importlib.util
import json
from collections.abc import Callable

from diffusion_lm import evaluators
from diffusion_lm.types import Data


def make(
    *, data: Data, split: str = "valid", max_pairs: int = 0, batch_size: int = 32
) -> Callable[..., dict]:
    """Translates the sources of a split as `run.translate` does and scores what it chose.

    `max_pairs` limits the split to its first pairs, 0 means all. The row holds `scores`; the facts
    of the protocol that the translations carry; and `calls`, the network calls of a batch, as the
    mean over pairs. Raises ModuleNotFoundError without sacrebleu and rouge-score, and ValueError
    for data that are no pairs.
    """
    if not data.of_sources:
        raise ValueError('the translation evaluator needs pairs (config.data.name "pairs")')
    evaluators.check(batch_size=batch_size, max_windows=0)
    if max_pairs < 0:
        raise ValueError(f"evaluators.max_pairs must be 0 (all) or more, got {max_pairs}")
    check_packages("the translation evaluator")

    def evaluate(run) -> dict:
        """One row of results for an `evaluate.Run`."""
        held = run.data.windows(split)
        pairs = held.texts
        pairs = pairs[: max_pairs or len(pairs)]
        done = list(run.translate(split, len(pairs), batch_size))
        figures = scores(
            [translation.text for translation in done],
            [reference for _, reference in pairs],
            [source for source, _ in pairs],
            [translation.candidates for translation in done],
        )
        return {
            "kind": "translation",
            "split": split,
            "pairs": len(pairs),
            **done[0].protocol,
            "calls": sum(translation.calls for translation in done) / len(done),
            **figures,
            "protocol": {
                "split": split,
                "pairs": len(pairs),
                "bleu": figures["bleu_signature"],
                "chrf": figures["chrf_signature"],
                "data": hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16],
            },
            "dropped": held.dropped,  # pairs of the split that are too long for the model
        }

    return evaluate


def check_packages(what: str) -> None:
    """Raises ModuleNotFoundError, saying what wants them, without the packages for scores."""
    for module in ("sacrebleu", "rouge_score"):
        if importlib.util.find_spec(module) is None:  # found, not imported: that takes seconds
            raise ModuleNotFoundError(f"{what} wants the extra: pip install 'diffusion_lm[pairs]'")


def scores(
    texts: list[str], references: list[str], sources: list[str], candidates: list[list[str]]
) -> dict:
    """Every figure of the row, each from one text, reference, source and list of candidates a pair.

    `bleu`, `chrf`, `rouge1`, `rouge2`, `rougeL`, `self_bleu` and `oracle_bleu` go from 0 to 100;
    so do `source_copy`, the BLEU of the texts against their sources, which tells copying, and
    `bleu_of_source`, that of the sources against the references, the floor to beat when both are
    of one language. The rest are shares and ratios. Words are what whitespace parts.

    These are figures of a corpus. DiffuSeq's (its scripts/eval_seq2seq.py) are others: means of
    smoothed sentence BLEU, of BLEU between two candidates, and of distinct words in a sentence.

    Raises ValueError if the lists are empty or of unequal lengths.
    """
    lengths = [len(texts), len(references), len(sources), len(candidates)]
    if len(set(lengths)) > 1 or not texts:
        raise ValueError(
            "as many texts, references, sources and lists of candidates are needed, at least one "
            f"each, got {', '.join(map(str, lengths))}"
        )
    bleu, bleu_signature = corpus_bleu(texts, references)
    chrf, chrf_signature = corpus_chrf(texts, references)
    same = [a.split() == b.split() for a, b in zip(texts, references, strict=True)]
    return {
        "bleu": bleu,
        "bleu_signature": bleu_signature,
        "chrf": chrf,
        "chrf_signature": chrf_signature,
        **rouge(texts, references),
        "exact_match": sum(same) / len(same),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "repetition": repetition(texts),
        "length_ratio": length_ratio(texts, references),
        "self_bleu": self_bleu(candidates),
        "oracle_bleu": oracle_bleu(texts, references, candidates),
        "source_copy": corpus_bleu(texts, sources)[0],
        "bleu_of_source": corpus_bleu(sources, references)[0],
    }


def corpus_bleu(texts: list[str], references: list[str]) -> tuple[float, str]:
    """sacreBLEU's default, from 0 to 100, and its signature.

    It is 0 if no text has four tokens, even of texts that equal their references.
    """
    from sacrebleu.metrics import BLEU

    return _corpus(BLEU(), texts, references)


def corpus_chrf(texts: list[str], references: list[str]) -> tuple[float, str]:
    """sacreBLEU's chrF2, from 0 to 100, and its signature."""
    from sacrebleu.metrics import CHRF

    return _corpus(CHRF(), texts, references)


def sentence_bleu(text: str, references: list[str]) -> float:
    """sacreBLEU of one text against one or more references, from 0 to 100.

    Up to the longest n-grams that the text has (eff:yes), so that short texts score too.
    """
    return _sentence_metric().sentence_score(text, references).score


def rouge(texts: list[str], references: list[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, -2 and -L in percent, by rouge-score without its stemmer.

    Its words are runs of a-z and 0-9 after lowering; all else, letters with accents too, parts
    words, and texts in other scripts score 0.
    """
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(kinds, use_stemmer=False)
    found = [scorer.score(b, a) for a, b in zip(texts, references, strict=True)]
    return {kind: 100 * sum(f[kind].fmeasure for f in found) / len(found) for kind in kinds}


def distinct(texts: list[str], n: int) -> float | None:
    """Different n-grams of words over all n-grams; None if there are none.

    Of the corpus, so it falls as texts are added: compare it at equal numbers of pairs.
    """
    words = [text.split() for text in texts]
    grams = [tuple(w[i : i + n]) for w in words for i in range(len(w) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(texts: list[str]) -> float | None:
    """The share of words that equal the word before them in their text; None without words."""
    words = [text.split() for text in texts]
    total = sum(map(len, words))
    again = sum(a == b for w in words for a, b in zip(w, w[1:], strict=False))
    return again / total if total else None


def length_ratio(texts: list[str], references: list[str]) -> float | None:
    """Words of all texts over words of all references; None if these have none."""
    wanted = sum(len(reference.split()) for reference in references)
    return sum(len(text.split()) for text in texts) / wanted if wanted else None


def self_bleu(candidates: list[list[str]]) -> float | None:
    """Sentence BLEU of each candidate against the others of its source (as many references), its
    mean over all candidates; 100 if all are equal. None if no source has two."""
    found = []
    for several in candidates:
        for index, text in enumerate(several if len(several) > 1 else []):
            others = several[:index] + several[index + 1 :]
            # two empty candidates are equal, of which BLEU knows nothing
            found.append(100.0 if text in others else sentence_bleu(text, others))
    return sum(found) / len(found) if found else None


def oracle_bleu(
    texts: list[str], references: list[str], candidates: list[list[str]]
) -> float | None:
    """Corpus BLEU if the candidate of the best sentence BLEU, of equals the chosen text, had been
    chosen for each source. None if no source has two.

    BLEU of a corpus is no mean over sentences, so this is not strictly a bound.
    """
    if all(len(several) < 2 for several in candidates):
        return None
    best = [
        max(dict.fromkeys([text, *several]), key=lambda a, b=reference: sentence_bleu(a, [b]))
        for text, reference, several in zip(texts, references, candidates, strict=True)
    ]
    return corpus_bleu(best, references)[0]


def _corpus(metric, texts: list[str], references: list[str]) -> tuple[float, str]:
    score = metric.corpus_score(texts, [references]).score
    return score, str(metric.get_signature())  # known only once it has scored


@functools.cache  # it remembers the tokens of texts
def _sentence_metric():
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)
