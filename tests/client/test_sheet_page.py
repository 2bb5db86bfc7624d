"""The page of `swiprctl sheet`, as a real Chromium shows it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import MISSING, Browser
from PIL import Image

if MISSING:
    pytest.skip(
        "the sheet is not tried in a browser: sudo apt install chromium-driver",
        allow_module_level=True,
    )

pytestmark = pytest.mark.timeout(120)

ODD = [
    "a, b.jpg",
    'it\'s "quoted".jpg',
    "</script><img src=x onerror=alert(1)>.jpg",
    "new\nline.jpg",
    "-dash.jpg",
    "100%?#&.jpg",
    "b:c.jpg",
    "\udcff\udcfe.jpg",
    "\x1b[2J.jpg",
    "\u202egpj.exe.jpg",
    "日本 é.jpg",
]


def make(folder: Path, rows: str) -> Path:
    """Write a page beside its pictures."""
    done = subprocess.run(
        [sys.executable, "-m", "swiprctl", "sheet"],
        input=rows.encode("utf-8", "surrogateescape"),
        capture_output=True,
        timeout=60,
        check=True,
        cwd=folder,
    )
    assert done.stderr == b""
    path = folder / "sheet.html"
    path.write_bytes(done.stdout)
    return path


@pytest.fixture(scope="session")
def _browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def browser(_browser: Browser) -> Iterator[Browser]:
    """A browser whose console has nothing to say: the page's policy forbids nothing it does."""
    _browser.look(width=1280)
    yield _browser
    assert _browser.complaints() == []


PLACED = "document.documentElement.dataset.placed"


def names(browser: Browser, section: str) -> list[str]:
    """The pictures' names in a section, in the order that is seen."""
    found: list[str] = browser.run(
        f"return [...document.querySelectorAll('#{section} li')]"
        ".map(card => card.querySelector('.name').textContent)"
    )
    return found


def choose(browser: Browser, id: str, value: str) -> None:
    browser.run(
        "const found = document.getElementById(arguments[0]); found.value = arguments[1];"
        "found.dispatchEvent(new Event('input')); found.dispatchEvent(new Event('change'))",
        id,
        value,
    )


def text(browser: Browser, selector: str) -> str:
    found: str = browser.run(
        "const found = document.querySelector(arguments[0]);"
        "return found.checkVisibility() ? found.value ?? found.textContent : ''",
        selector,
    )
    return found


@pytest.fixture
def five(tmp_path: Path, browser: Browser) -> Path:
    """A page of five pictures, one of which failed, opened."""
    for name in "abcd":
        Image.new("RGB", (40, 30), name and "teal").save(tmp_path / f"{name}.jpg")
    (tmp_path / "e.jpg").write_bytes(b"no image")
    rows = (
        "path,error,message,cat,dog\na.jpg,,,0.1,0.9\nb.jpg,,,0.7,0.3\nc.jpg,,,0.4,0.6\n"
        "d.jpg,,,0.9,0.1\ne.jpg,bad-image,it is not an image,,\n"
    )
    page = make(tmp_path, rows)
    browser.open(page)
    browser.wait(PLACED)
    return page


@pytest.mark.usefixtures("five")
def test_order_and_threshold(browser: Browser) -> None:
    assert browser.run("return document.title") == "Contact sheet: 4 pictures, 1 failed"
    # It opens as the rows are: --sort may have put them in an order of its own.
    assert names(browser, "reached") == ["b.jpg", "d.jpg"]
    choose(browser, "order", "-1")
    browser.wait(PLACED)
    assert names(browser, "reached") == ["d.jpg", "b.jpg"]
    assert names(browser, "below") == ["c.jpg", "a.jpg"]
    assert names(browser, "without") == ["e.jpg"]
    assert text(browser, "#reached h2") == "cat ≥ 0.5: 2"
    assert text(browser, "#below h2") == "cat < 0.5: 2"
    assert text(browser, "#without h2") == "Without a number: 1"
    assert text(browser, "#without .error") == "it is not an image"
    choose(browser, "label", "1")
    browser.wait(PLACED)
    assert names(browser, "reached") == ["a.jpg", "c.jpg"]
    choose(browser, "order", "1")
    browser.wait(PLACED)
    assert names(browser, "reached") == ["c.jpg", "a.jpg"]
    choose(browser, "order", "0")
    choose(browser, "slider", "0.25")
    assert text(browser, "#reached h2") == "dog ≥ 0.25: 3"
    browser.wait("document.querySelectorAll('#reached li').length === 3")
    assert names(browser, "reached") == ["a.jpg", "b.jpg", "c.jpg"]
    choose(browser, "threshold", "0.9")
    browser.wait("document.querySelectorAll('#reached li').length === 1")
    assert names(browser, "below") == ["b.jpg", "c.jpg", "d.jpg"]
    assert text(browser, "#slider") == "0.9"
    widths = browser.run(
        "return [...document.querySelectorAll('#reached .value')].map(value => ["
        " value.textContent, value.className,"
        " Math.round(100 * value.firstChild.offsetWidth / value.offsetWidth)])"
    )
    assert widths == [["dog0.900", "value chosen", 90], ["cat0.100", "value", 10]]


def test_rows_without_a_number_stand_last_and_spoil_no_order(
    browser: Browser, tmp_path: Path
) -> None:
    """As --errors and --top leave them; many, since a sort of few compares by insertion."""
    Image.new("RGB", (40, 30)).save(tmp_path / "0.jpg")
    rows = ["path,error,message,cat,dog"]
    for number in range(400):
        if number:
            os.link(tmp_path / "0.jpg", tmp_path / f"{number}.jpg")
        if number % 3 == 1:
            rows.append(f"{number}.jpg,bad-image,it is not an image,,")
        else:
            rows.append(f"{number}.jpg,,,{number * 7919 % 400 / 400},0")
    browser.open(make(tmp_path, "\n".join(rows)))
    browser.wait(f"{PLACED} === '400'")
    values = (
        "return [...document.querySelectorAll('#reached .chosen span:last-child,"
        " #below .chosen span:last-child')].map(span => Number(span.textContent))"
    )
    for order, reverse in (("-1", True), ("1", False)):
        choose(browser, "order", order)
        browser.wait(f"{PLACED} === '400'")
        found = browser.run(values)
        reached = len(names(browser, "reached"))
        assert len(found) == 267
        for part in (found[:reached], found[reached:]):
            assert part == sorted(part, reverse=reverse)
        failed = [int(name[:-4]) for name in names(browser, "without")]
        assert failed == list(range(1, 400, 3))


def test_a_section_that_is_empty_is_not_shown(browser: Browser, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    browser.open(make(tmp_path, "path,cat,dog\na.jpg,0.9,0.1\nb.jpg,0.8,0.2\n"))
    browser.wait(PLACED)
    sections = "return [...document.querySelectorAll('section:not([hidden])')].map(s => s.id)"
    assert browser.run(sections) == ["reached"]
    choose(browser, "label", "1")
    browser.wait(PLACED)
    assert browser.run(sections) == ["below"]


def test_of_a_long_path_the_file_s_name_is_seen(browser: Browser, tmp_path: Path) -> None:
    folder = "a folder with a long name/" * 4
    (tmp_path / folder).mkdir(parents=True)
    for name in (f"{folder}7.jpg", "plain.jpg"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    browser.open(make(tmp_path, f"{folder}7.jpg,cat,1\nplain.jpg,cat,1\n"))
    browser.wait(PLACED)
    assert names(browser, "reached") == [f"{folder}7.jpg", "plain.jpg"]
    cut = browser.run(
        "return [...document.querySelectorAll('.name bdi')].map("
        "part => [part.className, part.scrollWidth > part.clientWidth])"
    )
    assert cut == [["folder", True], ["file", False], ["file", False]]


@pytest.mark.usefixtures("five")
def test_the_heading_stays_in_one_line_at_any_width(browser: Browser) -> None:
    for width in (900, 600):
        browser.look(width=width)
        heights = browser.run(
            "return ['h1', '#total'].map(one => document.querySelector(one))"
            ".map(one => one.offsetHeight / parseFloat(getComputedStyle(one).lineHeight))"
        )
        assert max(heights) < 1.5


def test_marks_by_mouse(browser: Browser, five: Path) -> None:  # noqa: ARG001 - it is opened
    choose(browser, "order", "-1")
    browser.wait(PLACED)
    assert text(browser, "#marked") == "0 marked"
    assert browser.run("return document.getElementById('copy').disabled")
    browser.click("#reached li img")
    assert text(browser, "#marked") == "1 marked"
    browser.click("#below li img", keys=("Shift",), at=1)
    assert text(browser, "#marked") == "4 marked"
    browser.click("#reached li input", at=1)
    assert text(browser, "#marked") == "3 marked"
    browser.click("#without .all")
    assert text(browser, "#list") == ""
    browser.click("#show")
    assert text(browser, "#list") == "a.jpg c.jpg d.jpg e.jpg"
    # Marks are the pictures', wherever they stand.
    choose(browser, "order", "1")
    browser.wait(PLACED)
    found = browser.run(
        "return [...document.querySelectorAll('li:has(:checked) .name')].map(n => n.textContent)"
    )
    assert sorted(found) == ["a.jpg", "c.jpg", "d.jpg", "e.jpg"]
    browser.click("#clear")
    assert text(browser, "#marked") == "0 marked"
    assert text(browser, "#list") == ""


def test_marks_by_keys(browser: Browser, five: Path) -> None:
    def focused() -> str:
        found: str = browser.run(
            "const card = document.activeElement.closest('li');"
            "return card && card.querySelector('.name').textContent"
        )
        return found

    choose(browser, "order", "-1")
    browser.wait(PLACED)
    browser.run("document.getElementById('threshold').focus()")
    browser.press("Tab", "Tab")
    assert focused() == "d.jpg"
    assert (
        browser.run("return getComputedStyle(document.activeElement.closest('li')).outlineWidth")
        == "3px"
    )
    assert browser.run("return document.activeElement.getAttribute('aria-label')") == "Mark d.jpg"
    browser.press(" ", "Right", "Right", "Shift+ ")
    assert focused() == "c.jpg"
    assert text(browser, "#marked") == "3 marked"
    browser.press("End")
    assert focused() == "e.jpg"
    browser.press("Home", " ")
    assert (focused(), text(browser, "#marked")) == ("d.jpg", "2 marked")
    # The order changes below the focus, and one picture is in the tab order yet.
    browser.press("Right")
    choose(browser, "order", "1")
    browser.wait(PLACED)
    assert names(browser, "reached") == ["b.jpg", "d.jpg"]
    assert focused() == "b.jpg"
    assert browser.run("return document.querySelectorAll('li [tabindex=\"0\"]').length") == 1
    windows = len(browser.windows())
    browser.press("Enter")
    browser.wait_windows(windows + 1)
    assert browser.close_other_windows() == [five.with_name("b.jpg").as_uri()]


def test_any_name_is_shown_found_and_copied(browser: Browser, tmp_path: Path) -> None:
    for name in ODD:
        with open(tmp_path / name.replace("/", "∕"), "wb") as file:
            Image.new("RGB", (40, 30)).save(file, "jpeg")
    listed = [name.replace("/", "∕") for name in ODD]
    quoted = ['"' + name.replace('"', '""') + '"' for name in listed]
    page = make(tmp_path, "".join(f"{name},<b>cat</b>,1\n" for name in quoted))
    browser.open(page)
    browser.wait("[...document.images].every(image => image.complete)")
    assert browser.run("return [...document.images].map(i => i.naturalWidth)") == [40] * len(ODD)
    assert text(browser, "#reached h2") == f"<b>cat</b> ≥ 0.5: {len(ODD)}"
    seen = names(browser, "reached")
    assert seen[0] == "a, b.jpg"
    assert {r"\xff\xfe.jpg", r"\x1b[2J.jpg", r"new\x0aline.jpg", r"\u{202e}gpj.exe.jpg"} <= set(
        seen
    )
    browser.click("#reached .all")
    browser.click("#show")
    copied = text(browser, "#list")
    assert copied.isprintable()
    found = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {copied}"], capture_output=True, check=True
    )
    paths = [os.fsdecode(name) for name in found.stdout.split(b"\0")[:-1]]
    assert paths == [f"./{name}" if name.startswith("-") else name for name in listed]
    assert shlex.split(copied)[0] == "a, b.jpg"
    browser.click("#copy")
    browser.wait("document.getElementById('marked').textContent.endsWith('copied')")
    browser.run(
        "const list = document.getElementById('list');"
        "list.readOnly = false; list.value = ''; list.focus()"
    )
    browser.press("Control+v")
    assert text(browser, "#list") == copied


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.usefixtures("five")
def test_it_fits_and_can_be_read(browser: Browser, width: int, dark: bool) -> None:
    browser.look(width=width, dark=dark)
    assert browser.run("return document.documentElement.scrollWidth") == width
    browser.click("li img")
    browser.click("#show")
    low = browser.run(
        """
        const light = (colour) => {
          const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(c => c / 255)
            .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
          return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
        };
        const found = [];
        for (const each of document.querySelectorAll('body *')) {
          if (![...each.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
          if (!each.checkVisibility() || each.disabled || each.matches('script, option')) continue;
          const behind = [];
          for (let at = each; at; at = at.parentElement)
            behind.push(getComputedStyle(at).backgroundColor);
          if (each.closest('.value'))
            behind.unshift(getComputedStyle(each.parentElement.firstChild).backgroundColor);
          const back = light(behind.find(c => !c.startsWith('rgba(0, 0, 0, 0')));
          const text = light(getComputedStyle(each).color);
          const contrast = (Math.max(back, text) + 0.05) / (Math.min(back, text) + 0.05);
          if (contrast < 4.5) found.push([each.outerHTML, contrast]);
        }
        return found;
        """
    )
    assert low == []  # WCAG 2.2, 1.4.3
    back = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(22, 22, 24)") is dark


@pytest.mark.long
def test_ten_thousand(browser: Browser, tmp_path: Path) -> None:
    """They are laid out as they come into view, and none but those near it is loaded."""
    Image.new("RGB", (40, 30)).save(tmp_path / "0.jpg")
    for number in range(1, 10_000):
        os.link(tmp_path / "0.jpg", tmp_path / f"{number}.jpg")
    rows = "".join(f"{n}.jpg,cat,{n / 10_000},dog,{1 - n / 10_000}\n" for n in range(10_000))
    browser.open(make(tmp_path, rows))
    browser.wait(f"{PLACED} === '10000'")
    assert text(browser, "#reached h2") == "cat ≥ 0.5: 5,000"
    loaded = browser.run("return [...document.images].filter(i => i.complete).length")
    assert 6 <= loaded < 500
    choose(browser, "order", "-1")
    browser.wait(f"{PLACED} === '10000'")
    choose(browser, "slider", "0.75")
    browser.wait("document.querySelectorAll('#below li').length === 7500")
    assert text(browser, "#below h2") == "cat < 0.75: 7,500"
    assert browser.run(
        "return [...document.querySelectorAll('#below li')].every((card, at, all) =>"
        " !at || all[at - 1].row > card.row)"
    )
    browser.run("document.querySelector('#reached li input').focus()")
    browser.press("End", " ")
    assert text(browser, "#marked") == "1 marked"


def test_logarithms(browser: Browser, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    browser.open(make(tmp_path, "path,cat,dog\na.jpg,-0.1,-2.5\na.jpg,-7.25,-0.0007\n"))
    browser.wait(PLACED)
    assert [float(browser.run(f"return slider.{name}")) for name in ("min", "max")] == [-7.25, 0]
    assert names(browser, "reached") == names(browser, "below") == ["a.jpg"]
