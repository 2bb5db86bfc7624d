"""Which activation the answers of an ONNX file still need, so that none is applied twice. Pure.

What the file ends in decides; where that is not recognised, the numbers that came out of the probe
tell probabilities from other outputs, or leave a question for the user.
"""

from __future__ import annotations

from swiprd.folder.onnx_file import OnnxFile
from swiprd.folder.spec import Activation
from swiprd.inference.onnx_probe import Probe
from swiprd.pack import onnx_facts
from swiprd.pack.errors import Unclear

Reasoned = tuple[Activation, str]
"""An activation, and why it is that one."""

_SUMS = "what comes out are probabilities already: each picture's are 0 or more and sum to 1"


def choose(
    contents: OnnxFile, found: Probe, given: Reasoned | None, otherwise: Reasoned, *, asks: bool
) -> Reasoned:
    """Choose the activation, and say why.

    Args:
        given: what the command line says, if anything.
        otherwise: the choice where nothing shows that the file has one.
        asks: whether answers that may be probabilities are asked about.

    Raises:
        Unclear: the file has an activation, and the command line would have another on top; or
            the answers may be probabilities or not.
    """
    ends = onnx_facts.ends_in(contents, found.output)
    if ends is None and found.sum_to_one:
        ends = ("none", _SUMS)
    if given is not None:
        if ends is not None and given[0] not in ("none", ends[0]):
            raise Unclear(f"{given[1]}: {ends[1]}: leave {given[1]} out")
        return given
    if ends is not None:
        return ends
    if asks and found.within_one:
        raise Unclear(
            "--activation: are these probabilities already? Every answer to the pictures that it"
            " was tried with is from 0 to 1, and the file does not end in an activation that is"
            f" recognised. --activation none if they are; else --activation {otherwise[0]}"
        )
    return otherwise
