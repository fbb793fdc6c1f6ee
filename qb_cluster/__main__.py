"""``python -m qb_cluster`` is ``qb``."""

from qb_cluster.cli import main

if __name__ == "__main__":
    main()
