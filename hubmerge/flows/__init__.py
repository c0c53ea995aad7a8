"""What the commands do once their arguments are parsed, one file for each command."""
