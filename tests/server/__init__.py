"""Tests of the embedded Hub: a real process over real HTTP, with unmodified clients."""
