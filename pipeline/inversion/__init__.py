"""Images from a teacher: one batch from starting images to finished pixels."""
