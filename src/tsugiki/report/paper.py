"""The paper's own figures, quoted. No torch here."""

from __future__ import annotations

PAPER = "王・中町・佐藤 2023"


# Table 2 of the paper, quoted: method, trainable M, its memory column (MB), seconds an iteration,
# score.
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
