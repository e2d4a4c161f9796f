"""One step of the model: branches become arrays, arrays go through the model, tokens come back."""
