"""The command line. ``app`` names the commands, the other modules do their work when called."""
