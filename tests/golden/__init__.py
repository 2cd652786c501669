"""Outputs of the references, kept small, and the comparison of our models with them."""
