"""Outputs of the references, stored small, and the comparison of our models with them."""
