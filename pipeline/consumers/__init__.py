"""Give the images of a dataset to the tools that calibrate a quantised network.

:mod:`pipeline.consumers.images` chooses the images and normalises them. The other modules adapt
them to one tool each. A module imports its tool only when one of its functions is called.
"""
