"""Settings that several configurations share, and their checks. Imports nothing heavy."""
