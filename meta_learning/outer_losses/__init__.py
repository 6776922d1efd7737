"""Outer losses, one per file: of the query losses over tasks and inner steps."""
