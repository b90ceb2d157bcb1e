"""The report's words in Japanese and English: one place, so that no page mixes languages."""

from __future__ import annotations

from typing import Literal

Language = Literal["ja", "en"]

# Column heads, failure classes and other short texts that the tables write in English.
JAPANESE = {
    "Task": "タスク",
    "Train": "学習",
    "Validation": "検証",
    "Test": "テスト",
    "Split / format": "分割 / 形式",
    "Input format": "入力の形式",
    "Method": "手法",
    "Trainable (M)": "学習対象パラメータ (M)",
    "Weights file (MiB)": "重みファイル (MiB)",
    "Peak memory (MiB)": "ピークメモリ (MiB)",
    "s/step @8": "秒/ステップ (バッチ 8)",
    "s/step (batch)": "秒/ステップ (設定のバッチ)",
    "s/step among lanes": "秒/ステップ (レーン内)",
    "Cells": "設定数",
    "Best setting": "最良の設定",
    "Best": "最良",
    "Mean": "平均",
    "Within noise of the best": "最良と区別できず",
    "No better than the floor": "基準を上回らない",
    "At or below it": "基準以下",
    "Median cell": "中央値の設定",
    "Best - median": "最良と中央値の差",
    "Value": "値",
    "tokens/s": "トークン/秒",
    "s/answer": "秒/解答",
    "Candidate rate": "候補内解答率",
    "n": "件数",
    "Seeds": "シード数",
    "Model · task": "モデル · タスク",
    "Difference": "差",
    "Main score": "主な評価値",
    "Reading": "判定",
    "Model · task · method": "モデル · タスク · 手法",
    "Setting": "設定",
    "Chosen": "選択",
    "Example": "例",
    "Text": "テキスト",
    "right": "正解",
    "right after NFKC and strip": "正規化すれば正解",
    "another candidate": "別の候補",
    "contains a candidate": "候補を含む",
    "outside the candidates": "候補外",
    "empty": "空",
    "repeats itself": "繰り返し",
    "did not end": "終わらない",
    "input was cut": "入力を切り詰め",
    "undecided": "判定できず",
    "equal": "同等",
    "Input": "入力",
    "reference": "正解",
    "majority": "最頻クラス",
    "chance": "チャンスレベル",
    "lead (first characters)": "冒頭文（lead）",
    "not run": "未実行",
    "not scored yet": "未評価",
    "no result": "結果なし",
    "default": "既定",
    "Epochs": "エポック",
    "better": "上",
    "worse": "下",
    "no verdict": "判定なし",
    "Learning rates tried": "試した学習率",
    "Batch": "バッチ",
    "Longest (tokens)": "最長 (トークン)",
    "Precision": "精度",
    "Prompt": "プロンプト",
}
SECTIONS: dict[str, dict[Language, str]] = {
    "finding": {"ja": "結論", "en": "Finding"},
    "none": {
        "ja": "比較できる手法の組がありません。",
        "en": "There is no pair of methods to compare.",
    },
    "missing": {"ja": "足りないもの", "en": "What is missing"},
    "quality": {"ja": "評価値とコスト", "en": "Quality against cost"},
    "cost": {"ja": "メモリと時間", "en": "Memory and time"},
    "landscape": {"ja": "ハイパーパラメータによる違い", "en": "The hyper-parameter landscape"},
    "curves": {"ja": "学習の経過（選ばれた設定）", "en": "The course of training (chosen cells)"},
    "protocol": {"ja": "何と何が比較できるか", "en": "What is comparable with what"},
    "parameters": {"ja": "学習対象パラメータ (M)", "en": "trained parameters (M)"},
    "rate": {"ja": "学習率", "en": "learning rate"},
    "best": {"ja": "各学習率で最良の設定", "en": "the best setting at each rate"},
    "step": {"ja": "ステップ", "en": "step"},
    "loss": {"ja": "損失", "en": "loss"},
    "test": {"ja": "テスト", "en": "test"},
    "validation": {"ja": "検証", "en": "validation"},
    "sample": {"ja": "検証の一部", "en": "a sample of validation"},
    "memory": {"ja": "ピークメモリ (MiB)", "en": "peak memory (MiB)"},
    "seconds": {"ja": "秒/ステップ（バッチ 8、中央値）", "en": "seconds a step (batch 8, median)"},
    "answers": {"ja": "解答の種類", "en": "kinds of answers"},
    "bars": {
        "ja": "縦棒は各設定の 95 % 区間、輪で囲んだ点は選ばれた設定（最良を選んだ値なので、"
        "もう一度測ればふつう下がります）。",
        "en": "Bars: each cell's own 95 % interval; ringed: the chosen cell (the best of them all: "
        "measured again it would mostly score less).",
    },
    "intervals": {"ja": "縦棒は 95 % 区間。", "en": "Bars: 95 % intervals."},
    "heat": {
        "ja": "検証での評価値。太枠は選ばれた設定（最良を選んだ値）、「–」"
        "は評価値のない設定（発散など）。",
        "en": "Scores on validation. Framed: the chosen cell, the best of them all; “–”: a cell "
        "without a score (diverged, say).",
    },
}
# How a difference of the methods {a} and {b} is read from three seeds on; {m} is the margin in
# points. With one seed it is said of that run, with two of their mean: how far runs vary is not
# known then.
VERDICTS: dict[str, dict[Language, str]] = {
    "better": {"ja": "{a} が {b} を上回りました", "en": "{a} is better than {b}"},
    "worse": {"ja": "{a} は {b} を下回りました", "en": "{a} is worse than {b}"},
    "equal": {
        "ja": "{a} と {b} の差は ±{m:g} ポイントの範囲に収まり、同等です",
        "en": "{a} and {b} are equal within ±{m:g} points",
    },
    "undecided": {
        "ja": "{a} と {b} の優劣は、この件数では決まりません",
        "en": "this many examples do not decide between {a} and {b}",
    },
}
VERDICTS_OF_ONE: dict[str, dict[Language, str]] = {
    "better": {
        "ja": "この実行（シード 1 個）では {a} が {b} を上回りました",
        "en": "in this run (one seed) {a} did better than {b}",
    },
    "worse": {
        "ja": "この実行（シード 1 個）では {a} は {b} を下回りました",
        "en": "in this run (one seed) {a} did worse than {b}",
    },
    "equal": {
        "ja": "この実行（シード 1 個）では {a} と {b} の差は ±{m:g} ポイントの範囲に収まり、"
        "同等です",
        "en": "in this run (one seed) {a} and {b} are equal within ±{m:g} points",
    },
    "undecided": VERDICTS["undecided"],
}
VERDICTS_OF_TWO: dict[str, dict[Language, str]] = {
    "better": {
        "ja": "シード 2 個の平均では {a} の方が高い値でした（2 "
        "個では実行ごとのばらつきは分かりません）",
        "en": "over two seeds {a} scored higher than {b} (two do not show how far runs vary)",
    },
    "worse": {
        "ja": "シード 2 個の平均では {a} の方が低い値でした（2 "
        "個では実行ごとのばらつきは分かりません）",
        "en": "over two seeds {a} scored lower than {b} (two do not show how far runs vary)",
    },
    "equal": {
        "ja": "シード 2 個の平均では {a} と {b} の差は ±{m:g} ポイントの範囲に収まります（2 "
        "個では実行ごとのばらつきは分かりません）",
        "en": "over two seeds {a} and {b} lie within ±{m:g} points (two do not show how far runs "
        "vary)",
    },
    "undecided": VERDICTS["undecided"],
}
BY_SEEDS = {1: VERDICTS_OF_ONE, 2: VERDICTS_OF_TWO}


def pick(language: Language, ja: str, en: str) -> str:
    """The text in the page's language."""
    return ja if language == "ja" else en


def named_in(text: str, language: Language) -> str:
    """A short text of the tables in the page's language."""
    return JAPANESE.get(text, text) if language == "ja" else text


def half(text: str, language: Language) -> str:
    """The Japanese or the English half of a title `日本語 / English`."""
    first, slash, second = text.partition(" / ")
    return (first if language == "ja" else second) if slash else text
