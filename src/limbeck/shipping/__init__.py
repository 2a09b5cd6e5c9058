"""What leaves the house: the student, and nothing else."""
