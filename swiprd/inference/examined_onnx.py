"""A model that is an ONNX file, examined: in a process of its own, which a file may end or hold.

Imports no torch, nor, in this process, onnxruntime.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

from swiprd.folder.canary import CANARY_LIMITS
from swiprd.folder.model_id import identify
from swiprd.folder.spec import ModelSpec
from swiprd.folder.toml_table import SpecError
from swiprd.inference import decode
from swiprd.inference.examined import EX_CONFIG, EX_SOFTWARE, Answer, CheckFailed
from swiprd.inference.onnx_model import NoCompiledForm
from swiprd.inference.separate import Separate, SeparateFailed


class ExaminedOnnx:
    """Of a folder with an ONNX file; see `Examined`."""

    fault = ""
    device = "cpu"

    def __init__(self, spec: ModelSpec, device: str, ends: ExitStack) -> None:
        """Load the file.

        Args:
            device: "auto", "cpu" or "cuda".
            ends: takes what is to be ended.

        Raises:
            SpecError: CUDA is demanded.
            CheckFailed: it cannot be served here; the text says which file, and why.
        """
        if device == "cuda":
            expected = "weights that torch takes: an ONNX file is served on the CPU"
            raise SpecError(spec.file, "architecture", expected, f'"{spec.architecture}", and cuda')
        assert spec.labels != "imagenet"  # load_spec has seen to it
        self.spec = spec
        self.labels = spec.labels
        self.threads = len(os.sched_getaffinity(0))
        try:
            self._separate = Separate(spec, spec.folder, len(self.labels), self.threads)
        except NoCompiledForm as error:
            raise CheckFailed(str(error).removeprefix(f"{spec.folder}/"), EX_CONFIG) from None
        ends.enter_context(self._separate)
        self.model_id = identify(spec)
        self.engine = f"onnx {self._separate.version}"
        self.parameters = self._separate.parameters
        self.load_seconds = self._separate.load_seconds

    def answer(self, data: bytes) -> Answer:
        """Answer one picture.

        Raises:
            BadImage, TooLarge: it is no picture, or too large a one.
            CheckFailed: the network fails.
        """
        begun = time.monotonic()
        crops = decode.decode(data, self.spec.preprocess, CANARY_LIMITS.max_pixels)
        decoded = time.monotonic()
        try:
            row, seconds = self._separate.answer(crops)
        except SeparateFailed as error:
            raise CheckFailed(f"the network fails: {error}", EX_SOFTWARE) from None
        return Answer(row=tuple(row.tolist()), decode=decoded - begun, infer=seconds)
