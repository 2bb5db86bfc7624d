"""A compiled form, or an ONNX file, that answers in a process of its own.

    python -P -m swiprd.inference.separate FOLDER DIRECTORY THREADS PARENT

torch and onnxruntime do not get along in one process everywhere, and a stranger's file may end the
process that opens it, or hold it for ever. The process says on its standard output what it has
loaded, a line of JSON; takes the crops of a picture on its standard input, float32 [crops, 3, crop,
crop]; answers them with the seconds that they took, a float64, and the row, float32 [labels]; and
is ended when it is no longer wanted. Imports neither torch nor, in the process that asks,
onnxruntime.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import numpy as np

from swiprd.folder.spec import ModelSpec, load_spec
from swiprd.folder.toml_table import SpecError
from swiprd.inference.onnx_model import NoCompiledForm, load_onnx, load_onnx_file
from swiprd.system.kernel import die_with_parent
from swiprd.system.proc import bound_own_memory, offer_to_the_oom_killer
from swiprd.system.reason import first_line

_SECONDS = struct.Struct("d")
_TOLD = 1 << 16  # bytes that are read of what it complains of
_PATIENCE = 120.0  # seconds that loading may take, and an answer


class SeparateFailed(Exception):
    """The process has ended, or been ended; the text says how."""


class Separate:
    """A compiled form in a process of its own: a context manager, which ends it.

    Attributes:
        version: onnxruntime's.
        difference, outpaced: as in `CompiledRecord`; 0 and nothing of an ONNX file.
        parameters: values of all tensors in the file.
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
            [*program, str(spec.folder), str(directory), str(threads), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._told,
            bufsize=0,  # select() knows nothing of what a buffer holds
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout
        try:
            self._wait("loading it")
            line = self._answers.readline()
            if not line.endswith(b"\n"):
                raise SeparateFailed(self._end())
        except SeparateFailed as error:
            self.close()
            raise NoCompiledForm(str(error)) from None
        except BaseException:
            self.close()
            raise
        told = json.loads(line)
        self.version: str = told["version"]
        self.difference: float = told["difference"]
        self.outpaced: str = told["outpaced"]
        self.parameters: int = told["parameters"]
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
        try:
            left = memoryview(np.ascontiguousarray(crops, np.float32).tobytes())
            while left:
                left = left[self._requests.write(left) :]
        except BrokenPipeError:
            raise SeparateFailed(self._end()) from None
        data = self._read(_SECONDS.size + 4 * self._labels, "an answer")
        (seconds,) = _SECONDS.unpack_from(data)
        return np.frombuffer(data, np.float32, offset=_SECONDS.size), seconds

    def close(self) -> None:
        """End the process and reap it."""
        self._process.kill()
        self._process.communicate()
        self._told.close()

    def _wait(self, what: str) -> None:
        """Wait until there is something to read, or the process has ended.

        Raises:
            SeparateFailed: it takes too long.
        """
        if not select.select([self._answers], [], [], _PATIENCE)[0]:
            raise SeparateFailed(f"{what} takes onnxruntime more than {_PATIENCE:g} s")

    def _read(self, size: int, what: str) -> bytes:
        """Read so many bytes, whose pieces may come one by one.

        Raises:
            SeparateFailed: the process has ended before, or takes too long for one of them.
        """
        data = b""
        while len(data) < size:
            self._wait(what)
            if not (part := os.read(self._answers.fileno(), size - len(data))):
                raise SeparateFailed(self._end())
            data += part
        return data

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
    die_with_parent(int(arguments[3]))
    offer_to_the_oom_killer()
    bound_own_memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        begun = time.monotonic()
        spec = load_spec(folder)
        model = load_onnx_file(spec) if spec.is_onnx else load_onnx(spec, directory)
        model.set_threads(int(arguments[2]))
    except (NoCompiledForm, SpecError) as error:
        print(first_line(error, 1000), file=sys.stderr)
        return 1
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    greeting = {
        "version": model.versions["onnxruntime"],
        "difference": model.difference or 0.0,
        "parameters": model.parameters,
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
        try:
            row = model.probabilities(crops)[0]
        except Exception as error:
            # Each of onnxruntime's errors is a class of its own, without one above them but this.
            print(first_line(error, 1000), file=sys.stderr)
            return 1
        seconds = time.monotonic() - begun
        answers.write(_SECONDS.pack(seconds) + row.astype(np.float32).tobytes())
        answers.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
