"""Is a grid needed? What the default LoRA lacks against the best of 72 configurations: from the
runs of `run.sh regret`.

    python -m benchmarks.lora_vs_ft.regret RUNS… --out benchmarks/lora_vs_ft/regret

Writes `regret.json` (one entry a model, task and half) and `regret.md`. The loss is the mean loss a
target token on validation; the score is validation's too, where the grid's best is the best of many
and so too high, and the default's is one run's. On test only the grid's choice and the default were
scored: their paired difference is an estimate without that favour.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from tsugiki.report.compare import compare_methods
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.store import Store

GRID = 72
MEASURED_ON = ("grid_device", "device")
NAMES = {"jcommonsenseqa_half": "JCommonsenseQA", "jnli_half": "JNLI's substitute"}


def is_default(record: RunRecord) -> bool:
    """The recipe alone has a schedule that falls."""
    return record.config.train.schedule == "linear"


def score_of(record: RunRecord) -> float:
    value = record.main_score("validation")
    assert value is not None, "a finished run was scored"
    return value


def entry_of(key: tuple[str, str, str], records: list[RunRecord]) -> dict[str, Any] | None:
    done = [record for record in records if record.status == "done"]
    grid = [record for record in done if not is_default(record)]
    defaults = [record for record in done if is_default(record)]
    if not grid or not defaults:
        return None
    default = max(defaults, key=lambda record: record.outcome.started or "")  # today's recipe
    by_loss = min(grid, key=lambda record: record.outcome.validation_loss)
    by_score = max(grid, key=score_of)
    loss, least = default.outcome.validation_loss, by_loss.outcome.validation_loss
    assert loss is not None, "finished runs know their loss"
    assert least is not None, "finished runs know their loss"
    entry: dict[str, Any] = {
        "model": key[0], "task": NAMES.get(key[1], "Wikinews"), "half": key[2],
        "finished": len(grid), "default": about(default), "best_loss": about(by_loss),
        "best_score": about(by_score), "loss_regret": loss / least - 1,
        "score_regret": score_of(by_score) - score_of(default),
        "share_of_steps": (default.outcome.steps or 0) / sum(r.outcome.steps or 0 for r in grid),
        "device": default.provenance.device, "torch": default.provenance.versions["torch"],
        "grid_device": ", ".join(sorted({record.provenance.device for record in grid})),
    }  # fmt: skip
    if default.scores("test") is not None and by_score.scores("test") is not None:
        pair = compare_methods([by_score], [default], "test")
        entry["test"] = {
            "grid": by_score.main_score("test"), "default": default.main_score("test"),
            "difference": pair.difference, "low": pair.low, "high": pair.high, "n": pair.n,
        }  # fmt: skip
    return entry


def about(record: RunRecord) -> dict[str, Any]:
    lora, train = record.config.lora, record.config.train
    assert lora is not None, "all of them are LoRA"
    return {
        "rate": train.learning_rate, "epochs": train.epochs, "targets": lora.targets,
        "rank": lora.rank, "loss": record.outcome.validation_loss, "score": score_of(record),
    }  # fmt: skip


def findings(entries: list[dict[str, Any]]) -> list[str]:
    losses = [entry["loss_regret"] for entry in entries]
    scores = [100 * entry["score_regret"] for entry in entries]
    tested = [entry["test"] for entry in entries if "test" in entry]
    short = [entry["best_loss"]["epochs"] == 2 for entry in entries]
    lacks = [100 * (e["default"]["score"] - e["best_loss"]["score"]) for e in entries]
    share = 100 * statistics.fmean(entry["share_of_steps"] for entry in entries)
    lines = [
        f"- **Validation score**: the default lacks {statistics.fmean(scores):+.2f} points on "
        f"average of the best of its grid ({min(scores):+.1f} to {max(scores):+.1f}; below 0 it "
        f"scores more: {sum(score <= 0 for score in scores)} of {len(scores)} times), though the "
        "best of 72 is too high an estimate and the default's is one run.",
    ]
    if tested:
        mean = 100 * statistics.fmean(pair["difference"] for pair in tested)
        apart = sum(pair["low"] > 0 or pair["high"] < 0 for pair in tested)
        lines.append(
            f"- **Test score** of the grid's choice less the default's: {mean:+.2f} points on "
            f"average of {len(tested)} pairs; {apart} of their intervals leave out 0."
        )
    within = sum(loss <= 0.01 for loss in losses)
    return [
        *lines,
        f"- **Validation loss**: {within} of {len(losses)} times within 1 % of the grid's lowest; "
        f"median {100 * statistics.median(losses):+.1f} %, at most {100 * max(losses):+.1f} %. "
        f"{sum(short)} of the {len(short)} lowest losses are those of two epochs, the fewest of "
        f"the grid; the runs of the lowest loss score {statistics.fmean(lacks):.1f} points less "
        "than the default on average: what has the lowest loss here is not what answers best.",
        f"- **Steps**: the default's are {share:.1f} % of those of the grid that finished.",
    ]


def page(entries: list[dict[str, Any]]) -> str:
    devices, own_devices = (Counter(entry[name] for entry in entries) for name in MEASURED_ON)
    where = ", ".join(devices)
    if own_devices != devices:
        counts = ", ".join(
            f"{device} ({count} pair{'s' * (count > 1)})" for device, count in own_devices.items()
        )
        where = f"the grid on {where}, the default on {counts}"
    versions = ", ".join(sorted({entry["torch"] for entry in entries}))
    ranks = ", ".join(sorted({str(e["default"]["rank"]) for e in entries}))
    rates = ", ".join(
        f"{rate:g} at {model}"
        for model, rate in dict.fromkeys((e["model"], e["default"]["rate"]) for e in entries)
    )
    lines = [
        "# Is a grid needed?",
        "",
        "`python -m benchmarks.lora_vs_ft.regret`: made from the runs of `run.sh regret`. The "
        'default (`method = "lora"` and nothing else, one run; when it was measured rank '
        f"{ranks}, {rates}) against 72 configurations (4 rates × 3 epochs × 2 sets of targets × "
        f"3 ranks, constant rate), on half of the training rows; {where}, torch {versions}, "
        "one seed.",
        "",
        *findings(entries),
        "",
        "| model | task, half | default: loss, score | lowest loss of the grid | best score of the "
        "grid | loss | score | test: grid − default |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        default, by_loss, by_score = (entry[n] for n in ("default", "best_loss", "best_score"))
        some = "" if entry["finished"] == GRID else f" ({entry['finished']} of {GRID} finished)"
        test = entry.get("test")
        apart = (
            "–"
            if test is None
            else f"{100 * test['difference']:+.1f} [{100 * test['low']:+.1f}, "
            f"{100 * test['high']:+.1f}], n = {test['n']:,}"
        )
        lines.append(
            f"| {entry['model']} | {entry['task']}, {entry['half']}{some} | {default['loss']:.3f}, "
            f"{default['score']:.3f} | {by_loss['loss']:.3f} ({kind(by_loss)}) | "
            f"{by_score['score']:.3f} ({kind(by_score)}) | {100 * entry['loss_regret']:+.1f} % | "
            f"{100 * entry['score_regret']:+.1f} | {apart} |"
        )
    return "\n".join(lines) + "\n"


def kind(about_it: dict[str, Any]) -> str:
    return (
        f"{about_it['rate']:g}, {about_it['epochs']:g} epochs, {about_it['targets']} "
        f"r{about_it['rank']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    groups: dict[tuple[str, str, str], list[RunRecord]] = defaultdict(list)
    for root in args.runs:
        for record in Store(root).records():
            named = record.config.task
            stem, model = Path(named.name).stem, record.config.model.label
            groups[model, stem, str(named.split)].append(record)
    entries = [entry for key in sorted(groups) if (entry := entry_of(key, groups[key]))]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "regret.json").write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
    (args.out / "regret.md").write_text(page(entries))


if __name__ == "__main__":
    main()
