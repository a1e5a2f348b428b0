"""A zoo of small teachers, to choose defaults on one half and to test them on the other."""
