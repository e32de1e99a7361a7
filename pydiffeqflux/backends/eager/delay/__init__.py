"""Delay differential equations: delayed states read off the steps behind, and steps that end where these break."""
