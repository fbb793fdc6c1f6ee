"""The tflite backend, on small nets of its own, with the real tools and both real runtimes."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from old_runtime import python_with_tflite_runtime
from sklearn.datasets import load_digits

from qb_cluster.catalog import plugins
from qb_cluster.contracts import Artifact, Bits, Calibration, Quantization, Ref, Scheme
from qb_cluster.errors import PlugInError, UnsupportedError
from qb_litert.quiet import quiet
from qb_litert.runtime import TFLiteExecutable
from qb_tflite import TFLiteBackend

pytestmark = pytest.mark.frameworks

ROOT = Path(__file__).parents[2]
BACKEND = TFLiteBackend()
SCHEMES = {"none": "weight_only", "dynamic": "dynamic", "static": "static"}
GRID = [Bits(weight, activation) for weight, activation in product((2, 3, 4, 8, 16), (None, 8, 16))]
NETS = ("cnn", "mlp")


def ask(activations, bits, granularity="per_channel"):
    scheme = Scheme(SCHEMES[activations], activations, granularity=granularity)
    return Quantization(scheme, Bits.parse(bits), "native")


def sqnr_db(exact, rough):
    exact = exact.astype(np.float64)
    noise = np.sum((exact - rough) ** 2)
    return np.inf if noise == 0 else 10 * np.log10(np.sum(exact**2) / noise)


@pytest.fixture(scope="module")
def digits():
    images, targets = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return {
        "images": images,
        "targets": targets,
        "calibration": images[:128],
        "test": images[-300:],
    }


@pytest.fixture(scope="module")
def nets(digits):
    """A CNN (its first convolution becomes a depthwise one) and an MLP, after 100 steps."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    cnn = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    images, targets = (torch.tensor(digits[key]) for key in ("images", "targets"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for net in (cnn, mlp):
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(100):
            batch = torch.randint(0, 1400, (64,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), targets[batch]).backward()
            optimizer.step()
        net.eval()
    torch.set_num_threads(threads)
    return {"cnn": cnn, "mlp": mlp}


@pytest.fixture(scope="module")
def exact(nets, digits):
    """What torch says about the test images."""
    import torch

    with torch.no_grad():
        return {name: net(torch.tensor(digits["test"])).numpy() for name, net in nets.items()}


@pytest.fixture(scope="module")
def baselines(nets, digits):
    example = {"input": digits["images"][:1]}
    return {name: BACKEND.convert(lambda net=net: net, example) for name, net in nets.items()}


def never_loaded():
    raise AssertionError("the model was loaded, though the artifact is enough")


@pytest.fixture(scope="module")
def quantized(baselines, digits):
    """Quantizes once for whoever asks."""
    made = {}

    def quantize(net, activations, bits, granularity="per_channel"):
        key = (net, activations, bits, granularity)
        if key not in made:
            calibration = {"input": digits["calibration"]} if activations == "static" else None
            made[key] = BACKEND.quantize(
                never_loaded, baselines[net], ask(activations, bits, granularity), calibration
            )
        return made[key]

    return quantize


def run(artifact, images):
    return BACKEND.open(artifact, never_loaded, threads=1)({"input": images})["output"]


@pytest.mark.parametrize("net", NETS)
def test_the_float_artifact_says_what_torch_says(net, baselines, digits, exact):
    outputs = run(baselines[net], digits["test"])
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, exact[net], rtol=0, atol=1e-4)


@pytest.mark.parametrize("net", NETS)
def test_a_float_artifact_has_32_bits_per_weight_and_nothing_quantized(net, nets, baselines):
    facts = baselines[net].facts
    assert facts.parameters == sum(p.numel() for p in nets[net].parameters())
    assert facts.bits_per_weight == 32
    assert facts.quantized_parameters == 0
    assert facts.notes == ()


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    ("activations", "bits", "least_db"),
    [
        ("none", "w8", 40),
        ("none", "w4", 15),
        ("dynamic", "w8a8", 35),
        ("dynamic", "w4a8", 15),
        ("static", "w8a8", 30),
        ("static", "w4a8", 15),
        ("static", "w8a16", 30),
        ("static", "w4a16", 15),
    ],
)
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_outputs_are_as_close_as_the_width_allows(
    net, activations, bits, least_db, granularity, quantized, digits, exact
):
    artifact = quantized(net, activations, bits, granularity)
    assert least_db < sqnr_db(exact[net], run(artifact, digits["test"])) < 100


@pytest.mark.parametrize("net", NETS)
def test_static_ranges_are_the_true_ones_and_not_a_moving_average(
    net, baselines, quantized, digits, exact
):
    from ai_edge_quantizer import Quantizer, recipe

    with quiet():
        quantizer = Quantizer(baselines[net].data, recipe.static_wi8_ai8())
        examples = [{"args_0": image[None]} for image in digits["calibration"]]
        averages = quantizer.calibrate({"serving_default": examples}, num_threads=1)
        result = quantizer.quantize(averages, enable_progress_report=False)
    averaged = TFLiteExecutable(bytes(result.quantized_model), threads=1)
    averaged_db = sqnr_db(exact[net], averaged({"input": digits["test"]})["output"])
    true_db = sqnr_db(exact[net], run(quantized(net, "static", "w8a8"), digits["test"]))
    assert true_db > averaged_db + 10


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("activations", SCHEMES)
def test_whatever_is_called_native_quantizes_and_runs(
    net, granularity, activations, quantized, digits
):
    tried = 0
    for bits in GRID:
        support = BACKEND.support(ask(activations, str(bits), granularity))
        if not support.supported:
            assert "available: w4" in support.reason
            continue
        artifact = quantized(net, activations, str(bits), granularity)
        assert np.isfinite(run(artifact, digits["test"][:8])).all()
        stays_float = artifact.facts.quantized_parameters == 0
        assert stays_float == ("leave the weights float" in support.reason)
        tried += 1
    assert tried == {"none": 5, "dynamic": 2, "static": 4}[activations]


@pytest.mark.parametrize("weight", [2, 3, 5, 6, 7, *range(9, 17)])
def test_weight_only_widths_without_kernels_leave_the_weights_float(weight, quantized):
    """The trap: the tool raises nothing, and the model is a lossless "2-bit" one."""
    facts = quantized("mlp", "none", f"w{weight}").facts
    assert facts.quantized_parameters == 0
    assert facts.bits_per_weight == 32
    assert facts.notes == ("2 of 2 weight tensors stay float",)


@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize("bits", ["w3a8", "w16a8"])
def test_widths_refused_beside_integer_activations_would_leave_the_weights_float(
    activations, bits, quantized
):
    assert "weights float" in BACKEND.support(ask(activations, bits)).reason
    assert quantized("cnn", activations, bits).facts.quantized_parameters == 0


@pytest.mark.parametrize(
    ("activations", "bits", "most"),
    [
        ("none", "w8", 10),
        ("none", "w4", 6.5),
        ("dynamic", "w8a8", 10),
        ("dynamic", "w4a8", 6.5),
        ("static", "w8a8", 10),
        ("static", "w4a8", 6.5),
    ],
)
def test_quantized_artifacts_are_small_and_say_how_small(
    activations, bits, most, quantized, baselines
):
    baseline, artifact = baselines["cnn"], quantized("cnn", activations, bits)
    assert Bits.parse(bits).weight < artifact.facts.bits_per_weight < most
    assert artifact.facts.parameters == baseline.facts.parameters
    assert artifact.facts.parameter_bytes < len(artifact.data) < len(baseline.data) / 3


def test_weights_that_stay_float_are_told(quantized):
    assert quantized("cnn", "none", "w4").facts.notes == ("1 of 4 weight tensors stay float",)
    per_tensor = quantized("cnn", "dynamic", "w8a8", "per_tensor").facts
    assert per_tensor.notes == ("1 of 4 weight tensors stay float",)
    assert quantized("cnn", "static", "w8a8").facts.notes == ()


@pytest.mark.parametrize(
    ("quantization", "reason"),
    [
        (ask("dynamic", "w8a16"), "available: w4a8, w8a8"),
        (ask("dynamic", "w2a8"), "garbage; available: w4a8, w8a8"),
        (ask("static", "w3a8"), "available: w4a8, w8a8, w4a16, w8a16"),
        (
            Quantization(
                Scheme("mine", weight_quantizer=lambda weights, _: weights), Bits(8), "native"
            ),
            "'mine' brings its own weight arithmetic",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_reason(quantization, reason):
    support = BACKEND.support(quantization)
    assert not support.supported
    assert reason in support.reason


@pytest.mark.parametrize(
    ("quantization", "caveat"),
    [
        (ask("none", "w8"), ""),
        (ask("none", "w2"), "known to leave the weights float"),
        (ask("dynamic", "w4a8"), "depthwise and transposed convolutions stay float"),
        (ask("dynamic", "w8a8", "per_tensor"), "depthwise convolutions stay float"),
        (ask("static", "w8a16"), "slow reference kernels"),
    ],
)
def test_what_can_be_done_comes_with_its_caveat(quantization, caveat):
    support = BACKEND.support(quantization)
    assert support.supported
    assert caveat in support.reason
    assert bool(caveat) == bool(support.reason)


def test_asking_for_support_imports_no_framework():
    script = """
import sys
from qb_cluster.contracts import Bits, Quantization, Scheme
from qb_tflite import TFLiteBackend
for bits in (Bits(2), Bits(4), Bits(8)):
    TFLiteBackend().support(Quantization(Scheme("weight_only"), bits, "native"))
frameworks = {"torch", "litert_torch", "ai_edge_quantizer", "ai_edge_litert", "tflite_runtime"}
sys.exit(", ".join(frameworks & set(sys.modules)) or 0)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(("activations", "bits"), [("dynamic", "w8a8"), ("static", "w8a8")])
def test_neighbours_in_a_batch_do_not_matter(activations, bits, quantized, digits):
    executable = BACKEND.open(quantized("cnn", activations, bits), never_loaded, threads=1)
    images = digits["test"][:7]
    together = executable({"input": images})["output"]
    alone = [executable({"input": image[None]})["output"] for image in images]
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_outputs_stay_when_the_next_batch_runs(baselines, digits):
    executable = BACKEND.open(baselines["mlp"], never_loaded, threads=1)
    first = executable({"input": digits["test"][:1]})["output"]
    kept = first.copy()
    executable({"input": digits["test"][1:2]})
    np.testing.assert_array_equal(first, kept)


def test_a_misnamed_or_misshapen_input_is_refused(baselines):
    executable = BACKEND.open(baselines["mlp"], never_loaded, threads=1)
    image = np.zeros((1, 1, 8, 8), np.float32)
    with pytest.raises(ValueError, match="no input args_0; it has image, mask"):
        executable({"image": image, "mask": image})
    with pytest.raises(ValueError, match="Dimension mismatch"):
        executable({"input": image[..., :7]})


def test_named_inputs_and_several_outputs_keep_names_and_order():
    import torch
    from torch import nn

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm = nn.Embedding(30, 8), nn.BatchNorm1d(8)

        def forward(self, tokens, mask):
            pooled = self.norm((self.embed(tokens) * mask[..., None]).mean(1))
            return {"score": pooled.sum(1, keepdim=True), "pooled": pooled}

    rng = np.random.default_rng(0)
    batch = {
        "mask": rng.random((5, 4), np.float32),
        "tokens": rng.integers(0, 30, (5, 4)),
    }
    net = Bag().train()
    artifact = BACKEND.convert(lambda: net, {key: value[:1] for key, value in batch.items()})
    assert net.training
    outputs = BACKEND.open(artifact, never_loaded, threads=1)(batch)
    with torch.no_grad():
        expected = net.eval()(**{key: torch.tensor(value) for key, value in batch.items()})
    assert list(outputs) == ["score", "pooled"]
    for name, values in expected.items():
        np.testing.assert_allclose(outputs[name], values.numpy(), rtol=0, atol=1e-5)


def test_an_output_without_a_batch_axis_is_refused():
    import torch

    class Mean(torch.nn.Module):
        def forward(self, pixels):
            return pixels.mean()

    artifact = BACKEND.convert(Mean, {"pixels": np.ones((1, 3), np.float32)})
    with pytest.raises(ValueError, match="axis 0 must be a batch of 1"):
        BACKEND.open(artifact, never_loaded, threads=1)


def test_what_is_no_torch_module_is_refused():
    with pytest.raises(PlugInError, match=r"torch\.nn\.Module, and the model is a builtins\.dict"):
        BACKEND.convert(dict, {"input": np.ones((1, 3), np.float32)})


def test_nothing_is_written_to_the_terminal(capfd, digits):
    import torch

    net = torch.nn.Linear(8, 4)
    baseline = BACKEND.convert(lambda: net, {"input": digits["images"][:1, 0, 0]})
    artifact = BACKEND.quantize(
        never_loaded, baseline, ask("static", "w8a8"), {"input": digits["images"][:200, 0, 0]}
    )
    BACKEND.open(artifact, never_loaded, threads=1)
    assert capfd.readouterr() == ("", "")


def test_what_was_silenced_goes_with_the_exception(capfd):
    def fail():
        sys.stderr.write("said\n")
        sys.stderr.flush()
        os.write(2, b"the reason")
        warnings.warn("not shown", stacklevel=1)
        raise KeyError("failed")

    with pytest.raises(KeyError) as caught, quiet():
        fail()
    assert caught.value.__notes__ == ["It wrote:\nsaid\nthe reason"]
    os.write(2, b"heard again")
    assert capfd.readouterr().err == "heard again"


@pytest.mark.parametrize("kept", [0, 3, 8, 100, 5_000, 0.5, 0.99, -1])
def test_a_truncated_file_is_told(kept, baselines):
    data = baselines["cnn"].data
    kept = int(kept * len(data)) if isinstance(kept, float) else kept
    cut = Artifact(data[:kept], "tflite", baselines["cnn"].facts)
    with pytest.raises(ValueError, match="no whole TFLite model; the file was cut off"):
        BACKEND.open(cut, never_loaded, threads=1)


@pytest.fixture(scope="session")
def old_python():
    return python_with_tflite_runtime()


@pytest.fixture
def old_runtime(old_python, tmp_path, digits):
    """Runs artifacts by tflite-runtime, with a lone copy of ``runtime.py`` beside it."""
    shutil.copy(ROOT / "backends" / "qb_litert" / "runtime.py", tmp_path)
    np.save(tmp_path / "images.npy", digits["test"])
    script = """
import json, sys
import numpy as np
from runtime import TFLiteExecutable
assert np.__version__ < "2" and "qb_cluster" not in sys.modules
answers, images = [], np.load("images.npy")
for name in sys.argv[1:]:
    with open(name, "rb") as file:
        data = file.read()
    try:
        answers.append(TFLiteExecutable(data, threads=1)({"input": images})["output"].tolist())
    except (NotImplementedError, ValueError) as error:
        answers.append(f"{type(error).__name__}: {error}")
json.dump(answers, open("answers.json", "w"))
"""

    def run_all(files):
        names = [f"{number}.tflite" for number in range(len(files))]
        for name, data in zip(names, files, strict=True):
            (tmp_path / name).write_bytes(data)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        subprocess.run(
            [old_python, "-c", script, *names], cwd=tmp_path, env=environment, check=True
        )
        return json.loads((tmp_path / "answers.json").read_text())

    return run_all


def test_tflite_runtime_agrees_with_ai_edge_litert(old_runtime, baselines, quantized, digits):
    artifacts = [
        artifact
        for net in NETS
        for artifact in (
            baselines[net],
            quantized(net, "static", "w8a8"),
            quantized(net, "none", "w8"),
        )
    ]
    answers = old_runtime([artifact.data for artifact in artifacts])
    for artifact, answer in zip(artifacts, answers, strict=True):
        here = run(artifact, digits["test"])
        assert sqnr_db(here, np.array(answer, np.float32)) > 35


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w8a16", "w4a16"])
def test_static_artifacts_keep_the_float_interface_of_their_baseline(bits, quantized):
    """Else latency would compare a kernel with a kernel plus rounding in NumPy."""
    from ai_edge_litert.interpreter import Interpreter

    with quiet():
        interpreter = Interpreter(model_content=quantized("cnn", "static", bits).data)
    details = interpreter.get_input_details() + interpreter.get_output_details()
    assert [detail["dtype"] for detail in details] == [np.float32, np.float32]


def test_integer_inputs_and_outputs_are_rounded_and_scaled(
    old_runtime, baselines, quantized, digits
):
    """Such files come from elsewhere: ours keep a float interface."""
    from ai_edge_quantizer import Quantizer, recipe
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    data = baselines["cnn"].data
    files = []
    for rules in (recipe.static_wi8_ai8(), recipe.static_wi8_ai16()):
        manager = RecipeManager()
        manager.load_quantization_recipe(rules)
        with quiet():
            calibrator = Calibrator(data, num_threads=1, qsv_update_func=min_max_update)
            examples = [{"args_0": image[None]} for image in digits["calibration"]]
            calibrator.calibrate({"serving_default": examples}, manager)
            result = Quantizer(data, rules).quantize(
                calibrator.get_model_qsvs(), enable_progress_report=False
            )
        files.append(bytes(result.quantized_model))
    for width, file, old in zip(("a8", "a16"), files, old_runtime(files), strict=True):
        ours = run(quantized("cnn", "static", f"w8{width}"), digits["test"])
        here = TFLiteExecutable(file, threads=1)({"input": digits["test"]})["output"]
        assert here.dtype == np.float32
        assert sqnr_db(ours, here) > 40
        assert sqnr_db(ours, np.array(old, np.float32)) > 35


def test_tflite_runtime_refuses_what_it_would_get_wrong(old_runtime, quantized):
    answers = old_runtime(
        [quantized(net, "dynamic", bits).data for net in NETS for bits in ("w8a8", "w4a8")]
    )
    for answer in answers:
        assert answer.startswith("NotImplementedError: tflite-runtime is known to return garbage")


def test_tflite_runtime_refuses_4_bit_weights_only_beside_16_bit_activations(
    old_runtime, quantized, digits
):
    """To the old interpreter 4-bit weights are int8: only the file tells them apart."""
    artifacts = [quantized("mlp", "static", bits, "per_tensor") for bits in ("w4a16", "w4a8")]
    refused, answer = old_runtime([artifact.data for artifact in artifacts])
    assert refused.startswith(
        "NotImplementedError: tflite-runtime is known to return garbage for 4"
    )
    assert sqnr_db(run(artifacts[1], digits["test"]), np.array(answer, np.float32)) > 35


def test_tflite_runtime_survives_truncated_files(old_runtime, baselines, quantized):
    files = [baselines["mlp"].data, quantized("mlp", "static", "w8a8").data]
    cuts = [data[:kept] for data in files for kept in range(0, len(data), 101)]
    for answer in old_runtime(cuts):
        assert answer.startswith("ValueError: these ")


# What converters write, and what they raise


class Upsampling(torch.nn.Module):
    """A transposed convolution whose batch normalization the converter folds into its bias."""

    def __init__(self):
        super().__init__()
        self.up = torch.nn.ConvTranspose2d(4, 6, 2, stride=2)
        self.norm = torch.nn.BatchNorm2d(6)
        self.down = torch.nn.Conv2d(6, 3, 1)

    def forward(self, input):  # noqa: A002 - the contract's name
        return self.down(torch.relu(self.norm(self.up(input))))


@pytest.fixture(scope="module")
def upsampling():
    torch.manual_seed(0)
    net = Upsampling()
    images = torch.randn(32, 4, 8, 8)
    for _ in range(20):
        net(images)
    return net.eval(), {"input": images.numpy()}


@pytest.mark.parametrize(
    ("activations", "bits"), [("none", "w8"), ("dynamic", "w8a8"), ("static", "w8a8")]
)
def test_a_normalized_transposed_convolution_computes_what_its_simulation_does(
    upsampling, activations, bits
):
    net, inputs = upsampling
    scope = "layers" if activations == "static" else None
    scheme = Scheme("any", activations, scope=scope)
    asked = Calibration() if activations == "static" else None
    found = {}
    for name, execution in (("tflite", "native"), ("pytorch", "simulated")):
        backend = plugins.make("backend", Ref(name, name))
        quantization = Quantization(scheme, Bits.parse(bits), execution, asked)
        assert backend.support(quantization).supported
        baseline = backend.convert(lambda: net, {"input": inputs["input"][:1]})
        made = backend.quantize(lambda: net, baseline, quantization, inputs if asked else None)
        assert made.facts.coverage["conv_transpose"] == (96, 96)
        assert made.facts.notes == ()  # a bias is no weight that stays float
        opened = backend.open(made, lambda: net, 1)
        found[name] = next(iter(opened(inputs).values()))
        exact = next(iter(backend.open(baseline, lambda: net, 1)(inputs).values()))
    noise = sqnr_db(exact, found["pytorch"])
    assert sqnr_db(exact, found["tflite"]) > 35
    assert noise - 3 < sqnr_db(exact, found["tflite"]) < noise + 6


class _Never(torch.nn.Module):
    def forward(self, input):  # noqa: A002 - the contract's name
        raise ValueError(f"expected\nimages, not {input.ndim} axes")


def test_a_model_that_fails_by_itself_is_failed_in_one_line():
    rows = {"input": np.zeros((1, 6), np.float32)}
    with pytest.raises(PlugInError, match=r"\(ValueError: expected images, not 2 axes\)"):
        TFLiteBackend().convert(_Never, rows)


@pytest.mark.parametrize("error", [KeyError("head"), AssertionError(), RuntimeError("no\nscale")])
def test_whatever_the_quantizer_raises_is_unsupported_in_one_line(baselines, monkeypatch, error):
    import ai_edge_quantizer

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(ai_edge_quantizer.Quantizer, "quantize", fail)
    quantization = Quantization(Scheme("weight_only"), Bits(8), "native")
    with pytest.raises(UnsupportedError, match=rf"w8 \({type(error).__name__}") as raised:
        TFLiteBackend().quantize(lambda: None, baselines["mlp"], quantization, None)
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is error
