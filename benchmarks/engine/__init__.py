"""How fast the inversion loop is."""
