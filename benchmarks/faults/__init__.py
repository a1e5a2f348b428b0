"""What kills, full disks, power losses and other faults leave of a run."""
