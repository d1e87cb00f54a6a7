"""What Grafana asks for as JSON: balances, packages and usage of brands."""
