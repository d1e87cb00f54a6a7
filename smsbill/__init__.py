"""The roof: the `smsbill` command and the assembly of the services into one stack."""
