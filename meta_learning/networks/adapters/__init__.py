"""Adapters, one per file: what the inner loop adapts beside the layers of a body, in the place of their weights."""
