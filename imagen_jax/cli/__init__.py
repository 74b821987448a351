"""The commands of `imagen`: one module each, with its arguments and what runs it."""
