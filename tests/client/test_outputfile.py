"""An output file and its journal, after a kill at every byte, a crash, and somebody's edits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiprctl import rewriting
from swiprctl.answered import Answered
from swiprctl.errors import CannotWrite, WriteFailed
from swiprctl.formats import escape, unescape
from swiprctl.journal import (
    KINDS,
    ROW,
    Damaged,
    Entry,
    State,
    decode,
    first_line,
    options_of,
)
from swiprctl.outputfile import OutputFile
from swiprctl.resuming import FileWriter, Remaining, begin
from swiprctl.rows import Prediction, Table

pytestmark = pytest.mark.timeout(60)

OPTIONS = "--format=csv"
PATHS = ("a", "b\nb", "c\tc", "d", "a")


def opened(path: Path, *, resume: bool = True, force: bool = False) -> OutputFile:
    return OutputFile(str(path), OPTIONS, resume=resume, force=force)


def entry(path: str, *, mtime: int = 1, replaces: int | None = None) -> Entry:
    state = State(size=10, mtime=mtime)
    return Entry(kind=ROW, path=path, state=state, model="m@1", replaces=replaces)


def record(path: str, mtime: int = 1) -> bytes:
    return Table(path=True).row(path, Prediction((mtime / 8,), "m@1"))


def work(path: Path, mtimes: tuple[int, ...] = (1,) * len(PATHS)) -> list[str]:
    """Do what `predict --resume` does, to the end; gives the inputs that had no row."""
    file = opened(path)
    asked = []
    for name, mtime in zip(PATHS, mtimes, strict=True):
        had, replaces = file.answered.claim(name, State(size=10, mtime=mtime), "m@1")
        if not had:
            asked.append(name)
            file.append(entry(name, mtime=mtime, replaces=replaces), record(name, mtime))
    file.finish()
    file.close()
    return asked


def rows(path: Path) -> list[bytes]:
    """The records, which end in a digit and a line feed."""
    return sorted(path.read_bytes().replace(b"5\n", b"5\0").split(b"\0"))


def both(path: Path) -> tuple[Path, Path]:
    return path, path.with_name(f"{path.name}.resume")


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A file that one run has made."""
    path = tmp_path / "rows.csv"
    assert work(path) == list(PATHS)
    return path


def test_a_kill_at_every_byte(one: Path, tmp_path: Path) -> None:
    """The journal's line is written before its record: both are cut off wherever that may be."""
    file, journal = (path.read_bytes() for path in both(one))
    expected = rows(one)
    lines = journal.splitlines(keepends=True)
    moments = [(0, size) for size in range(len(lines[0]) + 1)]
    written, known = 0, len(lines[0])
    for line in lines[1:]:
        moments += [(written, known + size) for size in range(1, len(line) + 1)]
        known += len(line)
        length = decode(line).length
        moments += [(written + size, known) for size in range(1, length + 1)]
        written += length
    assert (written, known) == (len(file), len(journal))
    path, journal_path = both(tmp_path / "killed.csv")
    for size, journal_size in moments:
        path.write_bytes(file[:size])
        journal_path.write_bytes(journal[:journal_size])
        asked = work(path)
        assert rows(path) == expected
        known = size == len(file) and journal_size == len(journal)
        assert (asked == []) == known
        assert work(path) == []


def test_what_is_whole_is_kept(one: Path) -> None:
    path, _ = both(one)
    size = len(path.read_bytes())
    path.write_bytes(path.read_bytes()[:-1])
    assert work(path) == ["a"]
    assert len(path.read_bytes()) == size


@pytest.mark.parametrize("mtimes", [(1, 2, 1, 2, 1), (2, 2, 2, 2, 2), (1, 1, 1, 1, 2)])
def test_what_has_changed_is_replaced(one: Path, mtimes: tuple[int, ...]) -> None:
    changed = [name for name, mtime in zip(PATHS, mtimes, strict=True) if mtime == 2]
    assert work(one, mtimes) == changed
    assert rows(one) == sorted(
        [b"", *(record(*of).rstrip() for of in zip(PATHS, mtimes, strict=True))]
    )
    assert work(one, mtimes) == []
    assert sorted(one.parent.iterdir()) == sorted(both(one))


@pytest.mark.parametrize("step", ["open", "fsync", "rename"])
@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("killed", [False, True], ids=["interrupted", "killed"])
def test_an_end_while_it_is_written_anew(
    one: Path, monkeypatch: pytest.MonkeyPatch, step: str, which: int, after: bool, killed: bool
) -> None:
    """By Ctrl-C before or after that call is done, or by SIGKILL: then nothing is tidied up."""

    class Ended(BaseException):
        pass

    calls = 0
    real: Callable[..., object] = getattr(os, step)

    def ends(*arguments: object, **more: object) -> object:
        nonlocal calls
        if step == "open" and ".resume." not in str(arguments[0]):
            return real(*arguments, **more)
        calls += 1
        if calls != which + 1:
            return real(*arguments, **more)
        if after:
            found = real(*arguments, **more)
            if step == "open":
                os.close(found)  # type: ignore[arg-type] # which the one that has it cannot
        raise Ended

    changed = (1, 2, 1, 2, 1)
    with monkeypatch.context() as patch:
        patch.setattr(f"swiprctl.rewriting.os.{step}", ends)
        if killed:
            patch.setattr(rewriting, "discard", lambda _: None)
        file = opened(one)
        for name, mtime in zip(PATHS, changed, strict=True):
            had, replaces = file.answered.claim(name, State(size=10, mtime=mtime), "m@1")
            if not had:
                file.append(entry(name, mtime=mtime, replaces=replaces), record(name, mtime))
        with pytest.raises(Ended):
            file.finish()
        file.close()
    changed = (1, 2, 3, 2, 1)  # the next run writes into the file that has the name now
    assert work(one, changed) == [PATHS[2]]
    assert rows(one) == sorted(
        [b"", *(record(*of).rstrip() for of in zip(PATHS, changed, strict=True))]
    )
    assert work(one, changed) == []
    assert sorted(one.parent.iterdir()) == sorted(both(one))


def test_the_new_file_is_locked_and_both_have_the_modes_of_the_old(one: Path) -> None:
    one.chmod(0o640)
    both(one)[1].chmod(0o600)
    first = opened(one)
    assert first.answered.claim("d", None, "m@1") == (False, 3)
    first.append(entry("d", replaces=3), record("d"))
    first.finish()
    with pytest.raises(CannotWrite, match="another swiprctl is writing it"):
        opened(one)
    first.close()
    assert one.stat().st_mode & 0o777 == 0o640
    assert both(one)[1].stat().st_mode & 0o777 == 0o600
    opened(one).close()


def test_a_name_that_is_too_long_to_be_written_anew(tmp_path: Path) -> None:
    name = tmp_path / ("x" * 244)
    with pytest.raises(CannotWrite, match=r"\.resume\.rows: File name too long"):
        opened(name)
    assert not list(tmp_path.iterdir())
    assert work(tmp_path / ("x" * 243)) == list(PATHS)
    assert work(tmp_path / ("x" * 243), (2,) * len(PATHS)) == list(PATHS)


# -- crashes of the host, and edits


def test_zeros_that_a_crash_leaves_are_cut_off(one: Path) -> None:
    path, journal = both(one)
    file, lines = path.read_bytes(), journal.read_bytes()
    for size, journal_size in [(20, None), (None, 90), (None, 100), (0, None), (10, 140)]:
        for zeros in (1, 1000):
            cut, journal_cut = file[:size], lines[:journal_size]
            path.write_bytes(cut + bytes(len(file) - len(cut) if size is not None else zeros))
            journal.write_bytes(journal_cut + bytes(zeros))
            if journal_size is None or size is not None:
                work(path)
                assert rows(path) == rows(one)
                assert path.read_bytes().count(b"\0") == 0
            else:  # the file has more than the journal says: whose that is, nobody knows
                with pytest.raises(CannotWrite, match="truncate -s"):
                    opened(path)


def edited(one: Path, change: Callable[[bytes], bytes], *, journal: bool = False) -> str:
    """What is said of an edited file, which is left as it is."""
    path = both(one)[journal]
    path.write_bytes(change(path.read_bytes()))
    before = [file.read_bytes() for file in both(one)]
    with pytest.raises(CannotWrite) as told:
        opened(one)
    assert [file.read_bytes() for file in both(one)] == before
    opened(one, force=True).close()
    return str(told.value).removeprefix(str(one))


def test_what_somebody_has_edited_is_refused(one: Path) -> None:
    assert edited(one, lambda data: data.replace(b"d", b"e")).startswith(": row 4, at byte")
    work(one)
    assert edited(one, lambda data: data[8:]).startswith(": row 1, at byte 0, is not as")
    work(one)
    assert ": behind byte 46 it has what" in edited(one, lambda data: data + b"mine\n")
    work(one)
    assert "line 3 is not as" in edited(
        one, lambda data: data.replace(b"row", b"raw").replace(b"raw", b"row", 1), journal=True
    )
    work(one)
    assert ".resume: line 1 is not" in edited(one, lambda data: data[1:], journal=True)
    work(one)
    assert ".resume: line 1 is not" in edited(one, lambda _: b"", journal=True)


@pytest.mark.parametrize("where", ["", ".resume"])
def test_a_link_in_the_place_of_the_journal(one: Path, tmp_path: Path, where: str) -> None:
    """In a folder that others may write to, the journal must be the user's own."""
    path, journal = both(one)
    (tmp_path / "target").write_bytes(b"precious")
    journal.unlink()
    journal.symlink_to(tmp_path / "target")
    for force in (False, True):
        with pytest.raises(CannotWrite, match=r"rows\.csv\.resume: "):
            opened(path, force=force)
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert where in str(journal)


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_of_the_journals_name(tmp_path: Path, resume: bool) -> None:
    path, journal = both(tmp_path / "notes.csv")
    journal.write_bytes(b"what I want to go on with\n")
    with pytest.raises(CannotWrite, match=r"notes\.csv\.resume: it exists and is of something"):
        opened(path, resume=resume)
    assert journal.read_bytes() == b"what I want to go on with\n"
    opened(path, resume=False, force=True).close()
    assert journal.read_bytes() == first_line(OPTIONS)


@pytest.mark.parametrize("size", range(len(first_line(OPTIONS)) + 1))
@pytest.mark.parametrize("zeros", [0, 9])
def test_a_first_line_that_is_torn(tmp_path: Path, size: int, zeros: int) -> None:
    path, journal = both(tmp_path / "rows.csv")
    path.touch()
    journal.write_bytes(first_line(OPTIONS)[:size] + bytes(zeros))
    file = opened(path)
    assert file.empty
    file.close()
    assert journal.read_bytes() == first_line(OPTIONS)


@pytest.mark.parametrize("what", ["link", "pipe", "file of another user"])
def test_what_is_planted_does_not_take_the_files_place(one: Path, what: str) -> None:
    """In a shared folder, somebody else may make a file of the name that a rewriting leaves."""
    before = [path.read_bytes() for path in both(one)]
    planted = one.with_name(f"{one.name}.resume.rows")
    if what == "link":
        planted.symlink_to("/etc/hostname")
    elif what == "pipe":
        os.mkfifo(planted)
    else:
        planted.write_text("not mine\n")
        try:
            os.chown(planted, 65534, 65534)
        except PermissionError:
            pytest.skip("takes root, to give a file away")
    with pytest.raises(CannotWrite, match=r"\.resume\.rows: it is not a file of your own"):
        opened(one)
    assert [path.read_bytes() for path in both(one)] == before
    planted.unlink()
    assert work(one) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to give a link away")
@pytest.mark.parametrize("between", [False, True], ids=["direct", "by a link of one's own"])
def test_a_link_of_another_user_in_a_shared_folder(tmp_path: Path, between: bool) -> None:
    target = tmp_path / "precious"
    target.write_text("mine\n")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    link = shared / "rows.csv"
    link.symlink_to(target)
    name = link
    if between:
        name = tmp_path / "link.csv"
        name.symlink_to("shared/rows.csv")
    os.lchown(link, 65534, 65534)
    with pytest.raises(CannotWrite, match=r"shared/rows\.csv: it is a link that another user"):
        opened(name, force=True)
    assert target.read_text() == "mine\n"
    os.lchown(link, os.geteuid(), -1)
    opened(name, force=True).close()
    assert target.read_bytes() == b""


def test_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").symlink_to("rows.csv")
    with pytest.raises(CannotWrite, match="a loop of links"):
        opened(tmp_path / "rows.csv")


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to give a file away")
def test_the_journal_of_another_user(one: Path) -> None:
    os.chown(both(one)[1], 65534, 65534)
    with pytest.raises(CannotWrite, match="it is not a file of your own"):
        opened(one)


def test_a_write_that_fails_leaves_both_whole(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a record is written, and then the disk is full."""
    before = [path.read_bytes() for path in both(one)]
    real = os.pwrite
    for which in (1, 2):
        written: list[int] = []

        def full(descriptor: int, data: bytes, offset: int, *, _which: int = which) -> int:
            written.append(descriptor)  # noqa: B023 - of this round
            if len(set(written)) == _which:  # noqa: B023
                if len(written) > _which:  # noqa: B023
                    raise OSError(28, "No space left on device")
                return real(descriptor, data[:3], offset)
            return real(descriptor, data, offset)

        file = opened(one)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(WriteFailed, match="No space left on device"):
                file.append(entry("e"), record("e"))
        file.close()
        assert [path.read_bytes() for path in both(one)] == before


# -- the journal's lines


texts = st.text(st.characters(exclude_characters="\0"), max_size=12)
entries = st.builds(
    Entry,
    kind=st.sampled_from(sorted(KINDS)),
    path=st.binary(max_size=12).map(os.fsdecode),
    state=st.none()
    | st.builds(State, size=st.integers(0, 1 << 60), mtime=st.integers(-9, 1 << 62)),
    model=texts.map(lambda text: text.encode(errors="replace").decode()),
    replaces=st.none() | st.integers(0, 1 << 40),
    length=st.integers(0, 1 << 26),
    crc=st.integers(0, (1 << 32) - 1),
)


@given(entries)
def test_any_entry_reads_back(one: Entry) -> None:
    line = one.encode()
    assert line.count(b"\n") == 1
    assert decode(line) == one


@given(entries, st.integers(0, 200), st.binary(max_size=3))
def test_any_damage_is_found_or_means_nothing(one: Entry, place: int, bytes_: bytes) -> None:
    line = one.encode()
    damaged = line[:place] + bytes_ + line[place + 1 :]
    try:
        found = decode(damaged)
    except Damaged:
        return
    assert decode(found.encode()) == found


@given(st.binary(max_size=20))
def test_fields_of_tsv_come_back(data: bytes) -> None:
    assert unescape(escape(data)) == data
    assert not set(escape(data)) & set(b"\t\n\r")


@given(texts)
def test_options_come_back(options: str) -> None:
    options = options.encode(errors="replace").decode()
    assert options_of(first_line(options)) == options


# -- which inputs have a row


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3)), max_size=12), st.data())
def test_each_entry_is_claimed_once(found: list[tuple[str, int]], data: st.DataObject) -> None:
    entries = [entry(path, mtime=mtime) for path, mtime in found]
    answered = Answered(entries.__getitem__)
    for number, one in enumerate(entries):
        answered.add(one, number)
    inputs = data.draw(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 3)), max_size=12))
    left = list(enumerate(found))
    for path, mtime in inputs:
        had, replaced = answered.claim(path, State(size=10, mtime=mtime), "m@1")
        same = [one for one in left if one[1] == (path, mtime)]
        others = [one for one in left if one[1][0] == path]
        assert had == bool(same)
        assert (replaced is not None) == (not same and bool(others))
        left.remove(same[0] if same else others[0]) if others else None
    assert [n for n in range(len(found)) if answered.is_void(n)] or not answered.any_void


def test_paths_of_one_hash_are_told_apart() -> None:
    class Same(str):
        def __hash__(self) -> int:
            return 7

    entries = [entry(Same("a")), entry(Same("b"))]
    answered = Answered(entries.__getitem__)
    for number, one in enumerate(entries):
        answered.add(one, number)
    assert answered.claim(Same("c"), State(size=10, mtime=1), "m@1") == (False, None)
    assert answered.claim(Same("b"), State(size=10, mtime=1), "m@1") == (True, None)


def test_an_entry_that_replaces_a_later_one_is_refused() -> None:
    answered = Answered(lambda _: entry("a"))
    with pytest.raises(ValueError, match="0"):
        answered.add(entry("a", replaces=0), 0)


def test_answers_come_out_while_inputs_are_left_out(tmp_path: Path) -> None:
    image = tmp_path / "a"
    image.write_bytes(b"x")
    now = State(size=1, mtime=image.stat().st_mtime_ns)
    file = opened(tmp_path / "rows.csv")
    for _ in range(2500):
        file.append(Entry(kind=ROW, path=str(image), state=now, model="m@1"), b"1\n")
    file.close()
    remaining = begin(
        f"{tmp_path}/rows.csv",
        OPTIONS,
        [str(image)] * 2501,
        lambda: {"model": "m@1", "labels": ["sharp"]},
        resume=True,
        force=False,
    )
    assert [next(remaining), remaining.fileno(), remaining.present] == [None, -1, 1024]
    assert [next(remaining), remaining.fileno(), remaining.present] == [None, -1, 2048]
    assert next(remaining) == str(image)
    remaining.file.close()


# -- conditions


def test_an_answer_without_a_row_is_remembered(tmp_path: Path) -> None:
    """One that a condition leaves out; and what had a row before has none then."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x")
    inputs = [str(tmp_path / "a"), str(tmp_path / "b")]
    prediction = Prediction((0.5,), "m@1")
    prediction.labels = ("sharp",)

    def go(*, keep: bool) -> tuple[list[object], bytes]:
        remaining: Remaining = begin(
            f"{tmp_path}/rows.csv",
            OPTIONS,
            inputs,
            lambda: {"model": "m@1", "labels": ["sharp"]},
            resume=True,
            force=False,
        )
        sink = FileWriter(Table(), remaining=remaining, header=True, failures=False, ask=tuple[str])
        asked = list(remaining)
        for path in asked:
            if keep:
                assert sink.take(str(path), prediction) is None
            else:
                sink.drop(str(path), prediction)
        sink.finish()
        sink.close()
        return list(asked), (tmp_path / "rows.csv").read_bytes()

    assert go(keep=True) == (inputs, b"sharp\n0.5\n0.5\n")
    (tmp_path / "a").write_bytes(b"xx")
    assert go(keep=False) == (inputs[:1], b"sharp\n0.5\n")
    assert go(keep=True) == ([], b"sharp\n0.5\n")
