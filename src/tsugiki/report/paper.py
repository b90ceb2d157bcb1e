"""The paper's own figures, quoted from 王・中町・佐藤 2023. No torch here."""

from __future__ import annotations

PAPER = "王・中町・佐藤 2023"
TITLE = "日本語の大規模な基盤モデルに対する LoRA チューニング"

# Which table of the paper shows a task's answers, and what it calls the task.
ANSWER_TABLES: dict[str, tuple[int, str]] = {
    "xlsum_ja": (4, "XLSum"),
    "jnli": (5, "JNLI"),
    "jcommonsenseqa": (6, "JCommonsenseQA"),
}

# Table 1: train, validation, test, input format.
DATA: dict[str, tuple[int, int, int, str]] = {
    "xlsum_ja": (7113, 889, 889, "{text}[SEP]{summary}"),
    "jnli": (20073, 1217, 1217, "{text1}[SEP]{text2}[SEP]{label}"),
    "jcommonsenseqa": (
        8939, 560, 559,
        "{question}[SEP]{choice0}[SEP]{choice1}[SEP]{choice2}[SEP]{choice3}[SEP]{choice4}[SEP]"
        "{label}",
    ),
}  # fmt: skip

# Table 2: method, trainable M, its memory column (MB), seconds an iteration, score.
PAPER_ROWS: dict[str, list[tuple[str, str, str, str, str]]] = {
    "jnli": [
        ("1B-FT", "1,317", "2,635", "0.100", "0.732"),
        ("1B-LoRA", "6", "24", "0.123", "0.731"),
        ("6.7B-FT", "6,666", "483,652", "9.040", "0.927"),
        ("6.7B-LoRA", "16", "54", "0.120", "0.935"),
        ("RoBERTa-large", "336", "-", "-", "0.924 ‡"),
    ],
    "jcommonsenseqa": [
        ("1B-FT", "1,317", "2,635", "0.089", "0.641"),
        ("1B-LoRA", "6", "24", "0.151", "0.012"),
        ("6.7B-FT", "6,666", "483,652", "9.031", "0.933"),
        ("6.7B-LoRA", "16", "54", "0.108", "0.935"),
        ("RoBERTa-large", "336", "-", "-", "0.901 ‡"),
    ],
    "xlsum_ja": [
        ("1B-FT", "1,317", "2,635", "0.472", "0.417/0.154/0.290"),
        ("1B-LoRA", "6", "24", "2.315", "0.153/0.034/0.134"),
        ("6.7B-FT", "6,666", "483,652", "9.060", "0.397/0.139/0.274"),
        ("6.7B-LoRA", "16", "54", "4.271", "0.457/0.213/0.340"),
    ],
}

# Table 3: what was searched, by its row: LoRA, FT.
SEARCHED: dict[str, tuple[str, str]] = {
    "batch": ("8", "{8, 16}"),
    "learning_rate": ("{1e-5, 2e-5, 5e-5, 2e-4}", "{1e-5, 2e-5, 5e-5, 2e-4}"),
    "epochs": ("{2, 3, 4}", "{2, 3, 4, 5, 10}"),
    "targets": ("{Wq + Wv, Wq + Wk + Wv + Wo}", "-"),
    "rank": ("{4, 8, 16}", "-"),
}

# Tables 5 and 6: what its models wrote for its one example.
ANSWERS: dict[str, list[tuple[str, str]]] = {
    "jnli": [
        ("1B-FT", "含意"),
        ("1B-LoRA", "中意"),
        ("6.7B-FT", "含意"),
        ("6.7B-LoRA", "含意"),
    ],
    "jcommonsenseqa": [
        ("1B-FT", "田園"),
        ("1B-LoRA", "森"),
        ("6.7B-FT", "田園"),
        ("6.7B-LoRA", "田園"),
    ],
}
