"""The evaluation of a learner on tasks, and the baselines that are scored on the same tasks."""
