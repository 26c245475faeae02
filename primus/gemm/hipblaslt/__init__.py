"""hipBLASLt's own tool, files and logs: everything about AMD that needs no GPU to be tested."""
