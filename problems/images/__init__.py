"""Learned image models: data, networks, training, and exact and distilled derivatives of networks."""
