"""Diffusion language models in JAX: one paper, one file, on shared mathematics."""

__version__ = "0.1.0"
