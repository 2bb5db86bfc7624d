"""onnx_file.py: what is found in an ONNX file, and what is refused before anything opens it."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402 - it may not be there
from onnxfiles import make_model  # noqa: E402

from swiprd.folder import onnx_file  # noqa: E402
from swiprd.folder.onnx_file import BadOnnx, inspect  # noqa: E402

pytestmark = pytest.mark.timeout(60)


def refusal(model: Any) -> str:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(BadOnnx) as caught:
        inspect(data)
    return str(caught.value)


def test_what_is_found() -> None:
    model = make_model(last="Softmax", metadata={"names": "{0: 'a'}", "task": "classify"})
    model.producer_version = "2"
    found = inspect(model.SerializeToString())
    assert found.metadata == {"names": "{0: 'a'}", "task": "classify"}
    assert found.producer == "tests 2"
    assert found.parameters == 3 * 3 * 3 * 3 + 12 * 4 + 4
    assert found.makers["scores"] == ("Softmax", ["logits"])
    assert found.external == set()


def strange(domain: str = "evil.corp", name: str = "Run") -> Any:
    return helper.make_node(name, ["pictures"], ["x"], domain=domain)


def branch(node: Any) -> Any:
    """An If whose two branches hold a node."""
    true = onnx.numpy_helper.from_array(np.array(True), "t")
    inner = helper.make_graph(
        [node], "g", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    )
    condition = helper.make_node("Constant", [], ["c"], value=true)
    return [condition, helper.make_node("If", ["c"], ["i"], then_branch=inner, else_branch=inner)]


def function(node: Any, domain: str = "pkg") -> Any:
    return helper.make_function(
        domain, "F", ["pictures"], ["x"], [node], [helper.make_opsetid("", 17)]
    )


def test_operators_of_other_domains_are_named_wherever_they_are() -> None:
    said = "has operators that the ONNX standard has not: evil.corp.Run. "
    assert refusal(make_model(nodes=[strange()])).startswith(said)
    assert refusal(make_model(nodes=branch(strange()))).startswith(said)
    inside = make_model()
    inside.functions.append(function(strange()))
    assert refusal(inside).startswith(said)
    training = make_model()
    training.training_info.add().algorithm.node.append(strange())
    assert refusal(training).startswith(said)
    microsofts = make_model(nodes=[strange("com.microsoft", "FusedConv")])
    assert ": com.microsoft.FusedConv. " in refusal(microsofts)
    several = make_model(nodes=[strange(name=f"Run{number}") for number in range(9)])
    assert "evil.corp.Run3, …. " in refusal(several)


def test_its_own_functions_are_no_other_operators() -> None:
    model = make_model(nodes=[strange("pkg", "F")])
    model.functions.append(function(helper.make_node("Relu", ["pictures"], ["x"])))
    inspect(model.SerializeToString())
    model.functions[0].name = "G"
    assert ": pkg.F. " in refusal(model)


def external(tensor: Any) -> Any:
    onnx.external_data_helper.set_external_data(tensor, "weights.bin")
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def test_tensors_elsewhere_are_found_wherever_they_are() -> None:
    tensor = onnx.numpy_helper.from_array(np.zeros(2, np.float32), "t")
    constant = helper.make_node("Constant", [], ["x"], value=external(tensor))
    sparse = make_model()
    sparse.graph.sparse_initializer.add().values.CopyFrom(tensor)
    own = make_model()
    external(own.graph.initializer[1])
    inside = make_model()
    inside.functions.append(function(constant))
    with_default = make_model()
    with_default.functions.append(function(helper.make_node("Relu", ["pictures"], ["x"])))
    with_default.functions[0].attribute_proto.append(helper.make_attribute("a", tensor))
    for model in (
        *(own, make_model(nodes=[constant]), make_model(nodes=branch(constant)), sparse, inside),
        with_default,
    ):
        assert inspect(model.SerializeToString()).external == {"weights.bin"}


def test_a_location_alone_counts_and_the_flag_alone_too() -> None:
    for number in range(2):
        model = make_model()
        tensor = external(model.graph.initializer[0])
        if number:
            del tensor.external_data[:]
        else:
            tensor.data_location = TensorProto.DEFAULT
        assert inspect(model.SerializeToString()).external == {"" if number else "weights.bin"}


def test_a_tensor_that_cannot_be() -> None:
    for size, said in ((-1, "a negative size"), (1 << 41, "no memory can hold")):
        model = make_model()
        model.graph.initializer[0].dims[0] = size
        assert said in refusal(model)


def message(number: int, inside: bytes) -> bytes:
    """One field of bytes, as protobuf writes it."""
    size, head = len(inside), [number << 3 | 2]
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*head, size]) + inside


def test_nesting_has_a_limit() -> None:
    graph = b""
    for _ in range(2_000):  # graph → node → attribute → graph
        graph = message(1, message(5, message(6, graph)))
    assert "nested more than" in refusal(message(7, graph))


def test_fields_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_model().SerializeToString()
    monkeypatch.setattr(onnx_file, "_MOST_FIELDS", 50)
    assert refusal(data).startswith("more than 50 fields")
    many = message(7, message(5, b"\x0a\x7f" + b"\x01" * 127))  # dimensions count as well
    assert refusal(many).startswith("more than 50 fields")


def test_bytes_that_only_look_like_a_name_are_none() -> None:
    """A domain once more, as a number of eight bytes: other readers skip that, and so do we."""
    node = helper.make_node("Run", ["pictures"], ["x"], domain="evil").SerializeToString()
    fixed = bytes([7 << 3 | 1]) + b"ai.onnx\0"
    model = make_model().SerializeToString()
    assert ": evil.Run. " in refusal(model + message(7, message(1, node + fixed)))


@pytest.mark.parametrize("size", [1, 2, 10, 100, -1, -2, -40])
def test_truncated_files(size: int) -> None:
    data = make_model().SerializeToString()[:size]
    assert "truncated or damaged" in refusal(data) or "no graph" in refusal(data)


VALID = make_model(last="Softmax", metadata={"a": "b"}).SerializeToString()


@settings(max_examples=300)
@given(st.integers(0, len(VALID) - 1), st.binary(min_size=1, max_size=9))
def test_damage_is_refused_or_read_and_nothing_else(at: int, put: bytes) -> None:
    with contextlib.suppress(BadOnnx):
        inspect(VALID[:at] + put + VALID[at + len(put) :])
