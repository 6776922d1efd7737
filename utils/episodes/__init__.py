"""Which classes and images make up episode i, and the same as tensors."""
