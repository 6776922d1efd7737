"""Runs beside each other: tables with intervals, tests, curves."""
