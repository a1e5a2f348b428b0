"""Live logging: the values of a student's training, sent to a logger such as TensorBoard."""
