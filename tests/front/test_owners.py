"""owners.py: subordinate uids, and lines that cannot be meant."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiprd.front import owners
from swiprd.front.owners import Owners, Range, read_ranges, read_users

USERS = {"root": 0, "swipr": 990, "ann": 1000, "bob": 1001}
PRIVILEGED = {0, 990}


def ranges(*lines: str) -> list[Range]:
    return read_ranges(lines, USERS, PRIVILEGED)


def test_they_count_as_their_owner() -> None:
    assert ranges("bob:200000:65536", "", "# ann:1:1", "ann:100000:65536") == [
        Range(100_000, 165_536, 1000),
        Range(200_000, 265_536, 1001),
    ]


def test_a_number_is_an_owner_too() -> None:
    assert ranges("1234:100000:10") == [Range(100_000, 100_010, 1234)]


@pytest.mark.parametrize("owner", ["root", "swipr", "0", "carol"])
def test_the_privileged_and_the_unknown_are_one_uid_of_their_own(owner: str) -> None:
    assert ranges(f"{owner}:300000:10", f"{owner}:100000:10") == [
        Range(100_000, 100_010, 300_000),
        Range(300_000, 300_010, 300_000),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "ann",
        "ann:100000",
        "ann:100000:10:1",
        ":100000:10",
        "ann::10",
        "ann:100000:0",
        "ann:0:65536",
        "ann:-5:10",
        "ann:+5:10",
        "ann:1e5:10",
        "ann: 100000:10",
        "ann:0x10:10",
        "ann:٣٤:10",
        "ann:4294967295:1",
        "ann:4294967290:6",
        "ann:99999999999:1",
        "ann:100000:99999999999",
    ],
)
def test_a_line_that_cannot_be_meant_is_left_out(
    line: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "swiprd"):
        assert ranges(line, "bob:200000:10") == [Range(200_000, 200_010, 1001)]
    assert "1 lines are left out" in caplog.text


def test_nobody_takes_what_is_anothers() -> None:
    assert ranges("ann:100000:10", "bob:100009:10") == [Range(100_000, 100_010, 1000)]


def test_users_are_those_with_whole_lines() -> None:
    lines = ["ann:x:1000:1000:Ann:/:/bin/sh", "bob:x:1001", "eve:x:-1:1:::", "ann:x:7:7:::", ""]
    assert read_users(lines) == {"ann": 1000}


@given(st.lists(st.text(alphabet="ab:0123456789-\n٣#"), max_size=8))
def test_nonsense_ends(lines: list[str]) -> None:
    found = ranges(*lines)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    assert all(one.start > 0 and one.owner not in PRIVILEGED for one in found)


class TestFiles:
    @pytest.fixture(autouse=True)
    def _files(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(owners, "SUBUID", tmp_path / "subuid")
        monkeypatch.setattr(owners, "PASSWD", tmp_path / "passwd")
        (tmp_path / "passwd").write_text(
            "ann:x:1000:1000::/:/bin/sh\nbob:x:100005:100005::/:/bin/sh\n"
        )

    def test_without_a_file_everybody_is_themselves(self) -> None:
        assert Owners().of(100_000) == 100_000

    def test_it_is_read_when_it_changes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known = Owners()
        (tmp_path / "subuid").write_text("ann:100000:10\n")
        assert known.of(100_000) == 100_000
        known.refresh()
        assert [known.of(uid) for uid in (99_999, 100_000, 100_009, 100_010)] == [
            99_999,
            1000,
            1000,
            100_010,
        ]

        def never(_file: Path, *_: object) -> None:
            raise AssertionError("it has not changed")

        monkeypatch.setattr(Path, "open", never)
        known.refresh()

    def test_who_has_a_name_is_nobodys(self, tmp_path: Path) -> None:
        (tmp_path / "subuid").write_text("ann:100000:10\n")
        assert Owners().of(100_005) == 100_005

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "subuid").write_bytes(b"\xff\xfe:100000:10\nann:200000:10\n")
        assert Owners().of(200_000) == 1000
