"""One file (or package) for each module, named like its pure half: the effects around one engine."""
