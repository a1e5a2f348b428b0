"""Teachers of many sources and kinds, and the networks that they are."""
