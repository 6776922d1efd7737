"""A run's folder and what lies in it: checkpoints, console, state that is resumed."""
