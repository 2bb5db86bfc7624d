"""ONNX files made by the tests, as torch, Keras' converter and Ultralytics write them. Needs onnx.

The network is a small one that tells pictures apart: the mean and the extremes of each colour, in
all and after a convolution, and a layer over these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 4
EDGE = 32
FEATURES = 12

MODEL_TOML = """\
name = "bird"
architecture = "onnx"
weights = "model.onnx"
labels = "labels.txt"
activation = "softmax"

[preprocess]
resize = 36
crop = {edge}
"""


def make_model(
    shape: Sequence[int | str] = ("n", 3, EDGE, EDGE),
    *,
    last: str = "",
    classes: int = CLASSES,
    outputs: Sequence[str] = ("scores",),
    metadata: Mapping[str, str] | None = None,
    nodes: Sequence[onnx.NodeProto] = (),
    opsets: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """Make a classifier.

    Args:
        shape: of its input; with the colours last it begins with a Transpose, as tf2onnx has it.
        last: the operator that it ends in, such as Softmax, with an activation.
        outputs: names; what is there besides the first has the features.
        nodes: put before its own.
        opsets: of other domains.
    """
    rng = np.random.default_rng(7)
    values = {
        "filters": rng.normal(0, 0.3, (3, 3, 3, 3)),
        "weight": rng.normal(0, 2, (FEATURES, classes)),
        "bias": rng.normal(0, 0.1, classes),
    }
    steps = list(nodes)
    crops = "pictures"
    if shape[3] == 3:
        steps.append(helper.make_node("Transpose", [crops], ["first"], perm=[0, 3, 1, 2]))
        crops = "first"
    steps.append(helper.make_node("Conv", [crops, "filters"], ["edges"], pads=[1, 1, 1, 1]))
    parts = []
    for value in (crops, "edges"):
        for pool in ("GlobalAveragePool", "GlobalMaxPool"):
            parts.append(f"{value}_{pool}")
            steps.append(helper.make_node(pool, [value], [parts[-1]]))
    steps.append(helper.make_node("Concat", parts, ["pooled"], axis=1))
    steps.append(helper.make_node("Flatten", ["pooled"], ["features"]))
    logits = "logits" if last else outputs[0]
    steps.append(helper.make_node("Gemm", ["features", "weight", "bias"], [logits]))
    if last:
        steps.append(helper.make_node(last, [logits], [outputs[0]]))
    given = [helper.make_tensor_value_info(outputs[0], TensorProto.FLOAT, [shape[0], classes])]
    for name in outputs[1:]:
        steps.append(helper.make_node("Identity", ["features"], [name]))
        given.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [shape[0], FEATURES]))
    graph = helper.make_graph(
        steps,
        "bird",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, list(shape))],
        given,
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in values.items()],
    )
    imports = [helper.make_opsetid("", 17)]
    imports += [helper.make_opsetid(domain, version) for domain, version in (opsets or {}).items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8, producer_name="tests")
    helper.set_model_props(model, dict(metadata or {}))
    return model


def any_number_of_outputs(classes: int) -> onnx.ModelProto:
    """A network whose file does not say how many outputs it has: Compress keeps all of them."""
    model = make_model(classes=classes)
    gemm = model.graph.node[-1]
    gemm.output[0] = "logits"
    steps = [
        helper.make_node("ReduceMax", ["logits"], ["most"], axes=[0], keepdims=0),
        helper.make_node("Greater", ["most", "least"], ["kept"]),
        helper.make_node("Compress", ["logits", "kept"], ["scores"], axis=1),
    ]
    model.graph.node.extend(steps)
    least = numpy_helper.from_array(np.array(-1e9, np.float32), "least")
    model.graph.initializer.append(least)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "k"
    return model


def endless() -> bytes:
    """A Loop that never ends: it is loaded, and the first picture holds it for ever."""
    true = numpy_helper.from_array(np.array(True), "true")
    value, truth = TensorProto.FLOAT, TensorProto.BOOL
    steps = [("go", "going"), ("v", "more")]
    inner = helper.make_graph(
        [helper.make_node("Identity", [one], [other]) for one, other in steps],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", truth, []),
            helper.make_tensor_value_info("v", value, None),
        ],
        [
            helper.make_tensor_value_info("going", truth, []),
            helper.make_tensor_value_info("more", value, None),
        ],
    )
    model = make_model()
    model.graph.node[-1].output[0] = "before"
    loop = helper.make_node("Loop", ["", "true", "before"], ["scores"], body=inner)
    model.graph.node.append(loop)
    model.graph.initializer.append(true)
    return bytes(model.SerializeToString())


def rows(crops: np.ndarray, classes: int = CLASSES) -> np.ndarray:
    """What the network answers by onnx's own reference: [n, 3, h, w] → softmax of [n, labels]."""
    from onnx.reference import ReferenceEvaluator

    model = make_model(("n", 3, "h", "w"), last="Softmax", classes=classes)
    (found,) = ReferenceEvaluator(model).run(None, {"pictures": crops})
    return np.asarray(found)


def make_onnx_folder(
    folder: Path, model: onnx.ModelProto | bytes | None = None, *, edge: int = EDGE, extra: str = ""
) -> Path:
    """Write model.toml, labels.txt and model.onnx; `extra` comes first in model.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(model, bytes):
        model = (make_model() if model is None else model).SerializeToString()
    (folder / "model.onnx").write_bytes(model)
    (folder / "labels.txt").write_text("".join(f"class{i}\n" for i in range(CLASSES)))
    (folder / "model.toml").write_text(extra + MODEL_TOML.format(edge=edge))
    return folder
