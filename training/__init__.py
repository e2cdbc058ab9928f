"""The trainer: plain arguments in, plain objects out; nothing here imports train.py."""
