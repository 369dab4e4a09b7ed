"""Unlearning methods, one file each, and the controls they are measured beside."""
