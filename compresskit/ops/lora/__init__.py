"""Adapters: small trained terms beside the weights of a model, which stay as they are."""
