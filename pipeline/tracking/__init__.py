"""Live logging: send the values of a student's training to a logger such as TensorBoard."""
