"""STAR: the spatiotemporal autoregressive diffusion transformer (INSPATIO-WORLD, arXiv 2604.07209)."""
