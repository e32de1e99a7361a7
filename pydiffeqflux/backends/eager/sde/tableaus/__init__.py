"""The coefficients of the stochastic Runge-Kutta methods, one method a file."""
