"""Prefect flows over :mod:`pipeline`. They add retries and progress, and no other logic."""
