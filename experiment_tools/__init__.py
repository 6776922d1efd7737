"""What one does around a run: each tool is started as `python -m experiment_tools.<name>`."""
