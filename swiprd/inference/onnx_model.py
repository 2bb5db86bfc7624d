"""The engine `onnx`: a compiled form, or a model that is an ONNX file, served by ONNX Runtime.

Imports no torch. The forkserver makes the model, and its children inherit it. A session of one
thread starts none, and works in a forked child as long as it has not been run before the fork; one
of several threads does not survive the fork, and is made in the child that wants it. Pooling over
the crops and the activation, which are not part of the file, are done here, as model.py does them.
"""

from __future__ import annotations

import math
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL

from swiprd.folder.compiled_record import (
    COMPILED,
    RECORD,
    CompiledRecord,
    is_current,
    load_record,
)
from swiprd.folder.model_id import digest_weights, identify
from swiprd.folder.spec import IMAGENET_CLASSES, ModelSpec
from swiprd.folder.toml_table import SpecError
from swiprd.inference.onnx_network import Network, UnfitNetwork
from swiprd.inference.onnx_session import NoSession, OnnxSource
from swiprd.system.log import log

INPUT, OUTPUT = "crops", "outputs"
"""What compiled forms call their input, float32 [n, 3, crop, crop], and their output, [n, labels]:
the module's own, before pooling and activation."""

_FIT = "an ONNX file that can be served"


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
        parameters: values of all tensors in it.
        network: what it takes and gives.
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
        """Open a file and make a session of one thread. Does not run it.

        Raises:
            NoCompiledForm: onnxruntime is not installed, or cannot load the file.
            UnfitNetwork: it is no classifier of such pictures.
        """
        self.spec = spec
        self.labels = labels
        self.model_id = model_id
        self.record = record
        try:
            self._source = OnnxSource(file)
        except NoSession as error:
            raise NoCompiledForm(str(error)) from None
        self.versions = {
            "onnxruntime": self._source.version,
            "pillow": PIL.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        self.sha256 = self._source.sha256
        self.parameters = self._source.contents.parameters
        try:
            self._alone = self._session(1)
            self.network = Network(self._alone, spec.output, may_split=spec.is_onnx)
        except BaseException:
            self._source.close()
            raise
        self._several: tuple[int, Any] | None = None
        self._used = self._alone
        self._stays_alone = False

    @property
    def difference(self) -> float | None:
        """The largest by which a probability differed from torch's in the proof; None before it."""
        return self.record.difference if self.record is not None else None

    def outpaced(self) -> str:
        """Return why torch is the better choice; nothing where it is not, or nobody knows."""
        return self.record.outpaced() if self.record is not None else ""

    def close(self) -> None:
        """Give the file's copy up. The model answers on, with threads that it has had, or one."""
        self._source.close()

    def set_threads(self, threads: int) -> None:
        """Answer with so many threads from now on.

        The first time for a number above 1 a session is made, which takes some 50 to 500 ms. Its
        threads belong to the process that calls: a process that forks must not. Where none can be
        made, the log says so once, and one thread answers: no image is to blame for that.
        """
        if threads == 1 or self._stays_alone:
            self._used = self._alone
            return
        if self._several is None or self._several[0] != threads:
            self._several = None  # first of all, which ends the threads of one before
            try:
                self._several = threads, self._session(threads)
            except NoCompiledForm as error:
                log.warning("%s; one thread answers in place of %d", error, threads)
                self._stays_alone = True
                self._used = self._alone
                return
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

        Raises:
            UnfitNetwork: the network gives another number of outputs than there are labels.
        """
        images, count = crops.shape[:2]
        flat = crops.reshape(images * count, *crops.shape[2:])
        answered = self.network.answer(self._used, flat)
        if answered.shape[1] != len(self.labels):  # the file need not say how many there will be
            expected = f"as many outputs as there are labels, {len(self.labels)}"
            raise UnfitNetwork("labels", expected, str(answered.shape[1]))
        outputs = answered.reshape(images, count, -1)
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
        try:
            return self._source.session(threads)
        except NoSession as error:
            raise NoCompiledForm(str(error)) from None


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
    try:
        model = OnnxModel(spec, directory / COMPILED, labels, model_id, record)
    except UnfitNetwork as error:
        raise NoCompiledForm(f"{directory / COMPILED}: {error}") from None
    if why := is_current(record, spec, compiled=model.sha256, weights=weights):
        model.close()
        raise NoCompiledForm(why)
    return model


def load_onnx_file(spec: ModelSpec) -> OnnxModel:
    """Load a model whose network is an ONNX file: `architecture = "onnx"`.

    Starts no thread and runs nothing: forked children can use it.

    Raises:
        SpecError: the file is not fit to be served, or onnxruntime is not installed.
    """
    assert spec.labels != "imagenet"  # load_spec has seen to it
    try:
        model = OnnxModel(spec, spec.weights, spec.labels, model_id="")
    except NoCompiledForm as error:
        found = str(error).removeprefix(f"{spec.weights}: ")
        raise SpecError(spec.weights, "", _FIT, f"what cannot be: {found}") from None
    except UnfitNetwork as error:
        file = spec.file if error.key else spec.weights
        raise SpecError(file, error.key, error.expected, error.found) from None
    try:
        _compare(spec, model)
    except SpecError:
        model.close()
        raise
    model.model_id = identify(replace(spec, sha256=model.sha256))
    return model


def _compare(spec: ModelSpec, model: OnnxModel) -> None:
    """See that model.toml says what the file does, and is about this file.

    Raises:
        SpecError: it says something else.
    """
    if spec.sha256 not in (None, model.sha256):
        raise SpecError(spec.weights, "", f"the recorded sha256 {spec.sha256}", model.sha256)
    network, crop = model.network, spec.preprocess.crop
    if network.edge not in (None, crop):
        expected = f"{network.edge}, as {spec.weights.name} takes"
        raise SpecError(spec.file, "preprocess.crop", expected, str(crop))
    if network.labels not in (None, len(spec.labels)):
        expected = f"as many as {spec.weights.name} has outputs, {network.labels}"
        raise SpecError(spec.file, "labels", expected, str(len(spec.labels)))


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
