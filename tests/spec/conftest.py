from pathlib import Path

import pytest

from qb_cluster.spec import load_spec

STUBS = Path(__file__).parent / "stubs"

SPEC = """\
sweep: trial
models: [stub_plugins:small, stub_plugins:large]
datasets: [stub_plugins:data]
schemes: [weight_only, static]
bits: [w8, w4, w2, w8a8]
backends: [stub_plugins:Half]
"""


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
def refusal(load):
    """Give the lines of the error that a spec ends in, without the name of the file."""
    from qb_cluster.errors import SpecError

    def refused(text):
        with pytest.raises(SpecError) as caught:
            load(text)
        lines = str(caught.value).splitlines()
        assert len(lines) <= 11
        return [line.partition("sweep.yaml:")[2] or line for line in lines]

    return refused


@pytest.fixture
def spec_text():
    return SPEC
