"""The engine `onnx`: a compiled form served by ONNX Runtime. Imports no torch.

The forkserver makes the model, and its children inherit it. A session of one thread starts none,
and works in a forked child as long as it has not been run before the fork; one of several threads
does not survive the fork, and is made in the child that wants it. Pooling over the crops and the
activation, which are not part of the compiled form, are done here, as model.py does them.
"""

from __future__ import annotations

import importlib
import math
import os
import platform
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import PIL

from swiprd.folder.compiled_record import (
    COMPILED,
    RECORD,
    CompiledRecord,
    digest_file,
    is_current,
    load_record,
    open_compiled,
)
from swiprd.folder.model_id import digest_weights, identify
from swiprd.folder.spec import IMAGENET_CLASSES, ModelSpec
from swiprd.system.reason import first_line
from swiprd.system.silence import silenced_stderr

INPUT, OUTPUT = "crops", "outputs"
"""What compiled forms call their input, float32 [n, 3, crop, crop], and their output, [n, labels]:
the module's own, before pooling and activation."""

_QUIET = 3  # onnxruntime's severity "error": a warning about a graph is of no use to anybody here


class NoCompiledForm(Exception):
    """There is none that can serve here; the text says why."""


class OnnxModel:
    """A model that is ready to answer, and what it calls itself: an `Engine`.

    Attributes:
        labels: one for each output, in their order.
        model_id: the same as torch's; see `model_id.identify`.
        versions: of everything that has a say in the last digits of an answer.
        record: what it was proven by; None before.
        sha256: of the file that it has opened.
    """

    name: Literal["onnx"] = "onnx"
    device = "cpu"

    def __init__(
        self,
        spec: ModelSpec,
        file: Path,
        labels: tuple[str, ...],
        model_id: str,
        record: CompiledRecord | None = None,
    ) -> None:
        """Open a compiled form and make a session of one thread. Does not run it.

        Raises:
            NoCompiledForm: onnxruntime is not installed, or cannot load the file.
        """
        self.spec = spec
        self.labels = labels
        self.model_id = model_id
        self.record = record
        self._runtime = _import_onnxruntime()
        self.versions = {
            "onnxruntime": str(self._runtime.__version__),
            "pillow": PIL.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        self._path = file
        try:
            # Kept open: a child's own session is made of the file that was checked, whatever has
            # its name by then.
            self._file = open_compiled(file)
        except OSError as error:
            raise NoCompiledForm(f"{file}: cannot be read: {error.strerror or error}") from None
        try:
            self.sha256 = digest_file(self._opened())
            self._alone = self._session(1)
        except BaseException:
            self._file.close()
            raise
        self._several: tuple[int, Any] | None = None
        self._used = self._alone

    @property
    def difference(self) -> float | None:
        """The largest by which a probability differed from torch's in the proof; None before it."""
        return self.record.difference if self.record is not None else None

    def outpaced(self) -> str:
        """Return why torch is the better choice; nothing where it is not, or nobody knows."""
        return self.record.outpaced() if self.record is not None else ""

    def close(self) -> None:
        """Close the file. The model answers on, with as many threads as it has had."""
        self._file.close()

    def set_threads(self, threads: int) -> None:
        """Answer with so many threads from now on.

        The first time for a number above 1 a session is made, which takes some 50 to 500 ms. Its
        threads belong to the process that calls: a process that forks must not.

        Raises:
            NoCompiledForm: the file has been written to since it was opened.
        """
        if threads == 1:
            self._used = self._alone
            return
        if self._several is None or self._several[0] != threads:
            self._several = None  # first of all, which ends the threads of one before
            if digest_file(self._opened()) != self.sha256:
                raise NoCompiledForm(f"{self._path}: has been written to since it was opened")
            self._several = threads, self._session(threads)
        self._used = self._several[1]

    def to_device(self, device: str) -> OnnxModel:
        """Return itself for "cpu".

        Raises:
            RuntimeError: another device; there torch is what serves.
        """
        if device != self.device:
            raise RuntimeError(f"the engine onnx answers on the CPU, not on {device}")
        return self

    def probabilities(self, crops: np.ndarray) -> np.ndarray:
        """Answer a batch: float32 [images, crops, 3, h, w] → float32 [images, labels].

        With `log_softmax` the outputs are the logarithms of the probabilities, and softmax is what
        undoes that; see model.py.
        """
        images, count = crops.shape[:2]
        flat = crops.reshape(images * count, *crops.shape[2:])
        (raw,) = self._used.run([OUTPUT], {INPUT: flat})
        outputs: np.ndarray = raw.reshape(images, count, -1)
        rows: np.ndarray
        match self.spec.preprocess.pool:
            case "logits":
                rows = self._activate(outputs.mean(axis=1))
            case "logsumexp":
                rows = self._activate(_logsumexp(outputs) - np.float32(math.log(count)))
            case "mean":
                rows = self._activate(outputs).mean(axis=1)
        return rows

    def _activate(self, outputs: np.ndarray) -> np.ndarray:
        match self.spec.activation:
            case "softmax" | "log_softmax":
                return _softmax(outputs)
            case "sigmoid":
                return _sigmoid(outputs)
            case "none":
                return outputs

    def _session(self, threads: int) -> Any:
        runtime = self._runtime
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = _QUIET
        file = str(self._opened())
        try:
            # Debian's 1.21 prints 567 lines on standard error when it makes its first session: the
            # operators of libonnx are there twice. What matters is raised.
            with silenced_stderr():
                return runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            # Each of its errors is a class of its own, without one above them but this.
            raise NoCompiledForm(f"{self._path}: {first_line(error)}") from None

    def _opened(self) -> Path:
        """Name the file that is open, to be opened anew: forked processes share an offset."""
        return Path(f"/proc/self/fd/{self._file.fileno()}")


def load_onnx(spec: ModelSpec, directory: Path) -> OnnxModel:
    """Load a model's compiled form from `directory`, if it is proven and still the model's.

    Starts no thread and runs nothing: forked children can use it.

    Raises:
        NoCompiledForm: it is not, there is none, or onnxruntime is not installed.
        SpecError: the weights have gone since `load_spec`.
    """
    record = load_record(directory)
    if record is None:
        raise NoCompiledForm(f"{directory}: has no {RECORD} that can be used")
    labels = record.labels if spec.labels == "imagenet" else spec.labels
    if spec.labels == "imagenet" and len(labels) != IMAGENET_CLASSES:
        raise NoCompiledForm(f"{directory / RECORD}: has {len(labels)} labels, not the thousand")
    weights = digest_weights(spec)
    model_id = identify(replace(spec, sha256=spec.sha256 or weights))
    model = OnnxModel(spec, directory / COMPILED, labels, model_id, record)
    if why := is_current(record, spec, compiled=model.sha256, weights=weights):
        model.close()
        raise NoCompiledForm(why)
    return model


def _import_onnxruntime() -> ModuleType:
    """Import onnxruntime, which need not be installed.

    Raises:
        NoCompiledForm: it is not.
    """
    # Before the import: some builds of it start a thread then, which writes a database below the
    # user's home and sends to its maker. Telling it afterwards does not end the thread.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise NoCompiledForm(f"onnxruntime cannot be imported: {first_line(error)}") from None


def _softmax(outputs: np.ndarray) -> np.ndarray:
    powers: np.ndarray = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def _sigmoid(outputs: np.ndarray) -> np.ndarray:
    powers: np.ndarray = np.exp(-np.abs(outputs))  # at most 1: no output overflows it
    rows: np.ndarray = np.where(outputs >= 0, np.float32(1), powers) / (1 + powers)
    return rows


def _logsumexp(outputs: np.ndarray) -> np.ndarray:
    """Return log(sum(exp())) over the crops: [images, crops, labels] → [images, labels]."""
    largest = outputs.max(axis=1, keepdims=True)
    # Infinities have no difference.
    largest = np.where(np.isfinite(largest), largest, np.float32(0))
    with np.errstate(divide="ignore"):  # the logarithm of 0 is what it should be
        sums: np.ndarray = np.log(np.exp(outputs - largest).sum(axis=1))
    return sums + largest[:, 0]
