"""What runs on a board: Python 3.8, NumPy and a runtime are enough. Shipped by ``bundle``."""
