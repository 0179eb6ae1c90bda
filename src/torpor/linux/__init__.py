"""The kernel as it is: one file per interface, no policy. Errors are `OSError` with the kernel's own errno."""
