"""Writes the files in ``paths.reports``: metrics, curves and pictures."""
