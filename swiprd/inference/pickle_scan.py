"""A pickle's bytes → whether all that it asks for is a tensor or plain data. Loads nothing.

`torch.load(weights_only=True)` calls whatever its own list allows, with arguments that the file
chooses; that list is longer than a classifier's checkpoint needs, and parts of it (nested and
sparse tensors, subclasses) trust those arguments. So what is not on the list here is refused before
torch sees the file. Standard library only.
"""

from __future__ import annotations

import pickletools
import re
from typing import IO

# What becomes an object without contents, whatever the file says of it (pack.checkpoint.Unread):
# options, paths and scores, which training scripts leave beside the weights.
INERT = (
    "argparse.Namespace",
    *(
        f"{module}.{flavour}Path"
        for module in ("pathlib", "pathlib._local")
        for flavour in ("Posix", "Windows", "PurePosix", "PureWindows")
    ),
    *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
)

# Names as they stand in the pickle: protocol 2 writes Python 2's name of builtins.
_TENSORS_AND_DATA = re.compile(
    r"""
      collections\.(OrderedDict|Counter)
    | (builtins|__builtin__)\.(set|bytearray|complex)
    | _codecs\.encode                                   # bytes, in protocol 2
    | torch\.(cuda\.|storage\.)?[A-Za-z0-9]+Storage
    | torch\.(Size|device|bool|(u?int|float|bfloat|complex)\d\w*)
    | torch\._utils\._rebuild_(tensor(_v[23])?|parameter(_with_state)?)
    | torch\._utils\._rebuild_device_tensor_from_cpu_tensor
    | torch\.nn\.parameter\.Parameter
    """,
    re.VERBOSE,
)
_NOT_PLAIN = {
    "torch._utils._rebuild_qtensor": "quantised tensors",
    "torch._utils._rebuild_sparse_tensor": "sparse tensors",
    "torch._utils._rebuild_nested_tensor": "nested tensors",
    "torch._utils._rebuild_meta_tensor_no_storage": "tensors without values, of the meta device",
}
# A state_dict of 1,000 tensors and Adam's state take 120,000. Each costs about a microsecond here
# and again in torch.
_MOST_STEPS = 5_000_000
_SAVE = "torch.save(model.state_dict(), 'weights.pth')"


class Unwanted(Exception):
    """A pickle asks for more than tensors and plain data; the message says what to do instead.

    Attributes:
        first: what it asks for, fit to be printed; empty where it is only too long.
    """

    def __init__(self, message: str, first: str = "") -> None:
        super().__init__(message)
        self.first = first


def screen(data: IO[bytes], pickles: int) -> None:
    """See that the next `pickles` of a stream ask for nothing but tensors and plain data.

    Raises:
        Unwanted: they ask for more, or are too long.
        ValueError: they are no whole pickles.
    """
    asked: dict[str, None] = {}  # in order
    steps = 0
    last = ("", "")
    for _ in range(pickles):
        for opcode, argument, _position in pickletools.genops(data):
            steps += 1
            if steps > _MOST_STEPS:
                raise Unwanted(f"a pickle of over {_MOST_STEPS} steps. Save less: {_SAVE}")
            if opcode.name in ("GLOBAL", "INST"):
                asked[str(argument).replace(" ", ".")] = None
            elif opcode.name == "STACK_GLOBAL":
                asked[".".join(last)] = None
            elif isinstance(argument, str):
                last = (last[1], argument)
    unknown = [one for one in asked if one not in INERT and not _TENSORS_AND_DATA.fullmatch(one)]
    if unknown:
        raise Unwanted(_refusal(unknown), _NOT_PLAIN.get(unknown[0]) or _printable(unknown[0]))


def _refusal(unknown: list[str]) -> str:
    """Say what a pickle asks for that is no tensor, and what its owner can do."""
    if any(name.startswith(("fastai.learner", "fastai.basic_train")) for name in unknown):
        return (
            "a whole learner, as learn.export() writes it, which only runs as code. Where it was"
            " trained: learn.save('weights')"
        )
    if any(name.startswith(("torch.nn.modules.", "torchvision.models.")) for name in unknown):
        return (
            "a whole module, as torch.save(model) writes it, which only runs as code. Where it was"
            f" trained: {_SAVE}"
        )
    first = unknown[0]
    if first in _NOT_PLAIN:
        return f"holds {_NOT_PLAIN[first]}, which swipr does not run: save the float32 model"
    return (
        f"its pickle asks for {_printable(first)}, which is neither a tensor nor plain data and is"
        f" not run. If you trust where it came from, save the weights alone: {_SAVE}"
    )


def _printable(name: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in name[:100])
