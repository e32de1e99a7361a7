"""Models with a differential equation inside, one family a file."""
