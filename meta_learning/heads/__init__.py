"""Heads, one per file: where the last layer starts in each episode."""
