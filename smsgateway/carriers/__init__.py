"""Carriers: the protocol that the senders speak (`base`) and one module per vendor behind it."""
