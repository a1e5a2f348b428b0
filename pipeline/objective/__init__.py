"""The loss that an inversion minimises: its terms, their weights, and BatchNorm statistics.

A new term is one entry in ``terms.TERMS`` and one function (a file of this folder). Its weight is
one field of ``presets.Objective``, and its key in the parameters is the field of the same name in
``pipeline/config/objective.py``. An import fails with a clear message if either field is missing.
"""
