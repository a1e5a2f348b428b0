"""Prefect flows over :mod:`pipeline`: fan-out, retries and progress, and no logic of their own."""
