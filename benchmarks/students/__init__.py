"""What students learn from a dataset."""
