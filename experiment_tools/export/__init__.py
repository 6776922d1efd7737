"""A trained network as a plain one, for other programs."""
