"""An ONNX file → sessions of ONNX Runtime, made of the bytes that were looked through.

All are made of one sealed copy in memory: nobody can change that between the look and a session,
nor between two sessions, and there is no other file beside it that could be read. No library of
operators is ever loaded. Imports no torch.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import re
from mmap import PROT_READ, mmap
from pathlib import Path
from types import ModuleType
from typing import Any

from swiprd.folder.compiled_record import open_compiled
from swiprd.folder.onnx_file import MOST, BadOnnx, OnnxFile, inspect
from swiprd.system.memfd import sealed_copy
from swiprd.system.reason import first_line
from swiprd.system.silence import silenced_stderr

_PREFIX = re.compile(r"(\[ONNXRuntimeError\] : )?(\d+ : )?(\w+ : )?(Load model from \S+ failed:)?")
_QUIET = (
    4  # onnxruntime's severity "fatal": errors are raised, and its lines have names of a file's
)


class NoSession(Exception):
    """The file cannot be served here; the text says which, and why."""


class OnnxSource:
    """A file that sessions are made of.

    Attributes:
        version: onnxruntime's.
        sha256: of the file.
        contents: what is in it.
    """

    def __init__(self, file: Path) -> None:
        """Open a file and look it through.

        Raises:
            NoSession: it is not fit to be run, or onnxruntime is not installed.
        """
        self._path = file
        self._runtime = _import_onnxruntime()
        self.version = str(self._runtime.__version__)
        try:
            with open_compiled(file) as opened:
                # Kept: a child's own session is made of the very bytes that were looked through,
                # whatever the file holds by then.
                self._copy: int | None = sealed_copy(opened.fileno(), MOST)
        except OSError as error:
            reason = f"more than {MOST} bytes, ONNX's own limit"
            if error.errno != errno.EFBIG:
                reason = f"cannot be read: {error.strerror or error}"
            raise NoSession(f"{file}: {reason}") from None
        try:
            with open(f"/proc/self/fd/{self._copy}", "rb") as copied:
                self.sha256 = hashlib.file_digest(copied, "sha256").hexdigest()
            self.contents = self._look(self._copy)
        except BaseException:
            self.close()
            raise

    def session(self, threads: int) -> Any:
        """Make an InferenceSession. One of one thread starts none.

        Raises:
            NoSession: onnxruntime does not take it, or the copy is closed.
        """
        if self._copy is None:
            raise NoSession(f"{self._path}: is closed")
        runtime = self._runtime
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = _QUIET
        try:
            # Debian's 1.21 prints 567 lines on standard error when it makes its first session: the
            # operators of libonnx are there twice. What matters is raised.
            with silenced_stderr():
                return runtime.InferenceSession(
                    f"/proc/self/fd/{self._copy}", options, providers=["CPUExecutionProvider"]
                )
        except Exception as error:
            # Each of its errors is a class of its own, without one above them but this.
            reason = _PREFIX.sub("", first_line(error, 1000))
            raise NoSession(f"{self._path}: onnxruntime refuses it: {reason[:300]}") from None

    def close(self) -> None:
        """Give the copy up. Sessions that are made stay."""
        if self._copy is not None:
            os.close(self._copy)
            self._copy = None

    def _look(self, copy: int) -> OnnxFile:
        if not os.fstat(copy).st_size:
            raise NoSession(f"{self._path}: empty")
        try:
            with mmap(copy, 0, prot=PROT_READ) as mapped:
                contents = inspect(mapped)
        except BadOnnx as error:
            raise NoSession(f"{self._path}: {error}") from None
        if contents.external:
            name = sorted(contents.external)[0]
            raise NoSession(
                f"{self._path}: has tensors in another file ({name!r}): 'swiprd pack' makes one of"
                " both"
            )
        return contents


def _import_onnxruntime() -> ModuleType:
    """Import onnxruntime, which need not be installed.

    Raises:
        NoSession: it is not, or is damaged.
    """
    # Before the import: some builds of it start a thread then, which writes a database below the
    # user's home and sends to its maker. Telling it afterwards does not end the thread.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        runtime = importlib.import_module("onnxruntime")
        for name in ("__version__", "InferenceSession", "SessionOptions"):
            getattr(runtime, name)  # an interrupted installation leaves an empty package
    except Exception as error:  # its initialisation runs much, and may raise anything
        raise NoSession(f"onnxruntime cannot be imported: {first_line(error)}") from None
    return runtime
