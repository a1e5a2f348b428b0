"""The optimisation of one batch of images, and the selection of the images to publish."""
