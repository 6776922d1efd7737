"""Other ways to the outer gradient than through all inner steps at the parameters as they are."""
