"""Losses of a task, one per file: what outputs are judged by, in the inner and the outer loop."""
