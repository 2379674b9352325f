"""Pods from configuration files; imports configuration alone."""
