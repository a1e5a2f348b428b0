"""Build the networks of teachers and students, load their weights, check and digest them."""
