"""The gateway's SQL: one module per concern, set-based, every statement one that a database sharded by brand can run.

Functions take a connection inside a transaction, which their caller ends; they decide nothing but what a condition in
a statement decides.
"""
