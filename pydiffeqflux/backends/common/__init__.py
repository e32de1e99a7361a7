"""What all engines share: the equation of a problem, stretches between jumps, and how they become a solution."""
