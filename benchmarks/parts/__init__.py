"""What the programs here share: measuring, training runs for a table, interrupting scripts."""
