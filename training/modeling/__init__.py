"""The network that is trained: built or loaded, its BatchNorm statistics, its EMA."""
