"""What the sample tasks yield without a language model: majority, chance, naive Bayes over character n-grams, lead, overlap.

python recipes/sample_tasks/baselines.py
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean

from tsugiki.config.run import TaskChoice
from tsugiki.data.example import Example
from tsugiki.data.tasks import load_task
from tsugiki.score.baselines import chance_baseline, lead_baseline, majority_baseline


def grams(text: str) -> set[str]:
    """Character 1- to 3-grams."""
    return {text[i : i + n] for n in (1, 2, 3) for i in range(len(text) - n + 1)}


class NaiveBayes:
    """Bernoulli-like naive Bayes with add-one smoothing: as much as word counts can tell."""

    def __init__(self, texts: Sequence[str], labels: Sequence[str]):
        self.sizes = Counter(labels)
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        for text, label in zip(texts, labels, strict=True):
            self.counts[label].update(grams(text))

    def score(self, text: str, label: str) -> float:
        """Log-probability of the label and of the n-grams that are there."""
        size = self.sizes[label]
        total = math.log(size)
        return total + sum(
            math.log((self.counts[label][gram] + 1) / (size + 2)) for gram in grams(text)
        )

    def predict(self, text: str) -> str:
        return max(self.sizes, key=lambda label: self.score(text, label))


def accuracy(
    texts: Sequence[str],
    labels: Sequence[str],
    test_texts: Sequence[str],
    test_labels: Sequence[str],
) -> float:
    model = NaiveBayes(texts, labels)
    return sum(
        model.predict(text) == label for text, label in zip(test_texts, test_labels, strict=True)
    ) / len(test_texts)


def inference_baselines() -> dict[str, float]:
    """Naive Bayes on the hypothesis, on the premise, on both (each n-gram marked by its side), and word overlap alone."""
    task = load_task(TaskChoice(name="sample_nli"))
    train, test = task.examples["train"], task.examples["test"]
    labels, test_labels = [one.target for one in train], [one.target for one in test]

    def overlap(one: Example) -> str:
        premise, hypothesis = grams(one.fields["premise"]), grams(one.fields["hypothesis"])
        return chr(0x4E00 + round(10 * len(premise & hypothesis) / len(hypothesis)))

    views = {
        "hypothesis only": lambda one: one.fields["hypothesis"],
        "premise only": lambda one: one.fields["premise"],
        "both, bag of n-grams": lambda one: one.fields["premise"] + "\n" + one.fields["hypothesis"],
        "share of n-grams in common": overlap,
    }
    result = {"majority": fmean(majority_baseline("accuracy", labels, test_labels))}
    for name, view in views.items():
        result[name] = accuracy(
            [view(one) for one in train], labels, [view(one) for one in test], test_labels
        )
    return result


def choice_baselines() -> dict[str, float]:
    """Chance; naive Bayes on question and candidate together (right against wrong); candidate alone."""
    task = load_task(TaskChoice(name="sample_choice"))
    train, test = task.examples["train"], task.examples["test"]
    result = {
        "chance": fmean(
            chance_baseline(
                "accuracy", [one.candidates for one in test], [one.target for one in test]
            )
        )
    }
    for name, joined in (
        ("question + candidate, bag of n-grams", True),
        ("candidate alone", False),
    ):

        def view(one: Example, candidate: str, joined: bool = joined) -> str:
            return (one.fields["question"] if joined else "") + "\n" + candidate

        pairs = [
            (view(one, c), "right" if c == one.target else "wrong")
            for one in train
            for c in one.candidates
        ]
        model = NaiveBayes([text for text, _ in pairs], [label for _, label in pairs])
        chosen = [
            max(
                one.candidates,
                key=lambda c, one=one: (
                    model.score(view(one, c), "right") - model.score(view(one, c), "wrong")
                ),
            )
            for one in test
        ]
        result[name] = sum(
            answer == one.target for answer, one in zip(chosen, test, strict=True)
        ) / len(test)
    return result


def headline_baselines() -> dict[str, float]:
    task = load_task(TaskChoice(name="sample_headline"))
    test = task.examples["test"]
    lead = lead_baseline(
        "rouge", [one.fields["article"] for one in test], [one.target for one in test]
    )
    return {f"lead, {name}": fmean(values) for name, values in lead.items()}


def main() -> None:
    for name, found in (
        ("sample_nli", inference_baselines()),
        ("sample_choice", choice_baselines()),
        ("sample_headline", headline_baselines()),
    ):
        for what, value in found.items():
            print(f"{name:16} {what:40} {value:.3f}")


if __name__ == "__main__":
    main()
