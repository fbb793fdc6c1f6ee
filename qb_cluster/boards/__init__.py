"""Boards too small for Ray, and other Pythons of this machine: one agent, two transports."""
