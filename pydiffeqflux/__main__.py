"""``python -m pydiffeqflux``: the command line."""

from .cli import main

main()
