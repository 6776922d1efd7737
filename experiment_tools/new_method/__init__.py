"""The beginning of a method of one's own: a commented file, its test, and the gradient check on it."""
