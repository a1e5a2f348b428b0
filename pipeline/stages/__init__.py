"""The stages that a user runs on a whole dataset: synthesize, distill, verify, status."""
