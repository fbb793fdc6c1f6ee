"""The self-check: does this installation compute what the theory of quantization says it must?"""

from qb_cluster.selfcheck.check import Check
from qb_cluster.selfcheck.run import run_selfcheck
from qb_cluster.selfcheck.table import print_checks

__all__ = ["Check", "print_checks", "run_selfcheck"]
