"""The commands of ``dreamshard``: each takes the parameters and its options, and prints."""
