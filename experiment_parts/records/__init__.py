"""What is written down and told while a run trains."""
