"""Loads a running server and says what came of it."""
