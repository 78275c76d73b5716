"""Intervals over scenes: how far a mean would move had other scenes been drawn.

The scene is the unit: frames of one scene are alike, so they are averaged first (see ``metrics.compare``) and scenes
are drawn anew with replacement. Two generators are compared on the same draws (paired), so what makes a scene hard for
both cancels. Percentile intervals (Efron 1979): with some 30 scenes and skewed values they are a little too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from inspatio_core.errors import InputError


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; None where too few scenes are left to tell.

    estimate: of all scenes. low, high: bounds. level: their share, e.g. 0.95. count: scenes used; missing: scenes
    left out because a value was missing.
    """

    estimate: float | None
    low: float | None
    high: float | None
    level: float
    count: int
    missing: int

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON."""
        return asdict(self)


def _values(name: str, values: Sequence[float | None]) -> np.ndarray:
    """float64 [S]; None and NaN as NaN."""
    found = np.array([math.nan if value is None else float(value) for value in values], dtype=np.float64)
    if np.isinf(found).any():
        raise InputError(f"{name}: values must be finite or missing")
    return found


def _interval(rows: np.ndarray, statistic, samples: int, level: float, seed: int) -> Interval:
    """Of statistic(means [.., C]), C values a scene; scenes with a missing value are left out."""
    if samples < 1 or not 0.0 < level < 1.0:
        raise InputError(f"bootstrap: need samples >= 1 and 0 < level < 1, got {samples} and {level}")
    kept = rows[~np.isnan(rows).any(1)]
    count, missing = len(kept), len(rows) - len(kept)
    estimate = float(statistic(kept.mean(0))) if count else None
    if count < 2:
        return Interval(estimate, None, None, level, count, missing)
    draw = np.random.default_rng(seed)
    # How often each scene is drawn, not which one at each draw: one matrix product gives all means.
    times = draw.multinomial(count, np.full(count, 1.0 / count), size=samples)
    low, high = np.quantile(statistic(times @ kept / count), [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(estimate, float(low), float(high), level, count, missing)


def bootstrap_mean(
    values: Sequence[float | None], samples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Mean over scenes with its interval.

    Args:
        values: one value a scene, None or NaN where missing.
        samples: how often the scenes are drawn anew. level: share of the interval. seed: same seed, same interval.

    Raises:
        InputError: infinite values; options out of range.
    """
    return _interval(_values("values", values)[:, None], lambda means: means[..., 0], samples, level, seed)


def paired_bootstrap(
    a: Sequence[float | None],
    b: Sequence[float | None],
    ratio: bool = False,
    samples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """mean(a) - mean(b) over scenes, or mean(a) / mean(b) with ``ratio``, with its interval.

    Args:
        a, b: one value a scene, in the same order; a scene counts only where both have one (None and NaN are missing).
        ratio: for metrics that are positive and compared as a factor (LPIPS at most 0.92 x the baseline's).
        samples, level, seed: as in :func:`bootstrap_mean`.

    Raises:
        InputError: lists of different length; infinite values; values of b that are not positive with ``ratio``.
    """
    first, second = _values("a", a), _values("b", b)
    if len(first) != len(second):
        raise InputError(f"paired bootstrap: {len(first)} scenes against {len(second)}")
    if ratio and (second <= 0.0).any():
        raise InputError("paired bootstrap: a ratio needs values of b above 0")

    def statistic(means):
        return means[..., 0] / means[..., 1] if ratio else means[..., 0] - means[..., 1]

    return _interval(np.stack([first, second], 1), statistic, samples, level, seed)
