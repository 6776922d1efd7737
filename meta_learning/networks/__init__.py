"""Functional layers, and the backbones that are built from them or brought by a user."""
