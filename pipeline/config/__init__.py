"""The sections of a parameter file, one module each, and the checks of their values.

The docstring below a field says what the field means, its unit and its range. This package builds
no network and reads no file: :mod:`pipeline.params` does.
"""
