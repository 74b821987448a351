"""Memory and time of a stage on given machines, read from the compiled program."""
