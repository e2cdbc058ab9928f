"""What a run asks of the operating system: signals, memory, files, the terminal."""
