"""Images before the network: a sample on the CPU, a batch on the device."""
