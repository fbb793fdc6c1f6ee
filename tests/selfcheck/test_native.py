import pytest

from qb_cluster.selfcheck.native import check_backend

pytestmark = pytest.mark.frameworks


@pytest.mark.parametrize("backend", ["pytorch", "tflite", "onnxruntime"])
def test_kernels_compute_what_numpy_computes_on_the_same_tensors(backend):
    checks = list(check_backend(backend))
    assert [check for check in checks if not check.ok] == []
    held = [check.subject for check in checks if check.expected is not None]
    for scheme in ("float", "weight_only w8", "dynamic w8a8", "static w8a8"):
        assert f"{backend}, linear {scheme}" in held
    assert f"{backend}, conv static w8a8" in held
