"""Mixtures of LoRA experts: the layer, its router, and how the router is initialised."""
