"""How a step is carried out: tasks at once, recorded kernels, recomputed steps, number formats.

The algorithm does not know.
"""
