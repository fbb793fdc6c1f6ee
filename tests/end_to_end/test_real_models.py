"""``sweeps/real.yaml`` through the real driver: nothing fails, or is half done in silence."""

import io
import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from qb_cluster.contracts.coverage import WHOLE

pytestmark = pytest.mark.frameworks

SWEEP = Path(__file__).parents[2] / "sweeps" / "real.yaml"
FAST = ("lstm", "vit-multihead")
"""Nets that load in a second, with layers of every kind but transposed convolutions."""
WRITTEN_OUT = {"attention": "linear", "recurrent": "linear"}
"""Kinds that files have as plain products."""


def cut(models, examples):
    """The sweep with these models alone, natively and simulated, untimed."""
    yaml = YAML()
    spec = yaml.load(SWEEP)

    def kept(entries):
        return [entry for entry in entries if models is None or entry["label"] in models]

    spec["models"] = kept(spec["models"])
    for entry in spec["include"]:
        several = entry["model"] if isinstance(entry["model"], list) else [entry["model"]]
        entry["model"] = kept(several)
    spec["include"] = [entry for entry in spec["include"] if entry["model"]]
    used = {dataset_label(entry["dataset"]) for entry in spec["include"]}
    spec["overrides"] = [o for o in spec["overrides"] if o["when"]["dataset"] in used]
    spec["execution"] = ["native", "simulated"]
    spec["measure"] = {"latency": False, "examples": examples}
    if models is not None:  # static cells of pytorch compile for half a minute each
        spec["exclude"] = [{"backend": "pytorch", "scheme": "static", "execution": "native"}]
        for entry in spec["include"]:  # which nothing is excluded from
            entry["scheme"] = ["weight_only", "dynamic"]
    text = io.StringIO()
    yaml.dump(spec, text)
    return text.getvalue()


def dataset_label(entry):
    return entry if isinstance(entry, str) else entry["label"]


def run(place, models, examples, timeout_s):
    spec = place.spec(cut(models, examples))
    done = place.qb("run", spec, "--out", "out", "--pool", "inline", timeout_s=timeout_s)
    assert done.returncode == 0, done.stderr
    results = place.results("out")
    return results[results["scheme"] != "float"]


def by_kind(coverage):
    """Coverage with the kinds put together that files do not tell apart."""
    merged = {}
    for kind, (done, total) in json.loads(coverage).items():
        before = merged.get(WRITTEN_OUT.get(kind, kind), (0, 0))
        merged[WRITTEN_OUT.get(kind, kind)] = (before[0] + done, before[1] + total)
    return merged


def check(results):
    """Hold what is promised of any table of results."""
    assert set(results["status"]) <= {
        "ok",
        "partial",
        "unsupported",
        "not_applied",
        "kernel_mismatch",
    }
    ran = results[results["covered_share"].notna()]
    few = ran["covered_share"] < WHOLE
    assert set(ran[few]["status"]) <= {"partial", "not_applied"}
    assert (ran[ran["status"] == "not_applied"]["covered_share"] == 0).all()
    is_pytorch = ran["backend"] == "pytorch"
    simulated = ran[(ran["execution"] == "simulated") & is_pytorch]
    simulated = simulated.set_index(["model", "scheme", "bits"])
    assert (simulated["covered_share"] == 1).all()
    compared = 0
    for row in ran[ran["execution"] == "native"].itertuples():
        key = (row.model, row.scheme, row.bits)
        if key not in simulated.index:
            continue
        compared += 1
        whole, found = by_kind(simulated.loc[key, "coverage"]), by_kind(row.coverage)
        left = {kind for kind in whole if found.get(kind) != whole[kind]}
        told = [] if row.notes is None else list(row.notes)
        is_told = len(row.fallback_ops) or re.search(r"weight( tensor)?s stay float", str(told))
        assert not left or is_told, (key, row.backend, left, told)
    return compared


def test_a_part_of_the_real_models_is_covered_whole_or_says_what_is_not(place):
    results = run(place, FAST, examples=8, timeout_s=240)
    assert set(results["model"]) == set(FAST)
    assert check(results) == (3 * 4 - 1) + 3 * 3


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_all_real_models_are_covered_whole_or_say_what_is_not(place):
    results = run(place, None, examples=16, timeout_s=3500)
    assert results["model"].nunique() == 16
    assert check(results) >= 120
