import pytest


@pytest.fixture(scope="module")
def cells_of(load):
    """Give the cells of a spec's text."""
    from qb_cluster.plan import expand

    return lambda text: list(expand(load(text)))
