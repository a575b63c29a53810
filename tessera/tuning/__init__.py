"""Runs on this machine what the compiler wants to have timed."""
