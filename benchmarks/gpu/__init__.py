"""The same on a lent GPU, in pieces that fit its time."""
