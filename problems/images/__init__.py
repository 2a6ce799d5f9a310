"""Learned image models: data, networks, training and the derivatives of what was learned."""
