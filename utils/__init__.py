"""What everything stands on: a few files on the ground, and wings with names."""
