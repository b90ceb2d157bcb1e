"""Three intervals over seeds on made up studies, for log/2026-11-28-intervals.md: python
log/2026-11-28-intervals.py"""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np

from tsugiki.score.statistics import Z95, student_t

STUDIES, ACCURACY = 1500, 0.70
FREEDOMS = np.concatenate([np.linspace(1, 20, 77), np.geomspace(21, 1e4, 40)])
QUANTILES = np.array([student_t(one) for one in FREEDOMS])


def made(
    random: np.random.Generator,
    n: int,
    seeds: int,
    spreads: tuple[float, float],
    shared: float,
    own: float,
) -> np.ndarray:
    """Right answers of methods of equal accuracy: [studies, 2, seeds, n]."""
    accuracy = np.clip(
        ACCURACY + random.standard_normal((STUDIES, 2, seeds)) * np.array(spreads)[None, :, None],
        0.02,
        0.98,
    )
    grid = np.linspace(0.02, 0.98, 961)
    thresholds = np.interp(accuracy, grid, [NormalDist().inv_cdf(one) for one in grid])
    latent = math.sqrt(shared) * random.standard_normal((STUDIES, 1, 1, n)) + math.sqrt(
        own
    ) * random.standard_normal((STUDIES, 2, 1, n))
    latent = latent + math.sqrt(1 - shared - own) * random.standard_normal((STUDIES, 2, seeds, n))
    return (latent < thresholds[..., None]).astype(np.float32)


def main() -> None:
    random = np.random.default_rng(0)
    spreads = ((0, 0), (0.01, 0.01), (0.02, 0.02), (0.04, 0.04), (0, 0.02), (0, 0.04))
    for n, seeds, spread, (shared, own) in itertools.product(
        (500, 1500), (2, 3, 5), spreads, ((0.5, 0.2), (0.8, 0.1))
    ):
        right = made(random, n, seeds, spread, shared, own)
        apart = right.mean(2)[:, 0] - right.mean(2)[:, 1]
        of_rows = apart.var(1, ddof=1) / n
        of_seeds = right.mean(3).var(2, ddof=1) / seeds
        total, squares = of_seeds.sum(1), (of_seeds**2 / (seeds - 1)).sum(1) + 1e-30
        satterthwaite = (of_rows + total) ** 2 / (of_rows**2 / (n - 1) + squares)
        quantile = {
            name: np.interp(freedom, FREEDOMS, QUANTILES)
            for name, freedom in (("s", satterthwaite), ("w", total**2 / squares))
        }
        halves = {
            "t, Satterthwaite": quantile["s"] * np.sqrt(of_rows + total),
            "squares, pooled": np.sqrt(student_t(2 * (seeds - 1)) ** 2 * total + Z95**2 * of_rows),
            "squares, Welch": np.sqrt(quantile["w"] ** 2 * total + Z95**2 * of_rows),
        }
        said = ", ".join(
            f"{name} {(abs(apart.mean(1)) <= half).mean():.3f} (±{100 * half.mean():.1f})"
            for name, half in halves.items()
        )
        print(f"n {n}, {seeds} seeds, sd {spread}, shared {shared}: {said}", flush=True)


if __name__ == "__main__":
    main()
