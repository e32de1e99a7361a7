"""Many solves of one problem: other initial values, parameters, or noise."""
