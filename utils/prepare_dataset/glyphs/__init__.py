"""Few-shot datasets drawn from fonts and icon sets: what is read, how it is drawn, which classes it becomes."""
