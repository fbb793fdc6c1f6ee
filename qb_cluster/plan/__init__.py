"""A sweep spec to a lazy stream of cells."""

from qb_cluster.plan.expand import check_size, expand, expected_size
from qb_cluster.plan.render import plan_json_lines, plan_lines

__all__ = ["check_size", "expand", "expected_size", "plan_json_lines", "plan_lines"]
