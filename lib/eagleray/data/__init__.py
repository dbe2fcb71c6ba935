"""Labelled images: read from trees and tables, looked at, and divided into parts once."""
