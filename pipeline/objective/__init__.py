"""What an inversion minimises: the terms, their weights as presets, and BatchNorm statistics."""
