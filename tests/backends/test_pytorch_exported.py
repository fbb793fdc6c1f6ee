"""``.pt2`` files as models: the same numbers as the module they came from, and nothing executed."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from qb_cluster.contracts import Bits, Calibration, Quantization, Scheme
from qb_cluster.errors import CellError, UnsupportedError
from qb_pytorch import PyTorchBackend

pytestmark = pytest.mark.frameworks

BACKEND = PyTorchBackend()
CELLS = [
    (Scheme("weight_only"), "w4", "simulated"),
    (Scheme("dynamic", "dynamic"), "w8a8", "simulated"),
    (Scheme("static", "static", layers=(("stem", "w4a8"),)), "w8a8", "simulated"),
    (Scheme("weight_only"), "w4", "native"),
    (Scheme("dynamic", "dynamic"), "w8a8", "native"),
    (Scheme("static", "static", layers=(("stem", "w4a8"),)), "w8a8", "native"),
    (Scheme("bf16", number="bf16"), "w16a16", "native"),
]


class Net(nn.Module):
    """One layer of each kind that is restored, a tied weight, and inputs by position and name."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, dilation=2, groups=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 16, 2, stride=2)
        self.embed = nn.Embedding(10, 16, padding_idx=0)
        self.along = nn.Conv1d(16, 16, 3)
        self.head = nn.Linear(16, 10)
        self.head.weight = self.embed.weight

    def forward(self, image, ids):
        hidden = self.up(self.grouped(self.norm(self.stem(image)).relu())).mean((2, 3))
        hidden = hidden + self.embed(ids).mean(1)
        hidden = hidden + self.along(hidden[:, :, None].expand(-1, -1, 3)).squeeze(-1)
        return {"logits": self.head(hidden), "hidden": hidden}


def export(net, path, *, batch=torch.export.Dim.DYNAMIC):
    sample = (torch.zeros(2, 3, 8, 8),), {"ids": torch.zeros(2, 4, dtype=torch.long)}
    shapes = None if batch is None else {"image": {0: batch}, "ids": {0: batch}}
    torch.export.save(torch.export.export(net, *sample, dynamic_shapes=shapes), path)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.norm.running_mean.uniform_(-0.5, 0.5)
        net.norm.running_var.uniform_(0.5, 2)
    return net


@pytest.fixture(scope="module")
def path(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "net.pt2"
    export(net, path)
    return path


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(12, 3, 8, 8)).astype(np.float32),
        "ids": rng.integers(0, 10, (12, 4)),
    }


def convert(load, inputs):
    return BACKEND.convert(load, {name: array[:1] for name, array in inputs.items()})


def quantized(load, inputs, scheme, bits, execution):
    static = scheme.activations == "static"
    calibration = Calibration() if static else None
    asked = Quantization(scheme, Bits.parse(bits), execution, calibration)
    return BACKEND.quantize(load, convert(load, inputs), asked, inputs if static else None)


def test_a_program_computes_what_its_module_does_and_keeps_the_names_of_outputs(net, path, inputs):
    baselines = [convert(load, inputs) for load in (lambda: net, lambda: str(path))]
    assert baselines[0].facts == baselines[1].facts
    one = BACKEND.open(baselines[0], lambda: net, 1)
    two = BACKEND.open(baselines[1], lambda: path, 1)
    for batch in (inputs, {name: array[:1] for name, array in inputs.items()}):
        expected, found = one(batch), two(batch)
        assert list(found) == ["logits", "hidden"]
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join((cell[0].name, *cell[1:])))
def test_a_program_is_quantized_as_its_module_is(net, path, inputs, cell):
    outputs, facts = [], []
    for load in (lambda: net, lambda: path):
        artifact = quantized(load, inputs, *cell)
        facts.append(artifact.facts)
        outputs.append(BACKEND.open(artifact, load, 1)(inputs)["logits"])
    assert facts[0] == facts[1]
    assert facts[0].quantized_parameters > 0
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-6)


def test_layers_of_a_program_are_sensitive_as_the_module_s_are(net, path, inputs):
    asked = Quantization(Scheme("weight_only"), Bits(4), "simulated")
    one, two = (
        BACKEND.layer_sensitivity(load, asked, None, inputs) for load in (lambda: net, lambda: path)
    )
    by_name = {(row.layer, row.mode): row for row in one}
    assert {row.layer for row in two} == {"stem", "grouped", "along", "up", "head", "embed"}
    for row in two:
        assert row.sqnr_db == pytest.approx(by_name[row.layer, row.mode].sqnr_db, abs=1e-3)


def test_a_program_for_one_batch_size_says_how_to_free_it(net, tmp_path, inputs):
    export(net, tmp_path / "fixed.pt2", batch=None)
    with pytest.raises(UnsupportedError, match=r"shape \[2, 3, 8, 8\] and no other; .*DYNAMIC"):
        convert(lambda: tmp_path / "fixed.pt2", inputs)


# ------------------------------------------------------------------------------- bad files


class Trap:
    """Unpickling it would set a flag."""

    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def rewritten(path, target, change):
    """Copy an archive, with ``change(inner name, content)`` in place of each content."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as copy:
        for name in archive.namelist():
            changed = change(name.partition("/")[2], archive.read(name))
            if changed is not None:
                copy.writestr(name, changed)
    return target


def edited_model(edit):
    def change(inner, content):
        if not inner.startswith("models/"):
            return content
        model = json.loads(content)
        edit(model)
        return json.dumps(model).encode()

    return change


def first_target(model, target):
    model["graph_module"]["graph"]["nodes"][0]["target"] = target


def refused(path, match):
    with pytest.raises(CellError, match=match) as caught:
        BACKEND.convert(lambda: path, {})
    assert str(path) in str(caught.value)
    assert not Trap.sprung


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_file_is_a_typed_error(path, tmp_path, share):
    data = path.read_bytes()
    (tmp_path / "cut.pt2").write_bytes(data[: int(share * len(data))])
    # What is left may look like the archive of its last entry, a pickle.
    refused(tmp_path / "cut.pt2", "is damaged, or no program|holds pickles")


def test_a_missing_file_is_a_typed_error(tmp_path):
    refused(tmp_path / "none.pt2", "cannot be read")


def test_a_bent_file_is_a_typed_error(path, tmp_path):
    def bend(inner, content):
        return content[: len(content) // 2] if inner.startswith("models/") else content

    refused(rewritten(path, tmp_path / "bent.pt2", bend), "is damaged")


def test_a_pickle_posing_as_a_program_is_never_run(tmp_path):
    (tmp_path / "plain.pt2").write_bytes(pickle.dumps(Trap()))
    refused(tmp_path / "plain.pt2", "nothing in it was run")
    torch.save(Trap(), tmp_path / "torch.pt2")
    refused(tmp_path / "torch.pt2", "nothing in it was run")


def test_pickles_inside_a_program_are_never_run(path, tmp_path):
    bomb = io.BytesIO()
    torch.save(Trap(), bomb)

    def as_pickle(inner, content):
        if inner.endswith("weights_config.json"):
            config = json.loads(content)
            next(iter(config["config"].values()))["use_pickle"] = True
            return json.dumps(config).encode()
        return bomb.getvalue() if inner == "data/weights/weight_0" else content

    refused(rewritten(path, tmp_path / "pickled.pt2", as_pickle), "holds pickles")

    def legacy(inner, content):
        return None if inner.endswith("weights_config.json") else content

    target = rewritten(path, tmp_path / "legacy.pt2", legacy)
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr("archive/data/weights/model.pt", bomb.getvalue())
    refused(target, "holds pickles")


def test_example_inputs_are_never_unpickled(path, tmp_path, inputs):
    bomb = io.BytesIO()
    torch.save(Trap(), bomb)

    def change(inner, content):
        return bomb.getvalue() if inner.startswith("data/sample_inputs") else content

    target = rewritten(path, tmp_path / "examples.pt2", change)
    assert convert(lambda: target, inputs).facts.parameters > 0
    assert not Trap.sprung


@pytest.mark.parametrize(
    "target",
    ["torch.hub.load", "torch.ops.aten.from_file.default", "_operator.methodcaller", "math.x.y"],
)
def test_operators_that_are_no_tensor_arithmetic_are_refused(path, tmp_path, target):
    change = edited_model(lambda model: first_target(model, target))
    refused(rewritten(path, tmp_path / "calls.pt2", change), "calls '")


def test_text_that_torch_would_evaluate_is_refused_or_left_out(path, tmp_path, inputs):
    code = "__import__('os').environ.update(QB_SPRUNG='1')"

    def as_size(model):
        text = json.dumps(model)
        start = text.index('"expr_str": "') + len('"expr_str": "')
        text = text[:start] + code + text[text.index('"', start) :]
        model.clear()
        model.update(json.loads(text))

    refused(rewritten(path, tmp_path / "size.pt2", edited_model(as_size)), "for a size")

    def as_guard(model):
        model["guards_code"] = [code]

    guarded = rewritten(path, tmp_path / "guard.pt2", edited_model(as_guard))
    convert(lambda: guarded, inputs)
    import os

    assert "QB_SPRUNG" not in os.environ


def test_compiled_libraries_inside_a_program_are_refused(path, tmp_path):
    target = rewritten(path, tmp_path / "library.pt2", lambda _, content: content)
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr("archive/data/aotinductor/model/evil.so", b"\x7fELF")
    refused(target, "holds 'data/aotinductor/model/evil.so'")
