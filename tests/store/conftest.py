import io

import pytest
from object_store import place, s3_place, s3_server
from rich.console import Console

__all__ = ["place", "s3_place", "s3_server"]


@pytest.fixture
def console():
    """A terminal that nobody sees."""
    return Console(file=io.StringIO(), width=80)
