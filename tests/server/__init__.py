"""The embedded Hub: its real process over real HTTP, asked by unmodified clients."""
