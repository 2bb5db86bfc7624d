"""A compiled form that answers in a process of its own, for one that has torch.

    python -P -m swiprd.inference.separate FOLDER DIRECTORY THREADS

torch and onnxruntime do not get along in one process everywhere. The process says on its standard
output what it has loaded, a line of JSON; takes the crops of a picture on its standard input,
float32 [crops, 3, crop, crop]; answers them with the seconds that they took, a float64, and the
row, float32 [labels]; and leaves on EOF. Imports neither torch nor, in the process that asks,
onnxruntime.
"""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np

from swiprd.folder.spec import ModelSpec, load_spec
from swiprd.folder.toml_table import SpecError
from swiprd.inference.onnx_model import NoCompiledForm, load_onnx
from swiprd.system.reason import first_line

_SECONDS = struct.Struct("d")
_TOLD = 1 << 16  # bytes that are read of what it complains of


class SeparateFailed(Exception):
    """The process has ended, or been ended; the text says how."""


class Separate:
    """A compiled form in a process of its own: a context manager, which ends it.

    Attributes:
        version: onnxruntime's.
        difference, outpaced: as in `CompiledRecord`.
        load_seconds: what it took to import onnxruntime and make the session.
    """

    def __init__(self, spec: ModelSpec, directory: Path, labels: int, threads: int) -> None:
        """Start the process and wait until it has loaded the form.

        Args:
            labels: how many answers each row has.

        Raises:
            NoCompiledForm: there is none that can serve here.
        """
        self._labels = labels
        # Not a pipe: nobody reads it before the end.
        self._told = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        program = [sys.executable, "-P", "-m", "swiprd.inference.separate"]
        self._process = subprocess.Popen(
            [*program, str(spec.folder), str(directory), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._told,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            reason = self._end()
            self.close()
            raise NoCompiledForm(reason)
        told = json.loads(line)
        self.version: str = told["version"]
        self.difference: float = told["difference"]
        self.outpaced: str = told["outpaced"]
        self.load_seconds: float = told["seconds"]

    def __enter__(self) -> Separate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answer(self, crops: np.ndarray) -> tuple[np.ndarray, float]:
        """Answer a picture: float32 [crops, 3, h, w] → float32 [labels], and the seconds it took.

        Raises:
            SeparateFailed: it could not.
        """
        size = _SECONDS.size + 4 * self._labels
        try:
            self._requests.write(np.ascontiguousarray(crops, np.float32).tobytes())
            self._requests.flush()
        except BrokenPipeError:
            raise SeparateFailed(self._end()) from None
        data = self._answers.read(size)
        if len(data) < size:
            raise SeparateFailed(self._end())
        (seconds,) = _SECONDS.unpack_from(data)
        return np.frombuffer(data, np.float32, offset=_SECONDS.size), seconds

    def close(self) -> None:
        """End the process and reap it."""
        with suppress(BrokenPipeError):
            self._requests.close()
        self._process.wait()
        self._answers.close()
        self._told.close()

    def _end(self) -> str:
        """Wait for a process that has given up; return what it says."""
        status = self._process.wait()
        if status < 0:
            return f"onnxruntime's process was ended by {signal.Signals(-status).name}"
        self._told.seek(0)
        lines = self._told.read(_TOLD).decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"onnxruntime's process ended with status {status}"


def main(arguments: list[str]) -> int:
    """Run for the command line; return the exit status."""
    folder, directory = map(Path, arguments[:2])
    try:
        begun = time.monotonic()
        spec = load_spec(folder)
        model = load_onnx(spec, directory)
        model.set_threads(int(arguments[2]))
    except (NoCompiledForm, SpecError) as error:
        print(first_line(error, 1000), file=sys.stderr)
        return 1
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    greeting = {
        "version": model.versions["onnxruntime"],
        "difference": model.difference,
        "outpaced": model.outpaced(),
        "seconds": time.monotonic() - begun,
    }
    answers.write(json.dumps(greeting).encode() + b"\n")
    answers.flush()
    recipe = spec.preprocess
    shape = (1, recipe.crop_count, 3, recipe.crop, recipe.crop)
    size = 4 * math.prod(shape)
    while len(data := requests.read(size)) == size:
        crops = np.frombuffer(data, np.float32).reshape(shape)
        begun = time.monotonic()
        row = model.probabilities(crops)[0]
        seconds = time.monotonic() - begun
        answers.write(_SECONDS.pack(seconds) + row.astype(np.float32).tobytes())
        answers.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
