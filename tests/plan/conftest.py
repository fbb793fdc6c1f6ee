from pathlib import Path

import pytest

from qb_cluster.spec import load_spec

STUBS = Path(__file__).parents[1] / "spec" / "stubs"


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Load a spec from its text, in a place where the stub plug-ins can be imported."""
    path = tmp_path_factory.mktemp("specs") / "sweep.yaml"

    def load_text(text):
        path.write_text(text, encoding="utf-8")
        return load_spec(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STUBS))
        yield load_text


@pytest.fixture(scope="module")
def cells_of(load):
    """Give the cells of a spec's text."""
    from qb_cluster.plan import expand

    return lambda text: list(expand(load(text)))


@pytest.fixture
def spec_text():
    return """\
sweep: trial
models: [stub_plugins:small, stub_plugins:large]
datasets: [stub_plugins:data]
schemes: [weight_only, static]
bits: [w8, w4, w2, w8a8]
backends: [stub_plugins:Half]
"""
