"""From a sweep to its cells: which, in what order, and how they run."""

import hashlib
import json
from dataclasses import asdict

import pytest

from qb_cluster.contracts import Calibration
from qb_cluster.errors import PlugInError, SpecError
from qb_cluster.installation import install_line
from qb_cluster.plan import check_size, expand, expected_size
from qb_cluster.spec import label_of


def shown(cell):
    scheme = cell.scheme.label if cell.scheme else "float"
    return f"{scheme} {cell.bits or 'f32'} {cell.execution or 'unsupported'}"


def test_a_scheme_takes_the_bits_of_its_form_and_a_baseline_comes_first(cells_of, spec_text):
    cells = cells_of(spec_text)
    group = [
        "float f32 native",
        "weight_only w8 native",
        "weight_only w4 simulated",
        "weight_only w2 unsupported",
        "static w8a8 native",
    ]
    assert [shown(cell) for cell in cells] == group * 2
    assert [cell.model.label for cell in cells] == ["stub_plugins:small"] * 5 + [
        "stub_plugins:large"
    ] * 5
    assert {cell.sweep for cell in cells} == {"trial"}


def test_model_dataset_device_and_backend_are_outermost(cells_of, spec_text):
    cells = cells_of(
        spec_text.replace("[stub_plugins:data]", "['json:a', 'json:b']").replace(
            "[stub_plugins:Half]", "[stub_plugins:Half, stub_plugins:Anything]"
        )
        + "devices: [cpu, {name: cpu, threads: 2}]\nexecution: [native, simulated]\n"
    )
    keys = [
        (c.model.label, c.dataset.label, c.device.threads, c.backend.label)
        for c in cells
        if c.is_baseline
    ]
    expected = [
        (model, dataset, threads, backend)
        for model in ("stub_plugins:small", "stub_plugins:large")
        for dataset in ("json:a", "json:b")
        for threads in (1, 2)
        for backend in ("stub_plugins:Half", "stub_plugins:Anything")
    ]
    assert keys == expected
    anything = [shown(c) for c in cells if c.backend.label == "stub_plugins:Anything"][:5]
    assert anything == [
        "float f32 native",
        "weight_only w8 native",
        "weight_only w8 simulated",
        "weight_only w4 native",
        "weight_only w4 simulated",
    ]


def test_reasons_say_why_a_cell_is_not_native(cells_of, spec_text):
    reasons = {str(cell.bits): cell.reason for cell in cells_of(spec_text)}
    assert reasons["w8"] == ""
    assert reasons["w4"] == "not native: its kernels are 8-bit"
    assert reasons["w2"] == "native: below 3 bits; simulated: below 3 bits"


def test_a_native_cell_keeps_the_caveat_of_its_backend(cells_of, spec_text):
    text = spec_text.replace("Half", "Anything").replace("w2", "w16")
    assert {str(cell.bits): cell.reason for cell in cells_of(text)}["w16"] == "on trust"


def test_what_was_asked_for_by_name_is_not_replaced(cells_of, spec_text):
    native = {str(c.bits): c for c in cells_of(spec_text + "execution: native\n")}
    assert native["w8"].execution == "native"
    assert native["w4"].execution is None
    assert native["w4"].reason == "its kernels are 8-bit"
    simulated = {str(c.bits): c for c in cells_of(spec_text + "execution: simulated\n")}
    assert {simulated[bits].execution for bits in ("w8", "w4", "w8a8")} == {"simulated"}
    assert simulated["w2"].execution is None


def test_auto_beside_what_it_comes_to_gives_one_cell(cells_of, spec_text):
    cells = cells_of(spec_text + "execution: [auto, simulated]\n")
    assert [shown(c) for c in cells if c.model.label == "stub_plugins:small"] == [
        "float f32 native",
        "weight_only w8 native",
        "weight_only w8 simulated",
        "weight_only w4 simulated",
        "weight_only w2 unsupported",  # as auto
        "weight_only w2 unsupported",  # as simulated
        "static w8a8 native",
        "static w8a8 simulated",
    ]
    assert len({c.cell_id for c in cells}) == len(cells)


def test_a_backend_whose_module_is_not_installed_is_unsupported_with_no_baseline(
    cells_of, spec_text
):
    cells = cells_of(spec_text.replace("Half", "Uninstalled"))
    assert {cell.execution for cell in cells} == {None}
    assert {cell.reason for cell in cells} == {
        "module 'module_that_nobody_has.part' is not installed"
    }
    assert not any(cell.is_baseline for cell in cells)


def test_a_registered_backend_that_is_not_installed_names_its_extra(
    load, spec_text, tmp_path, monkeypatch
):
    from qb_cluster.catalog import plugins

    info = tmp_path / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[qb_cluster.backends]\nfar = stub_plugins:Uninstalled\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.registered.cache_clear()
    try:
        (cell, *_) = expand(load(spec_text.replace("stub_plugins:Half", "far")))
        install = install_line("uninstalled", name="stranger")
        assert cell.reason.endswith(f"is not installed; {install}")
    finally:
        plugins.registered.cache_clear()


def test_a_baseline_is_planned_only_for_cells_that_can_run(cells_of, spec_text):
    cells = cells_of(spec_text.replace("[w8, w4, w2, w8a8]", "[w2, w2a8]"))
    assert [shown(cell) for cell in cells] == [
        "weight_only w2 unsupported",
        "static w2a8 unsupported",
    ] * 2


def test_unsupported_cells_before_the_first_supported_one_need_no_baseline_yet(cells_of, spec_text):
    cells = cells_of(spec_text.replace("[w8, w4, w2, w8a8]", "[w2, w8, w8a8]"))
    assert [shown(cell) for cell in cells[:3]] == [
        "weight_only w2 unsupported",
        "float f32 native",
        "weight_only w8 native",
    ]


def test_every_cell_names_its_baseline(cells_of, spec_text):
    cells = cells_of(spec_text)
    planned = {}
    for cell in cells:
        if cell.is_baseline:
            assert cell.baseline_cell_id == cell.cell_id
            assert (cell.scheme, cell.bits, cell.calibration) == (None, None, None)
            planned[cell.cell_id] = cell
        elif cell.execution is not None:
            baseline = planned[cell.baseline_cell_id]
            assert baseline.model == cell.model


def test_calibration_belongs_to_static_schemes_alone(cells_of, spec_text):
    cells = cells_of(spec_text + "calibration: {samples: 5}\n")
    for cell in cells:
        is_static = cell.scheme is not None and cell.scheme.label == "static"
        assert cell.calibration == (Calibration(samples=5) if is_static else None)


def test_simulated_cells_have_no_latency_protocol(cells_of, spec_text):
    for cell in cells_of(spec_text):
        assert (cell.measure.latency is None) == (cell.execution == "simulated")


def test_a_cell_id_is_the_hash_of_the_canonical_json_of_what_decides_the_numbers(
    cells_of, spec_text
):
    def named(ref):
        return ref and {"target": ref.target, "options": ref.options}

    cells = cells_of(
        spec_text.replace(
            "stub_plugins:small", "{name: 'stub_plugins:small', label: x, options: {é: 1, a: [2]}}"
        )
        + "devices: {name: cpu, threads: 3}\nmeasure: {metric: {name: accuracy, options: {k: 1}}}\n"
    )
    for cell in cells:
        text = json.dumps(
            {
                "model": named(cell.model),
                "dataset": named(cell.dataset),
                "backend": named(cell.backend),
                "device": {"name": "cpu", "threads": 3},
                "scheme": named(cell.scheme),
                "bits": cell.bits and str(cell.bits),
                "execution": cell.execution or "auto",
                "calibration": cell.calibration and asdict(cell.calibration),
                "measure": asdict(cell.measure) | {"metric": named(cell.measure.metric)},
            },
            sort_keys=True,
            separators=(",", ":"),
        )
        assert cell.cell_id == hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sweep: trial", "sweep: other"),
        ("[stub_plugins:small,", "[{name: 'stub_plugins:small', label: s},"),
        ("sweep: trial", "sweep: trial\ntimeout_s: 7"),
        ("sweep: trial", "sweep: trial\ntimeout_retries: 2"),
        ("sweep: trial", "sweep: trial\nmax_cells: 500"),
        ("sweep: trial", "sweep: trial\nmeasure: {latency: {min_s: 1}}"),
    ],
)
def test_what_decides_no_number_is_not_in_the_id(cells_of, spec_text, old, new):
    ids = [cell.cell_id for cell in cells_of(spec_text)]
    assert [cell.cell_id for cell in cells_of(spec_text.replace(old, new))] == ids


@pytest.mark.parametrize(
    ("addition", "changed"),
    [
        ("calibration: {seed: 1}", "static w8a8 native"),
        ("measure: {latency: {min_runs: 3}}", "weight_only w8 native"),
        ("measure: {batch_size: 3}", "weight_only w4 simulated"),
        ("measure: {metric: 'json:loads'}", "weight_only w4 simulated"),
        ("devices: {name: cpu, threads: 2}", "weight_only w4 simulated"),
    ],
)
def test_what_decides_numbers_is_in_the_id(cells_of, spec_text, addition, changed):
    before = {shown(cell): cell.cell_id for cell in cells_of(spec_text)}
    after = {shown(cell): cell.cell_id for cell in cells_of(f"{spec_text}{addition}\n")}
    assert before[changed] != after[changed]


def test_growing_a_sweep_keeps_every_id(cells_of, spec_text):
    grown = spec_text.replace("w4,", "w4, w5, w5a5,").replace("[stub_plugins:small", "['json:x'")
    kept = {c.cell_id for c in cells_of(spec_text) if c.model.label == "stub_plugins:large"}
    assert kept <= {cell.cell_id for cell in cells_of(grown)}


def test_a_backend_that_cannot_say_what_it_supports_is_named(load, spec_text):
    spec = load(spec_text.replace("Half", "Undecided"))
    with pytest.raises(PlugInError, match="'stub_plugins:Undecided' raised RuntimeError"):
        list(expand(spec))


# Float formats


def test_a_float_format_has_its_own_bits_whatever_the_sweep_lists(cells_of, spec_text):
    text = spec_text.replace("stub_plugins:small, ", "").replace(
        "[weight_only, static]", "[fp16, weight_only, static, bf16, fp8]"
    )
    cells = [shown(cell) for cell in cells_of(text.replace("Half", "Anything"))]
    assert [c for c in cells if c.startswith(("fp", "bf"))] == [
        "fp16 w16a16 native",
        "bf16 w16a16 native",
        "fp8 w8 native",
    ]
    assert len(cells) == 1 + 3 + 3 + 1
    assert "fp16 w16a16 native" not in [
        shown(cell) for cell in cells_of(text + "exclude: {bits: w16a16}\n")
    ]


def test_a_sweep_of_float_formats_needs_no_bits(cells_of, spec_text):
    text = spec_text.replace("bits: [w8, w4, w2, w8a8]\n", "")
    cells = cells_of(text.replace("[weight_only, static]", "[fp16, fp8]"))
    assert {str(cell.bits) for cell in cells if not cell.is_baseline} == {"w16a16", "w8"}


# Model files


@pytest.fixture
def onnx_file(tmp_path, monkeypatch):
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "net.onnx").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("onnx_file")
def test_a_backend_that_does_not_take_a_model_file_says_so(cells_of, spec_text):
    text = spec_text.replace("stub_plugins:small", "nets/net.onnx")
    cells = cells_of(text.replace("[stub_plugins:Half]", "[stub_plugins:Half, stub_plugins:Onnx]"))
    of_file = {c.backend.label: c for c in cells if c.model.label == "nets/net.onnx"}
    assert of_file["stub_plugins:Half"].execution is None
    assert of_file["stub_plugins:Half"].reason == (
        "stub_plugins:Half takes object; nets/net.onnx is onnx"
    )
    assert of_file["stub_plugins:Onnx"].execution == "native"
    assert {c.execution for c in cells if c.model.label == "stub_plugins:large"} > {"native"}
    assert not any(
        c.is_baseline and c.backend.label == "stub_plugins:Half" and "onnx" in c.model.label
        for c in cells
    )


# Simulators


def simulators(cells):
    """The labels of simulators, by backend and bits."""
    return {
        f"{cell.backend.label.partition(':')[2]} {cell.bits}": cell.simulator
        and cell.simulator.label
        for cell in cells
        if cell.model.label == "stub_plugins:small" and not cell.is_baseline
    }


def test_a_native_cell_is_simulated_by_its_own_backend_if_that_can(cells_of, spec_text):
    found = simulators(cells_of(spec_text.replace("Half", "Anything, stub_plugins:Half")))
    assert found["Half w8"] == "stub_plugins:Half"
    assert found["Anything w8"] == "stub_plugins:Anything"
    assert found["Half w4"] is None  # it is simulated itself
    assert found["Half w2"] is None  # it is unsupported


def test_a_native_cell_is_else_simulated_by_the_first_backend_of_the_sweep_that_can(
    cells_of, spec_text
):
    found = simulators(
        cells_of(
            spec_text.replace(
                "Half",
                "Kernels, stub_plugins:Uninstalled, stub_plugins:Half, stub_plugins:Anything",
            )
        )
    )
    assert found["Kernels w8"] == "stub_plugins:Half"
    assert found["Kernels w2"] == "stub_plugins:Anything"


def test_a_backend_that_takes_no_such_models_is_no_simulator(cells_of, spec_text):
    found = simulators(
        cells_of(spec_text.replace("Half", "Kernels, stub_plugins:Onnx, stub_plugins:Torch"))
    )
    assert found["Kernels w8"] == "stub_plugins:Torch"
    assert found["Onnx w8"] is None


def test_a_native_cell_is_else_simulated_by_pytorch_if_it_is_installed(
    cells_of, spec_text, monkeypatch
):
    text = spec_text.replace("Half", "Kernels")
    cells = cells_of(text)
    assert set(simulators(cells).values()) == {"pytorch"}
    assert all(cell.simulator is None for cell in cells if cell.is_baseline)

    from qb_pytorch import PyTorchBackend

    monkeypatch.setattr(PyTorchBackend, "requires", ("module_that_nobody_has",))
    without = cells_of(text)
    assert set(simulators(without).values()) == {None}
    assert [c.cell_id for c in cells] == [c.cell_id for c in without]


@pytest.mark.usefixtures("onnx_file")
def test_a_backend_that_does_not_take_a_model_file_does_not_simulate_it(cells_of, spec_text):
    cells = cells_of(
        spec_text.replace("stub_plugins:small", "nets/net.onnx").replace("Half", "Onnx")
    )
    native = [c for c in cells if c.model.label == "nets/net.onnx" and not c.is_baseline]
    assert {c.execution for c in native} == {"native"}
    assert {c.simulator for c in native} == {None}


@pytest.mark.usefixtures("onnx_file")
def test_what_a_backend_refuses_of_a_kind_of_model_file_is_unsupported_in_the_plan(
    cells_of, spec_text
):
    text = spec_text.replace("stub_plugins:small", "nets/net.onnx").replace("Half", "Graphs")
    cells = [cell for cell in cells_of(text) if not cell.is_baseline]
    of_file = {str(c.bits): c for c in cells if c.model.label == "nets/net.onnx"}
    of_callable = {str(c.bits): c for c in cells if c.model.label != "nets/net.onnx"}
    assert (of_file["w8"].execution, of_callable["w8"].execution) == ("native", "native")
    assert (of_file["w4"].execution, of_callable["w4"].execution) == (None, "simulated")
    assert of_file["w4"].reason == (
        "native: its kernels are 8-bit; simulated: a graph has no layers"
    )
    assert (of_file["w8"].simulator, of_callable["w8"].simulator.label) == (
        None,
        "stub_plugins:Graphs",
    )


@pytest.mark.usefixtures("onnx_file")
def test_who_simulates_files_of_its_format_alone_does_so_where_it_is_a_file_or_is_asked(
    cells_of, spec_text
):
    text = spec_text.replace("stub_plugins:small", "nets/net.onnx").replace("Half", "OfFiles")

    def of(text, is_file):
        cells = [cell for cell in cells_of(text) if not cell.is_baseline]
        return {str(c.bits): c for c in cells if (c.model.label == "nets/net.onnx") == is_file}

    assert of(text, True)["w4"].execution == "simulated"
    assert of(text, True)["w8"].simulator.label == "stub_plugins:OfFiles"
    left = of(text, False)["w4"]
    assert left.execution is None
    assert "`execution: simulated` asks for it" in left.reason
    assert of(text + "execution: simulated\n", False)["w4"].execution == "simulated"
    # Who simulates all that it takes comes before it, where the kind of model is not known.
    assert of(text, False)["w8"].simulator.label == "pytorch"


@pytest.mark.parametrize("scheme", ["weight_only", "static"])
def test_the_plan_of_a_saved_model_says_what_the_run_will(cells_of, tmp_path, monkeypatch, scheme):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"x")
    bits = {"weight_only": "[w8]", "static": "[w8a8, w4a8]"}[scheme]
    cells = cells_of(
        f"sweep: t\nmodels: ./saved\ndatasets: json:d\nschemes: {scheme}\nbits: {bits}\n"
        "backends: tensorflow\n"
    )
    found = {str(cell.bits): cell for cell in cells if not cell.is_baseline}
    assert {bits: cell.execution for bits, cell in found.items()} == {
        "weight_only": {"w8": None},
        "static": {"w8a8": "native", "w4a8": None},
    }[scheme]
    refused = found["w8" if scheme == "weight_only" else "w4a8"]
    assert "simulated: a SavedModel is a graph without layers" in refused.reason


# Size


def test_the_expected_size_is_the_number_of_cells(load, cells_of, spec_text):
    for addition in ("", "exclude: {bits: w8}\n", "include: {bits: w6}\n", "execution: native\n"):
        text = spec_text + addition
        assert expected_size(load(text)) == len(cells_of(text))


def test_a_plan_may_have_just_max_cells(load, spec_text):
    check_size(load(f"{spec_text}max_cells: 10\n"))
    with pytest.raises(SpecError, match=r"sweep\.yaml:7:12: the plan has more than 9 cells"):
        check_size(load(f"{spec_text}max_cells: 9\n"))


def test_rules_that_drop_every_cell_are_an_error(load, spec_text):
    with pytest.raises(SpecError, match=r"sweep\.yaml:7:10: these rules drop every cell"):
        check_size(load(f"{spec_text}exclude: {{model: '*'}}\n"))
    check_size(load(f"{spec_text}exclude: {{model: '*'}}\ninclude: {{bits: w8}}\n"))


def test_devices_are_labelled_by_their_threads(cells_of, spec_text):
    cells = cells_of(spec_text + "devices: [cpu, {name: cpu, threads: 2}]\n")
    assert {label_of(cell.device) for cell in cells} == {"cpu", "cpu[threads=2]"}
    cells = cells_of(
        spec_text + "devices: [cpu, {name: cpu, threads: 2}]\nexclude: {device: '*2]'}\n"
    )
    assert {label_of(cell.device) for cell in cells} == {"cpu"}
