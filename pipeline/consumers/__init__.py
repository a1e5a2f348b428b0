"""Give the images of a dataset to the tools that calibrate a quantised network.

:mod:`pipeline.consumers.images` chooses the images and normalises them. Each other module adapts
them to one tool, which it imports only when it is used.
"""
