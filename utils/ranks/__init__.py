"""Several processes that work on one run: starting them, what they tell each other, how they stop."""
