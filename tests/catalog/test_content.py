import os
import shutil
import subprocess
import sys
import textwrap
import threading
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from another import CELL, KNOWN, with_field

from qb_cluster.catalog import content, source_code
from qb_cluster.catalog.content import (
    backend_digest,
    cell_key,
    content_of,
    dataset_digest,
    model_digest,
    scheme_digest,
)
from qb_cluster.catalog.counted import RESULT
from qb_cluster.catalog.dataset import as_dataset
from qb_cluster.catalog.insides import size_bytes
from qb_cluster.catalog.value_digest import value_digest
from qb_cluster.contracts import (
    Bits,
    Calibration,
    Cell,
    Content,
    Device,
    Latency,
    Measure,
    Ref,
    Scheme,
)

STATIC = scheme_digest(CELL.scheme)


def key(cell=CELL, known=KNOWN, scheme=STATIC, fingerprint=None):
    return cell_key(cell, known, scheme, fingerprint)


def measured(**changes):
    return replace(CELL, measure=replace(CELL.measure, **changes))


MATTERS = {
    "bits": replace(CELL, bits=Bits(3, 8)),
    "activation bits": replace(CELL, bits=Bits(4, 16)),
    "execution": replace(CELL, execution="simulated"),
    "samples": replace(CELL, calibration=Calibration(samples=64)),
    "seed": replace(CELL, calibration=Calibration(seed=1)),
    "observer": replace(CELL, calibration=Calibration(observer="mse")),
    "percentile": replace(CELL, calibration=Calibration(percentile=99)),
    "batch size": measured(batch_size=8),
    "examples": measured(examples=10),
    "confidence": measured(confidence=0.9),
    "layers": measured(layers=True),
    "threads": replace(CELL, device=Device(threads=2)),
}
DOES_NOT = {
    "sweep": replace(CELL, sweep="another"),
    "timeout": replace(CELL, timeout_s=1, timeout_retries=3),
    "reason": replace(CELL, reason="because"),
    "model label": replace(CELL, model=Ref("again", "m")),
    "scheme label": replace(CELL, scheme=Ref("again", "static")),
    "metric label": measured(metric=Ref("again", "accuracy")),
    "device name": replace(CELL, device=Device("board", 1, (("qb/board", "pi"),))),
    "simulator": replace(CELL, simulator=Ref("sim", "pytorch")),
    "latency, not timed": measured(latency=Latency(min_runs=9)),
}


@pytest.mark.parametrize("what", MATTERS)
def test_whatever_can_change_a_cells_numbers_changes_its_key(what):
    assert key(MATTERS[what]) != key()
    assert key(MATTERS[what], fingerprint="f") != key(fingerprint="f")


@pytest.mark.parametrize("what", DOES_NOT)
def test_nothing_else_changes_it(what):
    assert key(DOES_NOT[what]) == key()


@pytest.mark.parametrize("kind", [Cell, Measure, Calibration, Device])
def test_every_field_changes_the_key_or_is_named_with_a_reason(kind):
    part = {Measure: "measure", Calibration: "calibration", Device: "device"}.get(kind)
    for field in fields(kind):
        if part is None:
            changed = with_field(CELL, field.name)
        else:
            changed = replace(CELL, **{part: with_field(getattr(CELL, part), field.name)})
        is_named = bool(RESULT.but.get(kind, {}).get(field.name))
        assert (key(changed) == key()) == is_named, field.name


@pytest.mark.parametrize("of", [Content, Latency])
def test_all_of_the_content_and_of_the_latency_protocol_counts_where_a_cell_is_timed(of):
    def of_changed(name):
        if of is Content:
            return key(known=with_field(KNOWN, name), fingerprint="f")
        return key(measured(latency=with_field(Latency(), name)), fingerprint="f")

    for field in fields(of):
        assert of_changed(field.name) != key(fingerprint="f"), field.name


@pytest.mark.parametrize("what", ["model", "dataset", "backend", "metric", "runtime"])
def test_content_changes_the_key(what):
    assert key(known=replace(KNOWN, **{what: "other"})) != key()


def test_version_of_keys_changes_the_key(monkeypatch):
    before = key()
    monkeypatch.setattr(content, "KEY_VERSION", content.KEY_VERSION + 1)
    assert key() != before


def test_hardware_and_protocol_count_for_timed_cells_alone():
    assert key(fingerprint="this") != key(fingerprint="other")
    assert key(fingerprint="this") != key()
    slower = measured(latency=Latency(min_runs=9))
    assert key(slower, fingerprint="this") != key(fingerprint="this")


@pytest.mark.parametrize(
    "options",
    ['{"symmetric":false}', '{"narrow_range":false}', '{"layers":{"a":"w8a8"}}'],
)
def test_every_option_of_a_scheme_changes_its_digest(options):
    assert scheme_digest(Ref("static", "static", options)) != STATIC


def test_an_option_at_its_default_does_not():
    assert scheme_digest(Ref("s", "static", '{"symmetric":true}')) == STATIC


def test_every_field_of_a_scheme_changes_its_digest():
    scheme = Scheme("static", "static")
    same = value_digest(scheme)
    assert value_digest(Scheme("static", "static")) == same
    for field in fields(Scheme):
        assert value_digest(with_field(scheme, field.name)) != same, field.name


def test_float_is_a_scheme_too():
    assert scheme_digest(None) != STATIC


def data(**changes):
    inputs = np.arange(12, dtype=np.float32).reshape(6, 2)
    raw = {
        "inputs": inputs,
        "targets": np.arange(6),
        "ids": list("abcdef"),
        "calibration": {"inputs": inputs[:3] + 50, "ids": list("xyz")},
    }
    return dataset_digest(as_dataset(raw | changes, "d"))


def test_the_same_arrays_are_the_same_dataset_in_whatever_order_its_keys_are():
    inputs = np.arange(12, dtype=np.float32).reshape(6, 2)
    assert data() == data(inputs=inputs.copy()) == data(inputs=np.asfortranarray(inputs))


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": np.zeros((6, 2), np.float32)},
        {"inputs": np.arange(12, dtype=np.int32).reshape(6, 2)},
        {"targets": np.arange(6)[::-1]},
        {"ids": list("abcdeg")},
        {"calibration": {"inputs": np.ones((3, 2), np.float32), "ids": list("xyz")}},
        {"calibration": {"inputs": np.arange(6).reshape(3, 2) + 50.0, "ids": list("xyw")}},
    ],
)
def test_other_arrays_or_ids_are_another_dataset(changes):
    assert data(**changes) != data()


PLUGIN = '''
"""A plug-in."""
import functools
import numpy as np
import helper_module

class Net:
    """A net."""
    def __init__(self, weights):
        self.weights = weights  # by layer
        self.names = {"first", "second", "third"}
        self.options = {"beta": 2, "alpha": 1}

def factory():
    return Net({"a": np.arange(3.0)})

class Plug:
    distributions = ("numpy",)

def metric(outputs, targets):
    return helper_module.score(outputs, targets)
'''
HELPER = """
def score(outputs, targets):
    return float((outputs == targets).mean())
"""
DIGESTS = """
import plugin_module as plugin
from qb_cluster.catalog.content import *
from qb_cluster.contracts import Ref
print(model_digest(plugin.factory(), plugin.factory),
      backend_digest(plugin.Plug(), Ref("p", "plugin_module:Plug")),
      code_digest(plugin.metric))
"""


@pytest.fixture
def digests(tmp_path):
    """Write two modules and give the digests of model, backend and metric in a new process."""

    def digests(plugin=PLUGIN, helper=HELPER, hash_seed="0"):
        (tmp_path / "plugin_module.py").write_text(plugin)
        (tmp_path / "helper_module.py").write_text(helper)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)]),
            "PYTHONHASHSEED": hash_seed,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", DIGESTS],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.returncode, done.stderr
        return done.stdout.split()

    return digests


def test_digests_are_equal_in_every_process_and_know_code_from_its_looks(digests):
    first = digests()
    assert digests(hash_seed="1") == first
    reordered = PLUGIN.replace('"beta": 2, "alpha": 1', '"alpha": 1, "beta": 2')
    assert digests(reordered)[0] != first[0]  # of code, not of the dict: it is source
    looks = PLUGIN.replace("# by layer", "# comment").replace('"""A net."""', '"""Other."""')
    assert digests(looks + "\n\n# the end\n", HELPER + "# more") == first
    assert not set(digests(PLUGIN.replace("arange(3.0)", "arange(4.0)"))) & set(first)
    assert not set(digests(helper=HELPER.replace("mean", "sum"))) & set(first)


class Net:
    def __init__(self, **attributes):
        self.__dict__ |= attributes


def net(**changes):
    plain = {"weights": np.arange(4.0), "alpha": 0.5, "table": {"b": 1, "a": 2}, "tags": {"x", "y"}}
    return model_digest(Net(**plain | changes), net)


def test_a_model_loaded_again_is_the_same_in_whatever_order_its_dicts_are():
    assert net() == net() == net(table={"a": 2, "b": 1}, tags={"y", "x"})


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": np.arange(4.0) + 1e-12},
        {"weights": np.arange(4.0, dtype=np.float32)},
        {"weights": np.arange(4.0).reshape(2, 2)},
        {"alpha": 0.25},
        {"table": {"b": 1, "a": 3}},
        {"tags": {"x", "z"}},
        {"more": None},
    ],
)
def test_other_attributes_are_another_model(changes):
    assert net(**changes) != net()


def test_options_of_a_model_count_where_nothing_else_shows_them():
    assert model_digest("a model", net, '{"alpha":1}') != model_digest("a model", net)


def test_what_cannot_be_pickled_counts_by_its_class_and_hides_nothing_else():
    def locked(weights):
        return model_digest(Net(lock=threading.Lock(), weights=np.array(weights)), net)

    assert locked([1.0]) == locked([1.0]) != locked([2.0])


def test_a_model_that_holds_itself_has_a_digest():
    def cyclic(value):
        made = Net(value=value)
        made.itself = [made, made]
        return model_digest(made, net)

    assert cyclic(1) == cyclic(1) != cyclic(2)


def test_a_very_deep_model_has_a_digest():
    deep = None
    for _ in range(10_000):
        deep = [deep]
    assert model_digest(Net(deep=deep), net)


def test_closures_and_defaults_of_functions_count():
    def scaled(by):
        return lambda weights, bits, offset=0: weights * by + offset

    assert value_digest(scaled(2)) == value_digest(scaled(2)) != value_digest(scaled(3))


def test_a_model_file_is_known_by_its_bytes_and_not_by_its_name(tmp_path):
    one, two = tmp_path / "one.tflite", tmp_path / "two.tflite"
    one.write_bytes(b"weights")
    two.write_bytes(b"weights")
    assert model_digest(one, net) == model_digest(str(two), net)
    two.write_bytes(b"weighty")
    assert model_digest(one, net) != model_digest(two, net)


def test_a_saved_model_is_known_by_all_its_files(tmp_path):
    (tmp_path / "variables").mkdir()
    (tmp_path / "saved_model.pb").write_bytes(b"graph")
    (tmp_path / "variables" / "data").write_bytes(b"1")
    before = model_digest(tmp_path, net)
    assert model_digest(tmp_path, net) == before
    (tmp_path / "variables" / "data").write_bytes(b"2")
    assert model_digest(tmp_path, net) != before


class Plug:
    distributions = ("numpy",)


def test_a_backend_counts_by_its_options_and_not_by_its_label(monkeypatch):
    ref = Ref("p", f"{__name__}:Plug")
    monkeypatch.setattr(content.plugins, "find", lambda kind, target: Plug)
    before = backend_digest(Plug(), ref)
    assert backend_digest(Plug(), replace(ref, label="q")) == before
    assert backend_digest(Plug(), replace(ref, options_json='{"a":1}')) != before


@pytest.fixture
def forgetful():
    """What a process has found installed it does not look up again."""
    content._backend_digest.cache_clear()
    yield content._backend_digest.cache_clear
    content._backend_digest.cache_clear()


def test_a_backend_counts_by_our_arithmetic(monkeypatch, forgetful):
    ref = Ref("p", "numpy:ndarray")
    before = backend_digest(Plug(), ref)
    monkeypatch.setattr(content, "arithmetic_digest", lambda: "edited")
    forgetful()
    assert backend_digest(Plug(), ref) != before


HELPED = """
from qb_cluster.catalog.content import backend_digest
from qb_cluster.contracts import Ref
from qb_tflite.backend import TFLiteBackend
print(backend_digest(TFLiteBackend(), Ref("tflite", "tflite")))
"""


def test_a_backend_counts_by_the_package_that_it_shares_with_another(tmp_path):
    for package in ("qb_tflite", "qb_litert"):
        [place] = find_spec(package).submodule_search_locations
        shutil.copytree(place, tmp_path / package)

    def digest():
        paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        environment = os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.check_output([sys.executable, "-c", HELPED], env=environment)

    before = digest()
    assert digest() == before
    shared = tmp_path / "qb_litert" / "graph.py"
    shared.write_text(shared.read_text() + "\nEDITED = True\n")
    assert digest() != before


@pytest.mark.parametrize("distribution", ["numpy", "qb-cluster"])
def test_a_backend_counts_by_what_it_stands_on(monkeypatch, distribution, forgetful):
    ref, real = Ref("p", "numpy:ndarray"), content.version
    before = backend_digest(Plug(), ref)
    monkeypatch.setattr(
        content, "version", lambda name: "9" if name == distribution else real(name)
    )
    forgetful()
    assert backend_digest(Plug(), ref) != before


def test_content_names_what_changed():
    known = content_of(CELL_OF_NUMPY, "m", "d", Plug())
    assert known.changes(content_of(CELL_OF_NUMPY, "n", "d", Plug())) == ["model"]
    other = replace(CELL_OF_NUMPY, measure=Measure(metric=Ref("accuracy", "accuracy", '{"top":5}')))
    assert known.changes(content_of(other, "m", "d", Plug())) == ["metric"]


CELL_OF_NUMPY = replace(CELL, backend=Ref("p", "numpy:ndarray"))


def test_what_is_installed_counts_by_its_version():
    before = source_code.source_digest(["numpy.linalg"])
    assert before == source_code.source_digest(["numpy"]) != source_code.source_digest(["json"])


def test_our_own_packages_count_by_their_code_even_where_they_are_installed(tmp_path, monkeypatch):
    site = tmp_path / "site-packages"
    record = site / "qb_cluster-9.dist-info" / "RECORD"
    record.parent.mkdir(parents=True)
    (record.parent / "METADATA").write_text("Metadata-Version: 2.1\nName: qb-cluster\nVersion: 9\n")
    record.write_text("own_package/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(site))

    def digest(package, text):
        (site / package).mkdir(exist_ok=True)
        (site / package / "__init__.py").write_text(text)
        for cached in (source_code._digest, source_code._module, source_code._own_packages):
            cached.cache_clear()
        return source_code.source_digest([package])

    assert digest("own_package", "x = 1") != digest("own_package", "x = 2")
    assert digest("foreign_package", "x = 1") == digest("foreign_package", "x = 2")
    source_code._own_packages.cache_clear()


def test_relative_and_lazy_imports_are_followed(tmp_path, monkeypatch):
    package = tmp_path / "relative_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "core.py").write_text("def f():\n    from .. import lazy\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def digest(text):
        (package / "lazy.py").write_text(textwrap.dedent(text))
        source_code._digest.cache_clear()
        source_code._module.cache_clear()
        source_code._spec.cache_clear()
        return source_code.source_digest(["relative_package.inner.core"])

    assert digest("x = 1") == digest("x = 1  # one") != digest("x = 2")


@pytest.mark.parametrize("name", ["net.keras", "net.onnx", "net.pt2"])
def test_the_path_of_a_model_file_takes_no_memory(name):
    assert size_bytes(Path(name)) == size_bytes(name) == 0
