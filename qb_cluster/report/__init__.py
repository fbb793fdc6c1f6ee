"""What a run says: analysed once, shown on a terminal and written to files."""

from qb_cluster.report.show import Wish, show_report

__all__ = ["Wish", "show_report"]
