"""The OpenAI-compatible HTTP server and its page; needs the `serve` extra."""
