"""Models: checkpoint folders loaded as torch modules (CLIP, vision, text and language models)."""
