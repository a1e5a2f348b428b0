"""The files in the reports folder: metrics, curves and pictures."""
