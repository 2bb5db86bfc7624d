"""What `swiprd pack` says when it gives up; the class is the exit status. Imports nothing.

Interrupted      128 + the signal's number

PackError
├── Unclear       64  the command line must say more, or something else
├── NotWeights    65  the checkpoint is not what can be packed
├── BadLabels     65  the file of labels is not one
├── NotProven     70  the folder is made, and does not work
├── CannotOpen    66  the checkpoint cannot be read
├── CannotCreate  73  the folder cannot be made
└── CannotWrite   74  writing to it failed
"""

from __future__ import annotations


class Interrupted(KeyboardInterrupt):
    """A signal has interrupted packing. No Exception: the code that catches every error of a model
    lets it pass.

    Attributes:
        exit_status: what a shell calls a process that the signal has ended.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_status = 128 + number


class PackError(Exception):
    """Packing ended without a folder; the message says why and what to do next."""

    exit_status = 70


class Unclear(PackError):
    """Something that only a person knows is missing or wrong in the command line."""

    exit_status = 64


class NotWeights(PackError):
    """The file holds no weights, or none that can be packed."""

    exit_status = 65


class BadLabels(PackError):
    """The file of labels has a line that is none."""

    exit_status = 65


class NotProven(PackError):
    """What was packed does not load or answers nonsense."""

    exit_status = 70


class CannotOpen(PackError):
    """The file is not there or cannot be read."""

    exit_status = 66


class CannotCreate(PackError):
    """The folder exists already, or cannot be made."""

    exit_status = 73


class CannotWrite(PackError):
    """The disk is full, or similar."""

    exit_status = 74
