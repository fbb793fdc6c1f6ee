import functools

import pytest

from qb_cluster.contracts.coverage import LAYER_KINDS
from qb_cluster.selfcheck.native import check_backend

pytestmark = pytest.mark.frameworks


@functools.cache
def checks_of(backend):
    return list(check_backend(backend))


@pytest.mark.parametrize("backend", ["pytorch", "tflite", "onnxruntime"])
def test_kernels_compute_what_numpy_computes_on_the_same_tensors(backend):
    checks = checks_of(backend)
    assert [check for check in checks if not check.ok] == []
    held = [check.subject for check in checks if check.expected is not None]
    for scheme in ("float", "weight_only w8", "dynamic w8a8", "static w8a8"):
        assert f"{backend}, linear {scheme}" in held
    assert f"{backend}, conv static w8a8" in held


OTHER_KINDS = {
    "pytorch": {"embedding", "attention"},
    "onnxruntime": {"conv_transpose", "embedding", "recurrent", "attention"},
    "tflite": {"conv_transpose", "embedding", "recurrent", "attention"},
}


@pytest.mark.nightly
@pytest.mark.parametrize("backend", OTHER_KINDS)
def test_every_kind_of_layer_is_held_by_its_weights_or_told_to_stay_float(backend):
    checks = [check for check in checks_of(backend) if check.subject.endswith("weight_only w8")]
    held = {c.subject.split()[1] for c in checks if c.expected is not None}
    left = {c.subject.split()[1]: c.note for c in checks if c.expected is None}
    assert held == {"linear", "conv"} | OTHER_KINDS[backend]
    assert held | set(left) == set(LAYER_KINDS)
    assert all("the weight stays float" in note for note in left.values())
