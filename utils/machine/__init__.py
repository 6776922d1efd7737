"""What the machine is asked for and what it may say: devices, signals, failures, the C library."""
