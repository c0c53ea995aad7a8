"""Mixtures of LoRA experts: the layer, its router, and how they start."""
