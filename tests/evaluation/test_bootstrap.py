"""Intervals over scenes."""

import json
import math

import numpy as np
import pytest

from inspatio_core.errors import InputError
from inspatio_core.evaluation.bootstrap import bootstrap_mean, paired_bootstrap


def test_covers_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    hits = {"mean": 0, "difference": 0, "ratio": 0}
    for i in range(300):
        hardness = draw.gamma(4.0, 1.0, 32) + 2.0  # mean 6
        a = hardness + draw.normal(1.0, 0.5, 32)
        b = hardness + draw.normal(0.0, 0.5, 32)
        for name, interval, truth in (
            ("mean", bootstrap_mean(a, samples=400, seed=i), 7.0),
            ("difference", paired_bootstrap(a, b, samples=400, seed=i), 1.0),
            ("ratio", paired_bootstrap(a, b, ratio=True, samples=400, seed=i), 7.0 / 6.0),
        ):
            hits[name] += interval.low <= truth <= interval.high
    # 95 % of 300 with a standard deviation of 1.3 %; percentile intervals of 32 scenes are a little narrow.
    assert all(0.89 <= n / 300 <= 0.985 for n in hits.values()), hits


def test_pairs_take_out_what_both_have():
    draw = np.random.default_rng(1)
    hardness = draw.normal(20.0, 5.0, 40)
    a, b = hardness + 0.3, hardness + draw.normal(0.0, 0.1, 40)
    paired = paired_bootstrap(a, b)
    assert paired.low > 0.2 and paired.high < 0.4
    assert bootstrap_mean(a).high - bootstrap_mean(a).low > 2.0
    same = paired_bootstrap(a, a, ratio=True)
    assert same.estimate == same.low == same.high == pytest.approx(1.0)


def test_a_wider_level_is_a_wider_interval_and_seeds_repeat():
    values = np.random.default_rng(2).normal(size=30)
    narrow, wide = (bootstrap_mean(values, level=level) for level in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)
    # Against the textbook: 1.96 standard errors.
    assert bootstrap_mean(values).high - values.mean() == pytest.approx(1.96 * values.std() / math.sqrt(30), rel=0.1)


def test_missing_scenes_are_counted_and_drop_as_pairs():
    found = paired_bootstrap([1.0, None, 3.0, 5.0], [0.0, 2.0, math.nan, 2.0])
    assert (found.estimate, found.count, found.missing) == (2.0, 2, 2)
    assert 1.0 <= found.low <= found.high <= 3.0
    json.dumps(found.as_dict(), allow_nan=False)
    one = bootstrap_mean([4.0, None])
    assert (one.estimate, one.low, one.high, one.count) == (4.0, None, None, 1)
    none = bootstrap_mean([])
    assert (none.estimate, none.low, none.count, none.missing) == (None, None, 0, 0)


@pytest.mark.parametrize(
    "call, what",
    [
        (lambda: paired_bootstrap([1.0], [1.0, 2.0]), "1 scenes against 2"),
        (lambda: paired_bootstrap([1.0, 1.0], [1.0, 0.0], ratio=True), "above 0"),
        (lambda: bootstrap_mean([1.0, math.inf]), "finite"),
        (lambda: bootstrap_mean([1.0, 2.0], level=95), "level"),
    ],
)
def test_bad_input_is_one_line(call, what):
    with pytest.raises(InputError, match=what):
        call()
