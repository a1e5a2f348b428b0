"""The loss that an inversion minimises: its terms, their weights, and BatchNorm statistics.

A new term is one entry in ``terms.TERMS`` and one function (a file of this folder). Its weight is
one field of ``presets.Objective``. The key in the parameters follows from this field. An import
fails with a clear message if the field is missing.
"""
