"""One module a command: its flags, and what it does. Libraries are loaded when it runs."""
