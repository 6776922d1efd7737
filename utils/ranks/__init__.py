"""Several processes that work on one run: starting them, what they exchange, how they stop."""
