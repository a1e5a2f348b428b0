"""Measures students on real images, and the dataset's variety and likeness to real images."""
