"""Functional layers, and the backbones that are built from them or brought by a user."""

from meta_learning.networks.base import MetaNetwork

__all__ = ["MetaNetwork"]
