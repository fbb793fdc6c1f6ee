"""The ONNX Runtime backend on a small CNN and an MLP of its own."""

import copy
import logging
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from qb_cluster.contracts import Artifact, Backend, Bits, Quantization, Scheme
from qb_cluster.errors import CellError, PlugInError, UnsupportedError
from qb_cluster.quantization.affine import (
    affine_qparams,
    quantize_symmetric,
)
from qb_cluster.quantization.weights import quantize_dequantize_weights
from qb_onnxruntime import OnnxRuntimeBackend, runtime

pytestmark = pytest.mark.frameworks

SCHEMES = {"weight_only": "none", "dynamic": "dynamic", "static": "static"}
GRID = [
    Quantization(Scheme(name, activations), Bits(weight, activation), "native")
    for (name, activations), weight, activation in product(
        SCHEMES.items(), (2, 3, 4, 8, 16), (None, 8, 16)
    )
    if (activation is None) == (activations == "none")
]
NATIVE = [q for q in GRID if OnnxRuntimeBackend().support(q).supported]
RNG = np.random.default_rng(7)
IMAGES = RNG.normal(0.3, 1, (70, 1, 8, 8)).astype(np.float32)


def label(quantization):
    return f"{quantization.scheme.name}-{quantization.bits}"


def per_scheme(quantizations):
    return pytest.mark.parametrize("quantization", quantizations, ids=label)


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    ).eval()


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    ).eval()


NETS = {"cnn": cnn, "mlp": mlp}


def never():
    raise AssertionError("the torch model must not be loaded")


def torch_output(model, images):
    with torch.no_grad():
        return model(torch.from_numpy(images)).numpy()


def quantized(baseline, quantization, examples=IMAGES, backend=None):
    calibration = {"input": examples} if quantization.scheme.activations == "static" else None
    return (backend or OnnxRuntimeBackend()).quantize(never, baseline, quantization, calibration)


def output(artifact, images=IMAGES, threads=1):
    return OnnxRuntimeBackend().open(artifact, never, threads)({"input": images})["output"]


def sqnr_db(reference, other):
    noise = float(np.sum((reference - other) ** 2))
    return 10 * np.log10(float(np.sum(reference**2)) / max(noise, 1e-300))  # torch's own, at times


def tensors(artifact):
    graph = onnx.load_from_string(artifact.data).graph
    return {tensor.name: tensor for tensor in graph.initializer}


def operators(artifact):
    return [node.op_type for node in onnx.load_from_string(artifact.data).graph.node]


@pytest.fixture(scope="module")
def baselines():
    return {
        name: OnnxRuntimeBackend().convert(net, {"input": IMAGES[:1]}) for name, net in NETS.items()
    }


# The float model


@pytest.mark.parametrize("net", NETS)
def test_the_float_artifact_gives_what_torch_gives(baselines, net):
    np.testing.assert_allclose(
        output(baselines[net]), torch_output(NETS[net](), IMAGES), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("count", [1, 2, 64, 6])
def test_a_batch_may_have_any_size(baselines, count):
    np.testing.assert_allclose(
        output(baselines["cnn"], IMAGES[:count]),
        output(baselines["cnn"])[:count],
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("net", NETS)
def test_a_float_model_takes_32_bits_per_weight(baselines, net):
    facts = baselines[net].facts
    assert facts.bits_per_weight == 32
    assert facts.quantized_parameters == 0
    # Batch normalization is folded into the convolution before it.
    folded = 4 * 16 if net == "cnn" else 0
    state = NETS[net]().state_dict().values()
    assert facts.parameters == sum(t.numel() for t in state if t.ndim) - folded


def test_a_model_in_training_mode_is_converted_as_in_evaluation_and_left_alone():
    model = nn.Sequential(cnn(), nn.Dropout(0.5)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    artifact = OnnxRuntimeBackend().convert(lambda: model, {"input": IMAGES[:1]})
    assert all(module.training for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    np.testing.assert_allclose(
        output(artifact), torch_output(model.eval(), IMAGES), atol=1e-4, rtol=0
    )


class Named(nn.Module):
    """Two inputs, three outputs, one of them an integer and one missing."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, ids, mask):
        hidden = (self.embed(ids) * mask[..., None]).sum(1)
        scores = self.head(hidden)
        return {"scores": scores, "nothing": None, "best": scores.argmax(1), "hidden": hidden}


def named_inputs():
    return {
        "mask": RNG.integers(0, 2, (9, 6)).astype(np.float32),
        "ids": RNG.integers(0, 11, (9, 6)),
    }


def test_named_inputs_and_outputs_keep_their_names_and_outputs_are_float32():
    torch.manual_seed(0)
    model, inputs = Named().eval(), named_inputs()
    backend = OnnxRuntimeBackend()
    artifact = backend.convert(lambda: model, {name: a[:1] for name, a in inputs.items()})
    outputs = backend.open(artifact, never, 1)(inputs)
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    assert list(outputs) == ["scores", "best", "hidden"]
    for name, array in outputs.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected[name].numpy(), atol=1e-5)


def test_an_embedding_is_stored_in_the_bits_of_the_scheme_and_read_as_ever():
    inputs = named_inputs()
    backend = OnnxRuntimeBackend()
    artifact = backend.convert(Named, {name: a[:1] for name, a in inputs.items()})
    w4 = Quantization(Scheme("weight_only"), Bits(4), "native")
    made = backend.quantize(never, artifact, w4, None)
    facts = made.facts
    assert facts.notes == ()
    table = Named().embed.weight.numel()
    assert facts.coverage == {"linear": (16 * 5, 16 * 5), "embedding": (table, table)}
    exact, found = (backend.open(one, never, 1)(inputs)["hidden"] for one in (artifact, made))
    assert 15 < sqnr_db(exact, found) < 30
    by_kind = Scheme("weight_only", weights=("linear",))
    by_name = Scheme("weight_only", layers=(("embed", "float"),))
    for scheme in (by_kind, by_name):
        facts = backend.quantize(never, artifact, replace(w4, scheme=scheme), None).facts
        assert facts.notes == ("1 of 2 weight tensors stay float",)
        assert facts.coverage == {"linear": (16 * 5, 16 * 5)}


def test_an_artifact_tells_nothing_of_the_machine_it_was_made_on(baselines):
    for artifact in baselines.values():
        assert os.fsencode(Path(torch.__file__).parent) not in artifact.data
        assert b"stack_trace" not in artifact.data


# What cannot be converted


def test_a_model_that_is_no_module_is_refused():
    with pytest.raises(
        PlugInError, match=r"torch\.nn\.Module or an \.onnx file, and the model is a dict"
    ):
        OnnxRuntimeBackend().convert(dict, {"input": IMAGES[:1]})


def test_a_model_over_2_gib_is_refused_before_anything_is_exported():
    huge = nn.Linear(50_000, 20_000, device="meta")
    with pytest.raises(UnsupportedError, match=r"3\.7 GiB"):
        OnnxRuntimeBackend().convert(lambda: huge, {"input": np.zeros((1, 50_000), np.float32)})


class Branching(nn.Module):
    def forward(self, input):  # noqa: A002 - the contract's name
        return input + 1 if input.sum() > 0 else input - 1


def test_a_model_that_cannot_be_traced_is_unsupported_and_says_why():
    with pytest.raises(UnsupportedError, match=r"torch\.onnx\.export cannot convert.*: \w+"):
        OnnxRuntimeBackend().convert(Branching, {"input": IMAGES[:1]})


class Nested(nn.Module):
    def forward(self, input):  # noqa: A002 - the contract's name
        return {"logits": input, "cache": [input, input]}


def test_nested_outputs_are_unsupported():
    with pytest.raises(UnsupportedError, match="returns a dict of list"):
        OnnxRuntimeBackend().convert(Nested, {"input": IMAGES[:1]})


def test_a_model_without_weights_is_unsupported():
    artifact = OnnxRuntimeBackend().convert(nn.ReLU, {"input": IMAGES[:1]})
    for quantization in NATIVE:
        with pytest.raises(UnsupportedError, match="has none"):
            quantized(artifact, quantization)


# What is supported


def test_support_is_told_without_any_framework():
    code = """
import sys
from qb_onnxruntime import OnnxRuntimeBackend
from qb_cluster.contracts import Bits, Quantization, Scheme
backend = OnnxRuntimeBackend()
assert backend.support(Quantization(Scheme("weight_only"), Bits(4), "native")).supported
loaded = {"torch", "onnx", "onnxscript", "onnxruntime"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_native_entries_are_these():
    assert {label(q) for q in NATIVE} == {
        *(f"weight_only-w{w}" for w in (2, 4, 8, 16)),
        *(f"dynamic-w{w}a8" for w in (2, 4, 8)),
        *(f"static-w{w}a{a}" for w in (2, 4, 8, 16) for a in (8, 16)),
    }


@per_scheme([q for q in GRID if q not in NATIVE])
def test_what_is_refused_names_what_could_be_had(quantization):
    reason = OnnxRuntimeBackend().support(quantization).reason
    assert any(word in reason for word in ("w8", "w8a8"))


def test_arithmetic_of_the_user_s_own_is_simulated_only():
    backend: Backend = OnnxRuntimeBackend()
    custom = Quantization(Scheme("mine", weight_quantizer=lambda w, _: w), Bits(8), "native")
    told = backend.support(custom)
    assert not told.supported
    assert "simulates" in told.reason
    assert backend.support(replace(custom, execution="simulated")).supported


def test_a_weight_only_caveat_names_the_accuracy_level():
    w4 = Quantization(Scheme("weight_only"), Bits(4), "native")
    told = OnnxRuntimeBackend(accuracy_level=4).support(w4)
    assert told.supported
    assert "accuracy_level 4 (activations rounded to int8" in told.reason


def test_other_accuracy_levels_are_refused():
    with pytest.raises(ValueError, match="is one of"):
        OnnxRuntimeBackend(accuracy_level=2)


# Quantized artifacts


@pytest.mark.parametrize("net", NETS)
@per_scheme(NATIVE)
def test_each_native_entry_really_quantizes_and_runs(baselines, net, quantization):
    baseline = baselines[net]
    artifact = quantized(baseline, quantization)
    weights = sum(
        np.prod(t.dims) for t in tensors(baseline).values() if len(t.dims) > 1 and t.data_type == 1
    )
    assert artifact.facts.quantized_parameters >= weights
    assert artifact.facts.notes == ()
    db = sqnr_db(output(baseline), output(artifact))
    low, high = {2: (-4, 12), 4: (18, 34), 8: (34, 58), 16: (38, 110)}[quantization.bits.weight]
    assert low < db < high
    bits = artifact.facts.bits_per_weight
    # Above the nominal width for scales, and for biases in 32 bits.
    assert quantization.bits.weight < bits < quantization.bits.weight + 2
    assert len(artifact.data) < bits / 32 * len(baseline.data) + 8_000


def rounded(model, quantization):
    """Give a copy whose weights are rounded by the common rule, activations left float."""
    model = copy.deepcopy(model)
    for conv, norm in zip(list(model), list(model)[1:], strict=False):
        if isinstance(norm, nn.BatchNorm2d):
            fused = nn.utils.fuse_conv_bn_eval(conv, norm)
            conv.weight, conv.bias = fused.weight, fused.bias
            norm.reset_parameters()
            norm.eps = 0.0
    bits = quantization.bits
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = layer.weight.detach().numpy()
            dequantized = quantize_dequantize_weights(weight, quantization.scheme, bits)
            layer.weight = nn.Parameter(torch.from_numpy(dequantized))
    return model


@pytest.mark.parametrize("net", NETS)
@per_scheme(NATIVE)
def test_native_kernels_agree_with_the_simulated_weights(baselines, net, quantization):
    # Ranges of the float model would clip what a 2-bit model does: leave room.
    native = output(quantized(baselines[net], quantization, examples=3 * IMAGES))
    simulated = torch_output(rounded(NETS[net](), quantization), IMAGES)
    # What is left between them is the rounding of activations.
    least = {None: 90, 8: 28, 16: 60}[quantization.bits.activation]
    assert sqnr_db(simulated, native) > least


@per_scheme([q for q in NATIVE if q.bits.weight == 8])
def test_fewer_bits_take_fewer_bytes_and_cost_more(baselines, quantization):
    scheme, activation = quantization.scheme, quantization.bits.activation
    made = [
        quantized(baselines["cnn"], Quantization(scheme, Bits(weight, activation), "native"))
        for weight in (8, 4, 2)
    ]
    sizes = [artifact.facts.bits_per_weight for artifact in made]
    assert sizes[0] < 11
    assert sizes[1] < 8
    assert sizes == sorted(sizes, reverse=True)
    reference = output(baselines["cnn"])
    noise = [sqnr_db(reference, output(artifact)) for artifact in made]
    assert noise[0] > noise[1] + 8 > noise[2] + 16


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@per_scheme([q for q in NATIVE if q.bits.weight == 4])
def test_stored_convolution_weights_follow_the_common_rule(baselines, quantization, granularity):
    scheme = quantization.scheme
    scheme = Scheme(scheme.name, scheme.activations, granularity=granularity)
    asked = Quantization(scheme, quantization.bits, "native")
    artifact = quantized(baselines["cnn"], asked)
    weight = numpy_helper.to_array(tensors(baselines["cnn"])["3.weight"])
    expected, scale = quantize_symmetric(weight, 4, 0 if granularity == "per_channel" else None)
    found = tensors(artifact)
    [stored] = [
        t
        for name, t in found.items()
        if name.startswith("3.weight") and len(t.dims) == 4 and t.data_type == onnx.TensorProto.INT4
    ]
    np.testing.assert_array_equal(numpy_helper.to_array(stored).astype(int), expected)
    [scales] = [
        t for name, t in found.items() if name.startswith("3.weight") and name.endswith("_scale")
    ]
    np.testing.assert_array_equal(numpy_helper.to_array(scales).ravel(), scale.ravel())


@pytest.mark.parametrize("net", NETS)
def test_linear_layers_are_not_skipped_by_weight_only_quantization(baselines, net):
    for weight in (2, 4, 8):
        artifact = quantized(
            baselines[net], Quantization(Scheme("weight_only"), Bits(weight), "native")
        )
        found = operators(artifact)
        assert found.count("MatMulNBits") == operators(baselines[net]).count("Gemm") >= 2
        assert "Gemm" not in found


@pytest.mark.parametrize("bias", [True, False])
def test_packed_blocks_compute_what_the_common_rule_says(bias):
    torch.manual_seed(0)
    layer = nn.Linear(50, 7, bias=bias)  # blocks do not come out even
    inputs = RNG.normal(size=(5, 50)).astype(np.float32)
    baseline = OnnxRuntimeBackend().convert(lambda: layer, {"input": inputs[:1]})
    for bits, group, symmetric in product((2, 4, 8), (None, 16, 32, 48, 512), (True, False)):
        granularity = "per_channel" if group is None else "per_group"
        scheme = Scheme("s", granularity=granularity, group_size=group, symmetric=symmetric)
        artifact = quantized(baseline, Quantization(scheme, Bits(bits), "native"))
        assert operators(artifact) == ["MatMulNBits"]
        weight = layer.weight.detach().numpy()
        expected = inputs @ quantize_dequantize_weights(weight, scheme, Bits(bits)).T
        if bias:
            expected += layer.bias.detach().numpy()
        np.testing.assert_allclose(output(artifact, inputs), expected, atol=1e-4)
        assert artifact.facts.quantized_parameters == 7 * 50


def test_a_higher_accuracy_level_rounds_activations(baselines):
    w8 = Quantization(Scheme("weight_only"), Bits(8), "native")
    reference = output(baselines["mlp"])
    exact, rounded = (
        sqnr_db(
            reference,
            output(
                quantized(baselines["mlp"], w8, backend=OnnxRuntimeBackend(accuracy_level=level))
            ),
        )
        for level in (1, 4)
    )
    assert exact > rounded + 2


def test_static_convolutions_and_linear_layers_run_in_int8_kernels(baselines, tmp_path):
    for weight in (2, 4, 8):
        asked = Quantization(Scheme("static", "static"), Bits(weight, 8), "native")
        artifact = quantized(baselines["cnn"], asked)
        options = runtime.session_options(1)
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        runtime.ort.InferenceSession(artifact.data, options, providers=["CPUExecutionProvider"])
        found = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
        assert found.count("QLinearConv") == 2
        assert found.count("QGemm") == 2


def test_static_ranges_are_the_true_extremes_of_all_calibration_examples(baselines):
    examples = IMAGES.copy()
    examples[0, 0, 0, 0] = -9.5
    examples[-1, 0, 7, 7] = 31.25
    asked = Quantization(Scheme("static", "static"), Bits(8, 8), "native")
    found = tensors(quantized(baselines["cnn"], asked, examples))
    scale, zero_point = affine_qparams(-9.5, 31.25, 8)
    assert numpy_helper.to_array(found["input_scale"]) == pytest.approx(scale, rel=1e-6)
    assert numpy_helper.to_array(found["input_zero_point"]) == zero_point


@pytest.mark.parametrize("net", NETS)
@per_scheme(NATIVE)
def test_batch_neighbours_do_not_matter(baselines, net, quantization):
    artifact = quantized(baselines[net], quantization)
    loud = IMAGES[:8].copy()
    loud[1:] *= 50
    with_quiet, with_loud = output(artifact, IMAGES[:8]), output(artifact, loud)
    np.testing.assert_array_equal(with_quiet[0], with_loud[0])
    assert not np.allclose(with_quiet[1], with_loud[1])
    alone = output(artifact, IMAGES[:1])
    np.testing.assert_allclose(alone[0], with_quiet[0], atol=1e-5)


@per_scheme([q for q in NATIVE if q.bits.weight == 2])
def test_quantizing_twice_gives_the_same_bytes(baselines, quantization):
    assert quantized(baselines["cnn"], quantization) == quantized(baselines["cnn"], quantization)


def test_an_odd_network_is_quantized_whole():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, stride=2),
        nn.ConvTranspose2d(16, 8, 2, stride=2),
        nn.Flatten(2),
        nn.Conv1d(8, 12, 3, padding=1),
        nn.Linear(64, 20, bias=False),  # a MatMul of three axes
        nn.Flatten(),
        nn.Linear(240, 5),
    ).eval()
    baseline = OnnxRuntimeBackend().convert(lambda: model, {"input": IMAGES[:1]})
    for quantization in NATIVE:
        if quantization.bits.weight == 8:
            artifact = quantized(baseline, quantization)
            assert sqnr_db(output(baseline), output(artifact)) > 30
            transposed = quantization.scheme.name == "dynamic"
            left = ("1 of 6 weight tensors stay float",) if transposed else ()
            assert artifact.facts.notes == left


def test_quantizing_writes_nothing_and_leaves_logging_alone(baselines, capfd):
    before = list(logging.root.handlers)
    for quantization in NATIVE:
        quantized(baselines["cnn"], quantization)
    assert capfd.readouterr() == ("", "")
    assert logging.root.handlers == before


# The runtime


def test_an_artifact_opens_in_a_process_without_torch_and_onnx(baselines, tmp_path):
    asked = Quantization(Scheme("dynamic", "dynamic"), Bits(8, 8), "native")
    artifact = quantized(baselines["cnn"], asked)
    (tmp_path / "model").write_bytes(artifact.data)
    np.save(tmp_path / "images.npy", IMAGES)
    code = """
import sys
sys.modules |= dict.fromkeys(("torch", "onnx", "onnxscript"))
import numpy as np
from pathlib import Path
from qb_cluster.contracts import Artifact, ArtifactFacts
from qb_onnxruntime import OnnxRuntimeBackend
artifact = Artifact(Path("model").read_bytes(), "onnx", ArtifactFacts(0, 0, 0))
session = OnnxRuntimeBackend().open(artifact, None, 1)
np.save("output.npy", session({"input": np.load("images.npy")})["output"])
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "output.npy"), output(artifact))


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda _: b"", bytes.swapcase]
)
def test_a_corrupt_artifact_ends_the_cell_with_a_clear_error(baselines, damage):
    artifact = baselines["mlp"]
    broken = Artifact(damage(artifact.data), artifact.format, artifact.facts)
    with pytest.raises(CellError, match="it is damaged: delete it"):
        OnnxRuntimeBackend().open(broken, never, 1)


def test_a_session_keeps_to_its_threads_and_stops_spinning_after_a_run(baselines):
    options = runtime.session_options(3)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    np.testing.assert_allclose(
        output(baselines["cnn"], threads=2), output(baselines["cnn"]), atol=1e-5
    )


@pytest.mark.parametrize(
    ("machine", "flags", "saturates"),
    [
        ("x86_64", "fpu avx2", True),
        ("AMD64", "fpu avx2 avx512f avx512_vnni", False),
        ("x86_64", "fpu avx2 avx_vnni", False),
        ("aarch64", "asimd", False),
    ],
)
def test_x86_without_vnni_is_known_to_saturate(monkeypatch, machine, flags, saturates):
    monkeypatch.setattr(runtime.platform, "machine", lambda: machine)
    monkeypatch.setattr(runtime.Path, "read_text", lambda *_, **__: f"flags : {flags}\n")
    assert runtime.int8_products_saturate.__wrapped__() is saturates


def test_the_exact_int8_kernels_give_the_same_numbers(baselines, monkeypatch):
    asked = Quantization(Scheme("static", "static"), Bits(8, 8), "native")
    artifact = quantized(baselines["cnn"], asked)
    expected = output(artifact)
    monkeypatch.setattr(runtime, "int8_products_saturate", lambda: True)
    assert runtime.session_options(1).get_session_config_entry("session.x64quantprecision") == "1"
    np.testing.assert_array_equal(output(artifact), expected)
