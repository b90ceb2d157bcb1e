"""Scoring rules by name, each after the tool it is named for, and its signature. No model and no
torch here.

summaries     lm-eval    neologdn, emoji off, MeCab unidic-lite, google rouge-score
              xlsum      lower case, punctuation off, MeCab unidic-lite, google rouge-score
              flexeval   MeCab ipadic, pltrdy's rouge 1.0.1 (sets of n-grams, summary-level L)
              char       characters, google rouge-score
closed tasks  tsugiki    equal after NFKC and strip
              llm-jp-eval    1.x: the text before an empty line, NFKC, strip
              llm-jp-eval-2  2.x: the first line (its `choice_only`), strip; with the share of
                             answers outside the labels
              flexeval       the same characters (lm-eval compares log-likelihoods instead)
              flexeval-jnli  the same characters as the label in ASCII quotes
              jamc-qa        the first line, NFKC, strip
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cache
from importlib.metadata import version
from typing import Any

from tsugiki.data.text import normalise
from tsugiki.errors import ConfigError, did_you_mean
from tsugiki.score.class_scores import correlation, macro_f1
from tsugiki.score.japanese import clean_for_rouge, segment, segment_ipadic
from tsugiki.score.statistics import SHARE, Scale
from tsugiki.words import Message

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
Values = dict[str, float]
Rule = Callable[[str, str], Values]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One way to score an answer: (answer, target) → values in 0–1 by name, of which `main` chooses
    between models. `signature` says by which rule, with the versions it depends on; `rules` are
    the ways in which other tools score the same answers.

    `percent`: the main score is a share of right answers, which sentences give in per cent. `shown`
    are the scores that a table sets beside the main one. `whole`: where the main score is no mean
    over rows, values of all rows whose mean it is (`score/class_scores`); they may lie outside of
    its `scale`. `taken`: what of an answer a rule compares, where it also counts answers outside
    the labels.
    """

    name: str
    rule: Rule
    main: str
    signature: Callable[[], str]
    rules: Mapping[str, Metric] = field(default_factory=dict)
    percent: bool = False
    shown: tuple[str, ...] = ()
    whole: Callable[[Sequence[str], Sequence[str]], list[float]] | None = None
    taken: Callable[[str], str] | None = None
    scale: Scale = SHARE

    def score(self, answers: Sequence[str], targets: Sequence[str]) -> dict[str, list[float]]:
        """Values of every example, by the name of the score, the main one first."""
        whole = {} if self.whole is None else {self.main: self.whole(answers, targets)}
        rows = [self.rule(answer, other) for answer, other in zip(answers, targets, strict=True)]
        return whole | {name: [row[name] for row in rows] for name in rows[0]}


def pick_rules(metric: str, names: str) -> list[Metric]:
    """`all`, or names joined by commas. Raises `ConfigError` for an unknown one."""
    known = METRICS[metric].rules
    if not known:
        raise ConfigError(f"--rules: {metric} has no rules of other tools")
    wanted = list(known) if names == "all" else [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(Message("error.no_rule", name=name, metric=metric, hint=hint))
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
    from rouge_score import rouge_scorer

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


def _first_line(answer: str) -> str:
    return answer.split("\n", maxsplit=1)[0].strip()


def _llm_jp_match_2(answer: str, target: str) -> Values:
    """Its `AnswerPatternId.CHOICE_ONLY_JP`: `re.search(r"(?s)^(.*?)(?=\\n|\\Z)", text)`, stripped
    (answer_parser.py of 2.1, read 2026-11). That its exact match then compares without more was not
    verified: its scorer could not be read."""
    return {"exact_match": float(_first_line(answer) == target)}


def _flexeval_jnli_match(answer: str, target: str) -> Values:
    """flexeval's preset JNLI writes its references in ASCII quotes (ja_generation/jnli.jsonnet of
    0.18.3): `含意` is wrong, `"含意"` right."""
    return {"exact_match": float(answer == f'"{target}"')}


def _jamc_qa_match(answer: str, target: str) -> Values:
    """flexeval's preset JamC-QA (ja_generation/jamcqa.jsonnet of 0.18.3): generation stops at a
    line break; NFKC and strip of both."""
    return {"exact_match": float(normalise(_first_line(answer)) == normalise(target))}


def _equal(name: str) -> Rule:
    """The metric of closed tasks, with the raw match beside it."""

    def rule(answer: str, target: str) -> Values:
        same = float(normalise(answer) == normalise(target))
        return {name: same, "exact_match_raw": float(answer == target)}

    return rule


def _char_f1(answer: str, target: str) -> Values:
    """F1 of the characters that answer and target share, each as often as in both: ROUGE-1 over
    characters (Lin 2004). flexeval's `char_f1` is another: fuzzywuzzy's ratio (0.18.3); so is
    llm-jp-eval's: rapidfuzz's."""
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


def _match(name: str, rule: Rule, norm: str, after: str = "") -> Metric:
    """A rule of equality; `after`: the tool and the version that it follows."""
    signature = f"exact_match|rule:{name}|norm:{norm}" + (f"|as:{after}" if after else "")
    return _tool(name, "exact_match", rule, lambda: signature)


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
    _match("flexeval", _flexeval_match, "none", "flexeval-0.18.3"),
    _match("flexeval-jnli", _flexeval_jnli_match, "quoted-label", "flexeval-0.18.3"),
    _match("jamc-qa", _jamc_qa_match, "first-line+nfkc+strip", "flexeval-0.18.3"),
    _match("llm-jp-eval", _llm_jp_match, "before-empty-line+nfkc+strip", "llm-jp-eval-1.3"),
    replace(
        _match(
            "llm-jp-eval-2",
            _llm_jp_match_2,
            "first-line+strip",
            "llm-jp-eval-2.1|comparison-not-verified",
        ),
        taken=_first_line,
    ),
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


def _of_classes(
    name: str,
    whole: Callable[[Sequence[str], Sequence[str]], list[float]],
    scale: Scale = SHARE,
) -> Metric:
    """A score that is no mean over rows, with accuracy beside it."""
    signature = f"{name}|norm:nfkc+strip|interval:delta|decode:greedy"
    return Metric(
        name=name,
        rule=_equal("accuracy"),
        main=name,
        signature=lambda: signature,
        rules=CLOSED_RULES,
        whole=whole,
        scale=scale,
    )


# What a task file may name.
METRICS: dict[str, Metric] = {
    "accuracy": _closed("accuracy"),
    "exact_match": _closed("exact_match"),
    "macro_f1": _of_classes("macro_f1", macro_f1),
    "mcc": _of_classes("mcc", correlation, scale=(-1.0, 1.0)),
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
