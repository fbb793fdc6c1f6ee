"""Models of a user: reading a spec looks into this file, and imports nothing."""

raise ImportError("nobody is to import this")


def net() -> object:
    return "a net"
