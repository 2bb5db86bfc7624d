"""What the network in an ONNX file takes and gives, and how it is asked. Imports no torch.

Found in the file: its one input, pictures with the channels first (torch) or last (Keras), of one
size or of any, so many at once or as many as there are; and the output that is a row of numbers
for each picture. Nothing of that is written down elsewhere, where it could be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_FLOAT = "tensor(float)"
_SHOWN = 60  # characters of a name, in an error


class UnfitNetwork(Exception):
    """The network is no classifier of such pictures.

    Attributes:
        key: of model.toml, where that could be otherwise; else empty.
        expected, found: as of a `SpecError`.
    """

    def __init__(self, key: str, expected: str, found: str) -> None:
        super().__init__(f"expected {expected}, found {found}")
        self.key = key
        self.expected = expected
        self.found = found


class Network:
    """One network, by its session's own account.

    Args:
        session: any of its sessions.
        output: the name of the output that counts; None where there is one only.
        may_split: whether pictures may be asked one by one where several at once fail.

    Attributes:
        channels_last: whether it takes [n, h, w, 3]; else [n, 3, h, w].
        edge: of the square pictures that it takes; None if it takes any, as far as is known.
        batch: the only number of pictures that it takes at once; None likewise.
        labels: how many numbers a picture gets; None where that is seen when it answers.
        output: the name of the output that is read.

    Raises:
        UnfitNetwork: it takes or gives something else.
    """

    def __init__(self, session: Any, output: str | None, *, may_split: bool) -> None:
        taken = session.get_inputs()
        if len(taken) != 1:
            names = _listed([one.name for one in taken])
            raise UnfitNetwork("", "a network of one input, pictures", f"{len(taken)}: {names}")
        (pictures,) = taken
        shape = [one if isinstance(one, int) else None for one in pictures.shape]
        if pictures.type != _FLOAT or len(shape) != 4:
            found = f"{pictures.type} {_shown(pictures.shape)}"
            raise UnfitNetwork("", "an input of tensor(float) [n, 3, h, w] or [n, h, w, 3]", found)
        self.channels_last = _channels_last(shape, pictures.shape)
        height, width = shape[1:3] if self.channels_last else shape[2:]
        if height is not None and width is not None and height != width:
            raise UnfitNetwork("", "an input of square pictures", f"{height} x {width} pixels")
        self.edge = height or width
        self.batch = shape[0]
        if self.batch is not None and self.batch < 1:
            raise UnfitNetwork("", "an input of pictures", _shown(pictures.shape))
        self._may_split = may_split
        self._input = pictures.name
        self.output, self.labels = _choose(session.get_outputs(), output)

    def answer(self, session: Any, crops: np.ndarray) -> np.ndarray:
        """Answer pictures: float32 [n, 3, h, w] → float32 [n, labels].

        Raises:
            UnfitNetwork: the answer is not of this shape.
        """
        if self.channels_last:
            crops = np.ascontiguousarray(crops.transpose(0, 2, 3, 1))
        if self.batch is None:
            try:
                return self._run(session, crops)
            except Exception:
                # An export may have the number of pictures in it that it was traced with, where
                # nothing shows it. Each of onnxruntime's errors is a class of its own. If it was
                # not the number, it fails again below.
                if len(crops) == 1 or not self._may_split:
                    raise
                self.batch = 1
        rows = []
        for start in range(0, len(crops), self.batch):
            part = crops[start : start + self.batch]
            # The last part is filled up; what that answers is dropped.
            missing = self.batch - len(part)
            whole = np.concatenate([part, *[part[-1:]] * missing]) if missing else part
            rows.append(self._run(session, whole)[: len(part)])
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def _run(self, session: Any, crops: np.ndarray) -> np.ndarray:
        rows: np.ndarray
        (rows,) = session.run([self.output], {self._input: crops})
        if rows.ndim != 2 or len(rows) != len(crops):
            expected = f"a row of numbers for each of {len(crops)} pictures"
            raise UnfitNetwork("", expected, f"answers of shape {list(rows.shape)}")
        return rows


def _channels_last(shape: Sequence[int | None], told: Sequence[Any]) -> bool:
    """Tell where the three colours are; where nothing says it, they are first, as torch has it."""
    first, last = shape[1], shape[3]
    if first == 3 or (first is None and last != 3):
        return False
    if last == 3:
        return True
    raise UnfitNetwork("", "pictures of 3 channels: [n, 3, h, w] or [n, h, w, 3]", _shown(told))


def _choose(outputs: Sequence[Any], wanted: str | None) -> tuple[str, int | None]:
    """Return the output that counts, and how many numbers it has for a picture if that is known."""
    names = [one.name for one in outputs]
    if wanted is None and len(outputs) != 1:
        raise UnfitNetwork("output", f"one of {_listed(names)}", "nothing")
    if wanted is not None and wanted not in names:
        raise UnfitNetwork("output", f"one of {_listed(names)}", repr(wanted[:_SHOWN]))
    (chosen,) = (one for one in outputs if wanted in (None, one.name))
    if chosen.type != _FLOAT or len(chosen.shape) not in (0, 2):  # 0: nothing is said of it
        found = f"{chosen.type} {_shown(chosen.shape)}, which is {_listed([chosen.name])}"
        raise UnfitNetwork("output", "an output of tensor(float) [n, labels]", found)
    last = chosen.shape[-1] if chosen.shape else None
    return chosen.name, last if isinstance(last, int) else None


def _listed(names: Sequence[str]) -> str:
    more = ", …" if len(names) > 8 else ""
    return ", ".join(one[:_SHOWN] for one in names[:8]) + more


def _shown(shape: Sequence[Any]) -> str:
    return "[" + ", ".join(str(one)[:_SHOWN] for one in shape[:8]) + "]"
