"""The fields of a parameter file and the checks of their values. Builds no network."""
