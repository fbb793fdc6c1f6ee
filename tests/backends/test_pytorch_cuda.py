"""PyTorch on a GPU. Without one, all but its kernels is tested: devices, layouts, refusals."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conv_embed_net import ConvEmbedNet, images_and_ids
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from qb_cluster.contracts import Bits, Calibration, Quantization, Scheme
from qb_cluster.errors import OutOfMemoryError, UnsupportedError
from qb_cluster.quantization.weights import quantize_dequantize_weights, quantize_weights
from qb_pytorch import (
    PyTorchBackend,
    checkpoint,
    cuda,
    layers,
    modules,
    simulated,
    tinygemm,
    torchao_weights,
)
from qb_pytorch.third_party import quiet

pytestmark = pytest.mark.frameworks

HAS_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="no CUDA device here")
without_gpu = pytest.mark.skipif(HAS_GPU, reason="there is a CUDA device here")
BACKEND = PyTorchBackend().on_gpu()
DYNAMIC = Scheme("dynamic", "dynamic")
STATIC = Scheme("static", "static")
FP16 = Scheme("fp16", number="fp16")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return ConvEmbedNet(1024).eval()


@pytest.fixture(scope="module")
def inputs():
    return images_and_ids()


def asked(scheme, bits, execution="native"):
    calibration = Calibration() if scheme.activations == "static" else None
    return Quantization(scheme, Bits.parse(bits), execution, calibration)


def sqnr_db(reference, values):
    noise = np.sum((reference - values) ** 2, dtype=np.float64)
    return 10 * np.log10(np.sum(reference**2, dtype=np.float64) / noise) if noise else np.inf


def test_its_form_for_a_gpu_imports_no_torch():
    code = (
        "import sys; from qb_pytorch import PyTorchBackend as P; b = P().on_gpu()\n"
        "from qb_cluster.contracts import *\n"
        "b.support(Quantization(Scheme('weight_only'), Bits(4), 'native'))\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("scheme", "bits", "words"),
    [
        (Scheme("weight_only"), "w8", "multiplied in float"),
        (Scheme("weight_only"), "w4", "bfloat16 on a GPU of compute capability 8.0"),
        (DYNAMIC, "w8a8", "multiples of 8 stay float"),
        (FP16, "w16a16", ""),
        (Scheme("bf16", number="bf16"), "w16a16", ""),
        (Scheme("fp8", number="fp8_e4m3"), "w8", "compute capability 8.9"),
    ],
)
def test_a_gpu_has_kernels_of_its_own_and_says_for_what(scheme, bits, words):
    found = BACKEND.support(asked(scheme, bits))
    assert found.supported
    assert words in found.reason


@pytest.mark.parametrize(
    ("scheme", "bits", "words"),
    [
        (STATIC, "w8a8", "PT2E's static int8 kernels are for CPUs"),
        (DYNAMIC, "w8a16", "the GPU kernels of torch and torchao take 8-bit activations"),
        (Scheme("weight_only"), "w9", "2 to 8 bits"),
    ],
)
def test_what_a_gpu_has_no_kernels_for_is_refused_and_simulated(scheme, bits, words):
    found = BACKEND.support(asked(scheme, bits))
    assert not found.supported
    assert words in found.reason
    assert BACKEND.support(asked(scheme, bits, "simulated")).supported


@without_gpu
def test_a_machine_without_a_gpu_says_what_to_do(net, inputs):
    message = r"sees no GPU \(torch .* is built for .*nvidia-smi"
    with pytest.raises(UnsupportedError, match=message):
        BACKEND.convert(lambda: net, inputs)
    with pytest.raises(UnsupportedError, match=message):
        BACKEND.open(baseline(net, inputs), lambda: net, 1)
    with pytest.raises(UnsupportedError, match=message):
        BACKEND.quantize(
            lambda: net, baseline(net, inputs), asked(Scheme("weight_only"), "w4"), None
        )


def baseline(net, inputs, device=cuda.DEVICE):
    tensors = modules.tensors({name: array[:1] for name, array in inputs.items()})
    return checkpoint.store_float(net, tensors, layers.count_macs(net, tensors), device)


def test_an_artifact_opens_on_the_kind_of_device_that_it_was_made_for(net, inputs):
    with pytest.raises(UnsupportedError, match=r"made for .* cuda:0 and is opened on cpu"):
        PyTorchBackend().open(baseline(net, inputs), lambda: net, 1)
    on_cpu, on_gpu = (baseline(net, inputs, device).data for device in (cuda.CPU, cuda.DEVICE))
    assert on_cpu != on_gpu


def test_what_an_artifact_holds_runs_where_it_belongs(net, inputs):
    """On torch's pretended tensors: they have a device and a shape, and no values."""

    def made(scheme, bits, execution):
        module, quantization = modules.own_copy(lambda: net), asked(scheme, bits, execution)
        if execution == "native":
            return torchao_weights.quantize(module, cpu, quantization, cuda.DEVICE)
        return simulated.quantize(module, quantization, examples, cuda.DEVICE)

    examples = {name: array[:8] for name, array in inputs.items()}
    cpu = baseline(net, inputs)
    artifacts = [
        cpu,
        made(Scheme("weight_only"), "w8", "native"),
        made(DYNAMIC, "w5a7", "simulated"),
        made(STATIC, "w5a7", "simulated"),
        made(FP16, "w16a16", "simulated"),
    ]
    for artifact in artifacts:
        with FakeTensorMode(), quiet(), torch.no_grad():
            with torch.device("meta"):
                module = ConvEmbedNet(1024).eval()
            run = checkpoint.restore(artifact, module, cuda.DEVICE)._run
            outputs = run(
                {
                    name: torch.empty_like(tensor, device=cuda.DEVICE)
                    for name, tensor in modules.tensors(inputs).items()
                }
            )
        assert {(str(out.device), out.shape) for out in outputs.values()} == {("cuda:0", (40, 5))}
        assert {str(tensor.device) for tensor in module.state_dict().values()} == {"cuda:0"}


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"narrow_range": False},
        {"symmetric": False},
        {"granularity": "per_tensor"},
        {"granularity": "per_group", "group_size": 64, "symmetric": False},
        {"weight_range": "signed_max", "narrow_range": False},
    ],
    ids=str,
)
def test_the_4_bit_kernel_reads_the_integers_of_the_reference_arithmetic(options, bits):
    scheme = Scheme("weight_only", **options)
    weights = np.random.default_rng(0).normal(size=(12, 1792)).astype(np.float32)
    size = tinygemm.group(torch.Size(weights.shape), (1, scheme.group_size or 1792))
    integers = quantize_weights(weights, scheme, Bits(bits), name="w")
    pairs, scale_and_zero = tinygemm.operands(integers, size)
    assert (pairs.shape, pairs.dtype) == ((16, 2048 // 2), torch.uint8)
    assert scale_and_zero.shape == (2048 // size, 16, 2)
    packed = torch.ops.aten._convert_weight_to_int4pack(pairs.to("meta"), 8)  # shapes alone
    assert packed.shape == (16 // 8, 2048 // (8 * 16), 32, 8 // 2)
    levels = torch.stack([pairs >> 4, pairs & 15], dim=-1).reshape(16, 2048).float()
    scale, zero = scale_and_zero.float().transpose(0, 1).repeat_interleave(size, 1).unbind(-1)
    computed = ((levels - 8) * scale + zero).numpy()
    expected = quantize_dequantize_weights(weights, scheme, Bits(bits))
    assert sqnr_db(expected, computed[:12, :1792]) > 48  # what bfloat16 leaves
    assert not computed[12:].any()
    assert not computed[:, 1792:].any()


@pytest.mark.parametrize(
    ("shape", "block", "size"),
    [
        ((16, 1024), (1, 1024), 256),
        ((5, 1024), (1, 1024), 256),
        ((16, 1024), (1, 96), 32),
        ((16, 1024), (1, 48), None),  # no group of the kernel's
        ((16, 512), (1, 512), 256),
        ((16, 480), (1, 480), None),  # padded, it would take more than a byte a weight
        ((1, 1024), (1, 1024), None),
    ],
)
def test_the_4_bit_kernel_is_used_where_it_saves_memory(shape, block, size):
    assert tinygemm.group(torch.Size(shape), block) == size


def test_products_of_too_few_rows_count_as_float(net):
    macs = layers.Macs(100_000, {"wide": 20 * 16 * 1024, "mix": 1024 * 32})
    found = torchao_weights._integer_macs(net, macs, ["wide", "mix"], 17)
    assert found == (20 * 16 * 1024, 1)
    assert torchao_weights._integer_macs(net, macs, ["mix"], 1) == (1024 * 32, 0)


def test_an_executable_that_times_itself_computes_the_same(net, inputs):
    plain = PyTorchBackend().open(baseline(net, inputs, cuda.CPU), lambda: net, 1)

    def run(tensors):
        return modules.named_outputs(modules.call(net, tensors))

    timed = cuda.DeviceExecutable(run, "cpu", 0)
    np.testing.assert_array_equal(timed(inputs)["output"], plain(inputs)["output"])
    watch = timed.stopwatch({name: array[:1] for name, array in inputs.items()})
    assert all(0 < watch() < 1e9 for _ in range(3))
    assert timed.peak_memory_bytes() is None


def test_memory_that_does_not_do_is_no_failure_without_a_name():
    def run(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 99.00 GiB. More.")

    with pytest.raises(OutOfMemoryError, match=r"CUDA out of memory.*smaller batch_size"):
        cuda.DeviceExecutable(run, "cpu", 0)({})


def on_gpu(net, inputs, scheme, bits, execution="native"):
    quantization = asked(scheme, bits, execution)
    example = {name: array[:1] for name, array in inputs.items()}
    base = BACKEND.convert(lambda: net, example)
    calibration = inputs if scheme.activations == "static" else None
    return BACKEND.quantize(lambda: net, base, quantization, calibration)


def outputs(net, inputs, artifact):
    return BACKEND.open(artifact, lambda: net, 1)(inputs)["output"]


@needs_gpu
def test_float32_on_the_gpu_is_float32(net, inputs):
    example = {name: array[:1] for name, array in inputs.items()}
    here = PyTorchBackend()
    exact = here.open(here.convert(lambda: net, example), lambda: net, 1)(inputs)["output"]
    assert sqnr_db(exact, outputs(net, inputs, BACKEND.convert(lambda: net, example))) > 110


@needs_gpu
@pytest.mark.parametrize(
    ("scheme", "bits", "least_db"),
    [
        (Scheme("weight_only"), "w8", 90),
        (Scheme("weight_only", symmetric=False), "w8", 90),
        (Scheme("weight_only"), "w4", 38),  # bfloat16 in one layer
        (Scheme("weight_only", granularity="per_group", group_size=64), "w3", 38),
        (DYNAMIC, "w8a8", 25),
        (FP16, "w16a16", 50),
        (Scheme("bf16", number="bf16"), "w16a16", 30),
        (Scheme("fp8", number="fp8_e4m3"), "w8", 20),
    ],
)
def test_gpu_kernels_compute_what_the_simulation_does(net, inputs, scheme, bits, least_db):
    kept = scheme
    if scheme.number == "integer" and scheme.activations == "dynamic":
        kept = Scheme("dynamic", "dynamic", layers=(("conv", "float"), ("embed", "float")))
    if scheme.number.startswith("fp8") and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this CUDA device has no fp8")
    native = outputs(net, inputs, on_gpu(net, inputs, scheme, bits))
    simulation = outputs(net, inputs, on_gpu(net, inputs, kept, bits, "simulated"))
    assert native.dtype == np.float32
    assert sqnr_db(simulation, native) > least_db


@needs_gpu
@pytest.mark.parametrize("scheme", [DYNAMIC, STATIC])
def test_a_simulation_is_the_same_on_both_devices(net, inputs, scheme):
    here = PyTorchBackend()
    quantization = asked(scheme, "w8a8", "simulated")
    base = here.convert(lambda: net, {name: array[:1] for name, array in inputs.items()})
    calibration = inputs if scheme.activations == "static" else None
    exact = here.open(here.quantize(lambda: net, base, quantization, calibration), lambda: net, 1)
    there = outputs(net, inputs, on_gpu(net, inputs, scheme, "w8a8", "simulated"))
    assert sqnr_db(exact(inputs)["output"], there) > 40  # a rounded sum may cross a level


@needs_gpu
def test_cuda_events_time_the_model_and_torch_tells_its_memory(net, inputs):
    artifact = BACKEND.convert(lambda: net, {name: array[:1] for name, array in inputs.items()})
    executable = BACKEND.open(artifact, lambda: net, 1)
    weights = sum(tensor.nbytes for tensor in net.state_dict().values())
    assert executable.peak_memory_bytes() >= weights
    executable(inputs)
    assert executable.peak_memory_bytes() > weights + inputs["image"].nbytes
    watch = executable.stopwatch({name: array[:1] for name, array in inputs.items()})
    watch()
    assert all(1_000 < watch() < 1e9 for _ in range(5))


@needs_gpu
def test_a_model_that_makes_tensors_on_the_cpu_is_unsupported_there():
    class Insists(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, values):
            return self.linear(values + torch.zeros(4))

    with pytest.raises(UnsupportedError, match="does not run on a GPU"):
        BACKEND.convert(lambda: Insists().eval(), {"input": np.ones((1, 4), np.float32)})


ON_GPU = """
sweep: gpu
models: [digits-mlp]
datasets: [digits]
schemes: [weight_only]
bits: [w8]
backends: [pytorch]
devices: [{name: gpu, gpus: 1}]
measure: {latency: {warmup_s: 0.05, min_runs: 10, min_s: 0.05}}
"""


@needs_gpu
def test_a_sweep_on_a_gpu_gives_rows_that_name_it_and_are_timed_by_it(tmp_path):
    pytest.importorskip("pynvml", reason="nvidia-ml-py, which tells of GPUs, is not installed")
    (tmp_path / "sweep.yaml").write_text(ON_GPU)
    qb = Path(sys.executable).parent / "qb"
    done = subprocess.run(
        [qb, "run", "sweep.yaml", "--out=out", "--pool=inline"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = pd.read_parquet(tmp_path / "out" / "results").set_index("bits")
    assert set(results.index) == {"f32", "w8"}
    assert results.loc["f32", "status"] == "ok"
    assert results.loc["w8", "status"] in {"ok", "unsupported"}, results.loc["w8", "error"]
    ended_well = results[results["status"] == "ok"]
    gpus = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    assert set(ended_well["accelerator"]) <= gpus
    assert all("timed by CUDA events" in str(notes) for notes in ended_well["notes"])
    assert (ended_well[["latency_median_ns", "speedup", "peak_memory_bytes"]] > 0).all(axis=None)
