"""Rules against the tools they are named after, on a thousand pairs; class scores against
scikit-learn's definitions."""

from __future__ import annotations

import random
import re
import string
import unicodedata

import pytest

from tests import build
from tsugiki.config.task import METRICS_OF
from tsugiki.data.text import normalise
from tsugiki.errors import ConfigError
from tsugiki.score.class_scores import class_scores
from tsugiki.score.japanese import clean_for_rouge, segment, segment_ipadic
from tsugiki.score.metrics import rouge
from tsugiki.score.rules import (
    CLOSED_RULES,
    METRICS,
    SUMMARY_RULES,
    pick_rules,
    pltrdy_rouge,
)
from tsugiki.score.statistics import mcnemar

WORDS = [
    *"".join(build.SENTENCES),
    "。",
    "、",
    ".",
    "「",
    "」",
    " ",
    "ＡＢＣ",
    "12.5",
    "犬",
    "犬",
    "走る",
    "\n",
]


def pairs(count: int = 1000) -> list[tuple[str, str]]:
    """Sentences that share words, with repetitions, full-width signs, full stops, spaces; some
    empty."""
    dice = random.Random(0)
    made = []
    for _ in range(count):
        target = [dice.choice(WORDS) for _ in range(dice.randint(1, 60))]
        answer = [
            dice.choice(target) if dice.random() < 0.7 else dice.choice(WORDS)
            for _ in range(dice.randint(0, 50))
        ]
        made.append(("".join(answer), "".join(target) + "犬"))
    return made


def test_flexevals_rouge_equals_the_package_it_calls() -> None:
    """flexeval 0.18: words joined by spaces, an empty answer a blank, `rouge` 1.0.1, F1."""
    from rouge import Rouge

    theirs = Rouge()
    for answer, target in pairs():
        words, reference = " ".join(segment_ipadic(answer)), " ".join(segment_ipadic(target))
        expected = theirs.get_scores([words if words and words != "." else " "], [reference])[0]
        found = SUMMARY_RULES["flexeval"].rule(answer, target)
        assert found == pytest.approx(
            {
                name: expected[key]["f"]
                for name, key in (
                    ("rouge1", "rouge-1"),
                    ("rouge2", "rouge-2"),
                    ("rougeL", "rouge-l"),
                )
            },
            abs=1e-4,
        )


def test_words_count_once_under_pltrdys_rouge() -> None:
    assert pltrdy_rouge("a b c d", "a a b c d")["rouge1"] == pytest.approx(1.0)
    assert pltrdy_rouge("a b c d", "a a b c d")["rougeL"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("rule", "tokenize"),
    [
        ("lm-eval", lambda text: segment(clean_for_rouge(text))),
        ("char", lambda text: [char for char in text if not char.isspace()]),
    ],
)
def test_rules_over_googles_rouge_equal_it(rule: str, tokenize: object) -> None:
    from rouge_score import rouge_scorer

    class Face:
        def __init__(self) -> None:
            self.tokenize = tokenize

    theirs = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Face())
    for answer, target in pairs():
        expected = {name: score.fmeasure for name, score in theirs.score(target, answer).items()}
        assert SUMMARY_RULES[rule].rule(answer, target) == pytest.approx(expected, abs=1e-4)
        if rule == "lm-eval":
            assert rouge(answer, target) == SUMMARY_RULES[rule].rule(answer, target)


def test_the_xlsum_rule_drops_punctuation_and_case() -> None:
    """As its tokenizer does: ASCII signs and Unicode punctuation are spaces, control characters
    go."""
    rule = SUMMARY_RULES["xlsum"].rule
    assert rule("犬が、公園を走った。", "犬が公園を走った")["rouge1"] == pytest.approx(1.0)
    assert rule("ABC「犬」$5", "abc 犬 5")["rougeL"] == pytest.approx(1.0)
    assert rule("犬\u200bが走る", "犬が走る")["rouge2"] == pytest.approx(1.0)
    assert rule("", "犬") == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}
    assert SUMMARY_RULES["lm-eval"].rule("犬が、走った。", "犬が走った")["rouge1"] < 1.0


def test_the_xlsum_rule_equals_its_tokenizers_rule_on_a_thousand_pairs() -> None:
    """The steps of its tokenizer written another way: cleaned, cut at punctuation word by word,
    joined by spaces, MeCab, google's scorer."""
    from rouge_score import rouge_scorer

    signs = (
        "".join(
            chr(code)
            for code in range(0x3000, 0xFFFF)
            if unicodedata.category(chr(code)).startswith("P")
        )
        + "“”‘’…—‐"
    )
    punctuation = re.compile(f"[{re.escape(string.punctuation + signs)}]+")

    class Face:
        def tokenize(self, text: str) -> list[str]:
            text = re.sub(r"[\t\n\r\u3000\xa0]", " ", text.strip().lower())
            text = "".join(
                char
                for char in text
                if char != "\ufffd" and not unicodedata.category(char).startswith("C")
            )
            pieces = [piece for word in text.split() for piece in punctuation.split(word) if piece]
            return segment(" ".join(pieces))

    theirs = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Face())
    dice = random.Random(1)
    for answer, target in pairs():
        dirty = "".join(
            char + dice.choice(["", "", "、", "$", "\u200b", "\u3000", "（", "A", "～", "—"])
            for char in answer
        )
        expected = {name: score.fmeasure for name, score in theirs.score(target, dirty).items()}
        assert SUMMARY_RULES["xlsum"].rule(dirty, target) == pytest.approx(expected, abs=1e-4), (
            dirty
        )


def test_the_llm_jp_eval_rule_on_a_thousand_pairs() -> None:
    """As its scorer does: the text before an empty line, stripped, then NFKC of both."""
    dice = random.Random(2)
    for _ in range(1000):
        target = dice.choice(["含意", "ＡＢ", "12", "田園"])
        answer = (
            dice.choice(["", " ", "\n", "\u3000"])
            + dice.choice([target, "含意", "AB"])
            + dice.choice(["", "\n", "\n\n説明", " \n\n", "。"])
        )
        expected = unicodedata.normalize(
            "NFKC", answer.split("\n\n")[0].strip()
        ) == unicodedata.normalize("NFKC", target)
        assert CLOSED_RULES["llm-jp-eval"].rule(answer, target) == {"exact_match": float(expected)}


def test_closed_rules() -> None:
    cases = [
        ("含意", "含意"),
        (" 含意\n", "含意"),
        ("含意\n\n説明", "含意"),
        ("ＡＢ", "AB"),
        ("含意。", "含意"),
    ]
    found = {
        rule: [CLOSED_RULES[rule].rule(answer, target)["exact_match"] for answer, target in cases]
        for rule in CLOSED_RULES
    }
    assert found == {
        "tsugiki": [1, 1, 0, 1, 0],
        "flexeval": [1, 0, 0, 0, 0],
        "flexeval-jnli": [0, 0, 0, 0, 0],
        "jamc-qa": [1, 1, 1, 1, 0],
        "llm-jp-eval": [1, 1, 1, 1, 0],
        "llm-jp-eval-2": [1, 1, 1, 0, 0],
    }
    assert CLOSED_RULES["flexeval-jnli"].rule('"含意"', "含意") == {"exact_match": 1.0}
    for name in ("flexeval", "flexeval-jnli", "jamc-qa", "llm-jp-eval", "llm-jp-eval-2"):
        assert "|as:" in CLOSED_RULES[name].signature(), "a rule says whose, and of which version"
    assert "not-verified" in CLOSED_RULES["llm-jp-eval-2"].signature()


def closed_pairs(count: int = 1000) -> list[tuple[str, str]]:
    dice = random.Random(3)
    made = []
    for _ in range(count):
        target = dice.choice(["含意", "ＡＢ", "12", "田園", "AB"])
        before = dice.choice(["", " ", "\n", "\u3000", '"', "<answer>"])
        after = dice.choice(["", "\n", "\n\n説明", " \n\n", "。", '"', " \n二", "</answer>"])
        made.append((before + dice.choice([target, "含意", "AB"]) + after, target))
    return made


def test_the_llm_jp_eval_2_rule_takes_what_its_regular_expression_takes() -> None:
    """`AnswerPatternId.CHOICE_ONLY_JP`: groups joined and stripped, no match is an empty answer."""
    rule = CLOSED_RULES["llm-jp-eval-2"]
    assert rule.taken is not None
    for answer, target in closed_pairs():
        match = re.search(r"(?s)^(.*?)(?=\n|\Z)", answer, re.DOTALL)
        expected = "".join(match.groups()).strip() if match else ""
        assert rule.taken(answer) == expected
        assert rule.rule(answer, target) == {"exact_match": float(expected == target)}


def test_flexevals_rules_equal_its_metric_with_the_processors_of_its_presets() -> None:
    """Runs where flexeval is installed (it was 0.18.3); its own JSON presets name these."""
    metric = pytest.importorskip("flexeval.core.metric.exact_match")
    processors = pytest.importorskip("flexeval.core.string_processor")
    both = [processors.NFKCNormalizer(), processors.StringStrip()]
    made = closed_pairs()
    answers, targets = [answer for answer, _ in made], [target for _, target in made]

    def theirs(answers: list[str], targets: list[str], some: list) -> list[float]:
        scorer = metric.ExactMatch(lm_output_processor=some, reference_processor=some)
        result = scorer.evaluate(answers, [[target] for target in targets])
        return [float(each["exact_match"]) for each in result.instance_details]

    def ours(name: str) -> list[float]:
        return CLOSED_RULES[name].score(answers, targets)["exact_match"]

    assert ours("flexeval") == theirs(answers, targets, [])
    assert ours("flexeval-jnli") == theirs(answers, [f'"{target}"' for target in targets], [])
    stopped = [answer.split("\n", maxsplit=1)[0] for answer in answers]  # its stop_sequences
    assert ours("jamc-qa") == theirs(stopped, targets, both)


def test_rules_are_picked_by_name_and_signed() -> None:
    assert [rule.name for rule in pick_rules("rouge", "all")] == [
        "lm-eval",
        "xlsum",
        "flexeval",
        "char",
    ]
    picked = pick_rules("accuracy", "flexeval, tsugiki")
    assert [rule.name for rule in picked] == ["flexeval", "tsugiki"]
    with pytest.raises(
        ConfigError, match=r'"xlsam": no such rule for rouge\. Did you mean "xlsum"'
    ):
        pick_rules("rouge", "xlsam")
    assert (
        len(
            {
                rule.signature()
                for metric in ("rouge", "accuracy")
                for rule in pick_rules(metric, "all")
            }
        )
        == 10
    )
    assert "mecab-ipadic-1.0.0" in SUMMARY_RULES["flexeval"].signature()
    assert SUMMARY_RULES["char"].score(["犬"], ["犬"])["rouge1"] == [1.0]


def test_class_scores_by_hand() -> None:
    """Three labels, one answer outside them: by the definitions of scikit-learn's
    f1_score(average="macro") and balanced_accuracy_score."""
    answers = ["含意", "含意", "中立", "何か", "矛盾", "中立"]
    targets = ["含意", "中立", "中立", "中立", "矛盾", "矛盾"]
    found = class_scores(answers, targets, ["含意", "矛盾", "中立"])
    f1 = [2 * 1 / (2 + 1), 2 * 1 / (1 + 2), 2 * 1 / (2 + 3)]
    assert found["macro_f1"] == pytest.approx(sum(f1) / 3)
    assert found["balanced_accuracy"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_mcnemar_exact_and_by_group() -> None:
    first, second = [1, 1, 1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1, 1, 0]
    alone = mcnemar(first, second, [str(n) for n in range(8)])
    assert (alone.only_first, alone.only_second) == (5, 1)
    assert alone.p == pytest.approx(2 * (1 + 6) / 2**6)
    assert mcnemar(first, first, [str(n) for n in range(8)]).p == 1.0
    # Mirrored pairs count once: eight rows that are four images say no more than four.
    doubled = mcnemar(
        [*first, *first], [*second, *second], [str(n) for n in [*range(8), *range(8)]]
    )
    statistic = 4**2 / 6
    import math

    assert doubled.p == pytest.approx(math.erfc(math.sqrt(statistic / 2)))
    assert doubled.p > mcnemar([*first, *first], [*second, *second], [str(n) for n in range(16)]).p


def test_mcnemar_by_group_keeps_its_level() -> None:
    """Two equal methods on pairs of dependent rows: five percent of the tests say otherwise,
    about."""
    import numpy as np

    dice = np.random.default_rng(0)
    low = 0
    for _ in range(400):
        one, other = (np.repeat(dice.integers(0, 2, 60), 2) for _ in range(2))
        low += mcnemar(one.tolist(), other.tolist(), [str(n // 2) for n in range(120)]).p < 0.05
    assert 0.02 < low / 400 < 0.09


def test_two_methods_that_never_differ_have_an_interval_on_both_sides() -> None:
    """It had been Wilson's for “all answers wrong”: zero to four points, on one side."""
    from tsugiki.score.statistics import paired_difference

    same = [1.0, 0.0, 1.0, 1.0] * 25
    found = paired_difference([same], [same], [str(n) for n in range(100)])
    assert found.mean == 0
    assert -found.low == found.high == pytest.approx(1.96**2 / (100 + 1.96**2))


def test_every_metric_of_a_task_has_its_rule() -> None:
    assert {name for names in METRICS_OF.values() for name in names} == set(METRICS)
    mains = [metric.main for metric in METRICS.values()]
    assert len(set(mains)) == len(mains), "a score names its metric"


@pytest.mark.filterwarnings("ignore::UserWarning")  # one label alone
def test_class_scores_equal_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    labels, drawn = ["含意", "矛盾", "中立"], random.Random(0)
    for number in range(200):
        many = drawn.choice((1, 5, 40))
        targets = drawn.choices(labels, k=many)
        answers = drawn.choices([*labels, "何か"] if number % 2 else labels[:2], k=many)
        ours = class_scores(answers, targets, labels)
        f1 = metrics.f1_score(targets, answers, labels=labels, average="macro", zero_division=0)
        assert ours["macro_f1"] == pytest.approx(f1)
        recalls = metrics.recall_score(
            targets, answers, labels=sorted(set(targets)), average="macro", zero_division=0
        )
        assert ours["balanced_accuracy"] == pytest.approx(recalls)
        assert ours["mcc"] == pytest.approx(metrics.matthews_corrcoef(targets, answers))


@pytest.mark.parametrize("labels", [["含意", "矛盾", "中立"], ["はい", "いいえ"]])
def test_scores_of_the_whole_are_the_means_of_their_rows_values(labels: list[str]) -> None:
    """Each row has the score plus its influence: the mean is scikit-learn's own score, the spread
    its bootstrap's."""
    import numpy as np

    metrics = pytest.importorskip("sklearn.metrics")
    dice = np.random.default_rng(0)
    for n in (40, 500):
        targets = dice.choice(labels, n)
        right = dice.random(n) < 0.6
        answers = np.where(right, targets, dice.choice([*labels, "何か"], n))
        theirs = {
            "macro_f1": lambda t, a: metrics.f1_score(t, a, labels=labels, average="macro"),
            "mcc": metrics.matthews_corrcoef,
        }
        for name, reference in theirs.items():
            values = METRICS[name].score(list(answers), list(targets))
            assert next(iter(values)) == name
            assert values["accuracy"] == list((answers == targets).astype(float))
            assert np.mean(values[name]) == pytest.approx(reference(targets, answers))
            drawn = dice.integers(n, size=(400, n))
            spread = np.std([reference(targets[rows], answers[rows]) for rows in drawn])
            assert np.std(values[name]) / n**0.5 == pytest.approx(spread, rel=0.2)
    assert METRICS["mcc"].score(["含意"] * 3, ["含意", "矛盾", "矛盾"])["mcc"] == [0.0] * 3
    assert METRICS["macro_f1"].score(labels, labels)["macro_f1"] == pytest.approx(
        [1.0] * len(labels)
    )


def test_accuracy_and_exact_match_equal_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    dice = random.Random(5)
    targets = dice.choices(["含意", "矛盾"], k=300)
    answers = dice.choices(["含意", "矛盾", "何か"], k=300)
    for name in ("accuracy", "exact_match"):
        values = METRICS[name].score(answers, targets)[name]
        assert sum(values) / 300 == metrics.accuracy_score(targets, answers)


def test_numbers_equal_flexevals_mgsm_processor() -> None:
    """Where flexeval is installed (it was 0.18.3): the last number, commas out. It reads no
    full-width digits and no minus behind a space; our rule reads them."""
    processors = pytest.importorskip("flexeval.core.string_processor")
    theirs, dice = processors.SimpleEvalMGSMProcessor(), random.Random(4)
    for _ in range(1000):
        target = dice.choice(["7", "1200", "3.5", "0"])
        said = dice.choice([target, f"{target}.0", "1,200", "12", "3.50"])
        answer = dice.choice(["", "3 + 4 = ", "答えは"]) + said + dice.choice(["", "です", "円。"])
        expected = float(theirs(answer) == theirs(target))
        assert METRICS["number"].rule(answer, target) == {"number": expected}, (answer, target)


def test_character_f1_is_googles_rouge_1_over_characters() -> None:
    rule = SUMMARY_RULES["char"].rule
    for answer, target in pairs():
        ours = METRICS["char_f1"].rule(answer, target)["char_f1"]
        assert ours == pytest.approx(rule(normalise(answer), normalise(target))["rouge1"])
    assert METRICS["char_f1"].rule("ＡＢＣ", "ABC") == {"char_f1": 1.0}


@pytest.mark.parametrize(
    ("answer", "target", "right"),
    [
        ("答えは１，２００円です", "1200", 1.0),
        ("3 + 4 = 7", "7", 1.0),
        ("7.0", "7", 1.0),
        ("-7", "7", 0.0),
        ("わからない", "7", 0.0),
        ("なし", "なし", 1.0),
        ("7 個", "なし", 0.0),
    ],
)
def test_numbers_are_compared_by_value(answer: str, target: str, right: float) -> None:
    assert METRICS["number"].rule(answer, target) == {"number": right}
