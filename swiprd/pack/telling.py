"""The lines that `swiprd pack` prints, and its warnings. Standard library only."""

from __future__ import annotations

from swiprd.folder.spec import Preprocess
from swiprd.pack.labels import Labels
from swiprd.system import console
from swiprd.system.console import OutputFailed

WHO = "swiprd pack"


def warn(text: str) -> None:
    console.complain(WHO, text)


def say(what: str, text: str) -> None:
    put(f"{what:12} {console.clean(text)}")


def put(text: str) -> None:
    """Print, as long as somebody reads: `| head` is no reason to make no folder.

    Raises:
        OutputFailed: for any other reason than that.
    """
    try:
        console.put(text)
    except OutputFailed as error:
        if not error.unread:
            raise


def summary(preprocess: Preprocess) -> str:
    edge = {"long": " (long edge)", "both": " (both edges)"}.get(preprocess.edge, "")
    size = f"resize {preprocess.resize}{edge}" if preprocess.resize else "no resize"
    if preprocess.edge == "square":
        size = f"square of the short edge, {size}"
    crops = "" if preprocess.crops == "center" else f" ({preprocess.crops})"
    turned = ", upright by EXIF" if preprocess.exif == "apply" else ""
    mean, std = (",".join(f"{one:g}" for one in v) for v in (preprocess.mean, preprocess.std))
    return (
        f"{size}, crop {preprocess.crop}{crops}, {preprocess.interpolation}{turned},"
        f" mean {mean}, std {std}"
    )


def names(labels: Labels) -> str:
    if labels == "imagenet":
        return "imagenet"
    shown = ", ".join(labels[:6])
    return f"{shown}, … {len(labels)} in all" if len(labels) > 6 else shown
