"""The sections of a parameter file, and the checks of their values.

One module holds one section (``networks`` holds ``teacher`` and ``student``). The docstring below a
field says what the field means, its unit and its range. This package builds no network and reads no
file: :mod:`pipeline.params` does.
"""
