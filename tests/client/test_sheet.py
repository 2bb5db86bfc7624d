"""`swiprctl sheet`, the command: what it reads, and what it puts into the page."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from swiprctl.sheet import MAX_PICTURES, address

pytestmark = pytest.mark.timeout(120)


def swiprctl(folder: Path, *words: str | bytes, stdin: bytes = b"") -> tuple[bytes, str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "swiprctl", "sheet", *words],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        cwd=folder,
    )
    return done.stdout, done.stderr.decode(errors="surrogateescape"), done.returncode


def rows_of(page: bytes) -> list[list[object]]:
    found = re.search(rb'id="rows">(.*?)</script>', page, flags=re.S)
    assert found is not None
    rows: list[list[object]] = json.loads(found[1])
    return rows


def test_the_page_is_made_of_a_file_of_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    rows = b"path,cat,dog\na.jpg,0.75,0.25\nb.jpg,0.5,nan\n"
    (tmp_path / "rows.csv").write_bytes(rows)
    page, err, status = swiprctl(tmp_path, "rows.csv")
    assert (err, status) == ("", 0)
    assert rows_of(page) == [["a.jpg", "a.jpg", [0.75, 0.25]], ["b.jpg", "b.jpg", [0.5, None]]]
    assert b'id="labels">["cat","dog"]</script>' in page
    assert swiprctl(tmp_path, stdin=rows)[0] == swiprctl(tmp_path, "-", stdin=rows)[0] == page
    pairs = b"a.jpg,dog,0.75\nc.jpg,cat,0.5,dog,0.25\n"
    page, _, _ = swiprctl(tmp_path, stdin=pairs)
    assert rows_of(page) == [["a.jpg", "a.jpg", [0.75]], ["c.jpg", "c.jpg", {"1": 0.5, "0": 0.25}]]
    assert rows_of(swiprctl(tmp_path)[0]) == []


def test_pictures_are_referred_to_from_where_the_page_will_be(tmp_path: Path) -> None:
    (tmp_path / "photos" / "of me").mkdir(parents=True)
    (tmp_path / "photos" / "of me" / "a.jpg").write_bytes(b"")
    for path in ("photos/of me/a.jpg", f"{tmp_path}/photos/of me/a.jpg"):
        for words, wanted in (
            ((), "photos/of%20me/a.jpg"),
            (("--relative-to=photos",), "of%20me/a.jpg"),
            (("--relative-to", "photos/of me/"), "a.jpg"),
            ((f"--relative-to={tmp_path.parent}",), f"{tmp_path.name}/photos/of%20me/a.jpg"),
        ):
            page, err, status = swiprctl(tmp_path, *words, stdin=f"{path},1,0\n".encode())
            assert (rows_of(page), err, status) == ([[path, wanted, [1, 0]]], "", 0)
    assert address("-", "/") == ""
    assert address("/a:b", "/") == "a%3Ab"


@pytest.mark.parametrize(
    ("words", "stdin", "told", "status"),
    [
        (["gone.csv"], b"", "gone.csv: No such file or directory", 66),
        (["."], b"", ".: Is a directory", 66),
        (["a", "b"], b"", "sheet takes one file of rows, and 'b' is another", 64),
        (["--relative-to=gone"], b"", "gone: there is no such directory for the page", 66),
        (["--json"], b"", "--json does not go with sheet", 64),
        (["--socket=x"], b"", "--socket does not go with sheet", 64),
        ([], b"0.5,0.5\n", "standard input, line 1: neither a header that begins with", 65),
        ([], b"path,a\nx,1\nx,y\n", "standard input, line 3: 'y' is no number", 65),
    ],
)
def test_what_goes_wrong(
    tmp_path: Path, words: list[str], stdin: bytes, told: str, status: int
) -> None:
    page, err, found = swiprctl(tmp_path, *words, stdin=stdin)
    assert (page, found) == (b"", status)
    assert err.startswith(f"swiprctl: {told}")


@pytest.mark.parametrize(
    ("words", "streams", "told"),
    [
        (["rows.csv"], ("stdout",), "the page goes to standard output: swiprctl sheet rows.csv > "),
        ([], ("stdin",), "no rows: swiprctl predict -H --header PATH... | swiprctl sheet"),
    ],
)
def test_on_a_terminal(
    tmp_path: Path, words: list[str], streams: tuple[str, ...], told: str
) -> None:
    (tmp_path / "rows.csv").write_text("path,a\n-,1\n")
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "swiprctl", "sheet", *words],
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
            | dict.fromkeys(streams, theirs),  # type: ignore[call-overload]
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.stderr.startswith(f"swiprctl: {told}")
    assert (done.stdout or "", done.returncode) == ("", 64)


def test_pictures_that_are_not_there(tmp_path: Path) -> None:
    page, err, status = swiprctl(tmp_path, stdin=b"path,a\nx.jpg,1\n")
    assert err.startswith("swiprctl: x.jpg: not found from here, nor are the next; run this in")
    assert (len(rows_of(page)), status) == (1, 0)


def test_more_pictures_than_a_page_takes(tmp_path: Path) -> None:
    rows = b"-,1,0\n" * MAX_PICTURES
    assert len(rows_of(swiprctl(tmp_path, stdin=rows)[0])) == MAX_PICTURES
    _, err, status = swiprctl(tmp_path, stdin=rows + b"-,1,0\n")
    assert "more than 100,000 pictures are too many for a page" in err
    assert status == 65


def test_nothing_in_a_name_or_label_ends_the_script(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><!--<script>"
    rows = json.dumps({"path": evil, "probabilities": {evil: 1}}).encode()
    rows += json.dumps({"path": "a", "error": {"message": evil}}).encode().join([b"\n", b"\n"])
    page = swiprctl(tmp_path, stdin=rows)[0]
    assert rows_of(page)[0][0] == evil
    assert page.count(b"<script") == page.count(b"</script>") == 3
    assert b"alert" not in re.sub(
        rb'<script type="application/json".*?</script>', b"", page, flags=re.S
    )


@pytest.mark.parametrize("form", ["csv", "json"])
def test_paths_are_utf_8_whatever_the_locale_is(tmp_path: Path, form: str) -> None:
    (tmp_path / "dé").mkdir()
    (tmp_path / "dé/é.jpg").write_bytes(b"")
    rows = 'path,cat\n"{}",1\n' if form == "csv" else '{{"path":"{}","probabilities":{{"cat":1}}}}'
    for path in ("é.jpg", f"{tmp_path}/dé/é.jpg"):
        done = subprocess.run(
            [sys.executable, "-m", "swiprctl", "sheet"],
            input=rows.format(path).encode(),
            capture_output=True,
            timeout=60,
            check=False,
            cwd=tmp_path / "dé",
            env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"},
        )
        assert (done.stderr, done.returncode) == (b"", 0)
        assert rows_of(done.stdout) == [[path, "%C3%A9.jpg", [1]]]


def test_a_number_beyond_all_numbers_is_refused_with_its_line(tmp_path: Path) -> None:
    line = b'{"path": "a.jpg", "probabilities": {"cat": %s}}' % (b"9" * 400)
    _, err, status = swiprctl(tmp_path, stdin=line)
    assert err.startswith(
        "swiprctl: standard input, line 1: not a JSON object of predict: a number of more than 300"
    )
    assert status == 65
