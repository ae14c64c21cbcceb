"""How long a test waits for a process."""

# seconds that only a hang reaches, on a busy machine, too
HANG = 1800.0
