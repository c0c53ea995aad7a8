"""Engines that perform units: in this process, in other processes, on a Ray cluster."""
