"""What several tools share: reading runs, naming their methods and settings, pages and texts."""
