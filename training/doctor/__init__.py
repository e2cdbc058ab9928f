"""What limits a run, measured."""
