"""Estimates before a run: its cost, and parameters that suit a teacher."""
