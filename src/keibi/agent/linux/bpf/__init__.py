"""Programs that run in the kernel, and how they are built."""
