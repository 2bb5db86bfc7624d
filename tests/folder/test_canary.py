"""canary.py: which rows a worker may give."""

from __future__ import annotations

import math

import pytest

from swiprd.folder.canary import TOLERANCE, Canary, WrongAnswer

pytestmark = pytest.mark.timeout(30)

ROW = (0.2, 0.3, 0.5)


def make(expected: tuple[float, ...] | None = None, activation: str = "softmax") -> Canary:
    return Canary(image=b"", expected=expected, activation=activation, classes=3)


def test_the_expected_row_is_right() -> None:
    make(ROW).check(list(ROW))


def test_a_row_that_differs_by_less_than_threads_may_make_it() -> None:
    make(ROW).check([0.2 + 0.9 * TOLERANCE, 0.3 - 0.9 * TOLERANCE, 0.5])


def test_one_that_differs_by_more_names_the_label_and_both_figures() -> None:
    with pytest.raises(WrongAnswer, match=r"0\.3002 for label 1 .* 0\.3 expected"):
        make(ROW).check([0.2, 0.3002, 0.4998])


def test_the_first_plausible_row_is_what_later_ones_must_give() -> None:
    canary = make()
    canary.check(ROW)
    assert canary.expected == ROW
    canary.check(ROW)
    with pytest.raises(WrongAnswer):
        canary.check([0.3, 0.2, 0.5])


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ([0.5, 0.5], "2 probabilities for 3 labels"),
        ([], "0 probabilities for 3 labels"),
        ([0.25] * 4, "4 probabilities for 3 labels"),
        ([0.5, 0.5, math.nan], "not a number"),
        ([0.5, 0.5, math.inf], "not a number"),
        ([1.2, -0.1, -0.1], "outside 0 to 1"),
        ([0.5, 0.6, -0.1], "outside 0 to 1"),
        ([0.2, 0.2, 0.2], "sum to 0.6"),
        ([0.0, 0.0, 0.0], "sum to 0"),
    ],
)
@pytest.mark.parametrize("expected", [None, ROW], ids=["first", "later"])
def test_what_no_softmax_gives(
    row: list[float], why: str, expected: tuple[float, ...] | None
) -> None:
    canary = make(expected)
    with pytest.raises(WrongAnswer, match=why):
        canary.check(row)
    assert canary.expected == expected, "a wrong first row must not become the standard"


def test_log_softmax_is_as_probabilities_too() -> None:
    with pytest.raises(WrongAnswer, match="sum"):
        make(activation="log_softmax").check([0.2, 0.2, 0.2])


def test_sigmoids_need_not_sum_to_one() -> None:
    make(activation="sigmoid").check([0.9, 0.9, 0.0])
    with pytest.raises(WrongAnswer, match="outside"):
        make(activation="sigmoid").check([0.9, 0.9, 1.1])


def test_raw_outputs_may_be_anything_finite() -> None:
    canary = make(activation="none")
    canary.check([-300.0, 0.0, 70.0])
    canary.check([-300.02, 0.0, 70.0])  # the tolerance is relative above 1
    with pytest.raises(WrongAnswer, match="label 0"):
        canary.check([-300.04, 0.0, 70.0])
    with pytest.raises(WrongAnswer, match="not a number"):
        canary.check([math.nan, 0.0, 70.0])
