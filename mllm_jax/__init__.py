"""Pretraining of multimodal LLMs on JAX."""
