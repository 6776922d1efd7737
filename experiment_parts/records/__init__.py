"""What is written and reported while a run trains."""
