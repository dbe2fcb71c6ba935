"""Reads, inspects and divides labelled images."""
