"""How each kind of unit is performed: with the flows that the commands use."""
