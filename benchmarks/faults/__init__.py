"""Fault injection: what remains of a run after kills, full disks, power losses and the like."""
