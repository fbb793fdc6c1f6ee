"""Copies of frozen values in which one field holds something else."""

from copy import copy


def with_field(value, name):
    """A copy whose field holds something else, whatever the class would say to it."""
    changed = copy(value)
    object.__setattr__(changed, name, "another")
    return changed
