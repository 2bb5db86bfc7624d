"""The units and the debian folder: what must agree with something else does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from swiprctl.version import __version__

PACKAGING = Path(__file__).parent.parent.parent / "packaging"


@pytest.mark.parametrize("kind", ["service", "socket"])
def test_the_template_is_the_unit_for_another_name(kind: str) -> None:
    """So that what is changed in one is not forgotten in the other."""
    unit = (PACKAGING / f"systemd/swiprd.{kind}").read_text()
    template = (PACKAGING / f"systemd/swiprd@.{kind}").read_text()
    for line in (", model %i", " --instance=%i", "ExecStartPre=/usr/bin/test %i != default\n"):
        template = template.replace(line, "")
    template = template.replace("# That one is swiprd.socket's.\n", "")
    template = template.replace("swiprd@%i.", "swiprd.").replace("@%p@%i.", "@%p.")
    assert template.replace("/run/swipr/%i.sock", "/run/swipr/default.sock") == unit


def test_the_package_has_the_version_of_what_is_in_it() -> None:
    first = (PACKAGING / "debian/changelog").read_text().splitlines()[0]
    assert re.match(r"swipr \(([^)+-]+)\)", first)[1] == __version__  # type: ignore[index]


def test_debhelper_finds_the_units() -> None:
    for unit in (PACKAGING / "debian").glob("swiprd*.so*"):
        assert unit.resolve() == PACKAGING / "systemd" / unit.name
    names = {path.name for path in (PACKAGING / "debian").iterdir() if path.is_symlink()}
    assert names == {path.name for path in (PACKAGING / "systemd").iterdir()} - {
        "swiprd-rearm@.service"  # by swiprd.install: debhelper is not to start it
    }
