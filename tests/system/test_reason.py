"""reason.py: what a message of ours takes from a library's error."""

from __future__ import annotations

import pytest

from swiprd.system.reason import first_line

pytestmark = pytest.mark.timeout(10)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one", "one"),
        ("\n  one  \ntwo", "one"),
        ("", "ValueError"),
        (" \n ", "ValueError"),
        ("x" * 500, "x" * 200),
    ],
)
def test_the_first_line_that_says_something(text: str, expected: str) -> None:
    assert first_line(ValueError(text)) == expected
