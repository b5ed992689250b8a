"""The command line: everything the console does, over the same API, and what runs on this computer."""
