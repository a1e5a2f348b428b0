"""What a run would cost, and which parameters suit a teacher, before the run."""
