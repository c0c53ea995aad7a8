"""The composed walks, one verb a file: what a command does once its words are understood."""
