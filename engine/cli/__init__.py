"""The command line of the engine's own commands."""
