"""Copies of a finished dataset in the formats of other programs, one module for each format.

``FORMATS`` of :mod:`pipeline.exporting.formats` lists them. A format reads a
:class:`~pipeline.exporting.source.Source`: the chosen images, each shard checked against the
provenance before one of its bytes is used.
"""
