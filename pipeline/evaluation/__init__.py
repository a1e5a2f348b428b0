"""Measures of finished work: accuracy on real images, and the variety of the synthetic ones."""
