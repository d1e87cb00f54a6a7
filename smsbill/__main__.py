"""`python -m smsbill` is the `smsbill` command."""

from smsbill.command import main

main()
