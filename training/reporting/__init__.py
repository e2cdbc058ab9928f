"""What people see of a run, and what is written down."""
