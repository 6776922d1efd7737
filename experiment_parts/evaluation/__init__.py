"""From fixed tasks to test_summary: which models, which tasks, which numbers."""
