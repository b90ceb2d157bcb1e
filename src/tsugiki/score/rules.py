"""Scoring rules by name, each after the tool it is named for, and its signature. No model and no
torch here.

summaries     lm-eval    neologdn, emoji off, MeCab unidic-lite, google rouge-score
              xlsum      lower case, punctuation off, MeCab unidic-lite, google rouge-score
              flexeval   MeCab ipadic, pltrdy's rouge 1.0.1 (sets of n-grams, summary-level L)
              char       characters, google rouge-score
closed tasks  tsugiki    equal after NFKC and strip
              llm-jp-eval  the text before an empty line, NFKC, strip
              flexeval   the same characters (lm-eval compares log-likelihoods instead)
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from importlib.metadata import version
from typing import Any

from tsugiki.data.text import normalise
from tsugiki.errors import ConfigError, did_you_mean
from tsugiki.score.japanese import clean_for_rouge, segment, segment_ipadic

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
Values = dict[str, float]
Rule = Callable[[str, str], Values]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One way to score an answer: (answer, target) → values in 0–1 by name, of which `main` chooses
    between models. `signature` says by which rule, with the versions it depends on; `rules` are
    the ways in which other tools score the same answers.

    `percent`: the main score is a share of right answers, which sentences give in per cent. `shown`
    are the scores that a table sets beside the main one.
    """

    name: str
    rule: Rule
    main: str
    signature: Callable[[], str]
    rules: Mapping[str, Metric] = field(default_factory=dict)
    percent: bool = False
    shown: tuple[str, ...] = ()

    def score(self, answers: Sequence[str], targets: Sequence[str]) -> dict[str, list[float]]:
        """Values of every example, by the name of the score."""
        rows = [self.rule(answer, other) for answer, other in zip(answers, targets, strict=True)]
        return {name: [row[name] for row in rows] for name in rows[0]}


def pick_rules(metric: str, names: str) -> list[Metric]:
    """`all`, or names joined by commas. Raises `ConfigError` for an unknown one."""
    known = METRICS[metric].rules
    if not known:
        raise ConfigError(f"--rules: {metric} has no rules of other tools")
    wanted = list(known) if names == "all" else [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f'--rules "{name}": no such rule for {metric}.{did_you_mean(name, known)}'
            )
    return [known[name] for name in wanted]


def metric_of(score: str) -> Metric:
    """The metric whose main score has this name."""
    return next(metric for metric in METRICS.values() if metric.main == score)


def _unidic() -> str:
    return f"seg:mecab-unidic-lite-{version('unidic-lite')}|fugashi:{version('fugashi')}"


# ---- summaries ----------------------------------------------------------------------------------


class _Segmented:
    """The tokenizer face that google's rouge-score asks for."""

    def __init__(self, tokenize: Callable[[str], list[str]]):
        self.tokenize = tokenize


@cache
def _google(tokenize: Callable[[str], list[str]]) -> Any:
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise ConfigError('ROUGE needs rouge-score. Run: pip install "tsugiki[ja]"') from None
    return rouge_scorer.RougeScorer(list(ROUGE_TYPES), tokenizer=_Segmented(tokenize))


def _by_google(tokenize: Callable[[str], list[str]]) -> Rule:
    def rule(answer: str, target: str) -> Values:
        scores = _google(tokenize).score(target, answer)
        return {name: float(scores[name].fmeasure) for name in ROUGE_TYPES}

    return rule


def _lm_eval_words(text: str) -> list[str]:
    return segment(clean_for_rouge(text))


def _xlsum_words(text: str) -> list[str]:
    """Lower case, control characters off, punctuation (ASCII signs too) a space, MeCab.

    Source: XL-Sum's fork of rouge-score (Hasan et al. 2021; github.com/csebuetnlp/xl-sum, read
    2026-11). Its dictionary is the full unidic; ours is unidic-lite, as the signature says.
    """
    return segment(" ".join("".join(map(_sanitised, text.lower())).split()))


def _sanitised(char: str) -> str:
    kind = unicodedata.category(char)
    if (
        char in "\t\n\r"
        or kind in ("Zs", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po")
        or (char.isascii() and kind.startswith("S"))
    ):
        return " "
    return "" if kind.startswith("C") or char == "\ufffd" else char


def _characters(text: str) -> list[str]:
    return [char for char in text if not char.isspace()]


def _flexeval(answer: str, target: str) -> Values:
    """flexeval's ROUGE: words joined by spaces, an empty answer (or a lone full stop) a blank,
    then pltrdy's rouge."""
    joined = " ".join(segment_ipadic(answer))
    return pltrdy_rouge(
        joined if joined and joined != "." else " ", " ".join(segment_ipadic(target))
    )


def pltrdy_rouge(answer: str, target: str) -> Values:
    """F1 of ROUGE-1, -2 and summary-level L as the package `rouge` 1.0.1 computes them: n-grams
    and longest common subsequences are *sets*, so a repeated word counts once; sentences end at
    ASCII full stops.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"; behaviour of
    github.com/pltrdy/rouge 1.0.1.
    """
    sentences = [
        [" ".join(part.split()) for part in text.split(".") if part] for text in (answer, target)
    ]
    words = [[item for sentence in text for item in sentence.split(" ")] for text in sentences]
    values = {}
    for n in (1, 2):
        grams = [{tuple(text[i : i + n]) for i in range(len(text) - n + 1)} for text in words]
        values[f"rouge{n}"] = _f1(len(grams[0] & grams[1]), len(grams[0]), len(grams[1]))
    union: set[str] = set()
    for reference in sentences[1]:
        for candidate in sentences[0]:
            union |= _common(reference.split(" "), candidate.split(" "))
    return {**values, "rougeL": _f1(len(union), len(set(words[0])), len(set(words[1])))}


def _f1(both: int, answer: int, target: int) -> float:
    precision, recall = both / answer if answer else 0.0, both / target if target else 0.0
    return 2 * precision * recall / (precision + recall + 1e-8)


def _common(x: list[str], y: list[str]) -> set[str]:
    """The words of one longest common subsequence: where two are equally long, the one that drops
    y's last word first."""
    longest = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i, each in enumerate(x, 1):
        for j, other in enumerate(y, 1):
            longest[i][j] = (
                longest[i - 1][j - 1] + 1
                if each == other
                else max(longest[i - 1][j], longest[i][j - 1])
            )
    i, j, common = len(x), len(y), set()
    while i and j:
        if x[i - 1] == y[j - 1]:
            common.add(x[i - 1])
            i, j = i - 1, j - 1
        elif longest[i - 1][j] > longest[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return common


# ---- closed tasks -------------------------------------------------------------------------------


def _tsugiki(answer: str, target: str) -> Values:
    return {"exact_match": float(normalise(answer) == normalise(target))}


def _flexeval_match(answer: str, target: str) -> Values:
    return {"exact_match": float(answer == target)}


def _llm_jp_match(answer: str, target: str) -> Values:
    said = unicodedata.normalize("NFKC", answer.split("\n\n", maxsplit=1)[0].strip())
    return {"exact_match": float(said == unicodedata.normalize("NFKC", target))}


def _equal(name: str) -> Rule:
    """The metric of closed tasks, with the raw match beside it."""

    def rule(answer: str, target: str) -> Values:
        same = float(normalise(answer) == normalise(target))
        return {name: same, "exact_match_raw": float(answer == target)}

    return rule


def _char_f1(answer: str, target: str) -> Values:
    """F1 of the characters that answer and target share, each as often as in both: ROUGE-1 over
    characters (Lin 2004). llm-jp-eval's and flexeval's `char_f1` is another: rapidfuzz's
    token_sort_ratio."""
    ours, theirs = (Counter(_characters(normalise(text))) for text in (answer, target))
    common, total = (ours & theirs).total(), ours.total() + theirs.total()
    return {"char_f1": 2 * common / total if common else 0.0}


_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")


def _number(answer: str, target: str) -> Values:
    """Whether the last number of the answer is that of the target; of a target without a number,
    whether they are equal."""
    ours, theirs = (_last_number(text) for text in (answer, target))
    if theirs is None:
        return {"number": float(normalise(answer) == normalise(target))}
    return {"number": float(ours == theirs)}


def _last_number(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(unicodedata.normalize("NFKC", text))
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def _tool(name: str, main: str, rule: Rule, signature: Callable[[], str]) -> Metric:
    return Metric(name=name, rule=rule, main=main, signature=signature)


def _rouge(name: str, rule: Rule, signature: Callable[[], str]) -> Metric:
    return _tool(name, "rougeL", rule, lambda: f"rouge|rule:{name}|{signature()}|f1")


def _match(name: str, rule: Rule, norm: str) -> Metric:
    return _tool(name, "exact_match", rule, lambda: f"exact_match|rule:{name}|norm:{norm}")


def _google_is() -> str:
    return f"impl:rouge-score-{version('rouge-score')}"


def _ipadic_is() -> str:
    return f"seg:mecab-ipadic-{version('ipadic')}|fugashi:{version('fugashi')}"


def _lm_eval_is() -> str:
    return f"norm:neologdn-{version('neologdn')}|{_unidic()}|{_google_is()}"


_SUMMARIES = (
    _rouge("lm-eval", _by_google(_lm_eval_words), _lm_eval_is),
    _rouge(
        "xlsum",
        _by_google(_xlsum_words),
        lambda: f"norm:lower+no-punctuation|{_unidic()}|{_google_is()}",
    ),
    _rouge("flexeval", _flexeval, lambda: f"norm:none|{_ipadic_is()}|impl:ours-as-rouge-1.0.1"),
    _rouge("char", _by_google(_characters), lambda: f"norm:none|seg:characters|{_google_is()}"),
)
_CLOSED = (
    _match("tsugiki", _tsugiki, "nfkc+strip"),
    _match("flexeval", _flexeval_match, "none"),
    _match("llm-jp-eval", _llm_jp_match, "before-empty-line+nfkc+strip"),
)
SUMMARY_RULES = {metric.name: metric for metric in _SUMMARIES}
CLOSED_RULES = {metric.name: metric for metric in _CLOSED}


def _closed(name: str) -> Metric:
    signature = f"{name}|norm:nfkc+strip|decode:greedy"
    return Metric(
        name=name,
        rule=_equal(name),
        main=name,
        signature=lambda: signature,
        rules=CLOSED_RULES,
        percent=True,
    )


# What a task file may name.
METRICS: dict[str, Metric] = {
    "accuracy": _closed("accuracy"),
    "exact_match": _closed("exact_match"),
    "rouge": Metric(
        name="rouge",
        rule=SUMMARY_RULES["lm-eval"].rule,
        main="rougeL",
        signature=SUMMARY_RULES["lm-eval"].signature,
        rules=SUMMARY_RULES,
        shown=ROUGE_TYPES,
    ),
    "char_f1": Metric(
        name="char_f1",
        rule=_char_f1,
        main="char_f1",
        signature=lambda: "char_f1|norm:nfkc|multiset of characters, no spaces|decode:greedy",
    ),
    "number": Metric(
        name="number",
        rule=_number,
        main="number",
        signature=lambda: "number|norm:nfkc|the last number, no thousands signs|decode:greedy",
        percent=True,
    ),
}


def class_scores(answers: Sequence[str], targets: Sequence[str], labels: Sequence[str]) -> Values:
    """Macro-F1, balanced accuracy and Matthews' correlation over the label words, as scikit-learn
    defines them; an answer outside the labels is no label's (for the correlation: one of its own).

    macro_f1: mean over labels of 2·tp / (2·tp + fp + fn), 0 where that is 0/0. balanced_accuracy:
    mean recall of the labels that occur. mcc: Gorodkin 2004, 0 where answers or labels are all one.
    """
    pairs = [
        (normalise(answer), normalise(target))
        for answer, target in zip(answers, targets, strict=True)
    ]
    f1, recalls = [], []
    for label in map(normalise, labels):
        right = sum(answer == target == label for answer, target in pairs)
        said, there = (
            sum(answer == label for answer, _ in pairs),
            sum(target == label for _, target in pairs),
        )
        f1.append(2 * right / (said + there) if said + there else 0.0)
        recalls += [right / there] if there else []
    return {
        "macro_f1": sum(f1) / len(f1),
        "balanced_accuracy": sum(recalls) / len(recalls),
        "mcc": _correlation(pairs, {normalise(label) for label in labels}),
    }


def _correlation(pairs: Sequence[tuple[str, str]], labels: set[str]) -> float:
    said = Counter(answer if answer in labels else None for answer, _ in pairs)
    there = Counter(target for _, target in pairs)
    n, right = len(pairs), sum(answer == target for answer, target in pairs)
    expected = sum(said[label] * count for label, count in there.items())
    spread = (n * n - sum(count * count for count in said.values())) * (
        n * n - sum(count * count for count in there.values())
    )
    return (right * n - expected) / math.sqrt(spread) if spread else 0.0
