"""Adaptation without learning as a value, and what stands beside a result on the same tasks."""
