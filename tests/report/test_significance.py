"""Welch's t-test and Holm's correction, against the formulas."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.stats

from simdist.report.summary import Cell, Statistic, compare, holm, welch, winners

A, B, C = (0.61, 0.63, 0.62, 0.60), (0.41, 0.43, 0.42), (0.40, 0.44, 0.43)


def by_hand(first: tuple[float, ...], second: tuple[float, ...]) -> tuple[float, float, float, float]:
    """Welch (1947), with the degrees of freedom of Satterthwaite."""
    a, b = np.array(first), np.array(second)
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    difference, error = a.mean() - b.mean(), np.sqrt(va + vb)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = scipy.stats.t.ppf(0.975, freedom) * error
    p = 2 * scipy.stats.t.sf(abs(difference / error), freedom)
    return difference, difference - half, difference + half, float(p)


def cells(**groups: tuple[float, ...]) -> dict[Cell, Statistic]:
    what = json.dumps({"label": "vowel", "features": "trained", "chance": 0.5})
    return {Cell((name,), "probe", what, 0, "accuracy"): Statistic(values) for name, values in groups.items()}


def test_welch_is_the_formula() -> None:
    found = welch([(A, B), (B, C), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), (A, C)])
    assert found[2] is None  # nothing varies
    for numbers, pair in zip((found[0], found[1], found[3]), ((A, B), (B, C), (A, C)), strict=True):
        assert numbers == pytest.approx(by_hand(*pair))


def test_holm_is_the_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_comparisons_of_a_label_are_corrected_together() -> None:
    found = compare(cells(a=A, b=B, c=C))
    assert [(item.first, item.second) for item in found] == [(("a",), ("b",)), (("a",), ("c",)), (("b",), ("c",))]
    plain = [by_hand(*pair)[3] for pair in ((A, B), (A, C), (B, C))]
    assert [item.p for item in found] == pytest.approx(plain)
    assert [item.p_holm for item in found] == pytest.approx(holm(plain))
    ((_, _, group),) = winners(found)
    assert group == ("a",)


def test_two_seeds_are_not_enough() -> None:
    assert compare(cells(a=A, b=B[:2])) == []
    assert {item.second for item in compare(cells(a=A, b=B[:2], c=C))} == {("c",)}


def test_of_many_groups_the_best_is_compared_with_each() -> None:
    groups = {f"g{number}": tuple(0.3 + 0.01 * number + value for value in (0.0, 0.02, 0.01)) for number in range(8)}
    found = compare(cells(**groups))
    assert {item.first for item in found} == {("g7",)}
    assert len(found) == 7


def test_no_winner_where_a_difference_is_not_significant() -> None:
    assert winners(compare(cells(b=B, c=C))) == set()
