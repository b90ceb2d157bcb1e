"""Names the weight folders of the best LoRA runs under a root, relative to it: what an archive of
a study's state should hold besides the records.

python benchmarks/grid/best_weights.py ROOT [COUNT]
"""

from __future__ import annotations

import sys
from pathlib import Path

from tsugiki.runs.store import Store

PAPER_RATES = (1e-5, 2e-5, 5e-5, 2e-4)


def main() -> None:
    root, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3
    done = [
        one
        for one in Store(root).records()
        if one.config.lora and one.status == "done" and (one.folder / "weights").exists()
    ]
    for rates in (None, PAPER_RATES):
        chosen = [one for one in done if rates is None or one.config.train.learning_rate in rates]
        for one in sorted(chosen, key=lambda one: -(one.main_score("validation") or 0.0))[:count]:
            print((one.folder / "weights").relative_to(root))


if __name__ == "__main__":
    main()
