"""A ResNet-20 pruned, or trained at 4 and 3 bits, with real images, synthetic ones and noise."""
