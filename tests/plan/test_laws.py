"""Laws that hold for any sweep, checked against a plain product of the axes."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from typing import get_args

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qb_cluster.contracts import Calibration, ObserverName
from qb_cluster.contracts.calibration import calibration_label
from qb_cluster.plan import expected_size
from qb_cluster.spec import label_of

AXES = {
    "model": ["json:m1", "json:m2", "json:m3"],
    "dataset": ["json:d1", "json:d2"],
    "scheme": ["weight_only", "dynamic", "static"],
    "bits": ["w8", "w4", "w2", "w8a8", "w4a8", "w2a2"],
    "backend": ["stub_plugins:Half", "stub_plugins:Anything"],
    "device": ["cpu", "cpu[threads=2]", "pi"],
}
DEVICES = {
    "cpu[threads=2]": "{name: cpu, threads: 2}",
    "pi": "{name: pi, labels: {qb/board: rpi5}, threads: 4}",
}
KEYS = {axis: axis if axis == "bits" else f"{axis}s" for axis in AXES}
LAW = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def subset(values):
    return st.lists(st.sampled_from(values), min_size=1, unique=True)


def written(axis, labels):
    if axis == "device":
        return f"[{', '.join(DEVICES.get(label, label) for label in labels)}]"
    return "[" + ", ".join(f"'{label}'" for label in labels) + "]"


def patterns(match):
    inner = ", ".join(
        f"{axis}: [{', '.join(repr(x) for x in labels)}]" for axis, labels in match.items()
    )
    return f"{{{inner}}}"


@dataclass
class Sweep:
    """A sweep in plain values, and what it has to come to."""

    axes: dict
    exclude: list = field(default_factory=list)
    order: list = field(default_factory=lambda: list(KEYS))

    def text(self, more=""):
        lines = ["sweep: law"]
        lines += [f"{KEYS[axis]}: {written(axis, self.axes[axis])}" for axis in self.order]
        if self.exclude:
            lines += ["exclude:", *(f"  - {patterns(match)}" for match in self.exclude)]
        return "\n".join(lines) + "\n" + more

    def combinations(self, axes=None):
        axes = axes or self.axes
        for values in product(*(axes[axis] for axis in AXES)):
            combination = dict(zip(AXES, values, strict=True))
            if ("a" in combination["bits"]) == (combination["scheme"] != "weight_only"):
                yield combination

    def kept(self):
        return [
            c for c in self.combinations() if not any(matches(match, c) for match in self.exclude)
        ]


def matches(match, combination):
    return all(combination[axis] in labels for axis, labels in match.items())


@st.composite
def sweeps(draw):
    axes = {axis: draw(subset(values)) for axis, values in AXES.items() if axis != "bits"}
    forms = {scheme == "weight_only" for scheme in axes["scheme"]}
    axes["bits"] = [
        bits
        for is_weight_only in forms
        for bits in draw(subset([b for b in AXES["bits"] if ("a" not in b) == is_weight_only]))
    ]
    sweep = Sweep(axes)
    for _ in range(draw(st.integers(0, 2))):
        named = draw(subset(list(AXES)))
        match = {axis: draw(subset(axes[axis])) for axis in named}
        if any(matches(match, c) for c in sweep.combinations()):
            sweep.exclude.append(match)
    return sweep


def combination_of(cell):
    return {
        "model": cell.model.label,
        "dataset": cell.dataset.label,
        "scheme": cell.scheme.label,
        "bits": str(cell.bits),
        "backend": cell.backend.label,
        "device": label_of(cell.device),
    }


def quantized(cells):
    return [cell for cell in cells if not cell.is_baseline]


def key(combination):
    return tuple(combination[axis] for axis in AXES)


@given(sweeps())
@LAW
def test_the_plan_is_the_product_less_the_excluded(load, cells_of, sweep):
    cells = cells_of(sweep.text())
    assert sorted(key(combination_of(c)) for c in quantized(cells)) == sorted(
        map(key, sweep.kept())
    )
    assert expected_size(load(sweep.text())) == len(cells)


@given(sweeps())
@LAW
def test_ids_are_unique_and_every_baseline_comes_once_before_its_cells(cells_of, sweep):
    seen = set()
    needed = set()
    for cell in cells_of(sweep.text()):
        assert cell.cell_id not in seen
        seen.add(cell.cell_id)
        if cell.execution is not None:
            assert cell.baseline_cell_id in seen
            if not cell.is_baseline:
                needed.add(cell.baseline_cell_id)
    planned = {cell.cell_id for cell in cells_of(sweep.text()) if cell.is_baseline}
    assert planned == needed


@given(sweeps(), st.data())
@LAW
def test_ids_do_not_depend_on_the_order_of_keys_or_entries(cells_of, sweep, data):
    other = Sweep(
        {axis: data.draw(st.permutations(values)) for axis, values in sweep.axes.items()},
        sweep.exclude,
        data.draw(st.permutations(list(KEYS))),
    )
    assert {c.cell_id for c in cells_of(sweep.text())} == {
        c.cell_id for c in cells_of(other.text())
    }


@given(sweeps(), st.data())
@LAW
def test_any_excluded_cells_can_be_included_again(cells_of, sweep, data):
    kept = [key(c) for c in sweep.kept()]
    dropped = [c for c in sweep.combinations() if key(c) not in kept]
    back = (
        data.draw(st.lists(st.sampled_from(dropped), max_size=4, unique_by=key)) if dropped else []
    )
    includes = [
        "  - {" + ", ".join(f"{axis}: {written(axis, [c[axis]])}" for axis in AXES) + "}\n"
        for c in back
    ]
    cells = cells_of(sweep.text("include:\n" + "".join(includes)))
    whole = {
        key(combination_of(c)): c.cell_id for c in quantized(cells_of(Sweep(sweep.axes).text()))
    }
    assert {key(combination_of(c)): c.cell_id for c in quantized(cells)} == {
        k: whole[k] for k in [*kept, *map(key, back)]
    }


@given(sweeps(), st.data())
@LAW
def test_the_last_override_that_matches_wins(cells_of, sweep, data):
    overrides = []
    for number in range(data.draw(st.integers(1, 3))):
        match = {
            axis: data.draw(subset(sweep.axes[axis])) for axis in data.draw(subset(list(AXES)))
        }
        if any(matches(match, c) for c in sweep.combinations()):
            overrides.append((match, 1 + number))
    text = "overrides:\n" + "".join(
        f"  - {{when: {patterns(match)}, set: {{measure: {{batch_size: {size}}}}}}}\n"
        for match, size in overrides
    )
    cells = cells_of(sweep.text(text))
    sizes = {cell.cell_id: cell.measure.batch_size for cell in cells if cell.is_baseline}
    for cell in quantized(cells):
        expected = [size for match, size in overrides if matches(match, combination_of(cell))]
        assert cell.measure.batch_size == (expected or [64])[-1]
        if cell.execution is not None:
            assert sizes[cell.baseline_cell_id] == cell.measure.batch_size


@given(
    observers=subset(get_args(ObserverName)),
    percentiles=subset([99.0, 99.9, 99.99]),
    samples=subset([8, 128]),
    seeds=subset([0, 1, 2]),
    schemes=subset(["weight_only", "static", "dynamic", "fp16", "fp8"]),
    dropped=st.sampled_from(["nothing", "mse*", "*seed=1]", "none"]),
)
@LAW
def test_static_cells_are_multiplied_by_what_calibrates_differently_and_others_are_not(
    load, cells_of, observers, percentiles, samples, seeds, schemes, dropped
):
    bits = ["w8"] * ("weight_only" in schemes) + ["w4a8"] * bool({"static", "dynamic"} & {*schemes})
    text = (
        f"sweep: t\nmodels: ['json:m']\ndatasets: ['json:d']\nschemes: {schemes}\n"
        + f"bits: {bits}\n" * bool(bits)
        + f"backends: ['stub_plugins:Anything']\ncalibration: {{observer: {observers}, "
        f"samples: {samples}, seed: {seeds}"
        + f", percentile: {percentiles}" * ("percentile" in observers)
        + "}\n"
    )
    calibrations = {
        Calibration(s, seed, o, p if o == "percentile" else 99.99)
        for o, s, seed, p in product(observers, samples, seeds, percentiles)
    }
    own = {"weight_only": "w8", "static": "w4a8", "dynamic": "w4a8", "fp16": "w16a16", "fp8": "w8"}
    expected = [
        (scheme, own[scheme], calibration_label(calibration))
        for scheme in schemes
        for calibration in (calibrations if scheme == "static" else [None])
    ]
    if any(fnmatchcase(label, dropped) for _, _, label in expected):
        text += f"exclude: {{calibration: '{dropped}'}}\n"
        expected = [one for one in expected if not fnmatchcase(one[2], dropped)]
    cells = quantized(cells_of(text))
    found = [(c.scheme.label, str(c.bits), calibration_label(c.calibration)) for c in cells]
    assert sorted(found) == sorted(expected)
    assert expected_size(load(text)) == len(cells) + bool(cells)
    assert len({c.cell_id for c in cells}) == len(cells)
