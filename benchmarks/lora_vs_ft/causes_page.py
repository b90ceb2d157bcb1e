"""Tables from what `causes` measured: at the end of training, and the classes while it trains.

python -m benchmarks.lora_vs_ft.causes_page benchmarks/lora_vs_ft/causes
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

FAR_BELOW = 0.05
CLASSES = {
    "no_eos": "no end",
    "repetition": "repeats",
    "empty": "empty",
    "outside": "other text",
    "contains_candidate": "more than a candidate",
}
Entry = dict[str, Any]


def read(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("causes-*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def last_of(entries: list[Entry]) -> dict[tuple[str, str], Entry]:
    """The newest entry of each kind and setting, in their order."""
    found: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        found.pop((entry["kind"], entry["setting"]), None)
        found[entry["kind"], entry["setting"]] = entry
    return found


def recipe_of(campaign: dict[str, Any]) -> str:
    """What `method = "lora"` alone was when it was measured: its rank and rate changed since."""
    made = last_of(campaign["entries"])["one setting at a time", "recipe"]["changes"]
    return f"{made['targets']}, rank {made['rank']}, α {made['alpha']}, {made['learning_rate']:g}"


def classes(entry: Entry) -> str:
    """The wrong answers that are no candidate, the most frequent two, in percent of all."""
    total = sum(entry["failures"].values())
    counts = {said: entry["failures"].get(name, 0) for name, said in CLASSES.items()}
    most = sorted(counts, key=lambda name: -counts[name])[:2]
    return ", ".join(f"{name} {100 * counts[name] / total:.0f} %" for name in most if counts[name])


def end_table(campaign: dict[str, Any]) -> list[str]:
    closed = any(entry.get("valid") is not None for entry in campaign["entries"])
    lines = [
        "| what was done | setting | score | valid answers | the others | likelihood of the "
        "candidates alone |",
        "|---|---|---|---|---|---|",
    ]
    for (kind, setting), entry in last_of(campaign["entries"]).items():
        if "failure" in entry:
            lines.append(f"| {kind} | {setting} | {entry['failure']} | | | |")
            continue
        score = f"{entry['score']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
        if closed and entry["score"] <= FAR_BELOW:
            score = f"**{score}**"
        valid = "" if entry["valid"] is None else f"{entry['valid']:.2f}"
        among = entry.get("among candidates", {}).get("sum")
        likely = "" if among is None else f"{among:.3f}"
        lines.append(f"| {kind} | {setting} | {score} | {valid} | {classes(entry)} | {likely} |")
    return lines


def course_table(campaign: dict[str, Any], kind: str, setting: str) -> list[str]:
    of_lane = [e for e in campaign["entries"] if (e["kind"], e["setting"]) == (kind, setting)]
    if not of_lane or "failure" in of_lane[0]:
        return []
    names = ["right", "another_candidate", *CLASSES]
    said = ["right", "another candidate", *CLASSES.values()]
    if of_lane[0].get("valid") is None:  # free text that ends and does not repeat
        faults = ["no_eos", "repetition", "empty"]
        names, said = ["right", *faults], ["no fault", *(CLASSES[name] for name in faults)]
    lines = [
        f"{kind}, {setting}:",
        "",
        f"| step | {' | '.join(said)} |",
        f"|---|{'---|' * len(said)}",
    ]
    for entry in of_lane:
        total = sum(entry["failures"].values())
        shares = [100 * entry["failures"].get(name, 0) / total for name in names]
        cells = " | ".join(f"{share:.0f} %" for share in shares)
        lines.append(f"| {entry['step']:,} | {cells} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    lines = [
        "# What makes a LoRA score far below chance",
        "",
        "`python -m benchmarks.lora_vs_ft.causes_page`: from what `run.sh causes` measured. "
        "“Lowest” is the paper's lowest setting (q+v, rank 4, α = r, 1e-5, constant rate), "
        '“recipe” what `method = "lora"` alone was when it was measured (it stands with each). '
        f"Bold: of closed tasks, at most {FAR_BELOW}. One seed; intervals over rows of "
        "validation. What it means: [docs/far-below-chance.md](../../../docs/far-below-chance.md).",
        "",
    ]
    for campaign in read(args.folder):
        rows = (
            f"{campaign['train_rows']:,} training rows"
            if campaign["train_rows"]
            else ("half of the training rows" if campaign["split"] == "a" else "all training rows")
        )
        lines += [
            f"## {campaign['model']}, {campaign['task'].removesuffix('_half')}",
            "",
            f"{campaign['device']}, torch {campaign['torch']}; {rows}, "
            f"{campaign['epochs']:g} epochs; recipe: {recipe_of(campaign)}; at most "
            f"{campaign['rows']} rows of validation (half as many while it trains).",
            "",
            *end_table(campaign),
            "",
            "While it trains (share of the answers):",
            "",
        ]
        for kind, setting in (
            ("one setting at a time", "lowest"),
            ("one setting at a time", "recipe"),
            ("end not trained", "recipe"),
        ):
            lines += course_table(campaign, kind, setting)
    (args.folder / "causes.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
