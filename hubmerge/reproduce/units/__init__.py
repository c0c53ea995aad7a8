"""How each kind of unit is made: by the flows that the commands use, without the command line."""
