"""The ONNX Runtime backend on ``.onnx`` files that users bring."""

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qb_cluster.contracts import Bits, Calibration, Quantization, Scheme
from qb_cluster.errors import PlugInError, UnsupportedError
from qb_onnxruntime import OnnxRuntimeBackend
from qb_onnxruntime.subgraphs import all_graphs

pytestmark = pytest.mark.frameworks

RNG = np.random.default_rng(11)
IMAGES = RNG.normal(size=(20, 2, 6, 6)).astype(np.float32)
WEIGHTS = {
    "conv.weight": RNG.normal(size=(8, 2, 3, 3)).astype(np.float32) / 4,
    "onnx::MatMul_7": RNG.normal(size=(128, 5)).astype(np.float32) / 9,
    "head.bias": RNG.normal(size=5).astype(np.float32),
}


def model_proto(batch="n", opset=17, dtype=TensorProto.FLOAT, name="x"):
    """A convolution and a MatMul, one weight in a Constant node, nodes without names."""
    constant = numpy_helper.from_array(WEIGHTS["onnx::MatMul_7"])
    first = [] if dtype == TensorProto.FLOAT else [helper.make_node("Cast", [name], ["f"], to=1)]
    nodes = [
        *first,
        helper.make_node("Conv", ["f" if first else name, "conv.weight"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["flat"]),
        helper.make_node("Constant", [], ["onnx::MatMul_7"], value=constant),
        helper.make_node("MatMul", ["flat", "onnx::MatMul_7"], ["m"], "/head/MatMul"),
        helper.make_node("Add", ["m", "head.bias"], ["y"]),
    ]
    held = [numpy_helper.from_array(WEIGHTS[n], n) for n in ("conv.weight", "head.bias")]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, dtype, [batch, 2, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])],
        held,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def expected(images=IMAGES):
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(2, 3))
    conv = np.einsum("nchwij,ocij->nohw", windows, WEIGHTS["conv.weight"])
    flat = np.maximum(conv, 0).reshape(len(images), -1)
    return flat @ WEIGHTS["onnx::MatMul_7"] + WEIGHTS["head.bias"]


@pytest.fixture
def write(tmp_path):
    def write(model, **options):
        path = tmp_path / "model.onnx"
        onnx.save(model, path, **options)
        return path

    return write


def convert(path, **example):
    return OnnxRuntimeBackend().convert(lambda: path, example or {"input": IMAGES[:1]})


def output(artifact, images=IMAGES, name="input"):
    return OnnxRuntimeBackend().open(artifact, lambda: None, 1)({name: images})["y"]


SCHEMES = [
    Quantization(Scheme("weight_only"), Bits(4), "native"),
    Quantization(Scheme("weight_only"), Bits(2), "native"),
    Quantization(Scheme("dynamic", "dynamic"), Bits(8, 8), "native"),
    Quantization(Scheme("static", "static"), Bits(8, 8), "native", Calibration()),
    Quantization(Scheme("fp16", number="fp16"), Bits(16, 16), "native"),
]


def quantized(baseline, quantization):
    calibration = {"input": IMAGES} if quantization.calibration else None
    return OnnxRuntimeBackend().quantize(lambda: None, baseline, quantization, calibration)


@pytest.mark.parametrize("batch", ["n", 1])
@pytest.mark.parametrize("opset", [13, 21])
def test_a_file_is_the_baseline_and_is_quantized_by_every_scheme(write, batch, opset):
    baseline = convert(write(model_proto(batch, opset)))
    np.testing.assert_allclose(output(baseline), expected(), atol=1e-4)
    assert baseline.facts.parameters == sum(w.size for w in WEIGHTS.values())
    assert baseline.facts.bits_per_weight == 32
    for quantization in SCHEMES:
        artifact = quantized(baseline, quantization)
        assert artifact.facts.notes == ()
        assert artifact.facts.quantized_parameters >= 8 * 18 + 128 * 5
        noise = np.sum((output(artifact) - expected()) ** 2) / np.sum(expected() ** 2)
        assert 1e-9 < noise < (0.8 if quantization.bits.weight == 2 else 0.02)
        if quantization.scheme.activations != "none":
            assert artifact.facts.integer_mac_share == 1
            assert artifact.facts.fallback_ops == ()


def test_layers_of_a_file_go_by_their_weight_or_else_their_node(write):
    baseline = convert(write(model_proto()))
    scheme = Scheme("s", layers=(("conv", "float"), ("/head/*", "w8")))
    artifact = quantized(baseline, Quantization(scheme, Bits(4), "native"))
    held = {t.name for t in onnx.load_from_string(artifact.data).graph.initializer}
    assert "conv.weight" in held
    assert "onnx::MatMul_7" not in held
    unknown = Scheme("s", layers=(("haed", "float"),))
    with pytest.raises(PlugInError, match=r"'haed' .* \(conv, /head/MatMul\)"):
        quantized(baseline, Quantization(unknown, Bits(4), "native"))


def test_a_weight_that_the_file_joins_from_pieces_is_a_weight(write):
    model = model_proto()
    *before, constant, product, add = model.graph.node
    pieces = [
        numpy_helper.from_array(rows, f"piece_{i}")
        for i, rows in enumerate(np.split(WEIGHTS["onnx::MatMul_7"], 2))
    ]
    join = helper.make_node("Concat", ["piece_0", "piece_1"], constant.output, axis=0)
    del model.graph.node[:]
    model.graph.node.extend([*before, join, product, add])
    model.graph.initializer.extend(pieces)
    baseline = convert(write(model), input=IMAGES[:1])
    np.testing.assert_allclose(output(baseline), expected(), atol=1e-5)
    facts = quantized(baseline, Quantization(Scheme("weight_only"), Bits(8), "native")).facts
    assert facts.coverage == {"linear": (640, 640), "conv": (144, 144)}


def test_weights_beside_the_file_are_taken_in(write):
    path = write(
        model_proto(), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    baseline = convert(path)
    (path.parent / "weights.bin").unlink()
    np.testing.assert_allclose(output(baseline), expected(), atol=1e-4)
    with pytest.raises(PlugInError, match="files with its weights lie beside it"):
        convert(path)


def test_an_input_goes_by_name_or_by_position(write):
    path = write(model_proto(name="pixels"))
    for name in ("pixels", "anything"):
        baseline = convert(path, **{name: IMAGES[:1]})
        np.testing.assert_allclose(output(baseline, name=name), expected(), atol=1e-4)


@pytest.mark.parametrize("name", ["x", "input"])
def test_floats_of_another_width_are_cast_on_the_way_in(write, name):
    baseline = convert(write(model_proto(dtype=TensorProto.DOUBLE)), **{name: IMAGES[:1]})
    np.testing.assert_allclose(output(baseline, name=name), expected(), atol=1e-4)


def test_two_inputs_by_position_need_as_many_arrays(write):
    with pytest.raises(PlugInError, match="has the inputs x, and the dataset gives a, b"):
        convert(write(model_proto()), a=IMAGES[:1], b=IMAGES[:1])


@pytest.mark.parametrize("batch", [-1, "n", None])
def test_a_batch_of_any_size_is_free_however_the_file_says_so(write, batch):
    model = model_proto(1)
    for value in (*model.graph.input, *model.graph.output):
        dim = value.type.tensor_type.shape.dim[0]
        dim.Clear()
        if isinstance(batch, int):
            dim.dim_value = batch
        elif batch:
            dim.dim_param = batch
    baseline = convert(write(model))
    opened = onnx.load_from_string(baseline.data)
    assert not opened.metadata_props  # examples go together
    np.testing.assert_allclose(output(baseline), expected(), atol=1e-4)
    artifact = quantized(baseline, SCHEMES[3])
    assert artifact.facts.integer_mac_share == 1
    assert output(artifact).shape == (len(IMAGES), 5)


def test_a_size_below_zero_is_free_on_every_axis_and_in_subgraphs(write):
    model = model_proto()
    for i in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[i].dim_value = -1
    inner = [
        helper.make_graph(
            [helper.make_node(operator, ["y"], [f"{operator}_out"])],
            operator,
            [],
            [helper.make_tensor_value_info(f"{operator}_out", TensorProto.FLOAT, [-1, 5])],
        )
        for operator in ("Relu", "Neg")
    ]
    yes = numpy_helper.from_array(np.asarray(True), "yes")
    model.graph.initializer.append(yes)
    model.graph.node.append(
        helper.make_node("If", ["yes"], ["z"], then_branch=inner[0], else_branch=inner[1])
    )
    model.graph.output[0].name = "z"
    baseline = convert(write(model))
    opened = onnx.load_from_string(baseline.data)
    values = [v for g in all_graphs(opened.graph) for v in (*g.input, *g.output)]
    assert len(values) == 4
    sizes = [dim.dim_value for v in values for dim in v.type.tensor_type.shape.dim]
    assert min(sizes) == 0
    found = OnnxRuntimeBackend().open(baseline, lambda: None, 1)({"input": IMAGES})["z"]
    np.testing.assert_allclose(found, np.maximum(expected(), 0), atol=1e-4)


def recurrent(state_shape, x_shape=("batch", 3)):
    """Two layers' states beside the input, as recurrent networks have them."""
    nodes = [
        helper.make_node("ReduceMean", ["state"], ["mean"], axes=[0], keepdims=0),
        helper.make_node("Add", ["x", "mean"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, state_shape),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, x_shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("state", "x"), [((2, "batch", 3), ("batch", 3)), ((2, -1, 3), (-1, 3)), ((2, 1, 3), (1, 3))]
)
def test_a_state_whose_batch_is_on_another_axis_is_told_with_its_shape(write, state, x):
    written = str([*state]).replace("'", "").replace("-1", "?")
    with pytest.raises(
        UnsupportedError,
        match=rf"input 'state' of model\.onnx has the shape {re.escape(written)}: examples must "
        r"lie along axis 0, .*export a model",
    ):
        convert(
            write(recurrent(state, x)),
            x=np.ones((1, 3), np.float32),
            state=np.ones((1, 1, 3), np.float32),
        )


def test_an_input_without_axes_is_told_as_such(write):
    model = model_proto()
    model.graph.input.append(helper.make_tensor_value_info("rate", TensorProto.INT64, []))
    with pytest.raises(UnsupportedError, match=r"input 'rate' of .* make it a constant"):
        convert(write(model), x=IMAGES[:1], rate=np.ones(1, np.int64))


def test_examples_of_another_shape_or_kind_are_refused(write):
    path = write(model_proto())
    with pytest.raises(PlugInError, match=r"shape \[n, 2, 6, 6\], .*an example \[1, 6, 6\]"):
        convert(path, input=IMAGES[:1, 0])
    with pytest.raises(PlugInError, match="is float32, and the dataset gives int64"):
        convert(path, input=IMAGES[:1].astype(np.int64))


def test_a_fixed_batch_of_more_than_one_is_unsupported(write):
    with pytest.raises(UnsupportedError, match="batches of 4 examples only"):
        convert(write(model_proto(batch=4)))


@pytest.mark.parametrize("quantization", SCHEMES[:1] + SCHEMES[2:4], ids=lambda q: q.scheme.name)
def test_a_quantized_file_is_refused_as_a_float_baseline(write, tmp_path, quantization):
    artifact = quantized(convert(write(model_proto())), quantization)
    path = tmp_path / "quantized.onnx"
    path.write_bytes(artifact.data)
    if quantization.scheme.activations == "none":
        operators = "MatMulNBits"
    else:
        operators = "QuantizeLinear" if quantization.calibration else "ConvInteger"
    with pytest.raises(UnsupportedError, match=f"quantized already .*{operators}"):
        convert(path)


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "pickle", "missing"])
def test_a_damaged_file_is_a_clear_error(write, damage):
    path = write(model_proto())
    whole = path.read_bytes()
    content = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "garbage": bytes(range(256)) * 9,
        "pickle": b"\x80\x04cposix\nsystem\n(X\x04\x00\x00\x00trueuR.",
    }
    path.unlink() if damage == "missing" else path.write_bytes(content[damage])
    with pytest.raises(PlugInError, match=r"model\.onnx .*see that it is whole"):
        convert(path)


def test_weights_that_old_files_list_as_inputs_are_weights(write):
    model = model_proto(opset=13)
    for tensor in model.graph.initializer:
        entry = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(entry)
    baseline = convert(write(model))
    for quantization in SCHEMES:
        noise = np.sum((output(quantized(baseline, quantization)) - expected()) ** 2)
        assert noise < np.sum(expected() ** 2)


def test_layers_may_share_a_bias_whatever_other_tensors_are_called(write):
    """onnxruntime's quantizer numbers copies of a bias, and TensorFlow its layers' outputs."""
    model = model_proto()
    held = numpy_helper.from_array(np.ones(8, np.float32), "c")
    model.graph.initializer.append(held)
    again = numpy_helper.from_array(RNG.normal(size=(8, 8, 1, 1)).astype(np.float32), "w2")
    model.graph.initializer.append(again)
    model.graph.node[0].input.append("c")
    model.graph.node[0].output[0] = "first"
    model.graph.node[1].input[0] = "c0"
    model.graph.node.insert(1, helper.make_node("Conv", ["first", "w2", "c"], ["c0"]))
    baseline = convert(write(model))
    artifact = quantized(baseline, SCHEMES[3])
    noise = np.sum((output(artifact) - output(baseline)) ** 2) / np.sum(output(baseline) ** 2)
    assert 0 < noise < 0.02
    assert artifact.facts.integer_mac_share == 1


def test_a_bias_may_be_called_after_its_layer(write):
    model = model_proto()
    conv = model.graph.node[0]
    model.graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), "c_bias"))
    conv.input.append("c_bias")
    next(t for t in model.graph.initializer if t.name == "conv.weight").name = "c_weight"
    conv.input[1] = "c_weight"
    baseline = convert(write(model))
    for quantization in SCHEMES[2:4]:
        found = output(quantized(baseline, quantization))
        noise = np.sum((found - output(baseline)) ** 2) / np.sum(output(baseline) ** 2)
        assert 0 < noise < 0.02


def test_a_foreign_operator_is_a_clear_error(write):
    model = model_proto()
    model.graph.node[1].op_type = "Mystery"
    with pytest.raises(PlugInError, match=r"cannot run model\.onnx: .*Mystery"):
        convert(write(model))


def test_an_output_without_examples_along_axis_0_is_unsupported(write):
    model = model_proto()
    model.graph.node.append(helper.make_node("ReduceSum", ["y"], ["total"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("total", TensorProto.FLOAT, []))
    with pytest.raises(UnsupportedError, match="examples must lie along axis 0"):
        convert(write(model))
