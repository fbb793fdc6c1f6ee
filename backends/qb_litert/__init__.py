"""The ``.tflite`` file: how to read what it holds and how to run it. A library, not a backend."""
