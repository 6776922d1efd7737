"""Trying values of config keys, trial by trial."""
