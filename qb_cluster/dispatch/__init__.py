"""Who runs what next: a pure scheduler and the pools that obey it."""
