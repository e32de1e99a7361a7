"""The explicit Runge-Kutta methods: one tableau a file, and the stepper that runs them all."""
