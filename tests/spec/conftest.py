import pytest


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
