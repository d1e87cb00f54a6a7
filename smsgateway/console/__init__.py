"""The console: pages for people at `/` of the gateway's HTTP port (docs/console.md)."""
